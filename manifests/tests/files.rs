//! The rules for files: what is refused, how far, and in which words.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use expect_test::{Expect, expect};
use portreeve_manifests::{Object, ParsedFile, QosClass, Reason, Severity, Verdict, parse_file, qos_class, references};

fn read(text: &str) -> ParsedFile {
    parse_file(Path::new("pods/web.yaml"), text.as_bytes())
}

fn check(text: &str, expected: &Expect) {
    let parsed = read(text);
    let mut out = String::new();
    for problem in &parsed.problems {
        out.push_str(&format!("{problem}\n"));
    }
    for document in &parsed.documents {
        let verdict = match &document.verdict {
            Verdict::Accepted(object) => format!("accepted {}", object.key()),
            Verdict::Refused { key } => {
                format!("refused {}", key.as_ref().map(ToString::to_string).unwrap_or_default())
            }
            Verdict::Ignored => "ignored".to_owned(),
        };
        out.push_str(&format!("{}: {verdict}\n", document.index));
    }
    if parsed.unreadable {
        out.push_str("unreadable\n");
    }
    expected.assert_eq(&out);
}

/// A pod with more lines below `spec` and below its container.
fn pod(spec: &str, container: &str) -> String {
    let mut text = String::from("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n");
    for line in spec.lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str("  containers:\n  - name: c\n    image: busybox:1\n");
    for line in container.lines() {
        text.push_str(&format!("    {line}\n"));
    }
    text
}

const GOOD: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\ndata: {a: b}\n";

#[test]
fn a_syntax_error_holds_back_the_whole_file() {
    check(
        &format!("{GOOD}---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: [web\n"),
        &expect![[r#"
            pods/web.yaml:10:1: error: expected `,` or `]` for what was opened at 9:9 (close it, put a comma before the next item, or quote a text that begins with a bracket)
            unreadable
        "#]],
    );
}

#[test]
fn an_invalid_document_is_refused_alone() {
    check(
        &format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: Web}}\nspec: {{}}\n---\n{GOOD}"),
        &expect![[r#"
            pods/web.yaml:3:18: error: metadata.name: "Web" must be lower-case letters, digits, `-` and `.`, each part beginning and ending with a letter or digit (for example `web`)
            pods/web.yaml:4:1: error: spec.containers: a pod needs at least one container (set it, for example `containers: [{name: web, image: nginx}]`)
            0: refused Pod default/Web
            1: accepted ConfigMap default/good
        "#]],
    );
}

#[test]
fn empty_documents_are_nothing() {
    check(
        &format!("# nothing\n---\n---\n{GOOD}---\n"),
        &expect![[r#"
        1: accepted ConfigMap default/good
    "#]],
    );
    check(
        "# nothing\n",
        &expect![[r#"
            pods/web.yaml:1:1: warning: the file declares no object (delete the file, or declare an object in it)
        "#]],
    );
}

#[test]
fn a_misspelt_field_is_named_with_its_place_and_what_was_meant() {
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: c\n    imge: busybox\n    limits: {cpu: 1}\n",
        &expect![[r#"
            pods/web.yaml:7:5: error: spec.containers[0].imge: unknown field `imge` (did you mean `image`?)
            pods/web.yaml:8:5: error: spec.containers[0].limits: unknown field `limits` (it belongs below `resources`)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn every_fault_of_a_document_is_reported_at_once() {
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: 80}\nspec:\n  hostNetwork: \"yes\"\n  containers:\n  - name: c\n    name: d\n    image: i\n    env:\n    - {name: A, value: yes}\n    - {name: B, value: 1}\n    resources: {limits: {cpu: 1 core, memory: 1gb}}\n    ports:\n    - containerPort: 99999999999\n",
        &expect![[r#"
            pods/web.yaml:3:18: error: metadata.name: expected a string, found a number (80) (put it in quotes)
            pods/web.yaml:5:16: error: spec.hostNetwork: expected a boolean, found a string ("yes") (write `true` or `false`)
            pods/web.yaml:8:5: error: spec.containers[0].name: the key `name` is already there, at 7:5 (remove one of the two, or join what stands below them)
            pods/web.yaml:11:24: error: spec.containers[0].env[0].value: expected a string, found a boolean (true) (put it in quotes; y, yes, on, n, no, off are booleans too)
            pods/web.yaml:12:24: error: spec.containers[0].env[1].value: expected a string, found a number (1) (put it in quotes)
            pods/web.yaml:13:31: error: spec.containers[0].resources.limits[cpu]: "1 core" is no quantity: a number with an optional suffix (m, k, M, G, Ki, Mi, Gi, ...) (for example 500m, 2, 128Mi or 1.5Gi)
            pods/web.yaml:13:47: error: spec.containers[0].resources.limits[memory]: "1gb" is no quantity: a number with an optional suffix (m, k, M, G, Ki, Mi, Gi, ...) (did you mean `1G`?)
            pods/web.yaml:15:22: error: spec.containers[0].ports[0].containerPort: expected a 32-bit integer, found a number (99999999999) (write a number from -2147483648 to 2147483647)
            0: refused 
        "#]],
    );
}

/// The errors of a file: each field with its reason, in order of position.
fn errors(text: &str) -> Vec<String> {
    let problems = read(text).problems.into_iter().filter(|problem| problem.severity == Severity::Error);
    problems.map(|problem| format!("{}: {}", problem.field, problem.reason)).collect()
}

#[test]
fn a_value_of_the_wrong_type_hides_no_other_problem() {
    let text = "apiVersion: v1
kind: Pod
metadata: {name: Web}
spec:
  restartPolicy: Sometimes
  containers:
  - name: c
    image: y
    imagePullPolicy: No
    env:
    - {name: A, value: 1}
    - {name: B=, value: ok}
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: d}
";
    let wanted = [
        "metadata.name: FieldValueInvalid",
        "spec.restartPolicy: FieldValueNotSupported",
        "spec.containers[0].image: TypeMismatch",
        "spec.containers[0].imagePullPolicy: TypeMismatch",
        "spec.containers[0].env[0].value: TypeMismatch",
        "spec.containers[0].env[1].name: FieldValueInvalid",
        "spec.containers[0].volumeMounts[0].name: FieldValueNotFound",
        "spec.containers[1].image: FieldValueRequired",
    ];
    assert_eq!(errors(text), wanted);
}

#[test]
fn what_follows_from_a_value_of_the_wrong_type_is_not_told() {
    for (spec, container, field) in [
        // A value that must be there, in itself and for what holds it.
        ("", "image: 5", "spec.containers[0].image"),
        ("", "livenessProbe: {httpGet: x}", "spec.containers[0].livenessProbe.httpGet"),
        ("", "ports: [{containerPort: x, hostPort: 80}]", "spec.containers[0].ports[0].containerPort"),
        ("volumes: [{name: v, hostPath: x}]", "", "spec.volumes[0].hostPath"),
        // A name that stands elsewhere.
        ("volumes: x", "volumeMounts: [{name: v, mountPath: /v}]", "spec.volumes"),
        ("volumes: [{name: 1, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: /v}]", "spec.volumes[0].name"),
        // What decides over its neighbours.
        ("tolerations: [{key: 1, effect: NoExecute}]", "", "spec.tolerations[0].key"),
        (
            "securityContext: {seccompProfile: {type: 1, localhostProfile: p.json}}",
            "",
            "spec.securityContext.seccompProfile.type",
        ),
        (
            "initContainers: [{name: i, image: i, restartPolicy: 1, livenessProbe: {exec: {command: [a]}}}]",
            "",
            "spec.initContainers[0].restartPolicy",
        ),
        // What is compared with others.
        ("", "resources: {limits: {cpu: one}, requests: {cpu: 2}}", "spec.containers[0].resources.limits[cpu]"),
    ] {
        let text = pod(spec, container);
        // The image of this one is given by the line itself.
        let text = if container.starts_with("image") { text.replace("    image: busybox:1\n", "") } else { text };
        let found = errors(&text);
        assert!(matches!(&*found, [only] if only.starts_with(&format!("{field}: "))), "{text}{found:#?}");
    }
}

#[test]
fn lists_are_read_in_a_list_as_at_the_top() {
    let text = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMapList
  items:
  - metadata: {name: a}
  - {metadata: {name: B}}
- apiVersion: v1
  kind: List
  items:
  - {apiVersion: v1, kind: Secret, metadata: {name: s, name: s}}
- {apiVersion: v2, kind: PodList}
- {apiVersion: v1, kind: SecretList, more: 1}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, null: 1}
";
    let wanted = [
        "items[0].items[1].metadata.name: FieldValueInvalid",
        "items[1].items[0].metadata.name: StrictDuplicateKeyYAML",
        "items[2].kind: KindMismatch",
        "items[3].more: StrictUnknownField",
        "items[4]: BadRequest",
    ];
    assert_eq!(errors(text), wanted);
    let accepted: Vec<_> = read(text).objects().map(|object| object.key().to_string()).collect();
    assert_eq!(accepted, ["ConfigMap default/a"]);
}

#[test]
fn lists_hold_objects_of_any_kind() {
    check(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n- {apiVersion: v1, kind: Service, metadata: {name: s}}\n- {apiVersion: v1, kind: Secret, metadata: {name: a}, data: {x: '!'}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}, data: {x: 1, x: 2}}\n",
        &expect![[r#"
            pods/web.yaml:5:26: warning: items[1].kind: Service has no effect here: only a cluster knows it (publish a port of the pod by `hostPort`)
            pods/web.yaml:6:65: error: items[2].data[x]: not base64: Invalid symbol 33, offset 0. (encode it (`base64 -w0`), or use `stringData` for plain text)
            pods/web.yaml:7:71: error: items[3].data.x: the key `x` is already there, at 7:65 (remove one of the two, or join what stands below them)
            pods/web.yaml:7:74: error: items[3].data[x]: expected a string, found a number (2) (put it in quotes)
            0: accepted ConfigMap default/a
            0: ignored
            0: refused Secret default/a
            0: refused ConfigMap default/b
        "#]],
    );
    check(
        "apiVersion: v1\nkind: ConfigMapList\nmetadata: {resourceVersion: '1'}\nitems:\n- metadata: {name: a}\n- {kind: Secret, apiVersion: v1, metadata: {name: a}}\nextra: 1\n",
        &expect![[r#"
            pods/web.yaml:6:10: error: items[1].kind: expected ConfigMap, as the list says, found Secret (remove it, or make the list a `kind: List`, which takes any)
            pods/web.yaml:7:1: error: extra: unknown field `extra` (remove it; a list has apiVersion, kind, metadata and items)
            0: refused 
            0: accepted ConfigMap default/a
            0: refused 
        "#]],
    );
}

#[test]
fn kinds_are_run_refused_or_ignored_by_the_rule() {
    for (kind, version) in [
        ("Deployment", "apps/v1"),
        ("DaemonSet", "apps/v1"),
        ("StatefulSet", "apps/v1"),
        ("ReplicaSet", "apps/v1"),
        ("Job", "batch/v1"),
        ("CronJob", "batch/v1"),
        ("PersistentVolumeClaim", "v1"),
    ] {
        let parsed = read(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n"));
        let problem = &parsed.problems[0];
        assert_eq!((problem.severity, problem.reason), (Severity::Error, Reason::UnsupportedHere));
        assert!(problem.message.contains("not supported by this version"), "{problem}");
    }
    for (kind, version) in [
        ("Service", "v1"),
        ("Ingress", "networking.k8s.io/v1"),
        ("ClusterRole", "rbac.authorization.k8s.io/v1"),
        ("Namespace", "v1"),
    ] {
        let parsed =
            read(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{any: thing}}\n"));
        assert_eq!(parsed.problems.len(), 1);
        assert_eq!(parsed.problems[0].severity, Severity::Warning);
        assert_eq!(parsed.documents[0].verdict, Verdict::Ignored);
    }
    check(
        "apiVersion: v1\nkind: Pood\nmetadata: {name: x}\n",
        &expect![[r#"
        pods/web.yaml:2:7: error: kind: unknown kind Pood in apiVersion v1 (did you mean `Pod`?)
        0: refused 
    "#]],
    );
    check(
        "apiVersion: example.com/v1\nkind: Service\n",
        &expect![[r#"
        pods/web.yaml:2:7: error: kind: unknown kind Service in apiVersion example.com/v1 (remove the document, or keep it where a cluster reads it)
        0: refused 
    "#]],
    );
    check(
        "metadata: {name: x}\n",
        &expect![[r#"
        pods/web.yaml:1:1: error: kind: a manifest needs `kind` (for a pod: `apiVersion: v1` and `kind: Pod`)
        0: refused 
    "#]],
    );
    check(
        "- a\n",
        &expect![[r#"
            pods/web.yaml:1:1: error: expected an object, found a list (for a pod: `apiVersion: v1` and `kind: Pod`)
            0: refused 
        "#]],
    );
}

#[test]
fn the_same_object_twice_in_a_file_is_an_error() {
    check(
        &format!("{GOOD}---\n{GOOD}"),
        &expect![[r#"
            pods/web.yaml:8:12: error: metadata.name: ConfigMap default/good is declared already, at 1:1 (rename or remove one of the two)
            0: accepted ConfigMap default/good
            1: refused ConfigMap default/good
        "#]],
    );
}

#[test]
fn a_uid_must_be_a_uuid() {
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, uid: abc}\n",
        &expect![[r#"
            pods/web.yaml:3:21: error: metadata.uid: `uid` (other than a UUID) is not supported by this version (remove it, and the object gets one)
            0: refused ConfigMap default/a
        "#]],
    );
    let good =
        read("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, uid: 123e4567-e89b-42d3-a456-426614174000}\n");
    assert!(good.problems.is_empty());
}

#[test]
fn a_name_that_is_generated_is_no_identity() {
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}\n",
        &expect![[r#"
            pods/web.yaml:3:1: error: metadata.name: a name is required (set `metadata.name`; `generateName` would make another object at each reading)
            pods/web.yaml:3:12: warning: metadata.generateName: `generateName` has no effect here (remove it: the name is taken as it is)
            0: refused 
        "#]],
    );
}

#[test]
fn what_only_steers_a_cluster_is_a_warning() {
    check(
        &pod(
            "affinity: {nodeAffinity: {}}\ntolerations: [{operator: Exists}]\nserviceAccountName: robot\npriorityClassName: high\nschedulerName: mine\nsubdomain: s",
            "",
        ),
        &expect![[r#"
            pods/web.yaml:5:3: warning: spec.affinity: `affinity` has no effect here (remove it, or leave it: there is one node)
            pods/web.yaml:6:3: warning: spec.tolerations: `tolerations` has no effect here (remove it, or leave it: there are no taints)
            pods/web.yaml:7:3: warning: spec.serviceAccountName: `serviceAccountName` has no effect here (remove it, or leave it: no token is mounted, as there is no API server to use it with)
            pods/web.yaml:8:3: warning: spec.priorityClassName: `priorityClassName` has no effect here (remove it, or leave it: no pod is evicted for another)
            pods/web.yaml:9:3: warning: spec.schedulerName: `schedulerName` has no effect here (remove it, or leave it: there is no scheduler)
            pods/web.yaml:10:3: warning: spec.subdomain: `subdomain` has no effect here (remove it, or leave it: there is no cluster DNS)
            0: accepted Pod default/web
        "#]],
    );
}

#[test]
fn what_changes_a_container_is_an_error_until_it_is_supported() {
    check(
        &pod(
            "runtimeClassName: kata\nhostnameOverride: h\nsecurityContext: {seLinuxOptions: {level: s0}, appArmorProfile: {type: RuntimeDefault}}\nresources: {limits: {cpu: 1}}\nvolumes:\n- {name: a, persistentVolumeClaim: {claimName: c}}\n- {name: b, emptyDir: {sizeLimit: 1Gi}}\n- {name: t, projected: {sources: [{serviceAccountToken: {path: t}}]}}\nserviceAccountName: default",
            "livenessProbe: {grpc: {port: 1}}\nresources: {limits: {nvidia.com/gpu: 1, portreeve.dev/pids: 10}}\nports: [{containerPort: 1, hostPort: 1, protocol: SCTP}, {containerPort: 2, hostPort: 2, hostIP: localhost}]\nlifecycle: {stopSignal: TERM}",
        ),
        &expect![[r#"
            pods/web.yaml:5:3: error: spec.runtimeClassName: `runtimeClassName` is not supported by this version (remove it: there is one runtime)
            pods/web.yaml:6:3: error: spec.hostnameOverride: `hostnameOverride` is not supported by this version (use `hostname`)
            pods/web.yaml:7:21: error: spec.securityContext.seLinuxOptions: `seLinuxOptions` is not supported by this version (remove it; seccomp and capabilities confine)
            pods/web.yaml:7:68: error: spec.securityContext.appArmorProfile.type: `appArmorProfile.type` (other than Unconfined) is not supported by this version (use Unconfined, or remove it: seccomp and capabilities confine here)
            pods/web.yaml:8:3: error: spec.resources: `resources` (of the whole pod) is not supported by this version (set the resources of the containers)
            pods/web.yaml:10:15: error: spec.volumes[0].persistentVolumeClaim: `persistentVolumeClaim` is not supported by this version (use a hostPath volume)
            pods/web.yaml:11:15: error: spec.volumes[1].emptyDir: `emptyDir` (sizeLimit on disk) is not supported by this version (use `medium: Memory`, or remove the sizeLimit)
            pods/web.yaml:12:38: error: spec.volumes[2].projected.sources[0].serviceAccountToken: `serviceAccountToken` is not supported by this version (use a Secret: there is no API server to use a token with)
            pods/web.yaml:17:21: error: spec.containers[0].livenessProbe.grpc: `grpc` is not supported by this version (use tcpSocket, or exec with a gRPC client)
            pods/web.yaml:18:26: error: spec.containers[0].resources.limits[nvidia.com/gpu]: `nvidia.com/gpu` (extended resources) is not supported by this version (remove it: devices are not handed out here)
            pods/web.yaml:19:13: error: spec.containers[0].ports[0]: `ports[0]` (SCTP on a hostPort) is not supported by this version (publish TCP or UDP, or use hostNetwork)
            pods/web.yaml:19:94: error: spec.containers[0].ports[1].hostIP: `hostIP` (anything but an IPv4 address) is not supported by this version (use an IPv4 address, such as 127.0.0.1)
            pods/web.yaml:20:17: error: spec.containers[0].lifecycle.stopSignal: `stopSignal` (an unknown signal) is not supported by this version (use a name such as SIGTERM, SIGUSR1 or SIGRTMIN+3)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn init_containers_follow_the_same_rows() {
    check(
        &pod(
            "initContainers:\n- {name: i, image: i, restartPolicy: Always, startupProbe: {grpc: {port: 1}}}\n- {name: j, image: i, restartPolicy: Never}",
            "restartPolicy: Always",
        ),
        &expect![[r#"
            pods/web.yaml:6:63: error: spec.initContainers[0].startupProbe.grpc: `grpc` is not supported by this version (use tcpSocket, or exec with a gRPC client)
            pods/web.yaml:7:25: error: spec.initContainers[1].restartPolicy: `restartPolicy` (other than Always) is not supported by this version (use Always for a sidecar, or remove it)
            pods/web.yaml:11:5: error: spec.containers[0].restartPolicy: `restartPolicy` (of one container) is not supported by this version (use the pod's restartPolicy)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn confinement_that_is_not_done_is_refused_and_none_is_not() {
    let unconfined = read(&pod("securityContext: {appArmorProfile: {type: Unconfined}}", ""));
    assert!(unconfined.is_good() && unconfined.problems.is_empty());
    let old = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations: {container.apparmor.security.beta.kubernetes.io/c: localhost/x}\nspec: {containers: [{name: c, image: i}]}\n";
    check(
        old,
        &expect![[r#"
            pods/web.yaml:5:17: error: metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: `container.apparmor.security.beta.kubernetes.io/c` (AppArmor profiles) is not supported by this version (use Unconfined, or remove it: seccomp and capabilities confine here)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn what_can_never_be_mounted_is_refused_before_it_is_tried() {
    check(
        &pod(
            "volumes: [{name: d, hostPath: {path: rel/dir}}, {name: e, emptyDir: {}}]",
            "volumeMounts: [{name: d, mountPath: rel/dir}, {name: e, mountPath: /}, {name: e, mountPath: /a/..}]",
        ),
        &expect![[r#"
            pods/web.yaml:5:34: error: spec.volumes[0].hostPath.path: `path` (a relative path) is not supported by this version (begin it with `/`: nothing says where on the host it begins)
            pods/web.yaml:9:61: error: spec.containers[0].volumeMounts[1].mountPath: `mountPath` (the root directory) is not supported by this version (mount it on a directory below: the container's own root is there)
            pods/web.yaml:9:86: error: spec.containers[0].volumeMounts[2].mountPath: `mountPath` (the root directory) is not supported by this version (mount it on a directory below: the container's own root is there)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn a_problem_of_a_secrets_text_stands_where_the_text_stands() {
    check(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/dockercfg\nstringData:\n  a b: x\n  .dockercfg: '['\ndata:\n  c d: eA==\n",
        &expect![[r#"
            pods/web.yaml:6:8: error: data[a b]: "a b" must be letters, digits, `-`, `_` and `.` (for example `a_b`)
            pods/web.yaml:7:15: error: data[.dockercfg]: is no JSON (line 1, column 1 of it) (write `{"HOST": {"auth": "..."}}`, or use the type Opaque)
            pods/web.yaml:9:8: error: data[c d]: "c d" must be letters, digits, `-`, `_` and `.` (for example `c_d`)
            0: refused Secret default/s
        "#]],
    );
}

#[test]
fn resources_that_are_not_handed_out_are_named_where_they_stand() {
    check(
        &pod(
            "",
            "resources:\n  limits:\n    cpu: 1\n    hugepages-2Mi: 4Mi\n    ephemeral-storage: 1Gi\n    nvidia.com/gpu: 1\n  requests: {ephemeral-storage: 1Gi}",
        ),
        &expect![[r#"
            pods/web.yaml:11:9: error: spec.containers[0].resources.limits[hugepages-2Mi]: `hugepages-2Mi` (huge pages) is not supported by this version (remove it: huge pages are not handed out here)
            pods/web.yaml:12:9: error: spec.containers[0].resources.limits[ephemeral-storage]: `ephemeral-storage` is not supported by this version (remove it; disk use is not limited here)
            pods/web.yaml:13:9: error: spec.containers[0].resources.limits[nvidia.com/gpu]: `nvidia.com/gpu` (extended resources) is not supported by this version (remove it: devices are not handed out here)
            pods/web.yaml:14:18: warning: spec.containers[0].resources.requests[ephemeral-storage]: `ephemeral-storage` has no effect here (remove it, or leave it: disk space is not set aside)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn what_is_no_value_at_all_is_not_also_called_unsupported() {
    check(
        &pod(
            "volumes: [{name: h, hostPath: {path: /h, type: Dir}}]",
            "terminationMessagePolicy: X\nlivenessProbe: {}\nlifecycle: {preStop: {}}",
        ),
        &expect![[r#"
            pods/web.yaml:5:50: error: spec.volumes[0].hostPath.type: "Dir" is none of DirectoryOrCreate, Directory, FileOrCreate, File, Socket, CharDevice, BlockDevice (remove it, and the path is not checked)
            pods/web.yaml:9:31: error: spec.containers[0].terminationMessagePolicy: "X" is none of File, FallbackToLogsOnError (remove it for the default, `File`)
            pods/web.yaml:10:5: error: spec.containers[0].livenessProbe: must have one of exec, httpGet, tcpSocket or grpc (set it, for example `tcpSocket: {port: 80}`)
            pods/web.yaml:11:17: error: spec.containers[0].lifecycle.preStop: must have one of exec, httpGet, tcpSocket or sleep (set it, for example `exec: {command: [sleep, "5"]}`)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn there_is_one_version_of_lists() {
    check(
        "apiVersion: v2\nkind: List\nitems: []\n",
        &expect![[r#"
        pods/web.yaml:1:13: error: kind: there is no List in apiVersion v2 (use `apiVersion: v1`)
        0: refused 
    "#]],
    );
    check(
        "kind: PodList\nitems: []\n",
        &expect![[r#"
        pods/web.yaml:1:1: error: apiVersion: a manifest needs `apiVersion` (use `apiVersion: v1`)
        0: refused 
    "#]],
    );
}

#[test]
fn json_is_read_by_the_same_rules() {
    let text = "{\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\", \"metadata\": {\"name\": \"web\"},\n\t\"spec\": {\"containers\": [{\"name\": \"c\", \"image\": \"i\", \"tty\": \"true\"}]}}";
    check(
        text,
        &expect![[r#"
        pods/web.yaml:3:61: error: spec.containers[0].tty: expected a boolean, found a string ("true") (remove the quotes)
        0: refused Pod default/web
    "#]],
    );
}

#[test]
fn every_unknown_field_comes_with_what_to_do_about_it() {
    check(
        &pod("wibble: 1", "ports: [{zzz: 1, containerPort: 1}]\nimge: x"),
        &expect![[r#"
            pods/web.yaml:5:3: error: spec.wibble: unknown field `wibble` (remove it; the fields of PodSpec are in the Kubernetes API reference)
            pods/web.yaml:9:14: error: spec.containers[0].ports[0].zzz: unknown field `zzz` (remove it; the fields of ContainerPort are containerPort, hostIP, hostPort, name, protocol)
            pods/web.yaml:10:5: error: spec.containers[0].imge: unknown field `imge` (did you mean `image`?)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn a_fix_names_what_was_meant_or_where_the_other_stands() {
    check(
        &pod(
            "volumes: [{name: bad, hostPath: {path: /a/../b}}, {name: twice, emptyDir: {}}, {name: twice, emptyDir: {}}]\n\
             initContainers:\n- {name: i, image: i}\n- {name: j, image: i, ports: [{containerPort: 1, hostPort: 2}, {containerPort: 3, hostPort: 2}]}",
            "volumeMounts: [{name: bad, mountPath: /bad}, {name: other, mountPath: /other}]\n\
             resources: {limits: {cpus: 1}}\nlivenessProbe: {httpGet: {port: '70000'}}",
        ),
        &expect![[r#"
            pods/web.yaml:5:42: error: spec.volumes[0].hostPath.path: "/a/../b" may not contain `..` (name the place directly, without steps up)
            pods/web.yaml:5:89: error: spec.volumes[2].name: "twice" is there already, and must be unique (change or remove one of the two; the other is at 5:54)
            pods/web.yaml:8:95: error: spec.initContainers[0].ports[1].hostPort: "TCP//2" is there already, and must be unique (change or remove one of the two; the other is at 8:52)
            pods/web.yaml:12:27: error: spec.containers[0].volumeMounts[0].name: "bad" is no volume of this pod (mend that volume: it has errors of its own)
            pods/web.yaml:12:57: error: spec.containers[0].volumeMounts[1].name: "other" is no volume of this pod (add it to `spec.volumes`)
            pods/web.yaml:13:5: error: spec.containers[0].resources.requests[cpus]: "cpus" is no resource (did you mean `cpu`?)
            pods/web.yaml:13:32: error: spec.containers[0].resources.limits[cpus]: "cpus" is no resource (did you mean `cpu`?)
            pods/web.yaml:14:37: error: spec.containers[0].livenessProbe.httpGet.port: "70000" needs at least one letter (use a number from 1 to 65535, without quotes)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn a_mount_names_a_volume() {
    check(
        &pod(
            "volumes: [{name: data, emptyDir: {}}]",
            "volumeMounts: [{name: dta, mountPath: /d}, {name: data, mountPath: /e, subPath: ../x}]",
        ),
        &expect![[r#"
            pods/web.yaml:9:27: error: spec.containers[0].volumeMounts[0].name: "dta" is no volume of this pod (did you mean `data`?)
            pods/web.yaml:9:85: error: spec.containers[0].volumeMounts.subPath: "../x" may not contain `..` (name the place directly, without steps up)
            0: refused Pod default/web
        "#]],
    );
}

#[test]
fn a_file_beyond_the_limit_is_refused_unread() {
    let mut text = GOOD.to_owned();
    text.push_str(&"#".repeat(5 << 20));
    let parsed = read(&text);
    assert!(parsed.unreadable && parsed.documents.is_empty());
    assert_eq!(parsed.problems[0].reason, Reason::LimitExceeded);
}

#[test]
fn objects_are_filled_in_with_defaults() {
    let parsed = read(&pod(
        "",
        "ports: [{containerPort: 80}]\nlivenessProbe: {httpGet: {port: 80}}\nresources: {limits: {cpu: 0.5}}",
    ));
    let Some(Object::Pod(pod)) = parsed.objects().next() else { panic!("{:?}", parsed.problems) };
    assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
    assert!(pod.status.is_none());
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.termination_grace_period_seconds, Some(30));
    let container = &spec.containers[0];
    assert_eq!(container.image_pull_policy.as_deref(), Some("IfNotPresent"));
    assert_eq!(container.ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
    let requests = container.resources.as_ref().unwrap().requests.as_ref().unwrap();
    assert_eq!(requests["cpu"].0, "500m");
}

#[test]
fn a_secrets_texts_become_its_data() {
    let parsed =
        read("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: b2xk, b: eA==}\nstringData: {a: new}\n");
    let Some(Object::Secret(secret)) = parsed.objects().next() else { panic!("{:?}", parsed.problems) };
    let data = secret.data.as_ref().unwrap();
    assert_eq!(data["a"].0, b"new");
    assert_eq!(data["b"].0, b"x");
    assert!(secret.string_data.is_none());
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
}

fn hash(text: &str) -> String {
    let parsed = read(text);
    let object = parsed.objects().next().unwrap_or_else(|| panic!("{:?}", parsed.problems));
    object.content_hash()
}

#[test]
fn the_hash_is_of_the_meaning_not_of_the_text() {
    let one = hash(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i, resources: {limits: {cpu: 0.5, memory: 1024Ki}}}]}\n",
    );
    let other = hash(
        "# the same\nkind: Pod\nspec:\n  restartPolicy: Always\n  containers:\n  - image: i\n    name: c\n    resources: {limits: {memory: 1Mi, cpu: 500m}}\nmetadata:\n  namespace: default\n  name: a\napiVersion: v1\n",
    );
    assert_eq!(one, other);
    let different = hash("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: j}]}\n");
    assert_ne!(one, different);
    assert_eq!(one.len(), 64);
    // Written down: a ledger compares hashes of different versions of this program.
    assert_eq!(
        hash("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {b: c}\n"),
        "608e802c34cd42cdad30b0b68926c29e09a676c982749a9e42fb0ec0c5383cbd"
    );
}

#[test]
fn a_pods_references_are_found_wherever_they_are() {
    let parsed = read(&pod(
        "imagePullSecrets: [{name: pull}]\nvolumes:\n- {name: a, configMap: {name: cm-volume}}\n- {name: b, secret: {secretName: secret-volume, optional: true}}\n- {name: d, projected: {sources: [{configMap: {name: cm-projected}}, {secret: {name: secret-projected}}]}}",
        "envFrom: [{configMapRef: {name: cm-from}}]\nenv:\n- {name: A, valueFrom: {secretKeyRef: {name: secret-key, key: k, optional: true}}}",
    ));
    let Some(Object::Pod(pod)) = parsed.objects().next() else { panic!("{:?}", parsed.problems) };
    let found: Vec<String> =
        references(pod).into_iter().map(|(kind, name, optional)| format!("{kind} {name} {optional}")).collect();
    expect![[r#"
        ConfigMap cm-from false
        ConfigMap cm-projected false
        ConfigMap cm-volume false
        Secret pull true
        Secret secret-key true
        Secret secret-projected false
        Secret secret-volume true"#]]
    .assert_eq(&found.join("\n"));
}

#[test]
fn the_quality_of_service_follows_cpu_and_memory() {
    let class = |resources: &str| {
        let parsed = read(&pod("", &format!("resources: {resources}")));
        let Some(Object::Pod(pod)) = parsed.objects().next() else { panic!("{:?}", parsed.problems) };
        qos_class(pod.spec.as_ref().unwrap())
    };
    assert_eq!(class("{}"), QosClass::BestEffort);
    assert_eq!(class("{limits: {cpu: 1, memory: 1Gi}}"), QosClass::Guaranteed);
    assert_eq!(class("{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}"), QosClass::Burstable);
    assert_eq!(class("{limits: {cpu: 1}}"), QosClass::Burstable);
    assert_eq!(class("{requests: {cpu: 0}}"), QosClass::BestEffort);
}
