//! Images of registries that have mirrors.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use portreeve_image::{Config, Credential, Image, ImageRef, Progress, PullError, Retry, Store};
use support::{
    Authority, Layout, Pack, Registry, free_port,
    scripted::{Answer, Scripted},
    two_layers,
};
use tempfile::TempDir;
use tokio::sync::watch;

/// A store with a directory for what is said of registries.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Says where a registry's images are, as containerd's users do.
    fn hosts(&self, registry: &str, text: &str) -> &Self {
        self.file(&format!("certs.d/{registry}/hosts.toml"), text)
    }

    fn store(&self) -> Store {
        let config = Config {
            certs_d: Some(self.dir.path().join("certs.d")),
            registries_conf: Some(self.dir.path().join("registries.conf")),
            mirror_timeout: Duration::from_millis(1500),
            ..Config::new(self.dir.path().join("store"))
        };
        Store::open(config).unwrap()
    }

    /// Pulls into an empty store, and tells what was shown last.
    async fn pull(&self, reference: &str, auth: &[Credential]) -> (Result<Image, PullError>, Progress) {
        let (sink, progress) = watch::channel(Progress::default());
        let store = self.store();
        let result = store.pull(&reference.parse().unwrap(), auth, Some(sink)).await;
        drop(store);
        fs::remove_dir_all(self.dir.path().join("store")).unwrap();
        let progress = progress.borrow().clone();
        (result, progress)
    }
}

fn tried(progress: &Progress) -> Vec<&str> {
    progress.tried.iter().map(|tried| tried.host.as_str()).collect()
}

/// Serves the layout below `root` as repository `r`, tag `x`.
fn serve(layout: &Layout, root: &str) -> Scripted {
    let server = Scripted::start();
    let blob = |hex: &str| fs::read(layout.dir.path().join("blobs/sha256").join(hex)).unwrap();
    server.on(&format!("{root}/"), Answer::ok("{}"));
    for name in ["x".to_owned(), layout.manifest.to_string()] {
        server.on(&format!("{root}/r/manifests/{name}"), Answer::ok(blob(layout.manifest.hex())));
    }
    for digest in layout.layers.iter().chain([&layout.config]) {
        server.on(&format!("{root}/r/blobs/{digest}"), Answer::ok(blob(digest.hex())));
    }
    server
}

fn host(server: &Scripted) -> String {
    format!("127.0.0.1:{}", server.port)
}

fn asked(server: &Scripted, what: &str) -> usize {
    server.requests().iter().filter(|request| request.path.contains(what)).count()
}

#[tokio::test]
async fn the_first_mirror_that_has_the_image_gives_all_of_it() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let (empty, mirror, registry) = (Scripted::start(), serve(&layout, "/v2"), serve(&layout, "/v2"));
    let nobody = format!("127.0.0.1:{}", free_port());
    let place = Place::new();
    place.hosts(
        &host(&registry),
        &format!("[host.'http://{nobody}']\n[host.'http://{}']\n[host.'http://{}']", host(&empty), host(&mirror)),
    );
    let (pulled, progress) = place.pull(&format!("{}/r:x", host(&registry)), &[]).await;
    let image = pulled.unwrap();
    // What it is called does not tell where it came from.
    assert_eq!(image.references[0].to_string(), format!("{}/r:x", host(&registry)));
    assert_eq!(tried(&progress), [nobody.as_str(), &host(&empty)]);
    assert!(progress.tried[0].problem.contains("connection refused"), "{progress:?}");
    assert!(progress.tried[1].problem.contains("does not exist"), "{progress:?}");
    assert_eq!(progress.host.as_deref(), Some(host(&mirror).as_str()));
    assert!(registry.requests().is_empty(), "{:?}", registry.requests());
}

#[tokio::test]
async fn a_mirror_hears_whose_it_is_and_no_login_of_another() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let (mirror, bare, registry) = (serve(&layout, "/proxy/v2"), Scripted::start(), serve(&layout, "/v2"));
    let place = Place::new();
    place.hosts(
        &host(&registry),
        &format!(
            "[host.'http://{0}/root']\noverride_path = true\n\
             [host.'http://{1}/proxy']\n[host.'http://{1}/proxy'.header]\nx-tenant = 'blue'",
            host(&bare),
            host(&mirror)
        ),
    );
    let logins = [Credential::basic(&host(&registry), "me", "pw"), Credential::basic("", "any", "pw")];
    place.pull(&format!("{}/r:x", host(&registry)), &logins).await.0.unwrap();
    let requests = [mirror.requests(), bare.requests()].concat();
    assert!(requests.len() > 4);
    for request in &requests {
        assert!(request.authorization.is_none(), "{request:?}");
        let registry = host(&registry).replace(':', "%3A");
        assert!(request.path.ends_with(&format!("?ns={registry}")), "{request:?}");
    }
    assert!(bare.requests().iter().all(|request| request.path.starts_with("/root/")), "{:?}", bare.requests());
    let tenant = ("x-tenant".to_owned(), "blue".to_owned());
    assert!(mirror.requests().iter().all(|request| request.headers.contains(&tenant)));
    // Nor does a store of objects hear what is for the mirror.
    let objects = serve(&layout, "/objects");
    for digest in layout.layers.iter().chain([&layout.config]) {
        let location = format!("http://localhost:{}/objects/r/blobs/{digest}", objects.port);
        mirror.replace(&format!("/proxy/v2/r/blobs/{digest}"), Answer::status(307).header("Location", &location));
    }
    place.pull(&format!("{}/r:x", host(&registry)), &logins).await.0.unwrap();
    let asked: Vec<_> = objects.requests().into_iter().filter(|request| request.path.contains("/blobs/")).collect();
    assert!(asked.len() >= 3 && asked.iter().all(|request| !request.headers.contains(&tenant)), "{asked:?}");
    assert!(asked.iter().all(|request| !request.path.contains("ns=")), "{asked:?}");
    // Its own it gets.
    mirror.replace("/proxy/v2/", Answer::status(401).header("WWW-Authenticate", "Basic realm=x"));
    let logins = [Credential::basic(&host(&mirror), "mirror", "pw")];
    let begun = mirror.requests().len();
    // This one takes everybody, also at its root.
    mirror.on("/proxy/v2/", Answer::ok("{}"));
    place.pull(&format!("{}/r:x", host(&registry)), &logins).await.0.unwrap();
    assert!(mirror.requests()[begun..].iter().any(|request| request.authorization.is_some()));
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn a_mirror_that_says_nothing_is_waited_for_no_longer_than_its_time() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let registry = serve(&layout, "/v2");
    // Connections are taken, and nothing comes.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let place = Place::new();
    place.hosts(&host(&registry), &format!("[host.'http://{silent}']"));
    let begun = Instant::now();
    let (pulled, progress) = place.pull(&format!("{}/r:x", host(&registry)), &[]).await;
    pulled.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(tried(&progress), [silent.as_str()]);
    assert_eq!(progress.host, Some(host(&registry)));
}

#[tokio::test]
async fn nor_is_one_that_is_asked_later_for_what_another_mirror_lacks() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let (mirror, registry) = (serve(&layout, "/v2"), serve(&layout, "/v2"));
    mirror.replace(&format!("/v2/r/blobs/{}", layout.layers[0]), Answer::status(404));
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let place = Place::new();
    place.hosts(&host(&registry), &format!("[host.'http://{}']\n[host.'http://{silent}']", host(&mirror)));
    let begun = Instant::now();
    let (pulled, progress) = place.pull(&format!("{}/r:x", host(&registry)), &[]).await;
    pulled.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(tried(&progress), [host(&mirror).as_str(), silent.as_str()]);
}

#[tokio::test]
async fn what_a_mirror_lacks_or_spoils_comes_from_the_next_host() {
    let layout = Layout::new(&two_layers(), Pack::Plain);
    let path = format!("/v2/r/blobs/{}", layout.layers[0]);
    let whole = fs::read(layout.dir.path().join("blobs/sha256").join(layout.layers[0].hex())).unwrap();
    let mut spoilt = whole.clone();
    spoilt[200_000] ^= 1;
    let mut broken = whole.clone();
    broken[257] ^= 1;
    let (resumed, anew) = ("bytes=100000-", "bytes=0-");
    let cut_off = |bytes: Vec<u8>| Answer { cut_at: Some(100_000), ..Answer::ok(bytes) };
    let mut spoilt_before = whole.clone();
    spoilt_before[90_000] ^= 1;
    for (case, answer, expected) in [
        ("absent", Answer::status(404), vec![anew]),
        ("cut off", cut_off(whole.clone()), vec![resumed]),
        // The registry is not to blame for what the mirror has sent before.
        ("cut off and spoilt", cut_off(spoilt_before), vec![resumed, anew]),
        ("spoilt", Answer::ok(spoilt), vec![anew]),
        ("no archive", Answer::ok(broken), vec![anew]),
        ("too long", Answer::ok([whole.clone(), vec![0; 10]].concat()), vec![anew]),
    ] {
        let (mirror, registry) = (serve(&layout, "/v2"), serve(&layout, "/v2"));
        mirror.replace(&path, answer);
        if case.starts_with("cut off") {
            mirror.on(&path, Answer::status(404));
        }
        registry.replace(&path, Answer { ranges: true, ..Answer::ok(whole.clone()) });
        let place = Place::new();
        place.hosts(&host(&registry), &format!("[host.'http://{}']", host(&mirror)));
        let (pulled, progress) = place.pull(&format!("{}/r:x", host(&registry)), &[]).await;
        pulled.unwrap_or_else(|error| panic!("{case}: {error:?}"));
        assert_eq!(tried(&progress), [host(&mirror)], "{case}");
        assert!(progress.layers.iter().all(|layer| layer.done), "{case}: {progress:?}");
        assert_eq!(asked(&registry, layout.layers[1].hex()), 0, "{case}: the mirror had that");
        let ranges: Vec<String> = registry
            .requests()
            .into_iter()
            .filter(|request| request.path == path)
            .filter_map(|request| request.range)
            .collect();
        assert_eq!(ranges, expected, "{case}");
    }
}

#[tokio::test]
async fn when_no_host_has_it_each_is_told_of_in_order() {
    let (mirror, registry) = (Scripted::start(), Scripted::start());
    registry.on("/v2/r/manifests/x", Answer::status(429).header("Retry-After", "3600"));
    let place = Place::new();
    place.hosts(&host(&registry), &format!("[host.'http://{}']", host(&mirror)));
    let error = place.pull(&format!("{}/r:x", host(&registry)), &[]).await.0.unwrap_err();
    let text = error.to_string();
    let (first, second) = (text.find(&host(&mirror)).unwrap(), text.find(&format!("; {}: ", host(&registry))).unwrap());
    assert!(first < second && text.contains("does not exist") && text.contains("429"), "{text}");
    assert_eq!((error.retry(), error.retry_after()), (Retry::Later, Some(Duration::from_secs(3600))));
    // A server that is the mirror leaves nobody else to ask.
    place.hosts(&host(&registry), &format!("server = 'http://{}'", host(&mirror)));
    let before = registry.requests().len();
    let error = place.pull(&format!("{}/r:x", host(&registry)), &[]).await.0.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
    assert_eq!(registry.requests().len(), before);
}

#[tokio::test]
async fn podmans_file_counts_too_and_is_read_anew_for_each_pull() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let (mirror, registry) = (serve(&layout, "/v2"), serve(&layout, "/v2"));
    let place = Place::new();
    let store = place.store();
    let reference: ImageRef = "never.invalid/team/r:x".parse().unwrap();
    let table = "[[registry]]\nprefix = 'never.invalid/team'\nlocation = ";
    place.file("registries.conf", &format!("{table}3"));
    let error = store.pull(&reference, &[], None).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(matches!(error, PullError::Hosts { .. }) && cause.contains("registries.conf: line 3: "), "{cause}");
    place.file("registries.conf", &format!("{table}'{}'\nblocked = true", host(&registry)));
    let error = store.pull(&reference, &[], None).await.unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("blocks never.invalid/team"));
    assert!(store.list().is_empty() && registry.requests().is_empty());
    let mirrored = format!("{table}'{}'\n[[registry.mirror]]\nlocation = '{}'", host(&registry), host(&mirror));
    place.file("registries.conf", &mirrored);
    let image = store.pull(&reference, &[], None).await.unwrap();
    assert_eq!(image.references, [reference]);
    assert!(registry.requests().is_empty());
    // Nobody tells those mirrors whose they are.
    assert!(mirror.requests().iter().all(|request| !request.path.contains("ns=")));
}

#[tokio::test]
async fn mirrors_on_tls_have_their_own_authority_and_see_our_certificate() {
    let authority = Authority::new();
    authority.issue("server", "subjectAltName=IP:127.0.0.1\n");
    authority.issue("client", "extendedKeyUsage=clientAuth\n");
    let pem = |name: &str| authority.file(name).display().to_string();
    let closed =
        Registry::with_clients(Path::new(&pem("server.pem")), Path::new(&pem("server.key")), Path::new(&pem("ca.pem")));
    let open = Registry::with_tls(Path::new(&pem("server.pem")), Path::new(&pem("server.key")));
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    open.push(layout.dir.path(), "r:x", &[]);
    let ours = authority.file("mine");
    fs::create_dir(&ours).unwrap();
    fs::copy(authority.file("client.pem"), ours.join("me.cert")).unwrap();
    fs::copy(authority.file("client.key"), ours.join("me.key")).unwrap();
    closed.push(layout.dir.path(), "r:x", &["--dest-cert-dir", ours.to_str().unwrap()]);

    let name = "never.invalid/r:x";
    let at = |registry: &Registry, more: &str| format!("server = 'https://127.0.0.1:{}'\n{more}", registry.port);
    let (ca, client) = (format!("ca = '{}'\n", pem("ca.pem")), |key: &str| {
        format!("client = [['{}', '{}']]\n", pem("client.pem"), pem(key))
    });
    for (case, text, works) in [
        ("a stranger's certificate", at(&open, ""), false),
        ("its authority", at(&open, &ca), true),
        ("any certificate", at(&open, "skip_verify = true"), true),
        ("without our certificate", at(&closed, &ca), false),
        ("with our certificate", at(&closed, &format!("{ca}{}", client("client.key"))), true),
        ("with the key of another", at(&closed, &format!("{ca}{}", client("server.key"))), false),
    ] {
        let place = Place::new();
        place.hosts("never.invalid", &text);
        let pulled = place.pull(name, &[]).await.0;
        assert_eq!(pulled.is_ok(), works, "{case}: {pulled:?}");
    }
    // The same as Docker's users have it, for a registry that is called by its address.
    let place = Place::new();
    let registry = format!("127.0.0.1:{}", closed.port);
    let directory = place.dir.path().join("certs.d").join(&registry);
    fs::create_dir_all(&directory).unwrap();
    for (from, to) in [("ca.pem", "ca.crt"), ("client.pem", "client.cert"), ("client.key", "client.key")] {
        fs::copy(authority.file(from), directory.join(to)).unwrap();
    }
    place.pull(&format!("{registry}/r:x"), &[]).await.0.unwrap();
}
