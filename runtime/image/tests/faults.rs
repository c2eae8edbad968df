//! Registries that lie, break off, send without end, or want credentials for somebody else.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    fs,
    io::Write as _,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use portreeve_image::{Config, Credential, Digest, ImageRef, KeepBlobs, PullError, Retry, Store};
use portreeve_sys::chain;
use support::{
    Layout, Pack, Tar, arch, config_json,
    scripted::{Answer, Scripted},
    store, two_layers,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Serves the layout as repository `r`, tag `x`.
fn serve(layout: &Layout) -> (Scripted, ImageRef) {
    let server = Scripted::start();
    let blob = |hex: &str| fs::read(layout.dir.path().join("blobs/sha256").join(hex)).unwrap();
    let manifest = blob(layout.manifest.hex());
    server.on("/v2/r/manifests/x", Answer::ok(manifest).header("Content-Type", MANIFEST));
    for digest in layout.layers.iter().chain([&layout.config]) {
        server.on(&format!("/v2/r/blobs/{digest}"), Answer::ok(blob(digest.hex())));
    }
    let reference = format!("127.0.0.1:{}/r:x", server.port).parse().unwrap();
    (server, reference)
}

async fn pull(reference: &ImageRef, auth: &[Credential]) -> Result<(), PullError> {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let result = store.pull(reference, auth, None).await.map(|_| ());
    assert_eq!(store.list().len(), usize::from(result.is_ok()));
    support::nothing_unfinished(root.path());
    result
}

#[tokio::test]
async fn a_plain_server_without_ranges_is_enough() {
    let (_server, reference) = serve(&Layout::new(&two_layers(), Pack::Gzip));
    pull(&reference, &[]).await.unwrap();
}

#[tokio::test]
async fn layers_are_fetched_beside_each_other() {
    let layers: Vec<Vec<u8>> = (0..3).map(|i| Tar::new().file(&format!("f{i}"), b"x").bytes()).collect();
    let layout = Layout::new(&layers, Pack::Gzip);
    let (server, reference) = serve(&layout);
    // No layer comes before all of them were asked for: one after the other none ever would.
    let together = Arc::new(Barrier::new(layers.len()));
    for digest in &layout.layers {
        let blob = fs::read(layout.dir.path().join("blobs/sha256").join(digest.hex())).unwrap();
        let answer = Answer { together: Some(together.clone()), ..Answer::ok(blob) };
        server.replace(&format!("/v2/r/blobs/{digest}"), answer);
    }
    let pulled = tokio::time::timeout(Duration::from_secs(20), pull(&reference, &[])).await;
    pulled.unwrap_or_else(|_| panic!("one after the other: {:?}", server.requests())).unwrap();
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_where_it_stopped() {
    let layout = Layout::new(&two_layers(), Pack::Plain);
    let (server, reference) = serve(&layout);
    let path = format!("/v2/r/blobs/{}", layout.layers[0]);
    let whole = fs::read(layout.dir.path().join("blobs/sha256").join(layout.layers[0].hex())).unwrap();
    for ranges in [true, false] {
        let other = Scripted::start();
        for request in
            ["manifests/x".to_owned(), format!("blobs/{}", layout.config), format!("blobs/{}", layout.layers[1])]
        {
            let body = match request.strip_prefix("blobs/sha256:") {
                Some(hex) => fs::read(layout.dir.path().join("blobs/sha256").join(hex)).unwrap(),
                None => fs::read(layout.dir.path().join("blobs/sha256").join(layout.manifest.hex())).unwrap(),
            };
            other.on(&format!("/v2/r/{request}"), Answer::ok(body));
        }
        other.on(&path, Answer { cut_at: Some(100_000), ranges, ..Answer::ok(whole.clone()) });
        other.on(&path, Answer { cut_at: Some(150_000), ranges, ..Answer::ok(whole.clone()) });
        other.on(&path, Answer { ranges, ..Answer::ok(whole.clone()) });
        let reference = format!("127.0.0.1:{}/r:x", other.port).parse().unwrap();
        pull(&reference, &[]).await.unwrap();
        let asked: Vec<String> =
            other.requests().into_iter().filter(|r| r.path == path).filter_map(|r| r.range).collect();
        assert!(asked.len() >= 3, "{asked:?}");
        assert_ne!(asked[1], "bytes=0-", "it began from the start: {asked:?}");
    }
    drop((server, reference));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_for_a_moment_in_the_middle_of_a_layer_costs_only_time() {
    let layout = Layout::new(&two_layers()[..1], Pack::Plain);
    let (server, reference) = serve(&layout);
    let path = format!("/v2/r/blobs/{}", layout.layers[0]);
    let whole = fs::read(layout.dir.path().join("blobs/sha256").join(layout.layers[0].hex())).unwrap();
    // Once with enough to count as a step forward, once without.
    for cut_at in [100_000, 1000] {
        let away = Some(Duration::from_millis(1200));
        server.replace(&path, Answer { cut_at: Some(cut_at), ranges: true, away, ..Answer::ok(whole.clone()) });
        server.on(&path, Answer { ranges: true, ..Answer::ok(whole.clone()) });
        let (begun, before) = (Instant::now(), server.requests().len());
        pull(&reference, &[]).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(1200));
        let requests = server.requests().split_off(before);
        let ranges: Vec<_> = requests.into_iter().filter(|r| r.path == path).filter_map(|r| r.range).collect();
        assert_eq!(ranges, ["bytes=0-".to_owned(), format!("bytes={cut_at}-")]);
    }
    // Where it is not to be found at all nobody tries for long.
    drop(server);
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let begun = Instant::now();
    let error = pull(&format!("127.0.0.1:{closed}/r:x").parse().unwrap(), &[]).await.unwrap_err();
    assert!(matches!(error, PullError::CannotConnect { .. }) && begun.elapsed() < Duration::from_secs(1), "{error:?}");
}

#[tokio::test]
async fn documents_without_end_are_not_read_to_their_end() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let endless = Answer { endless: true, ..Answer::ok("") };
    let begun = std::time::Instant::now();
    for path in [
        "/v2/r/manifests/x".to_owned(),
        format!("/v2/r/blobs/{}", layout.config),
        format!("/v2/r/blobs/{}", layout.layers[0]),
    ] {
        let (_, honest) = serve(&layout);
        drop(honest);
        let server = Scripted::start();
        let blob = |hex: &str| fs::read(layout.dir.path().join("blobs/sha256").join(hex)).unwrap();
        server.on(&path, endless.clone());
        server.on("/v2/r/manifests/x", Answer::ok(blob(layout.manifest.hex())));
        if path.ends_with("/x") {
            // The endless one stays.
            server.on(&path, endless.clone());
        }
        for digest in layout.layers.iter().chain([&layout.config]) {
            server.on(&format!("/v2/r/blobs/{digest}"), Answer::ok(blob(digest.hex())));
        }
        let reference = format!("127.0.0.1:{}/r:x", server.port).parse().unwrap();
        let error = pull(&reference, &[]).await.unwrap_err();
        assert!(!matches!(error, PullError::NotFound { .. }), "{path}: {error:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_stalled_transfer_is_given_up() {
    let layout = Layout::new(&two_layers(), Pack::Plain);
    let (server, _) = serve(&layout);
    // A server that accepts and then says nothing.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let root = tempfile::tempdir().unwrap();
    let config = Config { stall_timeout: Duration::from_millis(300), ..Config::new(root.path()) };
    let store = Store::open(config).unwrap();
    let begun = std::time::Instant::now();
    let error = store.pull(&format!("127.0.0.1:{port}/r:x").parse().unwrap(), &[], None).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(error.retry(), Retry::Later, "{error:?}");
    drop(server);
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let (server, reference) = serve(&layout);
    let manifest = fs::read_to_string(layout.dir.path().join("blobs/sha256").join(layout.manifest.hex())).unwrap();
    let wrong = portreeve_image::Digest::of(b"something else");
    server.on(&format!("/v2/r/manifests/{wrong}"), Answer::ok(manifest.clone()));
    let error = pull(&reference_by(&reference, wrong.as_str()), &[]).await.unwrap_err();
    assert!(matches!(error, PullError::DigestMismatch { .. }), "{error:?}");
    // A header that contradicts the body, a type that contradicts it, both kinds at once, an artifact.
    let both = manifest.replacen(
        '{',
        &format!(r#"{{"manifests":[{{"mediaType":"{MANIFEST}","digest":"{wrong}","size":1}}],"#),
        1,
    );
    let artifact = manifest.replace("image.config.v1+json", "other.config.v1+json");
    let fewer = manifest.replacen("\"layers\":[", "\"layers\":[],\"ignored\":[", 1);
    let far = manifest.replace(layout.config.as_str(), "sha256:../../../../etc/passwd");
    let answers = [
        ("header", Answer::ok(manifest.clone()).header("Docker-Content-Digest", wrong.as_str())),
        ("type", Answer::ok(manifest.clone()).header("Content-Type", "application/vnd.oci.image.index.v1+json")),
        ("both", Answer::ok(both)),
        ("artifact", Answer::ok(artifact)),
        ("fewer", Answer::ok(fewer)),
        ("far", Answer::ok(far)),
        ("garbage", Answer::ok("<html>")),
    ];
    for (name, answer) in answers {
        server.on(&format!("/v2/{name}/manifests/latest"), answer);
        for digest in layout.layers.iter().chain([&layout.config]) {
            let bytes = fs::read(layout.dir.path().join("blobs/sha256").join(digest.hex())).unwrap();
            server.on(&format!("/v2/{name}/blobs/{digest}"), Answer::ok(bytes));
        }
        let error = pull(&format!("127.0.0.1:{}/{name}", server.port).parse().unwrap(), &[]).await.unwrap_err();
        let right = matches!(&error, PullError::DigestMismatch { .. } | PullError::Invalid { .. });
        assert!(right, "{name}: {error:?}");
    }
}

fn reference_by(reference: &ImageRef, digest: &str) -> ImageRef {
    format!("{}@{digest}", reference.name()).parse().unwrap()
}

#[tokio::test]
async fn a_token_is_fetched_used_and_renewed_when_it_expires() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let server = Scripted::start();
    let realm = format!("http://127.0.0.1:{}/token", server.port);
    let challenge = format!(r#"Bearer realm="{realm}",service="svc",scope="repository:r:pull""#);
    let refuse = || Answer::status(401).header("WWW-Authenticate", &challenge);
    let private = Scripted::start();
    private.on("/v2/", refuse());
    // `Scripted` begins with an open /v2/; the second answer is the one that stays.
    let blob = |hex: &str| fs::read(layout.dir.path().join("blobs/sha256").join(hex)).unwrap();
    private.on("/v2/r/manifests/x", Answer::ok(blob(layout.manifest.hex())));
    for (i, digest) in layout.layers.iter().chain([&layout.config]).enumerate() {
        let path = format!("/v2/r/blobs/{digest}");
        if i == 0 {
            private.on(&path, refuse());
        }
        private.on(&path, Answer::ok(blob(digest.hex())));
    }
    server.on("/token", Answer::ok(r#"{"token":"first","expires_in":1}"#));
    server.on("/token", Answer::ok(r#"{"access_token":"second"}"#));
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    // The first request meets the open answer; take it away.
    let _ = reqwest_get(private.port, "/v2/");
    let host = format!("127.0.0.1:{}", private.port);
    let login = Credential::basic(&host, "me", "pw");
    store.pull(&format!("{host}/r:x").parse().unwrap(), &[login], None).await.unwrap();
    let tokens = server.requests();
    assert!(tokens.len() >= 2, "{tokens:?}");
    assert!(tokens[0].path.contains("scope=repository%3Ar%3Apull") && tokens[0].path.contains("service=svc"));
    assert!(tokens[0].authorization.as_deref().unwrap().starts_with("Basic "));
    let used: Vec<_> = private.requests().into_iter().filter_map(|r| r.authorization).collect();
    assert!(used.contains(&"Bearer first".to_owned()) && used.contains(&"Bearer second".to_owned()), "{used:?}");
    assert!(used.iter().all(|a| a.starts_with("Bearer ")), "the password went to the registry: {used:?}");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_for_others_and_goes_nowhere_else() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let login = br#"{"auths":{"127.0.0.1:PORT":{"auth":"bWU6","identitytoken":"s3cret/id"}}}"#;
    let login = |server: &Scripted| {
        let text = String::from_utf8_lossy(login).replace("PORT", &server.port.to_string());
        Credential::from_docker_config(text.as_bytes()).unwrap()
    };
    let tokens = Scripted::start();
    let bearer = format!(r#"Bearer realm="http://127.0.0.1:{}/token?account=me",service="svc""#, tokens.port);
    let seen = |server: &Scripted| format!("{:?}", server.requests());
    // At the door, and in a room.
    for path in ["/v2/", "/v2/r/manifests/x"] {
        let (server, reference) = serve(&layout);
        server.before(path, [Answer::status(401).header("WWW-Authenticate", &bearer)]);
        tokens.replace("/token", Answer::ok(r#"{"access_token":"t","refresh_token":"another","expires_in":300}"#));
        pull(&reference, &login(&server)).await.unwrap();
        let asked = tokens.requests().pop().unwrap();
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token?account=me"));
        assert!(asked.authorization.is_none());
        let form = ("content-type".to_owned(), "application/x-www-form-urlencoded".to_owned());
        assert!(asked.headers.contains(&form), "{asked:?}");
        let expected = "grant_type=refresh_token&refresh_token=s3cret%2Fid&service=svc\
                        &scope=repository%3Ar%3Apull&client_id=portreeve";
        assert_eq!(asked.body, expected);
        let used: Vec<_> = server.requests().into_iter().filter_map(|r| r.authorization).collect();
        assert!(!used.is_empty() && used.iter().all(|token| token == "Bearer t"), "{used:?}");
        assert!(!seen(&server).contains("s3cret"), "{}", seen(&server));
    }
    // Not to a registry that wants a name and a password, nor along a redirect.
    for path in ["/v2/", "/v2/r/manifests/x"] {
        let (server, reference) = serve(&layout);
        server.replace(path, Answer::status(401).header("WWW-Authenticate", r#"Basic realm="x""#));
        let error = pull(&reference, &login(&server)).await.unwrap_err();
        assert!(matches!(&error, PullError::Unauthorized { detail, .. } if detail.contains("identity")), "{error:?}");
        assert!(server.requests().iter().all(|request| request.authorization.is_none()), "{}", seen(&server));
    }
    let (server, reference) = serve(&layout);
    server.before("/v2/", [Answer::status(401).header("WWW-Authenticate", &bearer)]);
    let elsewhere = format!("http://localhost:{}/token", server.port);
    tokens.replace("/token", Answer::status(307).header("Location", &elsewhere));
    let error = pull(&reference, &login(&server)).await.unwrap_err();
    assert!(chain(&error).contains("307") && !chain(&error).contains("s3cret"), "{}", chain(&error));
    assert!(!server.requests().iter().any(|request| request.path.contains("/token")), "{}", seen(&server));
}

/// A plain GET, for its side effect.
fn reqwest_get(port: u16, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[tokio::test]
async fn a_refused_login_is_named_and_the_password_is_not() {
    let server = Scripted::start();
    let realm = format!("http://127.0.0.1:{}/token", server.port);
    let private = Scripted::start();
    let _ = reqwest_get(private.port, "/v2/");
    private.on("/v2/", Answer::status(401).header("WWW-Authenticate", &format!(r#"Bearer realm="{realm}""#)));
    let _ = reqwest_get(private.port, "/v2/");
    server.on("/token", Answer { status: 401, ..Answer::ok(r#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#) });
    let host = format!("127.0.0.1:{}", private.port);
    let login = Credential::basic(&host, "me", "hunter2");
    let error = pull(&format!("{host}/r:x").parse().unwrap(), std::slice::from_ref(&login)).await.unwrap_err();
    assert!(matches!(&error, PullError::Unauthorized { detail, .. } if detail.contains("\"me\"")), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("hunter2"));
    // A realm that is not HTTP at all gets nothing.
    let odd = Scripted::start();
    odd.on("/v2/", Answer::status(401).header("WWW-Authenticate", r#"Bearer realm="file:///etc/passwd""#));
    let _ = reqwest_get(odd.port, "/v2/");
    let host = format!("127.0.0.1:{}", odd.port);
    let error = pull(&format!("{host}/r:x").parse().unwrap(), &[login]).await.unwrap_err();
    assert!(matches!(&error, PullError::Registry { .. } | PullError::Unauthorized { .. }), "{error:?}");
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let (elsewhere, _) = serve(&layout);
    let registry = Scripted::start();
    registry.on("/v2/", Answer::status(401).header("WWW-Authenticate", r#"Basic realm="x""#));
    registry.on("/v2/", Answer::ok("{}"));
    let _ = reqwest_get(registry.port, "/v2/");
    let manifest = fs::read(layout.dir.path().join("blobs/sha256").join(layout.manifest.hex())).unwrap();
    registry.on("/v2/r/manifests/x", Answer::ok(manifest));
    for digest in layout.layers.iter().chain([&layout.config]) {
        let path = format!("/v2/r/blobs/{digest}");
        // Another name for this machine is another host.
        let to = format!("http://localhost:{}{path}", elsewhere.port);
        registry.on(&path, Answer::status(307).header("Location", &to));
    }
    let host = format!("127.0.0.1:{}", registry.port);
    let login = Credential::basic(&host, "me", "pw");
    pull(&format!("{host}/r:x").parse().unwrap(), &[login]).await.unwrap();
    assert!(registry.requests().iter().any(|r| r.authorization.is_some()), "the login was used at all");
    let leaked: Vec<_> = elsewhere.requests().into_iter().filter(|r| r.authorization.is_some()).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[tokio::test]
async fn a_redirect_leads_nowhere_that_a_registrys_word_must_not_lead() {
    let Some(address) = support::own_address() else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this machine has no address besides loopback");
        return;
    };
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    // What must not be asked has the very blobs.
    let (inner, _) = serve(&layout);
    let root = tempfile::tempdir().unwrap();
    let config = Config { insecure_registries: vec![address.to_string()], ..Config::new(root.path()) };
    let store = Store::open(config).unwrap();
    let manifest = fs::read(layout.dir.path().join("blobs/sha256").join(layout.manifest.hex())).unwrap();
    let to_inner = |host: &str| format!("http://{host}:{}", inner.port);
    for (to, problem) in [
        (to_inner("127.0.0.1"), "to this machine or link"),
        (to_inner("localhost"), "to this machine or link"),
        (to_inner("[::ffff:127.0.0.1]"), "to this machine or link"),
        ("http://169.254.169.254/latest".to_owned(), "to this machine or link"),
        ("file:///etc/passwd".to_owned(), "not on HTTP"),
        ("http://".to_owned(), "no URL"),
    ] {
        let registry = Scripted::start_at(address);
        registry.on("/v2/r/manifests/x", Answer::ok(manifest.clone()).header("Content-Type", MANIFEST));
        for digest in layout.layers.iter().chain([&layout.config]) {
            let path = format!("/v2/r/blobs/{digest}");
            let location = if to.starts_with("http://") && to.len() > 7 { format!("{to}{path}") } else { to.clone() };
            registry.on(&path, Answer::status(302).header("Location", &location));
        }
        let reference = format!("{address}:{}/r:x", registry.port).parse().unwrap();
        let error = store.pull(&reference, &[], None).await.unwrap_err();
        let told = chain(&error);
        assert!(told.contains(problem), "{to}: {told}");
        assert!(inner.requests().is_empty(), "{to}: {:?}", inner.requests());
    }
    // One that sends round in a circle ends.
    let registry = Scripted::start_at(address);
    registry.on("/v2/r/manifests/x", Answer::status(307).header("Location", "/v2/r/manifests/x"));
    let reference = format!("{address}:{}/r:x", registry.port).parse().unwrap();
    let told = chain(&store.pull(&reference, &[], None).await.unwrap_err());
    assert!(told.contains("in a circle"), "{told}");
    assert_eq!(registry.requests().iter().filter(|request| request.path == "/v2/r/manifests/x").count(), 6);
}

#[tokio::test]
async fn a_registry_whose_door_is_open_may_want_a_login_for_a_room() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    for challenge in ["Basic realm=\"x\"", "Bearer"] {
        let (server, reference) = serve(&layout);
        let bearer = format!("Bearer realm=\"http://127.0.0.1:{}/token\",service=\"s\"", server.port);
        let challenge = if challenge == "Bearer" { &bearer } else { challenge };
        server.on("/token", Answer::ok("{\"token\":\"t\"}"));
        server.before("/v2/r/manifests/x", [Answer::status(401).header("WWW-Authenticate", challenge)]);
        // The next transfers of the same session have the login already.
        let login = Credential::basic("", "me", "pw");
        pull(&reference, &[login]).await.unwrap();
        let seen = server.requests();
        let manifests: Vec<_> = seen.iter().filter(|request| request.path == "/v2/r/manifests/x").collect();
        assert_eq!(manifests.len(), 2);
        assert!(manifests[0].authorization.is_none() && manifests[1].authorization.is_some(), "{manifests:?}");
        assert!(seen.iter().filter(|request| request.path.contains("/blobs/")).all(|r| r.authorization.is_some()));
    }
    // Without a login it is told what is missing, and asked once.
    let (server, reference) = serve(&layout);
    server.replace("/v2/r/manifests/x", Answer::status(401).header("WWW-Authenticate", "Basic realm=\"x\""));
    let error = pull(&reference, &[]).await.unwrap_err();
    let PullError::Unauthorized { detail, .. } = &error else { panic!("{error:?}") };
    assert!(detail.contains("no login was given"), "{detail}");
    assert_eq!(server.requests().iter().filter(|request| request.path == "/v2/r/manifests/x").count(), 1);
}

#[tokio::test]
async fn what_a_manifest_calls_its_configuration_is_no_longer_than_it_says() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let (server, reference) = serve(&layout);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(Config { keep_blobs: KeepBlobs::Always, ..Config::new(root.path()) }).unwrap();
    store.pull(&reference, &[], None).await.unwrap();
    // A layer of it is kept; another manifest says that this is its configuration.
    let layer = &layout.layers[0];
    let kept = fs::metadata(root.path().join("blobs/sha256").join(layer.hex())).unwrap().len();
    assert!(kept > 1000);
    let text = fs::read_to_string(layout.dir.path().join("blobs/sha256").join(layout.manifest.hex())).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    manifest["config"]["digest"] = layer.to_string().into();
    manifest["config"]["size"] = 100.into();
    server.on("/v2/r/manifests/y", Answer::ok(manifest.to_string()).header("Content-Type", MANIFEST));
    let path = format!("/v2/r/blobs/{layer}");
    let asked = || server.requests().iter().filter(|request| request.path == path).count();
    let before = asked();
    let error = store.pull(&format!("127.0.0.1:{}/r:y", server.port).parse().unwrap(), &[], None).await.unwrap_err();
    assert!(chain(&error).contains("more than the 100 bytes promised"), "{}", chain(&error));
    assert_eq!(asked(), before + 1, "what is kept was not taken for it");
}

#[tokio::test]
async fn a_configuration_is_as_long_as_the_manifest_says() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let text = fs::read_to_string(layout.dir.path().join("blobs/sha256").join(layout.manifest.hex())).unwrap();
    let true_size = fs::metadata(layout.dir.path().join("blobs/sha256").join(layout.config.hex())).unwrap().len();
    for (size, told) in [
        (8 << 20, format!("has {true_size} bytes where 8388608 are promised")),
        (true_size + 1, format!("has {true_size} bytes where {} are promised", true_size + 1)),
        (true_size - 1, format!("more than the {} bytes promised", true_size - 1)),
    ] {
        let (server, reference) = serve(&layout);
        let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        manifest["config"]["size"] = size.into();
        server.replace("/v2/r/manifests/x", Answer::ok(manifest.to_string()).header("Content-Type", MANIFEST));
        let error = pull(&reference, &[]).await.unwrap_err();
        assert!(matches!(error, PullError::Invalid { .. }) && chain(&error).contains(&told), "{}", chain(&error));
    }
}

#[tokio::test]
async fn too_many_requests_and_broken_servers_are_worth_another_try() {
    for status in [429, 500, 503] {
        let server = Scripted::start();
        server.on("/v2/r/manifests/x", Answer { status, ..Answer::ok("slow \u{1b}[31mdown") });
        let error = pull(&format!("127.0.0.1:{}/r:x", server.port).parse().unwrap(), &[]).await.unwrap_err();
        assert_eq!(error.retry(), Retry::Later, "{error:?}");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(&status.to_string()) && !source.contains('\u{1b}'), "{source:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_a_pause_gets_it() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let busy = |status| Answer::status(status).header("Retry-After", "1");
    for path in ["/v2/".to_owned(), "/v2/r/manifests/x".to_owned(), format!("/v2/r/blobs/{}", layout.layers[0])] {
        let (server, reference) = serve(&layout);
        server.before(&path, [busy(429), busy(503)]);
        let begun = Instant::now();
        pull(&reference, &[]).await.unwrap();
        let asked = server.requests().iter().filter(|request| request.path == path).count();
        assert_eq!(asked, 3, "{path}: {:?}", server.requests());
        let took = begun.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_secs(10)).contains(&took), "{path}: {took:?}");
    }
}

#[tokio::test]
async fn a_pause_that_is_too_long_fails_the_pull_at_once_and_is_told() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    for path in ["/v2/".to_owned(), "/v2/r/manifests/x".to_owned(), format!("/v2/r/blobs/{}", layout.layers[0])] {
        for status in [429, 503] {
            let (server, reference) = serve(&layout);
            server.replace(&path, Answer::status(status).header("Retry-After", "3600"));
            let begun = Instant::now();
            let error = pull(&reference, &[]).await.unwrap_err();
            assert_eq!((error.retry(), error.retry_after()), (Retry::Later, Some(Duration::from_secs(3600))));
            assert!(begun.elapsed() < Duration::from_secs(10));
            let asked = server.requests().iter().filter(|request| request.path == path).count();
            assert_eq!(asked, 1, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_without_end_costs_no_memory() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let mut work = tokio::task::JoinSet::new();
    for status in [401, 404, 500] {
        for what in ["/v2/", "/token", "manifest", "config", "layer"] {
            let (server, reference) = serve(&layout);
            let path = match what {
                "manifest" => "/v2/r/manifests/x".to_owned(),
                "config" => format!("/v2/r/blobs/{}", layout.config),
                "layer" => format!("/v2/r/blobs/{}", layout.layers[0]),
                other => other.to_owned(),
            };
            if what == "/token" {
                let realm = format!(r#"Bearer realm="http://127.0.0.1:{}/token""#, server.port);
                server.replace("/v2/", Answer::status(401).header("WWW-Authenticate", &realm));
            }
            let endless = Answer { endless: true, ..Answer::status(status) };
            // Only this challenge makes the body of that refusal worth reading.
            server.replace(&path, endless.header("WWW-Authenticate", r#"Basic realm="x""#));
            work.spawn(async move {
                let result = pull(&reference, &[]).await;
                (status, what, result, server.endless_bytes())
            });
        }
    }
    while let Some(done) = work.join_next().await {
        let (status, what, result, bytes) = done.unwrap();
        if (status, what) == (404, "/v2/") {
            // Nothing is known from it, and nothing of it is read.
            result.unwrap();
        } else {
            let error = chain(&result.unwrap_err());
            assert!(error.len() < 2000, "{status} {what}: {error}");
        }
        // What the kernel holds on its way, for some attempts.
        assert!(bytes < 100 << 20, "{status} {what}: {bytes} bytes were taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_trickles_is_given_up() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let mut work = tokio::task::JoinSet::new();
    for (what, status) in [("manifest", 200), ("manifest", 404), ("config", 200), ("layer", 200), ("layer", 404)] {
        let (server, reference) = serve(&layout);
        let path = match what {
            "manifest" => "/v2/r/manifests/x".to_owned(),
            "config" => format!("/v2/r/blobs/{}", layout.config),
            _ => format!("/v2/r/blobs/{}", layout.layers[0]),
        };
        let trickle = Some(Duration::from_millis(20));
        server.replace(&path, Answer { status, trickle, ..Answer::ok(vec![b'x'; 100_000]) });
        work.spawn(async move {
            let root = tempfile::tempdir().unwrap();
            let config = Config { stall_timeout: Duration::from_millis(400), ..Config::new(root.path()) };
            let store = Store::open(config).unwrap();
            let begun = Instant::now();
            let error = store.pull(&reference, &[], None).await.unwrap_err();
            (what, status, error, begun.elapsed(), server)
        });
    }
    while let Some(done) = work.join_next().await {
        let (what, status, error, elapsed, _server) = done.unwrap();
        let text = chain(&error);
        assert!(elapsed < Duration::from_secs(30), "{what} {status}: {elapsed:?}");
        if status == 200 {
            assert!(text.contains("too slow"), "{what} {status}: {text}");
            assert_eq!(error.retry(), Retry::Later, "{what} {status}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_registry_holds_up_no_other() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(Config { max_concurrent_downloads: 2, ..Config::new(root.path()) }).unwrap();
    let slow = Scripted::start();
    let layouts: Vec<Layout> = (0..4)
        .map(|i| Layout::new(&[Tar::new().file("x", format!("{i}").repeat(2000).as_bytes()).bytes()], Pack::Plain))
        .collect();
    for (i, layout) in layouts.iter().enumerate() {
        let blob = |hex: &str| fs::read(layout.dir.path().join("blobs/sha256").join(hex)).unwrap();
        slow.on(&format!("/v2/r{i}/manifests/x"), Answer::ok(blob(layout.manifest.hex())));
        slow.on(&format!("/v2/r{i}/blobs/{}", layout.config), Answer::ok(blob(layout.config.hex())));
        let layer = Answer { trickle: Some(Duration::from_millis(100)), ..Answer::ok(blob(layout.layers[0].hex())) };
        slow.on(&format!("/v2/r{i}/blobs/{}", layout.layers[0]), layer);
    }
    let mut stuck = tokio::task::JoinSet::new();
    for i in 0..layouts.len() {
        let (store, reference) = (store.clone(), format!("127.0.0.1:{}/r{i}:x", slow.port).parse().unwrap());
        stuck.spawn(async move { store.pull(&reference, &[], None).await });
    }
    let holding = || slow.requests().iter().filter(|r| r.path.contains("/blobs/") && r.range.is_some()).count();
    let until = Instant::now() + Duration::from_secs(20);
    while holding() < layouts.len() + 2 {
        assert!(Instant::now() < until, "the slow registry was not asked for layers");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Its own layers, and the very layers that the slow one is sending.
    for layout in [&Layout::new(&two_layers(), Pack::Gzip)].into_iter().chain(&layouts) {
        let (_server, reference) = serve(layout);
        let pull = store.pull(&reference, &[], None);
        tokio::time::timeout(Duration::from_secs(10), pull).await.expect("it waited for the slow one").unwrap();
    }
    assert!(stuck.try_join_next().is_none(), "the slow ones should still be at work");
    stuck.shutdown().await;
    assert!(store.lookup(&format!("127.0.0.1:{}/r0:x", slow.port).parse().unwrap()).is_none());
}

#[tokio::test]
async fn what_a_registry_says_reaches_nobodys_terminal_raw() {
    const EVIL: &str = r"\u001b]0;pwn\u0007\u001b[31mred\u202e\r\nline";
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let blob = |digest: &Digest| fs::read_to_string(layout.dir.path().join("blobs/sha256").join(digest.hex())).unwrap();
    let manifest = blob(&layout.manifest);
    let said = format!(r#"{{"errors":[{{"code":"X","message":"{EVIL}"}}]}}"#);
    let raw: String = serde_json::from_str(&format!("\"{EVIL}\"")).unwrap();
    let mut cases = Vec::new();
    for status in [400, 403, 404, 500] {
        for body in [said.clone(), raw.clone()] {
            let refuse = || Answer { status, ..Answer::ok(body.clone()) };
            cases.push((format!("manifest {status}"), "/v2/r/manifests/x".to_owned(), refuse()));
            cases.push((format!("config {status}"), format!("/v2/r/blobs/{}", layout.config), refuse()));
        }
    }
    let layer = format!("/v2/r/blobs/{}", layout.layers[0]);
    cases.push(("layer".to_owned(), layer, Answer { status: 400, ..Answer::ok(said) }));
    for (from, to) in [
        ("image.config.v1+json", format!("image.config.v1+json{EVIL}")),
        ("image.layer.v1.tar+gzip", format!("image.layer.v1.tar+gzip{EVIL}")),
        ("image.manifest.v1+json", format!("image.manifest.v1+json{EVIL}")),
        (layout.config.as_str(), EVIL.to_owned()),
    ] {
        let answer = Answer::ok(manifest.replace(from, &to));
        cases.push((format!("manifest without {from}"), "/v2/r/manifests/x".to_owned(), answer));
    }
    let platform = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST}","digest":"{}","size":1,
            "platform":{{"os":"{EVIL}","architecture":"{EVIL}","variant":"{EVIL}"}}}}]}}"#,
        layout.manifest
    );
    cases.push(("index".to_owned(), "/v2/r/manifests/x".to_owned(), Answer::ok(platform)));
    for (name, path, answer) in cases {
        let (server, reference) = serve(&layout);
        server.replace(&path, answer);
        let text = chain(&pull(&reference, &[]).await.unwrap_err());
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{name}: {text:?}");
        assert!(text.len() < 2000, "{name}: {} bytes", text.len());
    }
    // A configuration for another machine, and one that is none.
    let bad_diff_id = config_json(&layout.diff_ids, arch(), "").replace("sha256:", EVIL);
    for config in [config_json(&layout.diff_ids, &raw, ""), bad_diff_id] {
        let (server, reference) = serve(&layout);
        let digest = Digest::of(config.as_bytes());
        let size = format!("\"size\":{}", blob(&layout.config).len());
        let changed = manifest.replace(layout.config.as_str(), digest.as_str());
        let changed = changed.replace(&size, &format!("\"size\":{}", config.len()));
        server.replace("/v2/r/manifests/x", Answer::ok(changed));
        server.on(&format!("/v2/r/blobs/{digest}"), Answer::ok(config));
        let error = pull(&reference, &[]).await.unwrap_err();
        let text = chain(&error);
        assert!(matches!(error, PullError::Invalid { .. } | PullError::Platform { .. }), "{text:?}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

#[tokio::test]
async fn the_name_that_was_asked_for_comes_first() {
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    let (server, _) = serve(&layout);
    let manifest = fs::read(layout.dir.path().join("blobs/sha256").join(layout.manifest.hex())).unwrap();
    for path in ["/v2/a/manifests/x", "/v2/z/manifests/x", "/v2/z/manifests/b"] {
        server.on(path, Answer::ok(manifest.clone()));
    }
    server.on(&format!("/v2/z/manifests/{}", layout.manifest), Answer::ok(manifest));
    for digest in layout.layers.iter().chain([&layout.config]) {
        let bytes = fs::read(layout.dir.path().join("blobs/sha256").join(digest.hex())).unwrap();
        server.on(&format!("/v2/a/blobs/{digest}"), Answer::ok(bytes));
    }
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let host = format!("127.0.0.1:{}", server.port);
    for (asked, first) in [("a:x", "a:x"), ("z:x", "z:x"), ("z:b", "z:b"), ("z:x", "z:x"), ("a:x", "a:x")] {
        let image = store.pull(&format!("{host}/{asked}").parse().unwrap(), &[], None).await.unwrap();
        assert_eq!(image.references[0].to_string(), format!("{host}/{first}"));
        let name = asked.split(':').next().unwrap();
        assert_eq!(image.repo_digests[0], format!("{host}/{name}@{}", layout.manifest));
    }
    let pinned = format!("{host}/z@{}", layout.manifest).parse().unwrap();
    let image = store.pull(&pinned, &[], None).await.unwrap();
    assert_eq!(image.references[0].repository(), "z");
    assert_eq!(image.references.len(), 3);
}

#[tokio::test]
async fn a_token_is_asked_for_only_where_a_login_may_go() {
    for realm in ["http://registry.invalid/token", "https://user:pw@registry.invalid/token", "ftp://127.0.0.1/token"] {
        let server = Scripted::start();
        let challenge = format!(r#"Bearer realm="{realm}""#);
        server.replace("/v2/", Answer::status(401).header("WWW-Authenticate", &challenge));
        let host = format!("127.0.0.1:{}", server.port);
        let login = Credential::basic(&host, "me", "pw");
        let error = pull(&format!("{host}/r:x").parse().unwrap(), &[login]).await.unwrap_err();
        // It was refused, not tried: there is no such host to be found.
        assert!(chain(&error).contains("its token realm"), "{}", chain(&error));
        assert_eq!(error.retry(), Retry::AfterChange);
    }
}

/// A name besides `localhost` that this machine's file of hosts gives to it.
fn another_name_of_this_machine() -> Option<String> {
    let hosts = fs::read_to_string("/etc/hosts").ok()?;
    let names = hosts.lines().filter_map(|line| line.strip_prefix("127.0.0.1")).flat_map(str::split_whitespace);
    names.map(str::to_owned).find(|name| !name.contains("localhost") && !name.starts_with('#'))
}

#[tokio::test]
async fn a_token_realm_leads_to_this_machine_by_no_name_either() {
    let (Some(address), Some(name)) = (support::own_address(), another_name_of_this_machine()) else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this machine has one address only, or no name besides localhost");
        return;
    };
    let tokens = Scripted::start();
    tokens.on("/token", Answer::ok(r#"{"token":"t"}"#));
    let root = tempfile::tempdir().unwrap();
    let insecure_registries = vec![address.to_string(), name.clone()];
    let store = Store::open(Config { insecure_registries, ..Config::new(root.path()) }).unwrap();
    let realm = format!(r#"Bearer realm="http://{name}:{}/token""#, tokens.port);
    let refusal = || Answer::status(401).header("WWW-Authenticate", &realm);
    for path in ["/v2/", "/v2/r/manifests/x"] {
        let registry = Scripted::start_at(address);
        registry.replace(path, refusal());
        let host = format!("{address}:{}", registry.port);
        let login = Credential::basic(&host, "me", "pw");
        let error = store.pull(&format!("{host}/r:x").parse().unwrap(), &[login], None).await.unwrap_err();
        assert!(chain(&error).contains("a token realm led to it"), "{}", chain(&error));
        assert!(tokens.requests().is_empty(), "{:?}", tokens.requests());
    }
    // A registry of this machine may.
    let (registry, reference) = serve(&Layout::new(&two_layers(), Pack::Gzip));
    registry.before("/v2/", [refusal()]);
    store.pull(&reference, &[Credential::basic("", "me", "pw")], None).await.unwrap();
    assert_eq!(tokens.requests().len(), 1);
}

/// Each layer stays below what one layer may always unpack to; all together would fill the disk.
#[tokio::test]
async fn many_small_bombs_are_one() {
    let zeros = |number: u8| Tar::new().file(&format!("zeros{number}"), &vec![0; 400 << 10]).bytes();
    for (count, fits) in [(2, true), (6, false)] {
        let layout = Layout::new(&(0..count).map(zeros).collect::<Vec<_>>(), Pack::Gzip);
        let (_server, reference) = serve(&layout);
        let root = tempfile::tempdir().unwrap();
        let limits = portreeve_image::Limits { ratio_floor_bytes: 1 << 20, ratio: 2, ..Default::default() };
        let store = Store::open(Config { limits: limits.clone(), ..Config::new(root.path()) }).unwrap();
        let pulled = store.pull(&reference, &[], None).await;
        let limit = |error: &PullError| {
            matches!(error, PullError::Layer { source: portreeve_image::LayerError::Limit { .. }, .. })
        };
        assert!(if fits { pulled.is_ok() } else { pulled.as_ref().is_err_and(limit) }, "{count}: {pulled:?}");
        // So it is for what comes from a file.
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_dir_all("", layout.dir.path()).unwrap();
        let second = tempfile::tempdir().unwrap();
        let store = Store::open(Config { limits, ..Config::new(second.path()) }).unwrap();
        let loaded = store.load(std::io::Cursor::new(archive.into_inner().unwrap())).await;
        assert_eq!(loaded.is_ok(), fits, "{count}: {loaded:?}");
    }
}
