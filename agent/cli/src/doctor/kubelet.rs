//! `portreeve doctor --cri`: what a kubelet that runs its pods here would meet.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use portreeve_engine::network::cni::{CniConfig, NetworkList};
use portreeve_engine::{EngineError, HandlerFeatures, cdi, chain, handler_features, survey_selinux};
use portreeve_oci::cgroup::{Version, version};
use portreeve_oci::kernel::{Fact, Verdict};
use serde::Deserialize;

use crate::config::{Config, CriNetwork, executable};

/// Where kubeadm has the kubelet's configuration, and Debian's kubelet looks for it.
pub(super) const CONFIGURATION: &str = "/var/lib/kubelet/config.yaml";
/// A configuration is never longer.
const LONGEST: u64 = 1 << 20;

/// Every fact, of an agent with this configuration and a kubelet with the one in `kubelet`.
pub(super) fn facts(config: &Config, cni: &CniConfig, kubelet: &Path) -> Vec<Fact> {
    let socket = config.run.join("cri.sock");
    let found = read(kubelet);
    // Without an API server, a kubelet starts with this mode alone. Source: Kubernetes, cmd/kubelet/app/auth.go.
    let of_cluster = matches!(&found, Ok(Some(found)) if found.authorization.mode != "AlwaysAllow");
    let mut facts = vec![
        endpoint(&socket),
        cgroups(config.systemd_cgroup),
        swap(&fs::read_to_string("/proc/swaps").unwrap_or_default()),
        network(config.cri_network, cni, of_cluster),
        devices(&config.cdi_spec_dirs),
        labels(survey_selinux(Path::new("/"))),
    ];
    facts.extend(config.runtime_handlers.iter().map(|(name, program)| handler(name, program)));
    facts.extend(configuration(kubelet, found, &socket, driver(config.systemd_cgroup)));
    facts
}

fn fact(name: &'static str, verdict: Verdict, found: impl Into<String>, advice: Option<&str>) -> Fact {
    Fact { name, verdict, found: found.into(), advice: advice.map(str::to_owned) }
}

/// Whether somebody listens where the kubelet is to ask.
fn endpoint(socket: &Path) -> Fact {
    let name = "CRI endpoint";
    let place = format!("unix://{}", socket.display());
    match UnixStream::connect(socket) {
        Ok(_) => fact(name, Verdict::Present, format!("{place}, an agent listens"), None),
        Err(error) => {
            let advice = "start the agent first (portreeve agent --cri-only): a kubelet ends when nobody answers";
            fact(name, Verdict::Limited, format!("{place}: {error}"), Some(advice))
        }
    }
}

/// Who makes cgroups, in a kubelet's words.
fn driver(systemd: bool) -> &'static str {
    if systemd { "systemd" } else { "cgroupfs" }
}

/// Which kubelets take this machine's cgroups.
fn cgroups(systemd: bool) -> Fact {
    let name = "cgroups for kubelets";
    if systemd && let Err(error) = portreeve_systemd::require(nix::unistd::geteuid().is_root()) {
        return fact(name, Verdict::Missing, chain(&error), Some("take systemdCgroup away, or --systemd-cgroup"));
    }
    match version() {
        Ok(Version::V2) => {
            let found = format!("version 2; the driver is {}, which the agent tells kubelets", driver(systemd));
            fact(name, Verdict::Present, found, None)
        }
        Ok(Version::V1) => {
            let advice = "boot with version 2, or set failCgroupV1: false in the kubelet's configuration";
            fact(name, Verdict::Limited, "version 1: kubelets since 1.35 refuse to start with it", Some(advice))
        }
        Err(error) => fact(name, Verdict::Missing, chain(&error), Some("mount cgroup2 at /sys/fs/cgroup")),
    }
}

/// Whether a kubelet would refuse to start for what is swapped to. Source: proc_swaps(5), one heading.
fn swap(swaps: &str) -> Fact {
    let used: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next()).collect();
    if used.is_empty() {
        return fact("swap space", Verdict::Present, "none", None);
    }
    let advice = "swapoff --all and take it out of /etc/fstab, or set failSwapOn: false in the kubelet's configuration";
    fact("swap space", Verdict::Limited, format!("on {}: a kubelet does not start", used.join(" ")), Some(advice))
}

/// Which network a kubelet's pods would be in. In a cluster, those of the first minutes are where other nodes do not reach
/// them, when nobody says whether to wait.
fn network(mode: CriNetwork, cni: &CniConfig, of_cluster: bool) -> Fact {
    const NAME: &str = "network of kubelets";
    let builtin = |why: &str| fact(NAME, Verdict::Present, format!("the agent's own bridge{why}"), None);
    if mode == CriNetwork::Builtin {
        return builtin("");
    }
    let place = cni.networks.display();
    match NetworkList::first_of(&cni.networks) {
        Ok(None) if mode == CriNetwork::Auto && of_cluster => {
            let found = format!("the agent's own bridge, until there is one in {place}: other nodes do not reach it");
            let advice = "set cri.network to cni, and pods wait for the cluster's network; or to builtin, where this node is all";
            fact(NAME, Verdict::Limited, found, Some(advice))
        }
        Ok(None) if mode == CriNetwork::Auto => builtin(&format!(", until there is one in {place}")),
        Ok(None) => {
            let advice = "install the cluster's network, or set cri.network to auto: until then nodes are not ready";
            fact(NAME, Verdict::Limited, format!("cri.network is cni, and there is none in {place}"), Some(advice))
        }
        Err(error) => {
            let advice = "mend it, or take it away: until then pods of a kubelet get no network";
            fact(NAME, Verdict::Limited, chain(&error), Some(advice))
        }
        Ok(Some(network)) => {
            let found = format!("{} of {}", network.name, network.path.display());
            let there = |program: &&str| cni.plugins.iter().any(|directory| directory.join(program).is_file());
            let lacks: Vec<&str> = network.programs().filter(|program| !there(program)).collect();
            if lacks.is_empty() {
                return fact(NAME, Verdict::Present, found, None);
            }
            let directories: Vec<String> = cni.plugins.iter().map(|path| path.display().to_string()).collect();
            let advice = format!("put the plugins into {}", directories.join(" or "));
            fact(NAME, Verdict::Limited, format!("{found}, which lacks {}", lacks.join(" and ")), Some(&advice))
        }
    }
}

/// A runtime that pods can name, and what a kubelet would know of it.
fn handler(name: &str, program: &Path) -> Fact {
    const NAME: &str = "runtime handler";
    let place = format!("{name}: {}", program.display());
    if let Err(why) = executable(program) {
        let advice = "install it, or take it out of cri.runtimeHandlers: until then no agent starts";
        return fact(NAME, Verdict::Limited, format!("{place} {why}"), Some(advice));
    }
    match handler_features(program) {
        Ok(HandlerFeatures { recursive_readonly_mounts: true, user_namespaces: true }) => {
            fact(NAME, Verdict::Present, place, None)
        }
        Ok(features) => {
            let lacks = [
                ("recursive read-only mounts", features.recursive_readonly_mounts),
                ("users of a pod's own", features.user_namespaces),
            ];
            let lacks: Vec<&str> = lacks.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
            fact(NAME, Verdict::Present, format!("{place}, without {}", lacks.join(" and ")), None)
        }
        Err(error) => {
            let advice = "a kubelet takes it for one without recursive read-only mounts and users of a pod's own";
            fact(
                NAME,
                Verdict::Present,
                format!("{place}, which does not tell its features: {}", chain(&error)),
                Some(advice),
            )
        }
    }
}

/// Which devices containers can be given by name.
fn devices(directories: &[PathBuf]) -> Fact {
    const NAME: &str = "CDI devices";
    const FEW: usize = 4;
    let few = |all: Vec<String>, between: &str| match all.len().checked_sub(FEW) {
        Some(further @ 1..) => {
            let named: Vec<String> = all.into_iter().take(FEW).collect();
            format!("{}{between}and {further} more", named.join(between))
        }
        _ => all.join(between),
    };
    let places: Vec<String> = directories.iter().map(|path| path.display().to_string()).collect();
    let places = places.join(", ");
    let found = cdi::survey(directories);
    let names: Vec<String> = found.devices.iter().map(ToString::to_string).collect();
    let names = if names.is_empty() { format!("none in {places}") } else { few(names, ", ") };
    if found.unusable.is_empty() {
        return fact(NAME, Verdict::Present, names, None);
    }
    let advice = "mend it, or take it away: until then containers that ask for its devices are refused";
    fact(NAME, Verdict::Limited, format!("{names}; left out: {}", few(found.unusable, "; ")), Some(advice))
}

/// What keeps a kubelet's pods apart by SELinux.
fn labels(found: Result<Option<String>, EngineError>) -> Fact {
    const NAME: &str = "SELinux of kubelets";
    match found {
        Ok(None) => fact(NAME, Verdict::Present, "the kernel does not label", None),
        Ok(Some(label)) => {
            fact(NAME, Verdict::Present, format!("pods are {label}, each with its own categories"), None)
        }
        Err(error) => {
            let advice =
                "install the policy of containers (container-selinux): until then pods are not kept apart by it";
            fact(NAME, Verdict::Limited, chain(&error), Some(advice))
        }
    }
}

/// What of a kubelet's configuration concerns a runtime. Source: KubeletConfiguration v1beta1.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Kubelet {
    container_runtime_endpoint: String,
    cgroup_driver: String,
    authorization: Authorization,
}

/// Who says what clients of a kubelet may do.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Authorization {
    mode: String,
}

/// A kubelet's configuration; none where there is no such file, and else why it cannot be read.
fn read(path: &Path) -> Result<Option<Kubelet>, String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(metadata) if metadata.len() > LONGEST => return Err(io::ErrorKind::FileTooLarge.to_string()),
        Ok(_) => {}
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_yaml::from_str(&text).map(Some).map_err(|error| error.to_string())
}

/// Whether what was found at `path` has a kubelet ask this agent; nothing where there is no such file.
fn configuration(path: &Path, found: Result<Option<Kubelet>, String>, socket: &Path, driver: &str) -> Option<Fact> {
    const NAME: &str = "kubelet";
    let place = path.display();
    let kubelet = match found {
        Ok(found) => found?,
        Err(error) => {
            let advice = "a kubelet does not start with it";
            return Some(fact(NAME, Verdict::Limited, format!("{place}: {error}"), Some(advice)));
        }
    };
    let wanted = format!("unix://{}", socket.display());
    // Without the scheme it means the same.
    let asked = kubelet.container_runtime_endpoint.as_str();
    if Path::new(asked.strip_prefix("unix://").unwrap_or(asked)) != socket {
        let found = match asked {
            "" => format!("{place} names no containerRuntimeEndpoint"),
            other => format!("{place} asks {other}"),
        };
        let advice =
            format!("set containerRuntimeEndpoint: {wanted} there, and take --container-runtime-endpoint away");
        return Some(fact(NAME, Verdict::Limited, found, Some(&advice)));
    }
    // Source: KubeletConfiguration v1beta1, the default of cgroupDriver.
    let asked = if kubelet.cgroup_driver.is_empty() { "cgroupfs" } else { kubelet.cgroup_driver.as_str() };
    if asked == driver {
        return Some(fact(NAME, Verdict::Present, format!("{place} asks this agent"), None));
    }
    let found = format!("{place} asks this agent, with cgroupDriver {asked}");
    let advice = format!(
        "newer kubelets take the agent's word for it, which is {driver}; set cgroupDriver: {driver} for those before 1.34"
    );
    Some(fact(NAME, Verdict::Limited, found, Some(&advice)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, resolve};

    fn verdict_and_text(fact: &Fact) -> (Verdict, &str) {
        (fact.verdict, fact.found.as_str())
    }

    #[test]
    fn swap_is_what_the_kernel_lists_below_its_heading() {
        let heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert_eq!(verdict_and_text(&swap(heading)), (Verdict::Present, "none"));
        let used = swap(&format!("{heading}/dev/sda2 partition 1 0 -2\n/swap file 1 0 -3\n"));
        assert_eq!(verdict_and_text(&used), (Verdict::Limited, "on /dev/sda2 /swap: a kubelet does not start"));
    }

    #[test]
    fn a_node_that_labels_needs_a_policy_that_knows_containers() {
        let node = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = node.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            labels(survey_selinux(node.path()))
        };
        assert_eq!(put("etc/selinux/config", "SELINUXTYPE=x\n").found, "the kernel does not label");
        put("proc/self/attr/current", "u:r:t:s0");
        let lacks = put("sys/fs/selinux/enforce", "1");
        assert!(
            lacks.verdict == Verdict::Limited && lacks.found.contains("/x/contexts/lxc_contexts"),
            "{}",
            lacks.found
        );
        let whole = put("etc/selinux/x/contexts/lxc_contexts", "process = \"u:r:c:s0\"\nfile = \"u:o:f:s0\"\n");
        assert!(whole.verdict == Verdict::Present && whole.found.starts_with("pods are u:r:c:s0"), "{}", whole.found);
    }

    #[test]
    fn a_kubelets_configuration_has_to_name_this_agent() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("config.yaml");
        let socket = Path::new("/run/p/cri.sock");
        assert!(configuration(&path, read(&path), socket, "cgroupfs").is_none());
        let with = |text: &str, systemd| {
            fs::write(&path, text).unwrap();
            configuration(&path, read(&path), socket, driver(systemd)).unwrap()
        };
        let asked = |text: &str| with(text, false);
        for good in ["unix:///run/p/cri.sock\ncgroupDriver: cgroupfs", "/run/p/cri.sock"] {
            let fact = asked(&format!("kind: KubeletConfiguration\ncontainerRuntimeEndpoint: {good}\n"));
            assert_eq!(fact.verdict, Verdict::Present, "{}", fact.found);
        }
        for (text, words) in [
            ("kind: KubeletConfiguration", "names no containerRuntimeEndpoint"),
            ("containerRuntimeEndpoint: unix:///run/containerd/containerd.sock", "containerd.sock"),
            ("containerRuntimeEndpoint: unix:///run/p/cri.sock\ncgroupDriver: systemd", "systemd"),
            ("containerRuntimeEndpoint: [", "config.yaml: "),
        ] {
            let fact = asked(text);
            assert_eq!(fact.verdict, Verdict::Limited, "{text}");
            assert!(fact.found.contains(words) && fact.advice.is_some(), "{}", fact.found);
        }
        let here = "containerRuntimeEndpoint: unix:///run/p/cri.sock\n";
        assert_eq!(with(&format!("{here}cgroupDriver: systemd"), true).verdict, Verdict::Present);
        let other = with(here, true);
        assert!(other.verdict == Verdict::Limited && other.found.ends_with("cgroupDriver cgroupfs"), "{}", other.found);
    }

    #[test]
    fn a_runtime_is_an_executable_file_that_tells_what_it_can_do() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("runtime");
        assert!(
            handler("a", &path).verdict == Verdict::Limited && handler("a", home.path()).verdict == Verdict::Limited
        );
        let told = |line: &str| {
            fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            handler("a", &path)
        };
        let fact = told("echo '{\"mountOptions\": [\"rro\"]}'");
        assert!(
            fact.verdict == Verdict::Present && fact.found.ends_with("without users of a pod's own"),
            "{}",
            fact.found
        );
        let fact = told("echo no such verb >&2; exit 1");
        assert!(fact.found.contains("no such verb") && fact.advice.is_some(), "{}", fact.found);
    }

    #[test]
    fn devices_are_named_and_so_are_files_that_do_not_count() {
        let home = tempfile::tempdir().unwrap();
        let directories = [home.path().join("absent"), home.path().to_owned()];
        let none = devices(&directories);
        assert!(none.verdict == Verdict::Present && none.found.starts_with("none in "), "{}", none.found);
        let names: Vec<String> =
            (0..6).map(|number| format!("{{name: d{number}, containerEdits: {{env: [A=b]}}}}")).collect();
        let text = format!("cdiVersion: 1.0.0\nkind: vendor.com/gpu\ndevices: [{}]\n", names.join(", "));
        fs::write(home.path().join("gpu.yaml"), &text).unwrap();
        let all = devices(&directories);
        assert_eq!(all.verdict, Verdict::Present, "{}", all.found);
        assert!(all.found.starts_with("vendor.com/gpu=d0, ") && all.found.ends_with("d3, and 2 more"), "{}", all.found);
        fs::write(home.path().join("twice.yaml"), text.replace("d1", "e1").replace("d5", "e5")).unwrap();
        fs::write(home.path().join("bad.json"), "{").unwrap();
        let some = devices(&directories);
        assert_eq!(some.verdict, Verdict::Limited);
        for word in ["vendor.com/gpu=d1", "bad.json: ", "twice.yaml", "and 1 more"] {
            assert!(some.found.contains(word), "{word}: {}", some.found);
        }
    }

    #[test]
    fn a_kubelet_of_a_cluster_is_to_wait_for_its_network_or_not() {
        let home = tempfile::tempdir().unwrap();
        let mut cni = CniConfig::new(home.path().join("records"));
        cni.networks = home.path().join("net.d");
        let auto = network(CriNetwork::Auto, &cni, true);
        assert_eq!(auto.verdict, Verdict::Limited);
        assert!(auto.found.contains("other nodes do not reach it"), "{}", auto.found);
        assert!(auto.advice.is_some_and(|advice| advice.contains("cri.network to cni")));
        // Who has said it knows.
        assert_eq!(network(CriNetwork::Builtin, &cni, true).verdict, Verdict::Present);
        let verdict = |text: &str| {
            let kubelet = home.path().join("config.yaml");
            fs::write(&kubelet, text).unwrap();
            let settings = Settings { run: Some(home.path().to_owned()), ..Settings::default() };
            let facts = facts(&resolve(None, settings).unwrap(), &cni, &kubelet);
            facts.into_iter().find(|fact| fact.name == "network of kubelets").unwrap().verdict
        };
        assert_eq!(verdict("authorization: {mode: AlwaysAllow}"), Verdict::Present);
        for of_cluster in ["kind: KubeletConfiguration", "authorization: {mode: Webhook}"] {
            assert_eq!(verdict(of_cluster), Verdict::Limited, "{of_cluster}");
        }
    }

    #[test]
    fn the_network_is_the_first_with_all_its_plugins() {
        let home = tempfile::tempdir().unwrap();
        let mut cni = CniConfig::new(home.path().join("records"));
        cni.networks = home.path().join("net.d");
        cni.plugins = vec![home.path().join("bin")];
        assert_eq!(network(CriNetwork::Builtin, &cni, false).verdict, Verdict::Present);
        assert!(network(CriNetwork::Auto, &cni, false).found.contains("until there is one in"));
        assert_eq!(network(CriNetwork::Cni, &cni, false).verdict, Verdict::Limited);
        for directory in [&cni.networks, &cni.plugins[0]] {
            fs::create_dir(directory).unwrap();
        }
        let list = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
        fs::write(cni.networks.join("10-pods.conflist"), list).unwrap();
        fs::write(cni.plugins[0].join("bridge"), "").unwrap();
        let lacks = network(CriNetwork::Auto, &cni, true);
        assert!(lacks.verdict == Verdict::Limited && lacks.found.ends_with("which lacks portmap"), "{}", lacks.found);
        fs::write(cni.plugins[0].join("portmap"), "").unwrap();
        let whole = network(CriNetwork::Cni, &cni, true);
        assert!(whole.verdict == Verdict::Present && whole.found.starts_with("pods of "), "{}", whole.found);
    }
}
