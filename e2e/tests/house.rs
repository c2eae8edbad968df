//! The rules of the house, checked: who may depend on whom, and that the README's map is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn workspace() -> Vec<Value> {
    metadata()["packages"].as_array().cloned().expect("packages")
}

/// Dependencies of each package, without those for its tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    workspace()
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().cloned().unwrap_or_default();
            (name(package), all.iter().filter(|d| d["kind"].is_null()).map(name).collect())
        })
        .collect()
}

#[test]
fn dependencies_point_downwards_only() {
    let allowed: &[(&str, &[&str])] = &[
        ("manifests", &[]),
        ("crds", &["manifests"]),
        ("sys", &[]),
        ("oci", &["sys"]),
        ("image", &["network", "sys"]),
        ("network", &["sys"]),
        ("systemd", &["oci", "sys"]),
        ("engine", &["oci", "image", "network", "systemd", "sys"]),
        ("plan", &["manifests"]),
        ("node", &["manifests", "plan", "engine"]),
        ("fleet", &["crds", "manifests", "node"]),
        ("api", &["node", "plan", "engine", "manifests"]),
        // `portreeve runtime` takes over descriptors and terminals itself.
        ("cli", &["api", "fleet", "node", "plan", "engine", "oci", "systemd", "sys", "manifests"]),
        ("e2e", &[]),
    ];
    let dependencies = dependencies();
    assert_eq!(dependencies.len(), allowed.len(), "a crate is missing from this table: {:?}", dependencies.keys());
    for (package, allowed) in allowed {
        for dependency in &dependencies[&format!("portreeve-{package}")] {
            if let Some(ours) = dependency.strip_prefix("portreeve-") {
                assert!(allowed.contains(&ours), "{package} must not depend on {ours}");
            }
        }
    }
}

#[test]
fn pure_and_fork_safe_crates_stay_so() {
    let dependencies = dependencies();
    for package in ["plan", "manifests", "crds", "oci", "sys"] {
        for banned in ["tokio", "tracing", "rand", "hyper", "futures-util"] {
            let name = format!("portreeve-{package}");
            assert!(!dependencies[&name].contains(banned), "{package} must not depend on {banned}");
        }
    }
}

#[test]
fn the_readme_names_every_crate_and_every_crate_has_a_licence() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    for package in workspace() {
        let name = package["name"].as_str().expect("a name");
        assert!(readme.contains(&format!("`{name}`")), "the README's code map does not name {name}");
        assert_eq!(package["license"], "Apache-2.0", "{name}");
    }
}

#[test]
fn unsafe_code_lives_in_one_crate() {
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') && !path.ends_with("runtime/sys") {
                folders.push(path);
            } else if name.ends_with(".rs") && !path.ends_with("e2e/tests/house.rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let keywords = ["{", "fn", "impl", "extern"].map(|what| format!("unsafe {what}"));
                for mark in keywords.into_iter().chain(["allow(unsafe_code".to_owned()]) {
                    assert!(!text.contains(&mark), "{} has `{mark}`", path.display());
                }
            }
        }
    }
}

#[test]
fn a_fresh_checkout_builds_the_one_binary_with_what_is_installed() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().cloned().expect("packages");
    let name_of =
        |id: &Value| packages.iter().find(|package| package["id"] == *id).map(|package| package["name"].clone());
    let default = metadata["workspace_default_members"].as_array().cloned().expect("default members");
    let default: Vec<_> = default.iter().map(name_of).collect();
    assert_eq!(default, [Some("portreeve-cli".into())], "`cargo run` means the one binary");
    let cli = packages.iter().find(|package| package["name"] == "portreeve-cli").expect("the binary's crate");
    assert!(cli["manifest_path"].as_str().is_some_and(|path| path.ends_with("/agent/cli/Cargo.toml")), "{cli}");
    let binaries: Vec<_> = cli["targets"].as_array().into_iter().flatten().filter(|t| t["kind"][0] == "bin").collect();
    assert!(matches!(binaries[..], [one] if one["name"] == "portreeve"), "{binaries:?}");
    for package in &packages {
        let name = &package["name"];
        assert!(package["rust_version"].is_string(), "{name} does not say which Rust it needs");
    }
    for folder in std::iter::once(root()).chain(
        packages.iter().filter_map(|package| Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned())),
    ) {
        for pin in ["rust-toolchain", "rust-toolchain.toml"] {
            assert!(!folder.join(pin).exists(), "{}/{pin} would fetch another toolchain", folder.display());
        }
        for file in [".cargo/config.toml", ".cargo/config"] {
            let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
            for key in
                ["linker", "rustc-wrapper", "rustc-workspace-wrapper", "runner", "fuse-ld", "credential-provider"]
            {
                assert!(
                    !text.contains(key),
                    "{}/{file}: {key} needs a program that may not be installed",
                    folder.display()
                );
            }
        }
    }
}

#[test]
fn nobody_guesses_where_cargo_puts_what_it_builds() {
    for file in ["README.md", ".ci/run", "e2e/run", "e2e/bench", "e2e/build", "e2e/vm/suite", "e2e/src/world.rs"] {
        let text = std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(!text.contains("target/"), "{file}: ask e2e/build, or cargo");
    }
}

#[test]
fn the_top_level_holds_only_what_has_a_place_there() {
    let known = [
        ".cargo",
        ".ci",
        ".clippy.toml",
        ".deny.toml",
        ".git",
        ".gitignore",
        ".rustfmt.toml",
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "agent",
        "crds",
        "e2e",
        "helm",
        "manifests",
        "runtime",
        "target",
    ];
    for entry in std::fs::read_dir(root()).expect("the checkout").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(known.contains(&&*name), "{name} has no place at the top level");
    }
}
