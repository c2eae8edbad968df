//! Pulls from Debian's docker-registry, and what can go wrong on the way.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{fs, io::Write as _};

use portreeve_image::{Config, Credential, Digest, Phase, Progress, PullError, Retry, Store};
use support::{Authority, Layout, Pack, Registry, Tar, arch, config_json, free_port, skopeo, store, tree, two_layers};
use tokio::sync::watch;

#[tokio::test]
async fn oci_and_docker_images_in_every_compression_unpack_to_the_same_layers() {
    let registry = Registry::start();
    let cases = [
        ("plain", Pack::Plain, &["--dest-compress=false"][..]),
        ("gzip", Pack::Gzip, &[]),
        ("zstd", Pack::Zstd, &[]),
        ("docker", Pack::Gzip, &["--format", "v2s2"]),
    ];
    let mut trees = Vec::new();
    for (name, how, extra) in cases {
        let layout = Layout::new(&two_layers(), how);
        registry.push(layout.dir.path(), name, extra);
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let (sink, progress) = watch::channel(Progress::default());
        let reference = registry.reference(name);
        let image = store.pull(&reference, &[], Some(sink)).await.unwrap();
        assert_eq!(image.references, std::slice::from_ref(&reference), "{name}");
        assert_eq!(image.layers.len(), 3, "{name}: two layers, and /tmp's mode on top");
        assert_eq!(image.repo_digests.len(), 1);
        let config = image.config.config().as_ref().unwrap();
        assert_eq!(config.stop_signal().as_deref(), Some("SIGINT"));
        assert_eq!(config.user().as_deref(), Some("7:8"));
        assert_eq!(image.created.unwrap().to_string(), "2020-01-02T03:04:05Z");
        let progress = progress.borrow().clone();
        assert_eq!(progress.phase, Phase::Done);
        assert!(progress.layers.iter().all(|l| l.done && l.fetched_bytes == l.total_bytes), "{progress:?}");
        assert!(progress.began.is_some());
        trees.push(image.layers.iter().map(|l| tree(l)).collect::<Vec<_>>());
        // A second time nothing is fetched, and the image is found by tag, digest and id.
        let again = store.pull(&reference, &[], None).await.unwrap();
        assert_eq!(again.id, image.id);
        let pinned = image.repo_digests[0].parse().unwrap();
        assert_eq!(store.lookup(&pinned).unwrap().id, image.id);
        assert_eq!(store.resolve(&image.id.digest().hex()[..12]).unwrap().id, image.id);
        for layer in &layout.layers {
            assert!(registry.downloads(layer) <= 1, "{name}: fetched twice");
        }
    }
    assert!(trees.windows(2).all(|w| w[0] == w[1]), "{trees:#?}");
}

#[tokio::test]
async fn an_image_survives_the_store_and_every_directory_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let registry = Registry::start();
    registry.push(Layout::new(&two_layers(), Pack::Gzip).dir.path(), "a", &[]);
    let root = tempfile::tempdir().unwrap();
    let id = store(&root.path().join("s")).pull(&registry.reference("a"), &[], None).await.unwrap().id;
    let store = store(&root.path().join("s"));
    let image = store.lookup(&registry.reference("a")).unwrap();
    assert_eq!(image.id, id);
    let mut directories = vec![root.path().join("s")];
    for name in ["blobs", "blobs/sha256", "layers", "snapshots", "staging"] {
        directories.push(root.path().join("s").join(name));
    }
    directories.push(image.layers[0].parent().unwrap().to_owned());
    for directory in directories {
        let mode = fs::metadata(&directory).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", directory.display());
    }
    assert_eq!(fs::read_dir(root.path().join("s/staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_index_gives_the_image_for_this_machine_and_keeps_its_own_digest() {
    let registry = Registry::start();
    let ours = Layout::salted(&two_layers(), Pack::Gzip, "ours");
    let dir = tempfile::tempdir().unwrap();
    // A layout with an index of two platforms, pushed whole.
    fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    let blobs = ours.dir.path().join("blobs/sha256");
    for entry in fs::read_dir(&blobs).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join("blobs/sha256").join(entry.file_name())).unwrap();
    }
    let put = |text: &str| {
        let digest = Digest::of(text.as_bytes());
        fs::write(dir.path().join("blobs/sha256").join(digest.hex()), text).unwrap();
        (digest, text.len())
    };
    let foreign = put(&config_json(&ours.diff_ids, "s390x", "foreign"));
    let manifest_text = fs::read_to_string(blobs.join(ours.manifest.hex())).unwrap();
    let mut foreign_manifest: serde_json::Value = serde_json::from_str(&manifest_text).unwrap();
    foreign_manifest["config"]["digest"] = foreign.0.to_string().into();
    foreign_manifest["config"]["size"] = foreign.1.into();
    let foreign_manifest = put(&foreign_manifest.to_string());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"mediaType": kind, "digest": foreign_manifest.0, "size": foreign_manifest.1,
             "platform": {"os": "linux", "architecture": "s390x"}},
            {"mediaType": kind, "digest": ours.manifest, "size": manifest_text.len(),
             "platform": {"os": "linux", "architecture": arch()}}]});
    let index = put(&index.to_string());
    let top = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": index.0, "size": index.1,
         "annotations": {"org.opencontainers.image.ref.name": "x"}}]});
    fs::write(dir.path().join("index.json"), top.to_string()).unwrap();
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    registry.push(dir.path(), "multi:1", &["--all"]);

    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = store.pull(&registry.reference("multi:1"), &[], None).await.unwrap();
    assert_eq!(*image.id.digest(), ours.config);
    assert!(image.repo_digests[0].ends_with(index.0.as_str()), "{:?}", image.repo_digests);
    // By the manifest's own digest it is found as well.
    let by_manifest = format!("127.0.0.1:{}/multi@{}", registry.port, ours.manifest);
    assert_eq!(store.lookup(&by_manifest.parse().unwrap()).unwrap().id, image.id);
    // An image for another machine only is refused by name.
    let only_foreign = format!("127.0.0.1:{}/multi@{}", registry.port, foreign_manifest.0);
    let error = store.pull(&only_foreign.parse().unwrap(), &[], None).await.unwrap_err();
    assert!(matches!(&error, PullError::Platform { offered, .. } if offered.contains("s390x")), "{error}");
}

#[tokio::test]
async fn a_blob_that_was_changed_in_the_registry_never_becomes_an_image() {
    let registry = Registry::start();
    let other = [Tar::new().dir("./", 0o755).file("a", b"evil").bytes()];
    for (name, what) in [("flip", "flip"), ("swap", "swap"), ("cut", "cut"), ("config", "config")] {
        let layout = Layout::salted(&two_layers(), Pack::Gzip, name);
        registry.push(layout.dir.path(), name, &[]);
        let layer = registry.blob_file(&layout.layers[0]);
        let good = fs::read(&layer).unwrap();
        let mut bytes = good.clone();
        match what {
            "flip" => bytes[good.len() / 2] ^= 1,
            "swap" => bytes = support::pack(&other[0], Pack::Gzip),
            "cut" => bytes.truncate(good.len() - 9),
            _ => {
                let file = registry.blob_file(&layout.config);
                let text = fs::read_to_string(&file).unwrap().replace("/work", "/evil");
                fs::write(&file, text).unwrap();
            }
        }
        fs::write(&layer, bytes).unwrap();
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let error = store.pull(&registry.reference(name), &[], None).await.unwrap_err();
        // A blob that is too short ends before its digest can be taken; the registry itself may notice.
        let right = match what {
            "cut" | "swap" => matches!(
                &error,
                PullError::DigestMismatch { .. } | PullError::Layer { .. } | PullError::Registry { .. }
            ),
            _ => matches!(&error, PullError::DigestMismatch { .. }),
        };
        assert!(right, "{name}: {error:?}");
        fs::write(&layer, good).unwrap();
        assert!(store.list().is_empty());
        support::nothing_unfinished(root.path());
        assert!(!root.path().join("layers").join(layout.diff_ids[0].hex()).exists() || what == "config");
    }
}

#[tokio::test]
async fn each_failure_says_what_it_is() {
    let registry = Registry::start();
    registry.push(Layout::new(&two_layers(), Pack::Gzip).dir.path(), "there", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    for name in ["absent", "there:other", "deep/er/absent:1"] {
        let error = store.pull(&registry.reference(name), &[], None).await.unwrap_err();
        assert!(matches!(error, PullError::NotFound { .. }), "{name}: {error:?}");
        assert_eq!(error.retry(), Retry::AfterChange);
    }
    let down = format!("127.0.0.1:{}/x", free_port()).parse().unwrap();
    let error = store.pull(&down, &[], None).await.unwrap_err();
    assert!(matches!(&error, PullError::CannotConnect { cause, .. } if cause.contains("refused")), "{error:?}");
    assert_eq!(error.retry(), Retry::Later);
    let nowhere = "registry.invalid/x".parse().unwrap();
    let error = store.pull(&nowhere, &[], None).await.unwrap_err();
    // Whether a nameserver says so, or none can be asked here.
    let why = |cause: &str| {
        cause.contains("no such host: registry.invalid") || cause.contains("looking up registry.invalid: nameserver")
    };
    assert!(matches!(&error, PullError::CannotConnect { cause, .. } if why(cause)), "{error:?}");
    // HTTPS is not spoken there.
    let insecure = Config { insecure_registries: Vec::new(), ..Config::new(root.path().join("2")) };
    let tls = Store::open(insecure).unwrap();
    let host = nonloopback_name(registry.port).await;
    if let Some(host) = host {
        let error = tls.pull(&format!("{host}/x").parse().unwrap(), &[], None).await.unwrap_err();
        assert!(matches!(&error, PullError::CannotConnect { .. }), "{error:?}");
    }
}

/// A name of this machine that is not taken for local, if there is one that leads to 127.0.0.1.
async fn nonloopback_name(port: u16) -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned() + ".";
    let name = name.trim_end_matches('.').to_owned();
    let resolver = portreeve_network::Resolver::default();
    let addresses = resolver.lookup(&name, port, std::time::Duration::from_secs(2)).await.ok()?;
    (name.contains('.') && addresses.iter().any(|a| a.ip().is_loopback())).then(|| format!("{name}:{port}"))
}

#[tokio::test]
async fn a_private_registry_wants_the_right_login() {
    let registry = Registry::with_login();
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "private", &["--dest-creds", "me:s3cret"]);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let reference = registry.reference("private");
    let server = format!("127.0.0.1:{}", registry.port);
    let right = Credential::basic(&server, "me", "s3cret");
    let wrong = Credential::basic(&server, "me", "guess");
    let elsewhere = Credential::basic("other.example", "me", "s3cret");
    for (auth, detail) in [(vec![], "no login"), (vec![elsewhere], "no login"), (vec![wrong.clone()], "user \"me\"")] {
        let error = store.pull(&reference, &auth, None).await.unwrap_err();
        assert!(matches!(&error, PullError::Unauthorized { detail: d, .. } if d.contains(detail)), "{error:?}");
        assert_eq!(error.retry(), Retry::AfterChange);
        assert!(!format!("{error:?}{error}").contains("guess"));
    }
    // The next login is tried when one is refused; and one tenant's success is not another's.
    assert!(store.pull(&reference, &[wrong.clone(), right], None).await.is_ok());
    assert!(store.pull(&reference, &[wrong], None).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_many_times_at_once_is_fetched_once() {
    let registry = Registry::start();
    let base = two_layers();
    let first = Layout::salted(&base, Pack::Gzip, "1");
    let top = Tar::new().file("only-second", b"2").bytes();
    let second = Layout::salted(&[base[0].clone(), base[1].clone(), top], Pack::Gzip, "2");
    registry.push(first.dir.path(), "first", &[]);
    registry.push(second.dir.path(), "second", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let pulls = (0..20).map(|i| {
        let reference = registry.reference(if i % 2 == 0 { "first" } else { "second" });
        let store = store.clone();
        async move { store.pull(&reference, &[], None).await }
    });
    for image in futures_util::future::join_all(pulls).await {
        image.unwrap();
    }
    for layer in first.layers.iter().chain(&second.layers) {
        assert_eq!(registry.downloads(layer), 1, "{layer}");
    }
    assert_eq!(store.list().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_layer_holds_up_no_other_pull() {
    let registry = Registry::start();
    let base = two_layers();
    let bad = Layout::salted(&base, Pack::Gzip, "bad");
    registry.push(bad.dir.path(), "bad", &[]);
    let good = Layout::salted(&[Tar::new().file("x", b"y").bytes()], Pack::Gzip, "good");
    registry.push(good.dir.path(), "good", &[]);
    let file = registry.blob_file(&bad.layers[1]);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(&file, bytes).unwrap();
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(Config { max_concurrent_downloads: 1, ..Config::new(root.path()) }).unwrap();
    let pulls = (0..8).map(|i| {
        let reference = registry.reference(if i % 2 == 0 { "bad" } else { "good" });
        let store = store.clone();
        async move { (i, store.pull(&reference, &[], None).await) }
    });
    let all = tokio::time::timeout(std::time::Duration::from_secs(60), futures_util::future::join_all(pulls));
    for (i, result) in all.await.expect("no deadlock") {
        assert_eq!(result.is_ok(), i % 2 == 1, "{i}: {result:?}");
    }
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_older_image_behind() {
    let registry = Registry::start();
    let old = Layout::salted(&two_layers(), Pack::Gzip, "old");
    let new = Layout::salted(&two_layers(), Pack::Gzip, "new");
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    registry.push(old.dir.path(), "app:1", &[]);
    let first = store.pull(&registry.reference("app:1"), &[], None).await.unwrap();
    registry.push(new.dir.path(), "app:1", &[]);
    let second = store.pull(&registry.reference("app:1"), &[], None).await.unwrap();
    assert_ne!(first.id, second.id);
    assert_eq!(store.lookup(&registry.reference("app:1")).unwrap().id, second.id);
    assert!(store.image(&first.id).unwrap().references.is_empty());
    assert_eq!(second.layers.len(), 3);
}

#[tokio::test]
async fn https_wants_a_certificate_that_a_given_authority_signed() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue("cert", "subjectAltName=DNS:registry.test,IP:127.0.0.1\n");
    let registry = Registry::with_tls(&authority.file("cert.pem"), &authority.file("cert.key"));
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "tls", &[]);
    // 127.0.0.1 is spoken to in the clear, so the registry needs a name: another address of this machine.
    let Some(address) = support::own_address() else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this machine has no address besides loopback");
        return;
    };
    let reference = format!("{address}:{}/tls", registry.port).parse().unwrap();
    let stranger = store(&dir.path().join("stranger"));
    let error = stranger.pull(&reference, &[], None).await.unwrap_err();
    assert!(matches!(&error, PullError::CannotConnect { .. }), "{error:?}");
    // That a registry is plain does not make a stranger's certificate good enough for a login.
    let plain = support::scripted::Scripted::start();
    let challenge = format!(r#"Bearer realm="https://{address}:{}/token""#, registry.port);
    plain.replace("/v2/", support::scripted::Answer::status(401).header("WWW-Authenticate", &challenge));
    let login = Credential::basic("", "me", "pw");
    let named = format!("127.0.0.1:{}/tls", plain.port).parse().unwrap();
    let error = stranger.pull(&named, &[login], None).await.unwrap_err();
    assert!(matches!(&error, PullError::CannotConnect { .. }), "{error:?}");
    assert!(!registry.log().contains("/token"), "{}", registry.log());
    let trusting = Config { ca_files: vec![authority.file("ca.pem")], ..Config::new(dir.path().join("trusting")) };
    let error = Store::open(trusting).unwrap().pull(&reference, &[], None).await.unwrap_err();
    // The certificate does not name this address: signed is not enough.
    assert!(matches!(&error, PullError::CannotConnect { .. }), "{error:?}");
    authority.issue("named", &format!("subjectAltName=IP:{address},IP:127.0.0.1\n"));
    let named = Registry::with_tls(&authority.file("named.pem"), &authority.file("named.key"));
    named.push(layout.dir.path(), "tls", &[]);
    let reference = format!("{address}:{}/tls", named.port).parse().unwrap();
    let trusting = Config { ca_files: vec![authority.file("ca.pem")], ..Config::new(dir.path().join("trusting2")) };
    Store::open(trusting).unwrap().pull(&reference, &[], None).await.unwrap();
}

#[tokio::test]
async fn images_of_skopeo_and_umoci_load_from_both_archive_forms() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let dir = tempfile::tempdir().unwrap();
    let from = format!("oci:{}:x", layout.dir.path().display());
    let oci = dir.path().join("oci.tar");
    let docker = dir.path().join("docker.tar");
    skopeo(&["copy", &from, &format!("oci-archive:{}:example.org/a/b:1", oci.display())]);
    skopeo(&["copy", &from, &format!("docker-archive:{}:example.org/a/b:2", docker.display())]);
    let packed = dir.path().join("docker.tar.gz");
    fs::write(&packed, support::pack(&fs::read(&docker).unwrap(), Pack::Gzip)).unwrap();
    let mut trees = Vec::new();
    for (file, tag) in [(oci, "1"), (docker, "2"), (packed, "2")] {
        let store = store(&dir.path().join(file.file_name().unwrap()).with_extension("store"));
        let images = store.load(fs::File::open(&file).unwrap()).await.unwrap();
        assert_eq!(images.len(), 1, "{}", file.display());
        assert_eq!(images[0].references[0].to_string(), format!("example.org/a/b:{tag}"));
        trees.push(images[0].layers.iter().map(|l| tree(l)).collect::<Vec<_>>());
        assert_eq!(store.lookup(&images[0].references[0]).unwrap().id, images[0].id);
    }
    assert!(trees.windows(2).all(|w| w[0] == w[1]), "{trees:#?}");
}
