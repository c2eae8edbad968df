//! What a reader is told about texts that were hardly meant as they stand: the cause, its place, and what to do.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use expect_test::{Expect, expect};
use portreeve_manifests::{Object, Severity, parse_file, to_yaml};

/// The problems of a text, one per line, with what cannot be seen as its escape.
fn problems(text: &str) -> String {
    let parsed = parse_file(Path::new("a.yaml"), text.as_bytes());
    let lines: String = parsed.problems.iter().map(|problem| format!("{problem}\n")).collect();
    lines.chars().map(|c| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

fn check(texts: &[&str], expected: &Expect) {
    let out: Vec<String> = texts.iter().map(|text| problems(text)).collect();
    expected.assert_eq(&out.join("\n"));
}

/// A pod of one container with these further fields.
fn pod(container: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n  - name: c\n{container}")
}

#[test]
fn a_template_that_was_not_filled_in_is_called_one() {
    check(
        &[
            "{{- if .Values.on }}\napiVersion: v1\nkind: Pod\n",
            "{{ if .Values.on }}\napiVersion: v1\nkind: Pod\n",
            "{% if on %}\napiVersion: v1\n",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Values.name }}\n",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    {{- include \"labels\" . | nindent 4 }}\n",
            &pod("    image: {{ .Values.image }}:{{ .Values.tag }}\n"),
            &pod("    image: \"{{ .Values.image }}\"\n    ports: [{containerPort: '{{ .Values.port }}'}]\n"),
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: 'a-{{ .Release.Name }}'}\n",
            // Such a text may be meant.
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  b: |\n    {{ .Name }}\n  c: '{{ .Name }}'\n",
            // And an error beside it is another matter.
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  b: 'x {{ .Name }}'\n  c\n",
        ],
        &expect![[r#"
            a.yaml:1:1: error: a template that was not filled in begins here (fill it in first, as `helm template` does)

            a.yaml:1:1: error: a template that was not filled in begins here (fill it in first, as `helm template` does)

            a.yaml:1:1: error: a template that was not filled in begins here (fill it in first, as `helm template` does)

            a.yaml:4:9: error: a template that was not filled in begins here (fill it in first, as `helm template` does)

            a.yaml:6:5: error: a template that was not filled in begins here (fill it in first, as `helm template` does)

            a.yaml:7:12: error: a template that was not filled in begins here (fill it in first, as `helm template` does)

            a.yaml:7:12: warning: spec.containers[0].image: "{{ .Values.image }}" cannot be an image's name: a template in it was not filled in (fill it in first, as `helm template` does)
            a.yaml:8:29: error: spec.containers[0].ports[0].containerPort: expected a 32-bit integer, found a string ("{{ .Values.port }}") (fill it in first, as `helm template` does)

            a.yaml:3:18: error: metadata.name: "a-{{ .Release.Name }}" must be lower-case letters, digits, `-` and `.`, each part beginning and ending with a letter or digit (fill it in first, as `helm template` does)


            a.yaml:6:3: error: expected `:` after this key (put `: ` after it, or indent the line as part of the value above)
        "#]],
    );
}

#[test]
fn a_merge_conflict_is_called_one() {
    check(
        &[
            "<<<<<<< HEAD\nkind: Pod\n=======\nkind: ConfigMap\n>>>>>>> other\n",
            &pod("<<<<<<< HEAD\n    image: a\n=======\n    image: b\n>>>>>>> other\n"),
            &pod("    image: a\n=======\n    image: b\n"),
            &pod("    image: a\n>>>>>>> other\n"),
        ],
        &expect![[r#"
            a.yaml:1:1: error: a merge conflict was left in the file (keep one of the two sides, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>)

            a.yaml:7:1: error: a merge conflict was left in the file (keep one of the two sides, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>)

            a.yaml:8:1: error: a line of a merge conflict was left in the file (keep one of the two sides, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>)

            a.yaml:8:1: error: a line of a merge conflict was left in the file (keep one of the two sides, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>)
        "#]],
    );
}

#[test]
fn blanks_that_only_look_like_spaces_are_named() {
    check(
        &[
            "apiVersion: v1\nkind: Pod\nmetadata:\n\u{a0}\u{a0}name: a\nspec:\n\u{a0}\u{a0}hostname: a\n",
            &pod("\u{a0}   image: a\n"),
            &pod("  \u{a0} image: a\n"),
            &pod("    image:\u{a0}a\n    tty: true\n"),
            &pod("    image: a\n    command:\n    -\u{3000}a\n    tty: true\n"),
            "apiVersion: v1\n\u{a0}kind: Pod\n",
            "apiVersion: v1\nkind\u{200b}: Pod\n",
            // In a text it is a character as any other.
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {b: c\u{a0}d}\n",
        ],
        &expect![[r#"
            a.yaml:4:1: error: \u{a0}\u{a0}name: a no-break space (U+00A0) stands where YAML takes plain spaces only (type plain spaces in the place of all such characters of the file)

            a.yaml:7:1: error: \u{a0}   image: a no-break space (U+00A0) stands where YAML takes plain spaces only (type plain spaces in the place of all such characters of the file)

            a.yaml:7:3: error: spec.\u{a0} image: a no-break space (U+00A0) stands where YAML takes plain spaces only (type plain spaces in the place of all such characters of the file)

            a.yaml:7:11: error: a no-break space (U+00A0) stands where YAML takes plain spaces only (type plain spaces in the place of all such characters of the file)

            a.yaml:9:6: error: an invisible character (U+3000) stands where YAML takes plain spaces only (type plain spaces in the place of all such characters of the file)

            a.yaml:2:1: error: \u{a0}kind: a no-break space (U+00A0) stands where YAML takes plain spaces only (type plain spaces in the place of all such characters of the file)

            a.yaml:2:1: error: kind\u{200b}: an invisible character (U+200B) stands where YAML takes plain spaces only (type plain spaces in the place of all such characters of the file)

        "#]],
    );
}

#[test]
fn an_image_that_cannot_be_one_is_doubted() {
    check(
        &[
            &pod("    image: Nginx\n"),
            &pod("    image: https://example.com/nginx:1\n"),
            &pod("    image: nginx 1.29\n"),
            &pod("    image: \":1.29\"\n"),
            &pod("    image: 'nginx:'\n"),
            &pod("    image: a\n  initContainers: [{name: b, image: 'b:c:d'}]\n"),
            &pod("    image: a\n  volumes: [{name: v, image: {reference: 'a b'}}]\n"),
        ],
        &expect![[r#"
            a.yaml:7:12: warning: spec.containers[0].image: "Nginx" cannot be an image's name: there are capital letters in it (did you mean `nginx`?)

            a.yaml:7:12: warning: spec.containers[0].image: "https://example.com/nginx:1" cannot be an image's name: it begins with `https://` (did you mean `example.com/nginx:1`?)

            a.yaml:7:12: warning: spec.containers[0].image: "nginx 1.29" cannot be an image's name: there is a space in it (did you mean `nginx:1.29`?)

            a.yaml:7:12: warning: spec.containers[0].image: ":1.29" cannot be an image's name: there is no name before the tag (put the name before it, as in `nginx:1.29`)

            a.yaml:7:12: warning: spec.containers[0].image: "nginx:" cannot be an image's name: it ends where a tag should follow (did you mean `nginx`?)

            a.yaml:8:37: warning: spec.initContainers[0].image: "b:c:d" cannot be an image's name: "d" is no tag (a tag has letters, digits, `_`, `.` and `-`, at most 128, and begins with none of the last two)

            a.yaml:8:42: warning: spec.volumes[0].image.reference: "a b" cannot be an image's name: there is a space in it (did you mean `a:b`?)
        "#]],
    );
    let parsed = parse_file(Path::new("a.yaml"), pod("    image: Nginx\n").as_bytes());
    assert_eq!(parsed.objects().count(), 1, "the API server accepts it");
}

#[test]
fn parts_of_a_byte_and_memory_for_no_program_are_doubted() {
    let limits = |limits: &str| pod(&format!("    image: a\n    resources: {{{limits}}}\n"));
    check(
        &[
            &limits("limits: {memory: 512m}"),
            &limits("limits: {memory: 0.5}"),
            &limits("limits: {memory: 128Mi}, requests: {memory: 64m}"),
            &limits("requests: {ephemeral-storage: 10m}"),
            &limits("limits: {memory: 512}"),
            &limits("limits: {memory: 512k}"),
            &limits("limits: {memory: 3Mi}"),
            &limits("limits: {memory: 1000k}"),
            &limits("limits: {memory: 2}"),
            &limits("limits: {memory: 100000}"),
            &limits("limits: {cpu: 512m, memory: 4Mi}, requests: {memory: 1}"),
            &limits("limits: {memory: 0}"),
            &pod("    image: a\n  volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 64m}}]\n"),
        ],
        &expect![[r#"
            a.yaml:8:34: warning: spec.containers[0].resources.limits[memory]: fractional byte value "512m" is invalid, must be an integer (did you mean `512Mi`? `m` is a thousandth of a byte)

            a.yaml:8:34: warning: spec.containers[0].resources.limits[memory]: fractional byte value "500m" is invalid, must be an integer (write whole bytes, or a unit, for example `512Mi`)

            a.yaml:8:61: warning: spec.containers[0].resources.requests[memory]: fractional byte value "64m" is invalid, must be an integer (did you mean `64Mi`? `m` is a thousandth of a byte)

            a.yaml:8:28: warning: spec.containers[0].resources.requests[ephemeral-storage]: `ephemeral-storage` has no effect here (remove it, or leave it: disk space is not set aside)
            a.yaml:8:47: warning: spec.containers[0].resources.requests[ephemeral-storage]: fractional byte value "10m" is invalid, must be an integer (did you mean `10Mi`? `m` is a thousandth of a byte)

            a.yaml:8:34: warning: spec.containers[0].resources.limits[memory]: "512" is too little memory for nearly every program to start (did you mean `512Mi`?)

            a.yaml:8:34: warning: spec.containers[0].resources.limits[memory]: "512k" is too little memory for nearly every program to start (did you mean `512Mi`?)

            a.yaml:8:34: warning: spec.containers[0].resources.limits[memory]: "3Mi" is too little memory for nearly every program to start (give it more, for example `64Mi`)

            a.yaml:8:34: warning: spec.containers[0].resources.limits[memory]: "1M" is too little memory for nearly every program to start (give it more, for example `64Mi`)

            a.yaml:8:34: warning: spec.containers[0].resources.limits[memory]: "2" is too little memory for nearly every program to start (give it more, for example `64Mi`)

            a.yaml:8:34: warning: spec.containers[0].resources.limits[memory]: "100k" is too little memory for nearly every program to start (did you mean `100Mi`?)



            a.yaml:8:61: warning: spec.volumes[0].emptyDir.sizeLimit: fractional byte value "64m" is invalid, must be an integer (did you mean `64Mi`? `m` is a thousandth of a byte)
        "#]],
    );
}

#[test]
fn what_hides_or_overlaps_something_before_it_is_doubted() {
    check(
        &[
            &pod("    image: a\n    env: [{name: A, value: b}, {name: A, value: c}, {name: A, value: $(A)/d}]\n"),
            &pod(
                "    image: a\n    ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}, {containerPort: 80}]\n",
            ),
            &pod(
                "    image: a\n    ports: [{containerPort: 80}]\n  - {name: d, image: a, ports: [{containerPort: 80}]}\n",
            ),
            &pod("    image: a\n    ports: [{containerPort: 80, hostPort: 1}, {containerPort: 80, hostPort: 2}]\n"),
            &pod("    image: a\n    ports: [{containerPort: 80, hostIP: 127.0.0.1}]\n"),
            // What only prepares the pod has gone when the others listen.
            &pod("    image: a\n    ports: [{containerPort: 80}]\n  \
                 initContainers: [{name: b, image: a, ports: [{containerPort: 80}]}]\n"),
        ],
        &expect![[r#"
            a.yaml:8:39: warning: spec.containers[0].env[1].name: "A" is set already, at spec.containers[0].env[0], and this value hides that one (rename or remove one of the two)

            a.yaml:8:86: warning: spec.containers[0].ports[2].containerPort: the port 80 is there already, at spec.containers[0].ports[0] (the containers of a pod share its ports: change or remove one of the two)

            a.yaml:9:49: warning: spec.containers[1].ports[0].containerPort: the port 80 is there already, at spec.containers[0].ports[0] (the containers of a pod share its ports: change or remove one of the two)


            a.yaml:8:41: warning: spec.containers[0].ports[0].hostIP: a hostIP without a hostPort publishes nothing (add the hostPort, or remove the hostIP)

        "#]],
    );
}

#[test]
fn an_object_written_out_with_its_defaults_warns_of_nothing_new() {
    const ACCOUNTS: &str = "  serviceAccountName: default\n  priority: 0\n  preemptionPolicy: PreemptLowerPriority\n";
    let examples = [
        include_str!("../examples/web.yaml").to_owned(),
        include_str!("../examples/config.yaml").to_owned(),
        include_str!("../examples/init.yaml").to_owned(),
        include_str!("../examples/volumes.yaml").to_owned(),
        include_str!("../examples/confined.yaml").to_owned(),
        pod(&format!("    image: a\n{ACCOUNTS}")),
    ];
    for text in &examples {
        assert_eq!(problems(text), "", "{text}");
        for object in parse_file(Path::new("a.yaml"), text.as_bytes()).objects() {
            let written = to_yaml(&object.to_json());
            if let Object::Pod(_) = object {
                assert!(written.contains("enableServiceLinks: true"), "{written}");
            }
            assert_eq!(problems(&written), "", "{written}");
        }
    }
    let other = problems(&pod("    image: a\n  priority: 5\n  preemptionPolicy: Never\n  enableServiceLinks: false\n"));
    assert_eq!(other.matches("has no effect here").count(), 2, "{other}");
}

#[test]
fn a_doubt_holds_nothing_back() {
    let text = pod("    image: Nginx\n    resources: {limits: {memory: 512m}}\n");
    let parsed = parse_file(Path::new("a.yaml"), text.as_bytes());
    assert!(parsed.is_good() && parsed.objects().count() == 1);
    assert!(parsed.problems.iter().all(|problem| problem.severity == Severity::Warning));
}

#[test]
fn keys_of_labels_are_kept_as_they_were_written() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: x, tier: z}}\nspec:\n  \
                containers: [{name: c, image: a}]\n  affinity:\n    podAntiAffinity:\n      \
                requiredDuringSchedulingIgnoredDuringExecution:\n      \
                - {topologyKey: zone, labelSelector: {}, matchLabelKeys: [app], mismatchLabelKeys: [tier]}\n  \
                topologySpreadConstraints:\n  \
                - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {}, matchLabelKeys: [app]}\n";
    let read = |text: &str| {
        let parsed = parse_file(Path::new("a.yaml"), text.as_bytes());
        parsed.objects().next().cloned().unwrap_or_else(|| panic!("{:?}", parsed.problems))
    };
    let object = read(text);
    assert_eq!(read(&to_yaml(&object.to_json())), object);
}
