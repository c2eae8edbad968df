//! Whatever the bytes are: no panic, an end in time, and an answer that makes sense.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use portreeve_manifests::{Object, ParsedFile, Severity, Verdict, parse_file};
use proptest::prelude::*;

const EXAMPLES: &[&str] = &[
    include_str!("../examples/web.yaml"),
    include_str!("../examples/config.yaml"),
    include_str!("../examples/init.yaml"),
    include_str!("../examples/volumes.yaml"),
    include_str!("../examples/confined.yaml"),
];

/// Texts that mean something to YAML or to Kubernetes, to put in odd places.
const PIECES: &[&str] = &[
    "&a ",
    "*a",
    "<<: *a\n",
    "? ",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "|\n",
    ">-\n",
    "'",
    "\"",
    "\\",
    "#",
    "\t",
    "\n---\n",
    "\n...\n",
    "%YAML 1.1\n",
    "!!int ",
    "!x ",
    "null",
    "~",
    "yes",
    "0644",
    "1e400",
    "-1",
    "99999999999999999999",
    ".nan",
    "\u{feff}",
    "\u{a0}",
    "{{ .a }}",
    "\n<<<<<<< a\n",
    "\n=======\n",
    "\u{0}",
    "\r\n",
    "\u{85}",
    "  ",
    "a:\n  b:\n",
    "metadata:",
    "spec:",
    "containers:",
    "@",
    "`",
];

fn read(bytes: &[u8]) -> ParsedFile {
    parse_file(Path::new("x.yaml"), bytes)
}

/// What must hold for any answer.
fn sound(parsed: &ParsedFile) {
    if parsed.unreadable {
        assert!(parsed.documents.is_empty());
        assert!(parsed.problems.iter().any(|problem| problem.severity == Severity::Error));
    }
    for document in &parsed.documents {
        match &document.verdict {
            Verdict::Accepted(object) => {
                assert!(!object.key().name.is_empty() && !object.key().namespace.is_empty());
            }
            Verdict::Refused { .. } => {
                let said = |problem: &&portreeve_manifests::Problem| problem.severity == Severity::Error;
                assert!(parsed.problems.iter().filter(said).any(|problem| problem.document == document.index));
            }
            Verdict::Ignored => {}
        }
    }
    for problem in &parsed.problems {
        assert!(!problem.fix.is_empty() && !problem.fix.contains('\n'), "{problem}");
    }
    let positions: Vec<_> = parsed.problems.iter().map(|problem| problem.position).collect();
    assert!(positions.is_sorted());
}

/// Any text, and those that look like something else.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~\\n\\t]{0,30}",
        "[0-9a-fox+:._-]{0,6}",
        proptest::sample::select(
            &[
                "y", "No", "on", "~", "null", "1_0", ".inf", "<<", "=", "- a", "a: b", "# a", "a #b", "\n", "a\n\n",
                " a\nb", "a\n b\n"
            ][..]
        )
        .prop_map(str::to_owned),
    ]
}

/// 512 cases, or as many as `PROPTEST_CASES` says.
fn settings() -> ProptestConfig {
    let given = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { given.cases } else { 512 };
    ProptestConfig { cases, failure_persistence: None, ..given }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        sound(&read(&bytes));
    }

    #[test]
    fn any_text_of_yaml_pieces_gets_an_answer(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..40)
    ) {
        sound(&read(pieces.concat().as_bytes()));
    }

    #[test]
    fn a_manifest_that_was_changed_anywhere_gets_an_answer(
        example in proptest::sample::select(EXAMPLES),
        edits in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0_usize..12, proptest::sample::select(PIECES)), 1..6
        ),
    ) {
        let mut chars: Vec<char> = example.chars().collect();
        for (at, removed, piece) in edits {
            let at = at.index(chars.len());
            let end = (at + removed).min(chars.len());
            chars.splice(at..end, piece.chars());
        }
        sound(&read(chars.into_iter().collect::<String>().as_bytes()));
    }

    #[test]
    fn any_text_survives_being_printed_and_read(
        texts in proptest::collection::btree_map("[a-z]{1,8}|[0-9a-fox_-]{1,5}", text(), 1..6)
    ) {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some("a".to_owned()),
                namespace: Some("default".to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(texts),
            ..ConfigMap::default()
        };
        let object = Object::ConfigMap(std::sync::Arc::new(map));
        let parsed = read(object.to_yaml().as_bytes());
        prop_assert_eq!(parsed.objects().next(), Some(&object), "{}\n{:?}", object.to_yaml(), parsed.problems);
        let other: serde_json::Value = serde_yaml::from_str(&object.to_yaml()).unwrap();
        prop_assert_eq!(other, object.to_json(), "{}", object.to_yaml());
    }

    #[test]
    fn a_manifest_that_was_cut_gets_an_answer(
        example in proptest::sample::select(EXAMPLES), at in any::<prop::sample::Index>()
    ) {
        sound(&read(&example.as_bytes()[..at.index(example.len())]));
    }
}

#[test]
fn what_is_printed_is_read_back_as_the_same_object() {
    for example in EXAMPLES {
        for object in read(example.as_bytes()).objects() {
            let again = read(object.to_yaml().as_bytes());
            assert_eq!(again.objects().next(), Some(object), "{}\n{:?}", object.to_yaml(), again.problems);
            let json = object.to_json().to_string();
            assert_eq!(read(json.as_bytes()).objects().next(), Some(object), "{json}");
        }
    }
}

/// Far more than it takes, and far less than an attack would.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn bombs_end_in_time() {
    let aliases: String = (1..10).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
        let below = level - 1;
        text + &format!("a{level}: &a{level} [*a{below},*a{below},*a{below},*a{below},*a{below},*a{below}]\n")
    });
    let merges: String = (1..30).fold("a0: &a0 {k: v}\n".to_owned(), |text, level| {
        let below = level - 1;
        text + &format!("a{level}: &a{level} {{l: *a{below}, r: *a{below}}}\n")
    });
    let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(1 << 20), "*a,".repeat(2000));
    let bombs = [
        aliases,
        merges,
        long,
        "[".repeat(1 << 20),
        "{a: ".repeat(1 << 18),
        "- ".repeat(1 << 20),
        "? ".repeat(1 << 20),
        "a:\n".repeat(1 << 19),
        format!("k: {}", "!".repeat(1 << 20)),
        format!("k: \"{}", "\\x41".repeat(1 << 19)),
        "&a ".repeat(1 << 19),
        "a: &a\n  <<: *a\n".to_owned(),
        "---\n".repeat(1 << 19),
        (0..200_000).map(|number| format!("k{number}: v\n")).collect(),
    ];
    end_in_time(&bombs);
}

/// Items of a list in flow style.
fn items(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(",")
}

#[test]
fn long_lists_end_in_time() {
    let pod = |spec: &str, container: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  {spec}\n  containers: [{{name: c, image: i, \
             {container}}}]\n"
        )
    };
    let names = |letter: char, count: usize| items(count, move |at| format!("{letter}{at}"));
    let keys = |letter: char, count: usize| items(count, move |at| format!("\"{letter} {at}\": v"));
    end_in_time(&[
        // Each is compared with each of another list, and none fits.
        pod(
            &format!("volumes: [{}]", items(15_000, |at| format!("{{name: volume-number-{at}}}"))),
            &format!(
                "volumeMounts: [{}]",
                items(15_000, |at| format!("{{name: volume-numbe-{at}x, mountPath: /{at}}}"))
            ),
        ),
        pod(&items(50_000, |at| format!("kontainer{at}: 1")).replace(',', "\n  "), ""),
        pod(
            "",
            &format!(
                "volumeMounts: [{}], volumeDevices: [{}]",
                items(20_000, |at| format!("{{name: b{at}, mountPath: /a{at}}}")),
                items(20_000, |at| format!("{{name: c{at}, devicePath: /b{at}}}"))
            ),
        ),
        pod(
            &format!(
                "topologySpreadConstraints: [{{maxSkew: 1, topologyKey: z, whenUnsatisfiable: DoNotSchedule, \
                 matchLabelKeys: [{}], labelSelector: {{matchExpressions: [{}]}}}}]",
                names('k', 30_000),
                items(30_000, |at| format!("{{key: r{at}, operator: Exists}}"))
            ),
            "",
        ),
        pod(
            &format!(
                "affinity: {{podAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: [{{topologyKey: z, \
                 labelSelector: {{}}, matchLabelKeys: [{}], mismatchLabelKeys: [{}]}}]}}}}",
                names('k', 30_000),
                names('m', 30_000)
            ),
            "",
        ),
        pod(
            "",
            &format!(
                "resources: {{claims: [{},{}]}}",
                items(25_000, |at| format!("{{name: c{at}, request: a}}")),
                items(25_000, |at| format!("{{name: d{at}}}"))
            ),
        ),
        pod("", &format!("resources: {{limits: {{{}}}}}", keys('x', 30_000))),
        pod(&format!("nodeSelector: {{{}}}", keys('x', 30_000)), ""),
        pod(&format!("overhead: {{{}}}", items(50_000, |at| format!("a{at}: 1"))), ""),
        pod("", &format!("env: [{}]", items(30_000, |at| format!("{{name: a{at}, valueFrom: {{}}}}")))),
        pod("", &format!("ports: [{}]", items(30_000, |at| format!("{{name: a{at}, containerPort: 1, hostPort: 2}}")))),
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{{}}}\n", keys('x', 30_000)),
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: m}}\nstringData: {{{}}}\ndata: {{{}}}\n",
            keys('x', 30_000),
            keys('z', 30_000)
        ),
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m, labels: {{{}}}}}\n", keys('x', 30_000)),
    ]);
}

fn end_in_time(bombs: &[String]) {
    let mut slow = Vec::new();
    for (index, bomb) in bombs.iter().enumerate() {
        let begin = Instant::now();
        sound(&read(bomb.as_bytes()));
        let taken = begin.elapsed();
        if taken > SOON {
            let head: String = bomb.chars().take(120).collect();
            slow.push(format!("{index}: {head:?} took {taken:?}"));
        }
    }
    assert!(slow.is_empty(), "{}", slow.join("\n"));
}
