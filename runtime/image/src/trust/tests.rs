//! What policies mean, with keys and signatures by openssl.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{collections::BTreeSet, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use tempfile::TempDir;

use super::*;
use crate::{digest::Digest, reference::ImageRef, trust::key::Key};

/// Keys and a policy in a directory.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Makes `name.key` and `name.pub`.
    fn key(&self, name: &str, kind: &[&str]) -> &Self {
        let (key, public) = (format!("{name}.key"), format!("{name}.pub"));
        self.openssl(&[&["genpkey", "-out", &key][..], kind].concat());
        self.openssl(&["pkey", "-in", &key, "-pubout", "-out", &public]);
        self
    }

    fn usual_key(&self, name: &str) -> &Self {
        self.key(name, &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    fn sign(&self, name: &str, message: &[u8]) -> Vec<u8> {
        fs::write(self.path("message"), message).unwrap();
        let key = format!("{name}.key");
        let text = fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap();
        // A public key of Ed25519 is far shorter than any other; it takes the message itself.
        let whole = text.len() < 120;
        let how: &[&str] = if whole {
            &["pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", "message"]
        } else {
            &["dgst", "-sha256", "-sign", &key, "message"]
        };
        self.openssl(&[&how[..1], &["-out", "signature"], &how[1..]].concat());
        fs::read(self.path("signature")).unwrap()
    }

    fn policy(&self, text: &str) -> Result<Policy, PolicyError> {
        let path = self.0.path().join("policy.json");
        fs::write(&path, text).unwrap();
        Policy::read(&path)
    }

    fn broken(&self, text: &str) -> String {
        match self.policy(text) {
            Err(PolicyError::Content { problem, .. }) => problem,
            other => panic!("{text}: {other:?}"),
        }
    }
}

fn signed_by(place: &Place, key: &str) -> String {
    format!(
        r#"{{"type":"sigstoreSigned","keyPath":"{}","signedIdentity":{{"type":"matchRepository"}}}}"#,
        place.path(key)
    )
}

fn image(text: &str) -> ImageRef {
    text.parse().unwrap()
}

fn payload(digest: &Digest, name: &str) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
    )
}

fn signatures(all: &[(&str, &[u8])]) -> Signatures {
    let mut found = Signatures::default();
    for (payload, signature) in all {
        found.add(payload.as_bytes().to_vec(), &STANDARD.encode(signature));
    }
    found
}

fn judged(rule: &Rule, digest: &Digest, signatures: &Signatures) -> Result<(), String> {
    let digests = BTreeSet::from([digest.clone()]);
    rule.check(&Subject { digests: &digests, signatures }).map_err(|refusal| refusal.problem)
}

#[test]
fn every_kind_of_key_that_cosign_has_verifies_its_own_signatures() {
    let place = Place::new();
    let kinds: [(&str, &[&str]); 5] = [
        ("p256", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("p384", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("ed25519", &["-algorithm", "ed25519"]),
        ("rsa2048", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("rsa3072", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]),
    ];
    let keys: Vec<Key> = kinds
        .iter()
        .map(|(name, kind)| {
            place.key(name, kind);
            Key::from_pem(&fs::read(place.path(&format!("{name}.pub"))).unwrap()).unwrap()
        })
        .collect();
    for (number, (name, _)) in kinds.iter().enumerate() {
        let signature = place.sign(name, b"message");
        for (other, key) in keys.iter().enumerate() {
            assert_eq!(key.has_signed(b"message", &signature), other == number, "{name} by {}", kinds[other].0);
        }
        let key = &keys[number];
        assert!(!key.has_signed(b"massage", &signature), "{name}");
        assert!(!key.has_signed(b"", &signature), "{name}");
        assert!(!key.has_signed(b"message", &signature[..signature.len() - 1]), "{name}");
        assert!(!key.has_signed(b"message", b""), "{name}");
    }
}

#[test]
fn what_is_no_key_that_can_be_used_is_refused() {
    let place = Place::new();
    place
        .usual_key("a")
        .usual_key("b")
        .key("p521", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"])
        .key("rsa1024", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"])
        .key("ed448", &["-algorithm", "ed448"]);
    let read = |name: &str| fs::read(place.path(name)).unwrap();
    let good = String::from_utf8(read("a.pub")).unwrap();
    for (text, hint) in [
        (Vec::new(), "no PUBLIC KEY"),
        (b"hello".to_vec(), "no PUBLIC KEY"),
        (read("a.key"), "no PUBLIC KEY"),
        ([read("a.pub"), read("b.pub")].concat(), "2 keys"),
        (read("p521.pub"), "no key of ECDSA"),
        (read("rsa1024.pub"), "no key of ECDSA"),
        (read("ed448.pub"), "no key of ECDSA"),
        (good.replace("-----END", "====END").into_bytes(), "no PEM"),
        (good.replace('M', "!").into_bytes(), "no PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".to_vec(), "no key of ECDSA"),
    ] {
        let problem = Key::from_pem(&text).unwrap_err();
        assert!(problem.contains(hint), "{}: {problem}", String::from_utf8_lossy(&text));
    }
    assert!(Key::from_pem(good.as_bytes()).is_ok());
}

#[test]
fn the_most_specific_scope_alone_counts() {
    let place = Place::new();
    let policy = place
        .policy(
            r#"{"default":[{"type":"reject"}],"transports":{"docker-daemon":{"":[{"type":"any"}]},"docker":{
                "r.example/ns/repo:1":[{"type":"insecureAcceptAnything"}],
                "r.example/ns/repo":[{"type":"reject"}],
                "r.example/ns":[{"type":"insecureAcceptAnything"}],
                "r.example":[{"type":"digestOnly"}],
                "*.example":[{"type":"insecureAcceptAnything"}]}}}"#,
        )
        .unwrap();
    for (reference, place) in [
        ("r.example/ns/repo:1", ""),
        ("r.example/ns/repo:2", r#"transports["docker"]["r.example/ns/repo"][0] (reject)"#),
        ("r.example/ns/other:2", ""),
        ("r.example/ns/deep/er:2", ""),
        ("r.example/nsx:2", r#"transports["docker"]["r.example"][0] (digestOnly)"#),
        ("s.example/nsx:2", ""),
        ("s.example:5000/nsx:2", ""),
        ("example/x", "default[0] (reject)"),
    ] {
        let checked = policy.rule(&image(reference)).unwrap().check_reference();
        match checked {
            Ok(()) => assert_eq!(place, "", "{reference}"),
            Err(refusal) => {
                assert!(!place.is_empty() && refusal.rule.ends_with(&format!("policy.json: {place}")), "{refusal}");
                assert_eq!(refusal.image, image(reference).to_string());
            }
        }
    }
    assert_eq!(policy.survey().unwrap(), PolicySurvey { scopes: 5, default: vec!["reject"] });
}

#[test]
fn all_requirements_of_a_scope_must_hold() {
    let place = Place::new();
    place.usual_key("a").usual_key("b");
    let (a, b) = (signed_by(&place, "a.pub"), signed_by(&place, "b.pub"));
    let both = place.policy(&format!(r#"{{"default":[{a},{b},{{"type":"digestOnly"}}]}}"#)).unwrap();
    let digest = Digest::of(b"manifest");
    let pinned = image(&format!("r.example/x@{digest}"));
    let text = payload(&digest, "r.example/x");
    let (by_a, by_b) = (place.sign("a", text.as_bytes()), place.sign("b", text.as_bytes()));
    let check = |reference: &ImageRef, by: &[&[u8]]| {
        let all: Vec<(&str, &[u8])> = by.iter().map(|one| (text.as_str(), *one)).collect();
        judged(&both.rule(reference).unwrap(), &digest, &signatures(&all))
    };
    assert_eq!(check(&pinned, &[&by_a, &by_b]), Ok(()));
    assert!(check(&pinned, &[&by_a]).unwrap_err().contains("1 not made by a key"));
    assert!(check(&pinned, &[&by_b]).unwrap_err().contains("1 not made by a key"));
    assert!(check(&image("r.example/x:1"), &[&by_a, &by_b]).unwrap_err().contains("not named by a digest"));
    // Any of the keys of one requirement does.
    let paths = format!(r#"["{}","{}"]"#, place.path("a.pub"), place.path("b.pub"));
    let data = STANDARD.encode(fs::read(place.path("b.pub")).unwrap());
    for keys in
        [format!(r#""keyPaths":{paths}"#), format!(r#""keyData":"{data}""#), format!(r#""keyDatas":["{data}"]"#)]
    {
        let policy = place.policy(&format!(r#"{{"default":[{{"type":"sigstoreSigned",{keys}}}]}}"#)).unwrap();
        let rule = policy.rule(&image("r.example/x:1")).unwrap();
        let named = payload(&digest, "r.example/x:1");
        let signature = place.sign("b", named.as_bytes());
        assert_eq!(judged(&rule, &digest, &signatures(&[(&named, &signature)])), Ok(()), "{keys}");
    }
}

#[test]
fn a_signature_counts_for_what_it_says_alone_and_the_refusal_says_why_it_does_not() {
    let place = Place::new();
    place.usual_key("a").usual_key("b");
    let policy = place.policy(&format!(r#"{{"default":[{}]}}"#, signed_by(&place, "a.pub"))).unwrap();
    let rule = policy.rule(&image("r.example/x:1")).unwrap();
    let (digest, other) = (Digest::of(b"manifest"), Digest::of(b"other"));
    let good = payload(&digest, "r.example/x");
    let by_a = place.sign("a", good.as_bytes());
    assert_eq!(judged(&rule, &digest, &signatures(&[(&good, &by_a)])), Ok(()));
    assert_eq!(
        judged(&rule, &other, &signatures(&[(&good, &by_a)])).unwrap_err(),
        format!("none of its 1 signatures counts: 1 for {digest}")
    );
    // What was signed, down to the last byte.
    for tampered in [good.replace("null", "{}"), format!("{good} "), good.replace("r.example", "R.example")] {
        let problem = judged(&rule, &digest, &signatures(&[(&tampered, &by_a)])).unwrap_err();
        assert!(problem.contains("1 not made by a key"), "{problem}");
    }
    let elsewhere = payload(&digest, "r.example/y");
    let by_a_elsewhere = place.sign("a", elsewhere.as_bytes());
    let nonsense = "{\"nonsense\u{202e}\":1}";
    let by_a_nonsense = place.sign("a", nonsense.as_bytes());
    let by_b = place.sign("b", good.as_bytes());
    let all = [
        (good.as_str(), &by_b[..]),
        (good.as_str(), b"\x30\x00".as_slice()),
        (elsewhere.as_str(), &by_a_elsewhere[..]),
        (nonsense, &by_a_nonsense[..]),
    ];
    let problem = judged(&rule, &digest, &signatures(&all)).unwrap_err();
    for part in ["of its 4 signatures", "2 not made by a key", "1 for the name \"r.example/y\"", "no simple signing"] {
        assert!(problem.contains(part), "{problem}");
    }
    assert!(!problem.contains('\u{202e}'), "{problem}");
    // Bad ones beside a good one do no harm.
    let mixed = [all[0], all[2], (good.as_str(), &by_a[..])];
    assert_eq!(judged(&rule, &digest, &signatures(&mixed)), Ok(()));
    assert_eq!(judged(&rule, &digest, &Signatures::default()).unwrap_err(), "it has no signature");
    let mut no_base64 = Signatures::default();
    no_base64.add(good.clone().into_bytes(), "!");
    assert!(judged(&rule, &digest, &no_base64).unwrap_err().contains("1 not made by a key"));
}

#[test]
fn no_more_signatures_are_kept_than_there_is_room_for() {
    let mut many = Signatures::default();
    for number in 0..100 {
        many.add(format!("{{\"{number}\":1}}").into_bytes(), "AAAA");
        many.add(format!("{{\"{number}\":1}}").into_bytes(), "AAAA");
    }
    assert_eq!(many.iter().len(), signature::MAX_SIGNATURES);
    let mut none = Signatures::default();
    none.add(vec![b' '; 16 << 10 | 1], "AAAA");
    none.add(b"{}".to_vec(), &"A".repeat(4096));
    none.add(vec![0xff], "AAAA");
    assert!(none.is_empty());
    let mut fresh = Signatures::default();
    fresh.add(b"{}".to_vec(), "AAAA");
    let both = fresh.clone().and(many.clone());
    assert_eq!(both.iter().next(), fresh.iter().next());
    assert_eq!(both.iter().len(), signature::MAX_SIGNATURES);
    assert_eq!(Signatures::from_document(&both.to_document().unwrap()).unwrap(), both);
    assert!(Signatures::from_document(br#"{"version":2,"signatures":[]}"#).unwrap_err().contains("version 2"));
}

#[test]
fn a_key_that_is_not_there_refuses_the_images_of_its_scope_and_no_others() {
    let place = Place::new();
    let policy = place
        .policy(&format!(
            r#"{{"default":[{{"type":"insecureAcceptAnything"}}],"transports":{{"docker":{{"r.example":[{}]}}}}}}"#,
            signed_by(&place, "gone.pub")
        ))
        .unwrap();
    let refusal = policy.rule(&image("r.example/x")).unwrap_err();
    assert!(refusal.rule.ends_with(r#"["r.example"][0] (sigstoreSigned)"#), "{refusal}");
    assert!(refusal.problem.contains("gone.pub: No such file"), "{refusal}");
    assert!(policy.rule(&image("s.example/x")).unwrap().check_reference().is_ok());
    assert!(policy.survey().unwrap_err().to_string().contains("gone.pub"));
}

#[test]
fn a_policy_that_is_not_there_or_not_wholly_understood_is_refused_with_its_place() {
    let place = Place::new();
    let default = |rest: &str| format!(r#"{{"default":[{{{rest}}}]}}"#);
    let signed = |rest: &str| default(&format!(r#""type":"sigstoreSigned"{rest}"#));
    let scope = |scope: &str| {
        format!(r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{scope}:[{{"type":"reject"}}]}}}}}}"#)
    };
    for (text, hint) in [
        (String::new(), "it is no JSON"),
        ("{".to_owned(), "line 1 column 1"),
        ("[]".to_owned(), "must be an object"),
        ("{}".to_owned(), r#"the policy has no "default""#),
        (r#"{"default":[]}"#.to_owned(), "default must be a list that is not empty"),
        (r#"{"default":{"type":"reject"}}"#.to_owned(), "default must be a list"),
        (r#"{"default":["reject"]}"#.to_owned(), "default[0] must be an object"),
        (default(""), r#"default[0] has no "type""#),
        (default(r#""type":1"#), "default[0].type must be a string"),
        (default(r#""type":"accept""#), r#"default[0] is of the unknown type "accept"; known are insecureAccept"#),
        (default(r#""type":"signedBy","keyType":"GPGKeys","keyPath":"/x""#), "GPG are not verified here; use sigstore"),
        (default(r#""type":"reject","keyPath":"/x""#), r#"default[0] has the unknown key "keyPath"; known are type"#),
        (default(r#""type":"reject","type":"insecureAcceptAnything""#), r#""type" is there twice"#),
        (signed(""), "default[0] needs exactly one of keyPath"),
        (signed(r#","keyPath":"/x","keyData":"/x""#), "exactly one of keyPath"),
        (signed(r#","keyPath":"x.pub""#), r#"default[0].keyPath is "x.pub"; give an absolute path"#),
        (signed(r#","keyPaths":[]"#), "keyPaths must be a list that is not empty"),
        (signed(r#","keyPaths":["/a",1]"#), "keyPaths[1] must be a string"),
        (signed(r#","keyData":"-----BEGIN""#), "default[0].keyData must be base64 of a PEM text"),
        (signed(r#","keyDatas":["aGVsbG8="]"#), "default[0].keyDatas[0]: there is no PUBLIC KEY"),
        (signed(r#","fulcio":{}"#), r#"has "fulcio": certificates and transparency logs are not verified here"#),
        (signed(r#","keyPath":"/x","rekorPublicKeyPath":"/y""#), r#"has "rekorPublicKeyPath""#),
        (signed(r#","keyPath":"/x","keypath":"/y""#), r#"unknown key "keypath""#),
        (signed(r#","keyPath":"/x","signedIdentity":{"type":"x"}"#), "signedIdentity.type \"x\" is not known"),
        (r#"{"default":[{"type":"reject"}],"transport":{}}"#.to_owned(), r#"unknown key "transport""#),
        (r#"{"default":[{"type":"reject"}],"transports":{"dockre":{}}}"#.to_owned(), r#"transport "dockre""#),
        (r#"{"default":[{"type":"reject"}],"transports":{"docker":[]}}"#.to_owned(), "docker\"] must be an object"),
        (scope(r#""library""#), r#""library" is no registry, namespace or repository"#),
        (scope(r#""r.example":[{"type":"reject"}],"r.example""#), "is there twice"),
        (format!("{}{}", default(r#""type":"reject""#), "{}"), "trailing characters"),
    ] {
        let problem = place.broken(&text);
        assert!(problem.contains(hint), "{text}: {problem}");
    }
    let absent = Policy::read(&place.0.path().join("absent")).unwrap_err().refusal(&image("x"));
    assert!(absent.to_string().contains("docker.io/library/x:latest is refused by image policy /"), "{absent}");
    assert!(absent.problem.contains("cannot be read: No such file"), "{absent}");
    let directory = Policy::read(place.0.path()).unwrap_err().refusal(&image("x"));
    assert!(directory.problem.contains("no file of at most"), "{directory}");
    let broken = place.policy("{}").unwrap_err().refusal(&image("x"));
    assert!(broken.problem.contains("it is broken: the policy has no \"default\""), "{broken}");
}
