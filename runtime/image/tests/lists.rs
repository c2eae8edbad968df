//! Lists that registries give: tags, and what refers to a manifest.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::fs;

use portreeve_image::{Digest, ImageRef, PullError, RegistryError};
use support::{
    Layout, Pack, Registry,
    scripted::{Answer, Scripted},
    store, two_layers,
};

fn of(server: &Scripted, name: &str) -> ImageRef {
    format!("127.0.0.1:{}/{name}", server.port).parse().unwrap()
}

#[tokio::test]
async fn a_registrys_tags_are_those_that_skopeo_sees() {
    let registry = Registry::start();
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    for tag in ["1", "2", "latest", "v1.0-rc.1"] {
        registry.push(layout.dir.path(), &format!("team/box:{tag}"), &[]);
    }
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let mut tags = store.tags(&registry.reference("team/box"), &[]).await.unwrap();
    tags.sort();
    assert_eq!(tags, ["1", "2", "latest", "v1.0-rc.1"]);
    let absent = store.tags(&registry.reference("absent"), &[]).await.unwrap_err();
    assert!(
        matches!(absent, PullError::Registry { source: RegistryError::Status { status: 404, .. }, .. }),
        "{absent:?}"
    );
}

#[tokio::test]
async fn a_list_goes_on_where_the_registry_says_but_only_there() {
    let server = Scripted::start();
    let page = |tags: &str, next: &str| Answer::ok(format!("{{\"tags\":{tags}}}")).header("Link", next);
    server.on("/v2/r/tags/list", page(r#"["a","b"]"#, r#"</v2/r/tags/list?n=1000&last=b>; rel="next""#));
    server.on(
        "/v2/r/tags/list",
        page(r#"["c\u001b[31m"]"#, &format!(r#"<http://127.0.0.1:{}/v2/r/tags/list?last=c>; rel=next"#, server.port)),
    );
    server.on("/v2/r/tags/list", Answer::ok(r#"{"tags":null}"#));
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    assert_eq!(store.tags(&of(&server, "r"), &[]).await.unwrap(), ["a", "b", "c\u{fffd}[31m"]);
    let asked: Vec<String> = server.requests().into_iter().map(|r| r.path).filter(|p| p.contains("tags")).collect();
    assert_eq!(asked, ["/v2/r/tags/list?n=1000", "/v2/r/tags/list?n=1000&last=b", "/v2/r/tags/list?last=c"]);

    for elsewhere in ["http://169.254.169.254/latest", "ftp://x/y", "//evil.example/v2"] {
        server.replace("/v2/r/tags/list", page("[]", &format!("<{elsewhere}>; rel=\"next\"")));
        let refused = store.tags(&of(&server, "r"), &[]).await.unwrap_err();
        assert!(format!("{refused:?}").contains("not the registry"), "{refused:?}");
    }
    server.replace("/v2/r/tags/list", page(r#"["a"]"#, r#"</v2/r/tags/list?n=1000>; rel="next""#));
    let endless = store.tags(&of(&server, "r"), &[]).await.unwrap_err();
    assert!(format!("{endless:?}").contains("goes on where it began"), "{endless:?}");
    // Nor has one that goes on and on all the memory of the machine.
    let many = format!("[{}]", vec!["\"\""; 60_000].join(","));
    server.replace("/v2/r/tags/list", page(&many, r#"</v2/r/tags/list?a=1>; rel="next""#));
    server.before("/v2/r/tags/list", [page(&many, r#"</v2/r/tags/list?a=2>; rel="next""#)]);
    let long = store.tags(&of(&server, "r"), &[]).await.unwrap_err();
    assert!(matches!(long, PullError::Registry { source: RegistryError::TooLong { .. }, .. }), "{long:?}");
    server.replace("/v2/r/tags/list", Answer::ok("[]"));
    assert!(store.tags(&of(&server, "r"), &[]).await.is_err());
}

#[tokio::test]
async fn what_refers_to_an_image_is_told_by_the_api_or_by_the_tag_that_stands_for_it() {
    let referrer = Digest::of(b"referrer");
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": referrer, "size": 7,
            "artifactType": "application/spdx+json", "annotations": {"org.example": "x"},
        }],
    });
    let server = Scripted::start();
    server.on("/v2/r/manifests/x", Answer::ok("{}"));
    let subject = Digest::of(b"{}");
    server.on(&format!("/v2/r/referrers/{subject}"), Answer::ok(index.to_string()));
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (digest, found) = store.referrers(&of(&server, "r:x"), &[]).await.unwrap();
    assert_eq!(digest, subject);
    assert_eq!((found.len(), &found[0].digest, found[0].size), (1, &referrer, 7));
    assert_eq!(
        (found[0].artifact_type.as_str(), found[0].annotations["org.example"].as_str()),
        ("application/spdx+json", "x")
    );

    // The real registry of this version knows no such API.
    let registry = Registry::start();
    let layout = Layout::new(&two_layers(), Pack::Gzip);
    registry.push(layout.dir.path(), "box:1", &[]);
    assert!(store.referrers(&registry.reference("box:1"), &[]).await.unwrap().1.is_empty());
    let other = Layout::salted(&two_layers(), Pack::Gzip, "other");
    registry.push(other.dir.path(), "box:other", &[]);
    let size = fs::metadata(other.dir.path().join("blobs/sha256").join(other.manifest.hex())).unwrap().len();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type,
        "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": other.manifest,
                        "size": size, "artifactType": "application/example" }],
    });
    let tag = format!("http://127.0.0.1:{}/v2/box/manifests/sha256-{}", registry.port, layout.manifest.hex());
    let put = reqwest::Client::new().put(tag).header("Content-Type", media_type).body(index.to_string());
    assert_eq!(put.send().await.unwrap().status(), 201);
    let (digest, found) = store.referrers(&registry.reference("box:1"), &[]).await.unwrap();
    assert_eq!((digest, &found[0].digest), (layout.manifest, &other.manifest));
}

#[tokio::test]
async fn the_files_of_an_artifact_come_as_they_were_pushed() {
    let server = Scripted::start();
    let (text, table) = (b"text".to_vec(), b"table".to_vec());
    let layer = |content: &[u8], title: &str| {
        serde_json::json!({ "mediaType": "text/plain", "digest": Digest::of(content), "size": content.len(),
                            "annotations": { "org.opencontainers.image.title": title } })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/example",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2 },
        "layers": [layer(&text, "a.txt"), layer(&table, "sub/b.csv")],
    })
    .to_string();
    server.on("/v2/r/manifests/x", Answer::ok(manifest));
    server.on(&format!("/v2/r/blobs/{}", Digest::of(&text)), Answer::ok(text.clone()));
    server.on(&format!("/v2/r/blobs/{}", Digest::of(&table)), Answer::ok(table));
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let mut tar = Vec::new();
    store.artifact(&of(&server, "r:x"), &[]).await.unwrap().write_to(&mut tar).unwrap();
    let mut archive = tar::Archive::new(tar.as_slice());
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
        found.push((entry.path().unwrap().display().to_string(), content));
    }
    assert_eq!(found, [("a.txt".to_owned(), "text".to_owned()), ("sub/b.csv".to_owned(), "table".to_owned())]);
    // It is no image, and says so.
    let refused = store.pull(&of(&server, "r:x"), &[], None).await.unwrap_err();
    assert!(refused.to_string().contains("artifact"), "{refused}");

    server.replace(&format!("/v2/r/blobs/{}", Digest::of(&text)), Answer::ok("evil"));
    let damaged = store.artifact(&of(&server, "r:x"), &[]).await.unwrap_err();
    assert!(matches!(damaged, PullError::DigestMismatch { .. }), "{damaged:?}");
    support::nothing_unfinished(root.path());
}
