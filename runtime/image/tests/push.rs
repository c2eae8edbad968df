//! Images that are sent to registries.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use portreeve_image::{Config, Credential, Digest, Image, ImageRef, Progress, PushError, Store};
use support::{
    Layout, Pack, Registry, Tar,
    scripted::{Answer, Scripted},
    store, two_layers,
};
use tokio::sync::watch;

async fn load(store: &Store, layout: &Layout) -> Image {
    store.load(layout.archive()).await.unwrap().remove(0)
}

/// What a push showed last.
async fn push(
    store: &Store,
    image: &Image,
    name: &ImageRef,
    auth: &[Credential],
) -> (Result<Digest, PushError>, Progress) {
    let (sink, progress) = watch::channel(Progress::default());
    let result = store.push(&image.id, name, auth, Some(sink)).await;
    let progress = progress.borrow().clone();
    (result, progress)
}

/// Requests of this kind that the registry's log has.
fn sent(registry: &Registry, method: &str) -> usize {
    registry.log().lines().filter(|line| line.contains(&format!("\"{method} "))).count()
}

/// Large enough to be sent in pieces, and not to be compressed away.
fn large_layer() -> Vec<u8> {
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u8::try_from(state >> 24).unwrap()
    })
    .take(12 << 20)
    .collect();
    Tar::new().dir("./", 0o755).file("noise", &noise).bytes()
}

#[tokio::test]
async fn what_was_pushed_is_what_others_pull_and_is_sent_once() {
    let registry = Registry::start();
    let layout = Layout::new(&[two_layers(), vec![large_layer()]].concat(), Pack::Gzip);
    let root = tempfile::tempdir().unwrap();
    let first = store(root.path());
    let image = load(&first, &layout).await;
    let name = registry.reference("team/box:1");
    let (pushed, progress) = push(&first, &image, &name, &[]).await;
    assert_eq!(pushed.unwrap(), layout.manifest);
    assert!(progress.layers.len() == 4 && progress.layers.iter().all(|layer| layer.done && !layer.present));
    assert_eq!(progress.fetched_bytes(), progress.total_bytes());
    assert_eq!(sent(&registry, "PATCH"), 1, "small ones go in one request each");

    let other = tempfile::tempdir().unwrap();
    let pulled = store(other.path()).pull(&name, &[], None).await.unwrap();
    assert_eq!(pulled.id, image.id);
    // It is known to be there.
    let pinned = name.with_digest(layout.manifest.clone()).to_string();
    assert!(first.image(&image.id).unwrap().repo_digests.contains(&pinned));
    let posts = sent(&registry, "POST");
    let (again, progress) = push(&first, &image, &registry.reference("team/box:2"), &[]).await;
    assert_eq!(again.unwrap(), layout.manifest);
    assert!(progress.layers.iter().all(|layer| layer.done && layer.present), "{progress:?}");
    assert_eq!(sent(&registry, "POST"), posts);
}

#[tokio::test]
async fn a_layer_that_may_not_be_passed_on_is_not_sent() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let blobs = layout.dir.path().join("blobs/sha256");
    let text = fs::read_to_string(blobs.join(layout.manifest.hex())).unwrap();
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let text = text.replacen("application/vnd.oci.image.layer.v1.tar+gzip", foreign, 1);
    let digest = Digest::of(text.as_bytes());
    fs::write(blobs.join(digest.hex()), &text).unwrap();
    let index = fs::read_to_string(layout.dir.path().join("index.json")).unwrap();
    let length = fs::metadata(blobs.join(layout.manifest.hex())).unwrap().len();
    let index = index.replace(layout.manifest.as_str(), digest.as_str());
    let index = index.replace(&format!("\"size\":{length}"), &format!("\"size\":{}", text.len()));
    fs::write(layout.dir.path().join("index.json"), index).unwrap();
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &layout).await;

    let server = Scripted::start();
    let location = format!("http://127.0.0.1:{}/v2/r/upload", server.port);
    server.on("/v2/r/blobs/uploads/", Answer::status(202).header("Location", &location));
    server.on("/v2/r/upload", Answer::status(201));
    server.on("/v2/r/manifests/x", Answer::status(201));
    let name = format!("127.0.0.1:{}/r:x", server.port).parse().unwrap();
    let (pushed, progress) = push(&store, &image, &name, &[]).await;
    assert_eq!(pushed.unwrap(), digest);
    let shown: Vec<_> = progress.layers.iter().filter(|layer| layer.foreign).map(|layer| &layer.digest).collect();
    assert_eq!(shown, [&layout.layers[0]]);
    let sent: Vec<_> = server.requests().into_iter().filter(|r| r.path.contains("/upload?")).collect();
    assert_eq!(sent.len(), 2, "the other layer, and the configuration: {sent:?}");
    assert!(!sent.iter().any(|request| request.path.contains(layout.layers[0].hex())), "{sent:?}");
    // Who pulls it from there learns why a layer is not there: an image without it would not run.
    server.replace("/v2/r/manifests/x", Answer::ok(text));
    for blob in [&layout.config, &layout.layers[1]] {
        server.on(&format!("/v2/r/blobs/{blob}"), Answer::ok(fs::read(blobs.join(blob.hex())).unwrap()));
    }
    let empty = tempfile::tempdir().unwrap();
    let error = support::store(empty.path()).pull(&name, &[], None).await.unwrap_err();
    assert!(error.to_string().contains("may not pass on (non-distributable)"), "{error}");
    server.replace("/v2/r/manifests/x", Answer::status(201));
    // One that the registry has is nothing new to it.
    server.replace(&format!("/v2/r/blobs/{}", layout.layers[0]), Answer::ok(""));
    let (_, progress) = push(&store, &image, &name, &[]).await;
    assert!(progress.layers.iter().all(|layer| !layer.foreign), "{progress:?}");
}

#[tokio::test]
async fn another_repository_of_the_registry_gives_its_layers() {
    let registry = Registry::start();
    let layout = Layout::new(&[large_layer()], Pack::Gzip);
    registry.push(layout.dir.path(), "from:x", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = store.pull(&registry.reference("from:x"), &[], None).await.unwrap();
    let (patches, downloads) = (sent(&registry, "PATCH"), registry.downloads(&layout.layers[0]));
    let (pushed, progress) = push(&store, &image, &registry.reference("to:x"), &[]).await;
    assert_eq!(pushed.unwrap(), layout.manifest);
    assert!(progress.layers.iter().all(|layer| layer.present), "{progress:?}");
    // Neither sent nor fetched, although only the unpacked layer is here.
    assert_eq!((sent(&registry, "PATCH"), registry.downloads(&layout.layers[0])), (patches, downloads));
    let other = tempfile::tempdir().unwrap();
    support::store(other.path()).pull(&registry.reference("to:x"), &[], None).await.unwrap();
}

#[tokio::test]
async fn a_pulled_image_goes_to_another_registry_by_fetching_what_that_lacks() {
    let (from, to) = (Registry::start(), Registry::start());
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    from.push(layout.dir.path(), "r:x", &[]);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = store.pull(&from.reference("r:x"), &[], None).await.unwrap();
    support::synced(root.path());
    // It has one of the two.
    let part = Layout::new(&two_layers()[..1], Pack::Gzip);
    to.push(part.dir.path(), "r:part", &[]);
    let (pushed, _) = push(&store, &image, &to.reference("r:x"), &[]).await;
    assert_eq!(pushed.unwrap(), layout.manifest);
    assert_eq!((from.downloads(&layout.layers[0]), from.downloads(&layout.layers[1])), (1, 2));
    support::nothing_unfinished(root.path());
    let other = tempfile::tempdir().unwrap();
    support::store(other.path()).pull(&to.reference("r:x"), &[], None).await.unwrap();
    // Without the one there is nothing to send.
    drop(from);
    let empty = Registry::start();
    let (refused, _) = push(&store, &image, &empty.reference("s:x"), &[]).await;
    // The other registry has them, too.
    refused.unwrap();
    drop(to);
    let last = Registry::start();
    drop(empty);
    let (refused, _) = push(&store, &image, &last.reference("s:x"), &[]).await;
    assert!(matches!(refused, Err(PushError::Content(_))), "{refused:?}");
    assert_eq!(sent(&last, "PUT"), 0, "no half of it is sent");
}

#[tokio::test]
async fn a_registry_that_wants_a_login_gets_the_right_one_or_nothing() {
    let registry = Registry::with_login();
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &layout).await;
    let name = registry.reference("r:x");
    let host = name.registry().to_owned();
    for auth in [
        vec![],
        vec![Credential::basic(&host, "me", "wrong")],
        vec![Credential::basic("other.example", "me", "s3cret")],
    ] {
        let (refused, _) = push(&store, &image, &name, &auth).await;
        assert!(matches!(refused, Err(PushError::Unauthorized { .. })), "{refused:?}");
    }
    let (pushed, _) = push(&store, &image, &name, &[Credential::basic(&host, "me", "s3cret")]).await;
    assert_eq!(pushed.unwrap(), layout.manifest);
}

#[tokio::test]
async fn a_token_is_asked_for_that_allows_to_push_and_to_read_where_layers_come_from() {
    let server = Scripted::start();
    let host = format!("127.0.0.1:{}", server.port);
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let blob = |digest: &Digest| fs::read(layout.dir.path().join("blobs/sha256").join(digest.hex())).unwrap();
    server.on("/v2/from/manifests/x", Answer::ok(blob(&layout.manifest)));
    for digest in layout.layers.iter().chain([&layout.config]) {
        server.on(&format!("/v2/from/blobs/{digest}"), Answer::ok(blob(digest)));
        server.on(&format!("/v2/to/blobs/{digest}"), Answer::ok(""));
    }
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = store.pull(&format!("{host}/from:x").parse().unwrap(), &[], None).await.unwrap();
    let realm = format!(r#"Bearer realm="http://{host}/token",service="s""#);
    server.replace("/v2/", Answer::status(401).header("WWW-Authenticate", &realm));
    server.on("/token", Answer::ok(r#"{"token":"t1"}"#));
    server.on("/token", Answer::ok(r#"{"token":"t2"}"#));
    // The first one expires before the end.
    server.on("/v2/to/manifests/y", Answer::status(401));
    server.on("/v2/to/manifests/y", Answer::status(201));
    let (pushed, _) = push(&store, &image, &format!("{host}/to:y").parse().unwrap(), &[]).await;
    assert_eq!(pushed.unwrap(), layout.manifest);
    let requests = server.requests();
    let tokens: Vec<&str> = requests.iter().filter(|r| r.path.starts_with("/token")).map(|r| r.path.as_str()).collect();
    assert_eq!(tokens.len(), 2);
    let scopes = "scope=repository%3Ato%3Apull%2Cpush&scope=repository%3Afrom%3Apull";
    assert!(tokens.iter().all(|token| token.ends_with(scopes)), "{tokens:?}");
    let last = requests.last().unwrap();
    assert_eq!((last.method.as_str(), last.authorization.as_deref()), ("PUT", Some("Bearer t2")));
}

#[tokio::test]
async fn what_a_registry_makes_of_it_is_believed_only_when_it_is_the_same() {
    let server = Scripted::start();
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    for digest in layout.layers.iter().chain([&layout.config]) {
        server.on(&format!("/v2/r/blobs/{digest}"), Answer::ok(""));
    }
    let other = Digest::of(b"another").to_string();
    server.on("/v2/r/manifests/x", Answer::status(201).header("Docker-Content-Digest", &other));
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &layout).await;
    let host = format!("127.0.0.1:{}", server.port);
    let (refused, _) = push(&store, &image, &format!("{host}/r:x").parse().unwrap(), &[]).await;
    assert!(matches!(refused, Err(PushError::Changed { .. })), "{refused:?}");
    let pinned = format!("{host}/r@{}", layout.manifest);
    let (refused, _) = push(&store, &image, &pinned.parse().unwrap(), &[]).await;
    assert!(matches!(refused, Err(PushError::NoTag { .. })), "{refused:?}");
    // An upload does not go on in the clear, nor with our login elsewhere.
    for digest in &layout.layers {
        server.replace(&format!("/v2/r/blobs/{digest}"), Answer::status(404));
    }
    // Nor may it send us to this machine, where it is not itself.
    if let Some(address) = support::own_address() {
        let registry = Scripted::start_at(address);
        let location = format!("http://127.0.0.1:{}/v2/r/upload", server.port);
        registry.on("/v2/r/blobs/uploads/", Answer::status(202).header("Location", &location));
        let root = tempfile::tempdir().unwrap();
        let config = Config { insecure_registries: vec![address.to_string()], ..Config::new(root.path()) };
        let store = Store::open(config).unwrap();
        let image = load(&store, &Layout::new(&two_layers(), Pack::Gzip)).await;
        let name = format!("{address}:{}/r:x", registry.port).parse().unwrap();
        let (pushed, _) = push(&store, &image, &name, &[]).await;
        let told = format!("{:?}", pushed.unwrap_err());
        assert!(told.contains("to this machine or link"), "{told}");
        assert!(!server.requests().iter().any(|request| request.path.contains("/upload")), "{:?}", server.requests());
    }
    server.on("/v2/r/blobs/uploads/", Answer::status(202).header("Location", "ftp://127.0.0.1/x"));
    let (refused, _) = push(&store, &image, &format!("{host}/r:x").parse().unwrap(), &[]).await;
    assert!(matches!(refused, Err(PushError::Registry { .. })), "{refused:?}");
    let elsewhere = Scripted::start();
    let location = format!("http://localhost:{}/upload?state=1", elsewhere.port);
    server.replace("/v2/r/blobs/uploads/", Answer::status(202).header("Location", &location));
    server.replace("/v2/", Answer::status(401).header("WWW-Authenticate", "Basic realm=x"));
    server.on("/v2/", Answer::ok("{}"));
    elsewhere.on("/upload", Answer::status(201));
    server.replace("/v2/r/manifests/x", Answer::status(201));
    let login = Credential::basic(&host, "me", "pw");
    push(&store, &image, &format!("{host}/r:x").parse().unwrap(), &[login]).await.0.unwrap();
    assert_eq!(elsewhere.requests().len(), 2);
    for request in elsewhere.requests() {
        assert!(request.authorization.is_none() && request.path.starts_with("/upload?state=1&digest="), "{request:?}");
    }
    assert!(server.requests().iter().any(|request| request.authorization.is_some()));
}

/// Passes connections on to a registry; the first that brings more than `limit` bytes is cut off there.
fn proxy(registry: &Registry, limit: u64) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let cuts = Arc::<AtomicUsize>::default();
    let (target, cut) = (registry.port, cuts.clone());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
            let (mut back, mut from) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ends = std::io::copy(&mut from, &mut back);
                let _closed = back.shutdown(std::net::Shutdown::Both);
            });
            let (mut client, mut server, cut) = (client, server, cut.clone());
            std::thread::spawn(move || {
                let (mut own, mut buffer) = (0, vec![0; 1 << 16]);
                while let Ok(length @ 1..) = client.read(&mut buffer) {
                    own += length as u64;
                    if server.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                    if own > limit && cut.fetch_add(1, Ordering::Relaxed) == 0 {
                        break;
                    }
                }
                let _closed = (server.shutdown(std::net::Shutdown::Both), client.shutdown(std::net::Shutdown::Both));
            });
        }
    });
    (port, cuts)
}

#[tokio::test]
async fn an_upload_that_breaks_off_at_a_real_registry_arrives_whole() {
    let registry = Registry::start();
    let layout = Layout::new(&[large_layer()], Pack::Plain);
    let size = fs::metadata(blob_path(&layout, 0)).unwrap().len();
    let (port, cuts) = proxy(&registry, size / 2);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &layout).await;
    let (pushed, progress) = push(&store, &image, &format!("127.0.0.1:{port}/r:x").parse().unwrap(), &[]).await;
    assert_eq!(pushed.unwrap(), layout.manifest);
    assert!(progress.layers.iter().all(|layer| layer.done));
    assert!(cuts.load(Ordering::Relaxed) > 0);
    assert_eq!(Digest::of(&fs::read(registry.blob_file(&layout.layers[0])).unwrap()), layout.layers[0]);
}

#[tokio::test]
async fn an_upload_goes_on_where_the_registry_says_that_it_broke_off() {
    let layout = Layout::new(&[large_layer()], Pack::Plain);
    let size = fs::metadata(blob_path(&layout, 0)).unwrap().len();
    let server = Scripted::start();
    let uploaded = |state: &str| format!("/v2/r/blobs/uploads/{state}");
    server.on(&format!("/v2/r/blobs/{}", layout.config), Answer::ok(""));
    server.on("/v2/r/blobs/uploads/", Answer::status(202).header("Location", &uploaded("1")));
    let come = Answer::status(204).header("Location", &uploaded("2")).header("Range", "0-4999999");
    // The first piece fails, then the registry is asked for what it has, and twice that is nothing new.
    for answer in [Answer::status(500), come] {
        server.on(&uploaded("1"), answer);
    }
    let come = Answer::status(204).header("Range", "0-4999999");
    for answer in [Answer::status(502), come, Answer::status(202).header("Location", &uploaded("3"))] {
        server.on(&uploaded("2"), answer);
    }
    server.on(&uploaded("3"), Answer::status(201));
    server.on("/v2/r/manifests/x", Answer::status(201));
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &layout).await;
    let (pushed, _) = push(&store, &image, &format!("127.0.0.1:{}/r:x", server.port).parse().unwrap(), &[]).await;
    pushed.unwrap();
    let header = |request: &support::scripted::Request, name: &str| {
        request.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.clone())
    };
    let sent: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|request| request.method == "PATCH")
        .map(|request| (header(&request, "content-range"), header(&request, "content-length").unwrap()))
        .collect();
    let rest = (Some(format!("5000000-{}", size - 1)), (size - 5_000_000).to_string());
    assert_eq!(sent, [(None, size.to_string()), rest.clone(), rest]);
    // A registry that never takes a byte is not asked for ever.
    let server = Scripted::start();
    server.on("/v2/r/blobs/uploads/", Answer::status(202).header("Location", &uploaded("1")));
    server.on(&uploaded("1"), Answer::status(503));
    let (refused, _) = push(&store, &image, &format!("127.0.0.1:{}/r:x", server.port).parse().unwrap(), &[]).await;
    assert!(matches!(refused, Err(PushError::Registry { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_upload_that_is_to_wait_goes_on_after_the_pause() {
    let layout = Layout::new(&[large_layer()], Pack::Plain);
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &layout).await;
    for (pause, waits) in [("1", true), ("3600", false)] {
        let server = Scripted::start();
        let upload = "/v2/r/blobs/uploads/1";
        server.on(&format!("/v2/r/blobs/{}", layout.config), Answer::ok(""));
        server.on("/v2/r/blobs/uploads/", Answer::status(202).header("Location", upload));
        server.on(upload, Answer::status(429).header("Retry-After", pause));
        server.on(upload, Answer::status(204).header("Range", "0-4999999"));
        server.on(upload, Answer::status(202).header("Location", "/v2/r/blobs/uploads/2"));
        server.on("/v2/r/blobs/uploads/2", Answer::status(201));
        server.on("/v2/r/manifests/x", Answer::status(201));
        let begun = Instant::now();
        let (pushed, _) = push(&store, &image, &format!("127.0.0.1:{}/r:x", server.port).parse().unwrap(), &[]).await;
        assert_eq!(pushed.is_ok(), waits, "{pushed:?}");
        assert!(!waits || begun.elapsed() >= Duration::from_secs(1));
        assert!(begun.elapsed() < Duration::from_secs(20));
        let patches: Vec<_> = server.requests().into_iter().filter(|request| request.method == "PATCH").collect();
        assert_eq!(patches.len(), if waits { 2 } else { 1 });
        let taken_up = |(name, value): &(String, String)| name == "content-range" && value.starts_with("5000000-");
        assert_eq!(patches.last().unwrap().headers.iter().any(taken_up), waits, "{patches:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_outlives_that_the_registry_is_away_for_a_moment() {
    let layout = Layout::new(&[large_layer()], Pack::Plain);
    let server = Scripted::start();
    let upload = "/v2/r/blobs/uploads/1";
    server.on(&format!("/v2/r/blobs/{}", layout.config), Answer::ok(""));
    server.on("/v2/r/blobs/uploads/", Answer::status(202).header("Location", upload));
    server.on(upload, Answer { away: Some(Duration::from_millis(1200)), ..Answer::status(500) });
    server.on(upload, Answer::status(204).header("Range", "0-4999999"));
    server.on(upload, Answer::status(202).header("Location", "/v2/r/blobs/uploads/2"));
    server.on("/v2/r/blobs/uploads/2", Answer::status(201));
    server.on("/v2/r/manifests/x", Answer::status(201));
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let image = load(&store, &layout).await;
    let (pushed, _) = push(&store, &image, &format!("127.0.0.1:{}/r:x", server.port).parse().unwrap(), &[]).await;
    pushed.unwrap();
    let patches = server.requests().into_iter().filter(|request| request.method == "PATCH");
    let begins = patches.map(|patch| patch.headers.into_iter().find(|(name, _)| name == "content-range"));
    let begins: Vec<_> = begins.map(|range| range.map_or(0, |(_, range)| range[..7].parse().unwrap())).collect();
    assert_eq!(begins, [0, 5_000_000]);
}

fn blob_path(layout: &Layout, layer: usize) -> std::path::PathBuf {
    Path::new(layout.dir.path()).join("blobs/sha256").join(layout.layers[layer].hex())
}
