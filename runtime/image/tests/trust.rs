//! Images and the trust policy: what is pulled, what is kept, and what may start.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use portreeve_image::{Config, Digest, Image, ImageRef, PullError, Refusal, Retry, Store, Unneeded};
use serde_json::json;
use support::{
    Layout, Pack, Registry, Tar,
    podman::Podman,
    scripted::{Answer, Scripted},
    signing::{
        ARTIFACT, INDEX, MANIFEST, Signature, Signer, attach, manifest_of, policy, push_manifest, push_signatures,
        signed_with, tag_of,
    },
    two_layers,
};
use tempfile::TempDir;

const ACCEPT: &str = r#"[{"type":"insecureAcceptAnything"}]"#;

/// A store with a policy that may change.
struct Place {
    dir: TempDir,
    store: Store,
}

impl Place {
    fn new(requirements: &str) -> Self {
        Self::with(requirements, |_| {})
    }

    fn with(requirements: &str, change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        policy(&dir.path().join("policy.json"), requirements);
        let mut config = Config::new(dir.path().join("store"));
        config.trust_policy = Some(dir.path().join("policy.json"));
        change(&mut config);
        let store = Store::open(config).unwrap();
        Self { dir, store }
    }

    fn policy(&self, requirements: &str) {
        policy(&self.dir.path().join("policy.json"), requirements);
    }

    /// The same store, opened once more.
    fn reopened(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let mut config = Config::new(dir.path().join("store"));
        config.trust_policy = Some(dir.path().join("policy.json"));
        let store = Store::open(config).unwrap();
        Self { dir, store }
    }

    async fn pull(&self, reference: &ImageRef) -> Result<Image, PullError> {
        self.store.pull(reference, &[], None).await
    }

    async fn refused(&self, reference: &ImageRef) -> Refusal {
        match self.pull(reference).await {
            Err(error @ PullError::Untrusted(_)) => {
                assert_eq!(error.retry(), Retry::AfterChange);
                let PullError::Untrusted(refusal) = error else { unreachable!() };
                refusal
            }
            other => panic!("{other:?}"),
        }
    }

    /// Whether a container of it may start.
    fn starts(&self, reference: &ImageRef) -> Result<(), String> {
        let image = self.store.lookup(reference).expect("it is here");
        self.store.check_trust(reference, &image).map_err(|refusal| refusal.problem)
    }

    fn blobs(&self) -> BTreeSet<PathBuf> {
        let list = fs::read_dir(self.dir.path().join("store/blobs/sha256")).unwrap();
        list.map(|entry| entry.unwrap().path()).collect()
    }

    /// The file with the kept signatures.
    fn kept(&self) -> PathBuf {
        let is_it = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("\"signatures\":["));
        self.blobs().into_iter().find(is_it).expect("signatures are kept")
    }
}

fn image() -> Layout {
    Layout::new(&two_layers(), Pack::Gzip)
}

fn name(reference: &ImageRef) -> String {
    reference.name()
}

#[tokio::test]
async fn a_signed_image_is_pulled_and_starts_when_nobody_can_be_asked() {
    let (registry, layout, signer) = (Registry::start(), image(), Signer::new());
    registry.push(layout.dir.path(), "a/signed:1", &[]);
    let reference = registry.reference("a/signed:1");
    attach(registry.port, "a/signed", &layout.manifest, &[signer.sign(&name(&reference), &layout.manifest)]);
    let place = Place::new(&signed_with(&signer.public()));
    let pulled = place.pull(&reference).await.unwrap();
    drop(registry);
    assert_eq!(place.starts(&reference), Ok(()));
    // What nobody needs goes, and what belongs to an image stays.
    let freed = place.store.gc(Unneeded::All, &|_| BTreeSet::from([pulled.id.clone()])).unwrap();
    assert!(freed.images.is_empty());
    let place = place.reopened();
    assert_eq!(place.starts(&reference), Ok(()));
    // By its digest as well: the signature is for the repository.
    assert_eq!(place.starts(&reference.with_digest(layout.manifest.clone())), Ok(()));
    let kept = place.kept();
    place.store.remove(&reference).unwrap();
    assert!(place.store.list().is_empty() && !kept.exists());
}

#[tokio::test]
async fn what_is_refused_costs_no_layer_and_says_by_which_rule() {
    let (registry, layout) = (Registry::start(), image());
    let (signer, other) = (Signer::new(), Signer::new());
    let good = |name: &str| signer.sign(name, &layout.manifest);
    let tampered = |name: &str| {
        let mut one = signer.sign(&format!("{name}x"), &layout.manifest);
        one.payload = good(name).payload;
        one
    };
    let another = Digest::of(b"another");
    type Make<'a> = Box<dyn Fn(&str) -> Vec<Signature> + 'a>;
    let cases: [(&str, Make<'_>, &str); 7] = [
        ("none", Box::new(|_| Vec::new()), "it has no signature"),
        ("key", Box::new(|name| vec![other.sign(name, &layout.manifest)]), "1 not made by a key of this rule"),
        ("digest", Box::new(|name| vec![signer.sign(name, &another)]), another.as_str()),
        ("name", Box::new(|_| vec![good("127.0.0.1:1/elsewhere")]), "1 for the name \"127.0.0.1:1/elsewhere\""),
        ("tampered", Box::new(|name| vec![tampered(name)]), "1 not made by a key of this rule"),
        ("payload", Box::new(|_| vec![signer.sign_bytes(b"[]")]), "1 of what is no simple signing document"),
        (
            "several",
            Box::new(|name| vec![other.sign(name, &layout.manifest), signer.sign(name, &another)]),
            "none of its 2 signatures counts",
        ),
    ];
    let place = Place::new(&signed_with(&signer.public()));
    for (case, make, hint) in cases {
        registry.push(layout.dir.path(), &format!("{case}:1"), &[]);
        let reference = registry.reference(&format!("{case}:1"));
        let signatures = make(&name(&reference));
        if !signatures.is_empty() {
            attach(registry.port, case, &layout.manifest, &signatures);
        }
        let refusal = place.refused(&reference).await;
        assert!(refusal.problem.contains(hint), "{case}: {refusal}");
        assert!(refusal.rule.ends_with("policy.json: default[0] (sigstoreSigned)"), "{case}: {refusal}");
        assert_eq!(refusal.image, reference.to_string());
    }
    assert!(place.store.list().is_empty() && place.blobs().is_empty());
    for digest in layout.layers.iter().chain([&layout.config]) {
        assert_eq!(registry.downloads(digest), 0);
    }
    // Bad ones beside a good one do no harm.
    let reference = registry.reference("several:1");
    let both = [good(&name(&reference)), other.sign(&name(&reference), &layout.manifest)];
    attach(registry.port, "several", &layout.manifest, &both);
    place.pull(&reference).await.unwrap();
}

#[tokio::test]
async fn a_signature_of_an_index_or_of_the_manifest_for_this_machine_does() {
    let (registry, layout, signer) = (Registry::start(), image(), Signer::new());
    let manifest = fs::read(layout.dir.path().join("blobs/sha256").join(layout.manifest.hex())).unwrap();
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [{"mediaType": MANIFEST, "digest": layout.manifest, "size": manifest.len(),
                       "platform": {"os": "linux", "architecture": support::arch()}}],
    })
    .to_string();
    let top = Digest::of(index.as_bytes());
    for (repository, signed) in [("by-index", &top), ("by-manifest", &layout.manifest)] {
        registry.push(layout.dir.path(), &format!("{repository}:single"), &[]);
        push_manifest(registry.port, repository, "1", INDEX, &index);
        let reference = registry.reference(&format!("{repository}:1"));
        let place = Place::new(&signed_with(&signer.public()));
        assert_eq!(place.refused(&reference).await.problem, "it has no signature");
        attach(registry.port, repository, signed, &[signer.sign(&name(&reference), signed)]);
        place.pull(&reference).await.unwrap();
        assert_eq!(place.starts(&reference), Ok(()), "{repository}");
    }
    // One between them is neither what the name means nor what is run.
    let outer = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [{"mediaType": INDEX, "digest": top, "size": index.len()}],
    })
    .to_string();
    registry.push(layout.dir.path(), "nested:single", &[]);
    push_manifest(registry.port, "nested", "inner", INDEX, &index);
    push_manifest(registry.port, "nested", "1", INDEX, &outer);
    let reference = registry.reference("nested:1");
    let place = Place::new(&signed_with(&signer.public()));
    attach(registry.port, "nested", &top, &[signer.sign(&name(&reference), &top)]);
    assert_eq!(place.refused(&reference).await.problem, "it has no signature");
    let outermost = Digest::of(outer.as_bytes());
    attach(registry.port, "nested", &outermost, &[signer.sign(&name(&reference), &outermost)]);
    place.pull(&reference).await.unwrap();
    assert_eq!(place.starts(&reference), Ok(()));
}

#[tokio::test]
async fn signatures_are_found_by_what_refers_to_the_image() {
    let (registry, layout, signer) = (Registry::start(), image(), Signer::new());
    // A registry without the list has an index with a tag for it.
    registry.push(layout.dir.path(), "fallback:1", &[]);
    let reference = registry.reference("fallback:1");
    let signature = signer.sign(&name(&reference), &layout.manifest);
    let manifest = push_signatures(registry.port, "fallback", "x", std::slice::from_ref(&signature));
    let entry = |kind: &str| {
        json!({"mediaType": MANIFEST, "digest": Digest::of(manifest.as_bytes()), "size": manifest.len(),
               "artifactType": kind})
    };
    let index = |kind: &str| json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(kind)]}).to_string();
    let place = Place::new(&signed_with(&signer.public()));
    let tag = format!("sha256-{}", layout.manifest.hex());
    push_manifest(registry.port, "fallback", &tag, INDEX, &index("application/spdx+json"));
    assert_eq!(place.refused(&reference).await.problem, "it has no signature");
    push_manifest(registry.port, "fallback", &tag, INDEX, &index(ARTIFACT));
    place.pull(&reference).await.unwrap();
    // One with the list is asked for signatures alone.
    let server = serve(&layout);
    let reference: ImageRef = format!("127.0.0.1:{}/r:x", server.port).parse().unwrap();
    let signature = signer.sign(&name(&reference), &layout.manifest);
    let manifest = manifest_of(std::slice::from_ref(&signature));
    let digest = Digest::of(manifest.as_bytes());
    let listed = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": MANIFEST, "digest": "sha256:../../x", "size": 1, "artifactType": ARTIFACT},
        {"mediaType": MANIFEST, "digest": digest, "size": manifest.len(), "artifactType": ARTIFACT},
    ]});
    server.on(&format!("/v2/r/referrers/{}", layout.manifest), Answer::ok(listed.to_string()));
    server.on(&format!("/v2/r/manifests/{digest}"), Answer::ok(manifest));
    server.on(&format!("/v2/r/blobs/{}", Digest::of(&signature.payload)), Answer::ok(signature.payload));
    place.pull(&reference).await.unwrap();
    let asked = server.requests().into_iter().find(|request| request.path.contains("referrers")).unwrap();
    assert!(asked.path.ends_with("?artifactType=application%2Fvnd.dev.cosign.artifact.sig.v1%2Bjson"), "{asked:?}");
    assert!(!server.requests().iter().any(|request| request.path.contains("..")));
}

/// Serves the layout as repository `r`, tag `x`.
fn serve(layout: &Layout) -> Scripted {
    let server = Scripted::start();
    let blob = |hex: &str| fs::read(layout.dir.path().join("blobs/sha256").join(hex)).unwrap();
    for name in ["x".to_owned(), layout.manifest.to_string()] {
        server.on(&format!("/v2/r/manifests/{name}"), Answer::ok(blob(layout.manifest.hex())));
    }
    for digest in layout.layers.iter().chain([&layout.config]) {
        server.on(&format!("/v2/r/blobs/{digest}"), Answer::ok(blob(digest.hex())));
    }
    server
}

#[tokio::test]
async fn what_a_registry_sends_as_signatures_is_bounded() {
    let (layout, signer) = (image(), Signer::new());
    let place = Place::new(&signed_with(&signer.public()));
    let server = serve(&layout);
    let reference: ImageRef = format!("127.0.0.1:{}/r:x", server.port).parse().unwrap();
    let tag = format!("/v2/r/manifests/{}", tag_of(&layout.manifest));
    let good = signer.sign(&name(&reference), &layout.manifest);
    // No end of a manifest.
    server.replace(&tag, Answer { endless: true, ..Answer::ok("") });
    let error = place.pull(&reference).await.unwrap_err();
    let PullError::Registry { what, .. } = &error else { panic!("{error:?}") };
    assert!(what.starts_with("the signatures that ") && what.contains("(sigstoreSigned) asks for"), "{what}");
    assert!(server.endless_bytes() < 64 << 20);
    // A payload without an end, one that is longer than its manifest says, and one that is another.
    let payload = format!("/v2/r/blobs/{}", Digest::of(&good.payload));
    server.replace(&tag, Answer::ok(manifest_of(std::slice::from_ref(&good))));
    for (answer, hint) in [
        (Answer { endless: true, ..Answer::ok("") }, "longer than its manifest says"),
        (Answer::ok([&good.payload[..], b" "].concat()), "longer than its manifest says"),
        (Answer::ok(vec![b' '; good.payload.len()]), "does not have the digest"),
    ] {
        server.replace(&payload, answer);
        let PullError::Registry { source, .. } = place.pull(&reference).await.unwrap_err() else { panic!("{hint}") };
        assert!(source.to_string().contains(hint), "{source}");
    }
    assert!(server.endless_bytes() < 128 << 20);
    // One that says itself that it is too long is not asked for.
    let long = Signature { payload: vec![b' '; 20 << 10], signature: Vec::new() };
    server.replace(&tag, Answer::ok(manifest_of(std::slice::from_ref(&long))));
    assert_eq!(place.refused(&reference).await.problem, "it has no signature");
    let asked = format!("blobs/{}", Digest::of(&long.payload));
    assert!(!server.requests().iter().any(|request| request.path.contains(&asked)));
    // Of many the newest count, which come last; each payload is asked for once.
    server.replace(&payload, Answer::ok(good.payload.clone()));
    let bad = |number: u8| Signature { payload: good.payload.clone(), signature: vec![number] };
    let many: Vec<Signature> = (0..200).map(bad).collect();
    server.replace(&tag, Answer::ok(manifest_of(&[std::slice::from_ref(&good), &many].concat())));
    assert!(place.refused(&reference).await.problem.contains("none of its 64 signatures counts"));
    let before = server.requests().len();
    server.replace(&tag, Answer::ok(manifest_of(&[&many, std::slice::from_ref(&good)].concat())));
    place.pull(&reference).await.unwrap();
    let payloads = server.requests()[before..].iter().filter(|request| payload == request.path).count();
    assert_eq!(payloads, 1);
    // A newer one whose payload is not there takes nothing from it.
    let gone = signer.sign("gone", &layout.manifest);
    server.replace(&tag, Answer::ok(manifest_of(&[good, gone])));
    Place::new(&signed_with(&signer.public())).pull(&reference).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_cannot_say_now_whether_an_image_is_signed_is_asked_again_later() {
    let (layout, signer) = (image(), Signer::new());
    let place = Place::new(&signed_with(&signer.public()));
    let server = serve(&layout);
    let reference: ImageRef = format!("127.0.0.1:{}/r:x", server.port).parse().unwrap();
    let tag = format!("/v2/r/manifests/{}", tag_of(&layout.manifest));
    server.replace(&tag, Answer::status(503));
    let error = place.pull(&reference).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Later, "{error:?}");
    assert!(matches!(&error, PullError::Registry { what, .. } if what.starts_with("the signatures")), "{error:?}");
    // One that refuses to speak of what it does not have has no signature.
    server.replace(&tag, Answer::status(403));
    assert_eq!(place.refused(&reference).await.problem, "it has no signature");
}

#[tokio::test]
async fn what_the_reference_alone_decides_is_decided_before_anybody_is_asked() {
    let layout = image();
    let server = serve(&layout);
    let tagged: ImageRef = format!("127.0.0.1:{}/r:x", server.port).parse().unwrap();
    let place = Place::new(r#"[{"type":"reject"}]"#);
    assert_eq!(place.refused(&tagged).await.problem, "the policy rejects it");
    place.policy(r#"[{"type":"digestOnly"}]"#);
    let refusal = place.refused(&tagged).await;
    assert!(refusal.problem.contains("not named by a digest"), "{refusal}");
    assert!(refusal.rule.ends_with("default[0] (digestOnly)"), "{refusal}");
    assert!(server.requests().is_empty());
    let pinned = tagged.with_digest(layout.manifest.clone());
    place.pull(&pinned).await.unwrap();
    assert_eq!(place.starts(&pinned), Ok(()));
    assert!(server.requests().iter().all(|request| !request.path.contains("sha256-")), "no signature is wanted");
}

#[tokio::test]
async fn a_policy_that_cannot_be_used_refuses_everything_until_it_is_mended() {
    let (registry, layout, signer) = (Registry::start(), image(), Signer::new());
    registry.push(layout.dir.path(), "a:1", &[]);
    let reference = registry.reference("a:1");
    let place = Place::new(ACCEPT);
    place.pull(&reference).await.unwrap();
    assert_eq!(place.starts(&reference), Ok(()));
    for (requirements, hint) in [("[", "it is broken: it is no JSON"), (r#"[{"type":"any"}]"#, "unknown type \"any\"")]
    {
        place.policy(requirements);
        let refusal = place.refused(&reference).await;
        assert!(refusal.problem.contains(hint), "{refusal}");
        assert!(refusal.rule.starts_with("image policy /"), "{refusal}");
        assert!(place.starts(&reference).unwrap_err().contains(hint));
    }
    fs::remove_file(place.dir.path().join("policy.json")).unwrap();
    assert!(place.starts(&reference).unwrap_err().contains("cannot be read: No such file"));
    place.refused(&reference).await;
    // A key that is not there.
    let key = place.dir.path().join("key.pub");
    place.policy(&signed_with(&key));
    assert!(place.starts(&reference).unwrap_err().contains("key.pub: No such file"));
    assert!(place.refused(&reference).await.problem.contains("key.pub: No such file"));
    attach(registry.port, "a", &layout.manifest, &[signer.sign(&name(&reference), &layout.manifest)]);
    fs::copy(signer.public(), &key).unwrap();
    place.pull(&reference).await.unwrap();
    place.policy(ACCEPT);
    assert_eq!(place.starts(&reference), Ok(()));
}

#[tokio::test]
async fn a_policy_that_changes_after_the_pull_counts_at_the_next_start() {
    let (registry, layout) = (Registry::start(), image());
    let (signer, other) = (Signer::new(), Signer::new());
    registry.push(layout.dir.path(), "a:1", &[]);
    let reference = registry.reference("a:1");
    let by = |signer: &Signer| signer.sign(&name(&reference), &layout.manifest);
    attach(registry.port, "a", &layout.manifest, &[by(&signer)]);
    let place = Place::new(ACCEPT);
    place.pull(&reference).await.unwrap();
    let downloads = || layout.layers.iter().map(|layer| registry.downloads(layer)).sum::<usize>();
    let before = downloads();
    place.policy(&signed_with(&signer.public()));
    assert_eq!(place.starts(&reference), Err("it has no signature".to_owned()));
    // Asked for again it gets its signature, and nothing else.
    place.pull(&reference).await.unwrap();
    assert_eq!(place.starts(&reference), Ok(()));
    assert_eq!(downloads(), before);
    place.policy(&signed_with(&other.public()));
    assert!(place.starts(&reference).unwrap_err().contains("1 not made by a key"));
    place.refused(&reference).await;
    attach(registry.port, "a", &layout.manifest, &[by(&signer), by(&other)]);
    place.pull(&reference).await.unwrap();
    assert_eq!(place.starts(&reference), Ok(()));
    // Those that were there before are there still.
    attach(registry.port, "a", &layout.manifest, &[by(&other)]);
    drop(registry);
    place.policy(&signed_with(&signer.public()));
    assert_eq!(place.starts(&reference), Ok(()));
}

#[tokio::test]
async fn an_image_of_two_repositories_needs_the_signature_of_each() {
    let (registry, layout, signer) = (Registry::start(), image(), Signer::new());
    let [one, two] = ["one:1", "two:1"].map(|name| {
        registry.push(layout.dir.path(), name, &[]);
        registry.reference(name)
    });
    attach(registry.port, "one", &layout.manifest, &[signer.sign(&name(&one), &layout.manifest)]);
    let place = Place::new(&signed_with(&signer.public()));
    place.pull(&one).await.unwrap();
    let refusal = place.refused(&two).await;
    assert!(refusal.problem.contains("1 for the name"), "{refusal}");
    assert!(place.store.lookup(&two).is_none());
    // A name given here is none that was signed.
    let image = place.store.lookup(&one).unwrap();
    place.store.tag(&image.id, &two).unwrap();
    assert!(place.starts(&two).unwrap_err().contains("1 for the name"));
    attach(registry.port, "two", &layout.manifest, &[signer.sign(&name(&two), &layout.manifest)]);
    place.pull(&two).await.unwrap();
    assert_eq!((place.starts(&one), place.starts(&two)), (Ok(()), Ok(())));
}

#[tokio::test]
async fn signatures_that_a_mirror_lacks_come_from_the_registry() {
    let (mirror, registry, layout, signer) = (Registry::start(), Registry::start(), image(), Signer::new());
    for one in [&mirror, &registry] {
        one.push(layout.dir.path(), "a:1", &[]);
    }
    let reference = registry.reference("a:1");
    let place = Place::with(&signed_with(&signer.public()), |config| {
        let hosts = config.root.parent().unwrap().join("certs.d");
        let own = hosts.join(reference.registry());
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("hosts.toml"), format!("[host.'http://127.0.0.1:{}']", mirror.port)).unwrap();
        config.certs_d = Some(hosts);
    });
    assert_eq!(place.refused(&reference).await.problem, "it has no signature");
    attach(registry.port, "a", &layout.manifest, &[signer.sign(&name(&reference), &layout.manifest)]);
    place.pull(&reference).await.unwrap();
    assert_eq!(place.starts(&reference), Ok(()));
    for layer in &layout.layers {
        assert!(mirror.log().contains(&format!("/blobs/{layer}?ns=")), "{}", mirror.log());
        assert!(!registry.log().contains(&format!("GET /v2/a/blobs/{layer}")), "{}", registry.log());
    }
}

#[tokio::test]
async fn a_loaded_image_has_no_signature_until_its_registry_was_asked() {
    let (registry, layout, signer) = (Registry::start(), image(), Signer::new());
    registry.push(layout.dir.path(), "a:1", &[]);
    let reference = registry.reference("a:1");
    attach(registry.port, "a", &layout.manifest, &[signer.sign(&name(&reference), &layout.manifest)]);
    let source = Place::new(&signed_with(&signer.public()));
    let image = source.pull(&reference).await.unwrap();
    let archive = source.dir.path().join("image.tar");
    let saving = source.store.save(&[(image.id, Some(reference.clone()))], &[]).await.unwrap();
    saving.write_to(fs::File::create(&archive).unwrap()).unwrap();
    let place = Place::new(&signed_with(&signer.public()));
    place.store.load(fs::File::open(&archive).unwrap()).await.unwrap();
    assert_eq!(place.starts(&reference), Err("it has no signature".to_owned()));
    place.pull(&reference).await.unwrap();
    assert_eq!(place.starts(&reference), Ok(()));
}

#[tokio::test]
async fn kept_signatures_that_are_damaged_are_none_and_are_asked_for_again() {
    let (registry, layout, signer) = (Registry::start(), image(), Signer::new());
    registry.push(layout.dir.path(), "a:1", &[]);
    let reference = registry.reference("a:1");
    attach(registry.port, "a", &layout.manifest, &[signer.sign(&name(&reference), &layout.manifest)]);
    let place = Place::new(&signed_with(&signer.public()));
    place.pull(&reference).await.unwrap();
    let kept = place.kept();
    let whole = fs::read(&kept).unwrap();
    fs::write(&kept, vec![b' '; whole.len()]).unwrap();
    assert_eq!(place.starts(&reference), Err("it has no signature".to_owned()));
    // A check finds it too, and a repair lets it go.
    let mut found = Vec::new();
    let all = std::collections::BTreeSet::from([place.store.lookup(&reference).unwrap().id]);
    let check = |found: &mut Vec<_>| {
        found.clear();
        place.store.verify(&all, |check| {
            found.extend((!matches!(check.finding, portreeve_image::Finding::Whole(_))).then_some(check));
            std::ops::ControlFlow::Continue(())
        });
    };
    check(&mut found);
    assert_eq!(found.len(), 1, "{found:?}");
    place.store.repair(&found[0], &[]).await.unwrap();
    check(&mut found);
    assert!(found.is_empty(), "{found:?}");
    place.pull(&reference).await.unwrap();
    assert_eq!(place.starts(&reference), Ok(()));
    fs::remove_file(place.kept()).unwrap();
    assert_eq!(place.starts(&reference), Err("it has no signature".to_owned()));
    let place = place.reopened();
    place.pull(&reference).await.unwrap();
    assert_eq!(place.starts(&reference), Ok(()));
}

#[tokio::test]
async fn another_image_under_the_same_tag_does_not_inherit_signatures() {
    let (registry, layout, signer) = (Registry::start(), image(), Signer::new());
    registry.push(layout.dir.path(), "a:1", &[]);
    let reference = registry.reference("a:1");
    attach(registry.port, "a", &layout.manifest, &[signer.sign(&name(&reference), &layout.manifest)]);
    let place = Place::new(&signed_with(&signer.public()));
    place.pull(&reference).await.unwrap();
    let other = Layout::new(&[Tar::new().file("evil", b"x").bytes()], Pack::Gzip);
    registry.push(other.dir.path(), "a:1", &[]);
    // Not even when somebody puts the old signatures where the new ones would be.
    attach(registry.port, "a", &other.manifest, &[signer.sign(&name(&reference), &layout.manifest)]);
    let refusal = place.refused(&reference).await;
    assert!(refusal.problem.contains(&format!("1 for {}", layout.manifest)), "{refusal}");
    // What is here stays what it was.
    assert_eq!(place.store.lookup(&reference).unwrap().id.digest(), &layout.config);
    assert_eq!(place.starts(&reference), Ok(()));
}

#[tokio::test]
async fn podman_and_we_agree_on_what_podman_and_openssl_have_signed() {
    let Some(podman) = Podman::find("vfs") else { return };
    policy(Path::new(&podman.path("accept.json")), ACCEPT);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trust");
    let (registry, layout, other) = (Registry::start(), image(), Signer::new());
    let accept = podman.path("accept.json");
    let at = |name: &str| registry.reference(name).to_string();
    // Podman's: signed as `theirs:1`, and the same manifest under another tag.
    registry.push(layout.dir.path(), "from:1", &[]);
    podman.run(&["pull", "--tls-verify=false", "--signature-policy", &accept, &at("from:1")]).unwrap();
    let key = fixtures.join("cosign.key").display().to_string();
    let sign = ["--sign-by-sigstore-private-key", &key, "--sign-passphrase-file", &podman.path("passphrase")];
    for signed in ["theirs:1", "both:1"] {
        let push = ["push", "--tls-verify=false", "--signature-policy", &accept];
        podman.run(&[&push[..], &sign[..], &[&at("from:1"), &at(signed)]].concat()).unwrap();
    }
    let [from, to] = ["theirs:1", "theirs:0"].map(|name| format!("docker://{}", at(name)));
    support::skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &from, &to]);
    // Ours: as cosign names it, by its repository.
    registry.push(layout.dir.path(), "ours:1", &[]);
    attach(
        registry.port,
        "ours",
        &layout.manifest,
        &[other.sign(&name(&registry.reference("ours:1")), &layout.manifest)],
    );
    registry.push(layout.dir.path(), "none:1", &[]);

    let (theirs, ours) = (fixtures.join("cosign.pub"), other.public());
    let by = |key: &Path, identity: &str| {
        let identity = if identity.is_empty() { String::new() } else { format!(r#","signedIdentity":{{{identity}}}"#) };
        format!(r#"[{{"type":"sigstoreSigned","keyPath":"{}"{identity}}}]"#, key.display())
    };
    let repository = r#""type":"matchRepository""#;
    let (host, theirs_1) = (format!("127.0.0.1:{}", registry.port), at("theirs:1"));
    let exact = format!(r#""type":"exactReference","dockerReference":"{theirs_1}""#);
    let upstream = format!(r#""type":"exactRepository","dockerRepository":"{host}/theirs""#);
    let remap = format!(r#""type":"remapIdentity","prefix":"{host}/both","signedPrefix":"{host}/theirs""#);
    let keys = format!(r#"[{{"type":"sigstoreSigned","keyPaths":["{}","{}"]}}]"#, ours.display(), theirs.display());
    let data = STANDARD.encode(fs::read(&theirs).unwrap());
    let data = format!(r#"[{{"type":"sigstoreSigned","keyData":"{data}"}}]"#);
    let mut agreed = (0, 0);
    for (requirements, image, expect) in [
        (by(&theirs, ""), "theirs:1", true),
        (by(&theirs, ""), "theirs:0", false),
        (by(&theirs, r#""type":"matchExact""#), "theirs:1", true),
        (by(&theirs, r#""type":"matchExact""#), "theirs:0", false),
        (by(&theirs, repository), "theirs:0", true),
        (by(&ours, ""), "theirs:1", false),
        (by(&theirs, &exact), "theirs:0", true),
        (by(&theirs, &exact), "both:1", false),
        (by(&theirs, &upstream), "theirs:0", true),
        (by(&theirs, &upstream), "both:1", false),
        (by(&theirs, &remap), "theirs:1", true),
        (by(&theirs, &remap), "both:1", false),
        (keys, "theirs:1", true),
        (data, "theirs:1", true),
        (by(&ours, repository), "ours:1", true),
        (by(&ours, ""), "ours:1", false),
        (by(&theirs, repository), "ours:1", false),
        (by(&theirs, repository), "none:1", false),
        (r#"[{"type":"reject"}]"#.to_owned(), "theirs:1", false),
        (ACCEPT.to_owned(), "none:1", true),
        (r#"[{"type":"unheard-of"}]"#.to_owned(), "theirs:1", false),
        (r#"[]"#.to_owned(), "theirs:1", false),
    ] {
        let place = Place::new(&requirements);
        let pulled = place.pull(&registry.reference(image)).await;
        assert_eq!(pulled.is_ok(), expect, "{requirements} {image}: {pulled:?}");
        let file = place.dir.path().join("policy.json");
        let by = ["pull", "--tls-verify=false", "--signature-policy", file.to_str().unwrap(), &at(image)];
        let theirs = podman.run(&by);
        assert_eq!(theirs.is_ok(), expect, "podman, {requirements} {image}: {theirs:?}");
        if expect { agreed.0 += 1 } else { agreed.1 += 1 }
    }
    assert_eq!(agreed, (10, 12));
}
