//! Registries that lie, break off, send without end, or want credentials for somebody else.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{fs, time::Duration};

use portreeve_image::{Config, Credential, ImageRef, PullError, Retry, Store};
use support::{
    Layout, Pack,
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
    assert_eq!(fs::read_dir(root.path().join("staging")).unwrap().count(), 0);
    result
}

#[tokio::test]
async fn a_plain_server_without_ranges_is_enough() {
    let (_server, reference) = serve(&Layout::new(&two_layers(), Pack::Gzip));
    pull(&reference, &[]).await.unwrap();
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
