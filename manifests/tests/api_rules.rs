//! The API server's rules, one by one: which causes it names, and what it fills in.
//!
//! The rules are those of Kubernetes `pkg/apis/core/validation` and `pkg/apis/core/v1/defaults.go`.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::Path;

use portreeve_manifests::{ApiAnswer, Kind, parse_document_as};
use serde_json::{Value, json};

fn ask(kind: Kind, text: &str) -> ApiAnswer {
    parse_document_as(kind, "default", Path::new("case.yaml"), text.as_bytes())
}

/// What is wrong, as `reason field`, without repetitions.
fn causes(kind: Kind, text: &str) -> Vec<String> {
    let answer = ask(kind, text);
    assert_eq!(answer.object.is_some(), answer.problems.is_empty(), "{text}");
    let causes: BTreeSet<String> = answer
        .problems
        .iter()
        .map(|problem| format!("{} {}", problem.reason.to_string().trim_start_matches("FieldValue"), problem.field))
        .collect();
    causes.into_iter().collect()
}

/// A pod of the given metadata (beside its name), spec (beside its container) and container.
fn pod(metadata: &str, spec: &str, container: &str) -> String {
    let mut text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n{metadata}\nspec:\n{spec}\n");
    text.push_str("  containers:\n  - name: c\n    image: i\n");
    text.push_str(container);
    text
}

fn check(text: &str, expected: &[&str]) {
    assert_eq!(causes(Kind::Pod, text), expected, "{text}");
}

/// Checks a pod by its spec.
fn spec(spec: &str, expected: &[&str]) {
    check(&pod("", spec, ""), expected);
}

fn container(container: &str, expected: &[&str]) {
    check(&pod("", "", container), expected);
}

fn volume(source: &str, expected: &[&str]) {
    spec(&format!("  volumes: [{{name: v, {source}}}]"), expected);
}

fn filled_in(text: &str) -> Value {
    let answer = ask(Kind::Pod, text);
    answer.object.unwrap_or_else(|| panic!("{:?}\n{text}", answer.problems)).to_json()
}

#[test]
fn an_ephemeral_container_is_judged_as_a_container_and_by_its_own_rules() {
    const FORBIDDEN: &str = "Forbidden spec.ephemeralContainers";
    spec("  ephemeralContainers: [{name: e, image: i, targetContainerName: c}]", &[FORBIDDEN]);
    spec(
        "  ephemeralContainers: [{name: c, image: i, ports: [{containerPort: 1}], targetContainerName: zz, \
         lifecycle: {}, volumeMounts: [{name: q, mountPath: /a, subPath: x, subPathExpr: z}], livenessProbe: {}, \
         readinessProbe: {}, startupProbe: {}, resources: {limits: {cpu: 1}}, restartPolicy: '', \
         resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}]}]",
        &[
            "Duplicate spec.ephemeralContainers[0].name",
            FORBIDDEN,
            "Forbidden spec.ephemeralContainers[0].lifecycle",
            "Forbidden spec.ephemeralContainers[0].livenessProbe",
            "Forbidden spec.ephemeralContainers[0].ports",
            "Forbidden spec.ephemeralContainers[0].readinessProbe",
            "Forbidden spec.ephemeralContainers[0].resizePolicy",
            "Forbidden spec.ephemeralContainers[0].resources",
            "Forbidden spec.ephemeralContainers[0].restartPolicy",
            "Forbidden spec.ephemeralContainers[0].startupProbe",
            "Forbidden spec.ephemeralContainers[0].volumeMounts[0].subPath",
            "Forbidden spec.ephemeralContainers[0].volumeMounts[0].subPathExpr",
            "Invalid spec.ephemeralContainers[0].volumeMounts[0].subPathExpr",
            "NotFound spec.ephemeralContainers[0].targetContainerName",
            "NotFound spec.ephemeralContainers[0].volumeMounts[0].name",
        ],
    );
    spec(
        "  ephemeralContainers: [{image: ' i', resources: {}, env: [{name: ''}], securityContext: {runAsUser: -1}}]",
        &[
            FORBIDDEN,
            "Invalid spec.ephemeralContainers[0].image",
            "Invalid spec.ephemeralContainers[0].securityContext.runAsUser",
            "Required spec.ephemeralContainers[0].env[0].name",
            "Required spec.ephemeralContainers[0].name",
        ],
    );
    // A stop signal is behind a gate that is off.
    spec("  ephemeralContainers: [{name: e, image: i, lifecycle: {stopSignal: SIGTERM}}]", &[FORBIDDEN]);
}

#[test]
fn rules_over_all_containers_see_ephemeral_ones() {
    let ephemeral = "  hostUsers: false\n  os: {name: linux}\n  ephemeralContainers: [{name: e, image: i, \
                     volumeDevices: [], securityContext: {windowsOptions: {}, seccompProfile: {type: Unconfined}}}]";
    check(
        &pod(
            "  annotations: {container.apparmor.security.beta.kubernetes.io/e: runtime/default, \
             container.seccomp.security.alpha.kubernetes.io/e: runtime/default}",
            ephemeral,
            "",
        ),
        &[
            "Forbidden spec.ephemeralContainers",
            "Forbidden spec.ephemeralContainers[0].securityContext.seccompProfile.type",
            "Forbidden spec.ephemeralContainers[0].securityContext.windowsOptions",
        ],
    );
}

#[test]
fn the_tolerations_annotation_is_judged_as_tolerations() {
    const KEY: &str = "metadata.annotations.scheduler.alpha.kubernetes.io/tolerations";
    let check_text = |text: &str, expected: &[String]| {
        let metadata = format!("  annotations: {{scheduler.alpha.kubernetes.io/tolerations: '{text}'}}");
        assert_eq!(causes(Kind::Pod, &pod(&metadata, "", "")), expected, "{text}");
    };
    for good in ["", "null", "[]", r#"[{"Key":"a","OPERATOR":"Exists","other":{}}]"#] {
        check_text(good, &[]);
    }
    for bad in ["[1]", "{}", "x", r#"[{"key":1}]"#, r#"[{"tolerationSeconds":"1"}]"#] {
        check_text(bad, &["Invalid metadata.annotations".to_owned()]);
    }
    check_text(r#"[{"key":"a b"}]"#, &[format!("Invalid {KEY}[0].key")]);
    check_text(
        r#"[{"operator":"Foo"}]"#,
        &[format!("Invalid {KEY}[0].operator"), format!("NotSupported {KEY}[0].operator")],
    );
    check_text(
        r#"[{"operator":"Exists","effect":"X","tolerationSeconds":1}]"#,
        &[format!("Invalid {KEY}[0].effect"), format!("NotSupported {KEY}[0].effect")],
    );
}

#[test]
fn huge_pages_need_a_size_in_whole_bytes() {
    for name in ["hugepages-foo", "hugepages-1.5", "hugepages-1m", "hugepages-0"] {
        let limits = format!("spec.containers[0].resources.limits[{name}]");
        let requests = format!("spec.containers[0].resources.requests[{name}]");
        container(
            &format!("    resources: {{limits: {{cpu: 1, {name}: 4Mi}}}}\n"),
            &[&format!("Invalid {limits}"), &format!("Invalid {requests}")],
        );
    }
    container("    resources: {limits: {cpu: 1, hugepages-2Mi: 4Mi}}\n", &[]);
}

#[test]
fn a_generation_below_zero_is_refused_but_for_a_pod() {
    let metadata = "metadata: {name: x, generation: -1}\n";
    assert_eq!(causes(Kind::ConfigMap, metadata), ["Invalid metadata.generation"]);
    assert_eq!(causes(Kind::Secret, metadata), ["Invalid metadata.generation"]);
    check(&pod("  generation: -1", "", ""), &[]);
}

#[test]
fn json_in_a_secret_is_read_as_the_server_reads_it() {
    let secret = |data: &str| format!("metadata: {{name: s}}\ntype: kubernetes.io/dockercfg\n{data}\n");
    for (good, what) in [
        ("data: {.dockercfg: eyJhIjoi/yJ9}", "broken UTF-8"),
        (r#"stringData: {.dockercfg: '{"a":"\ud800"}'}"#, "a lone surrogate"),
        (&format!("stringData: {{.dockercfg: '{{\"a\":{}{}}}'}}", "[".repeat(200), "]".repeat(200)), "deep nesting"),
        ("stringData: {.dockercfg: 'null'}", "null"),
    ] {
        assert_eq!(causes(Kind::Secret, &secret(good)), Vec::<String>::new(), "{what}");
    }
    for bad in [r#"{"a":1e999}"#, "[]", "{", ""] {
        let text = secret(&format!("stringData: {{.dockercfg: '{bad}'}}"));
        assert_eq!(causes(Kind::Secret, &text), ["Invalid data[.dockercfg]"], "{bad}");
    }
}

#[test]
fn a_static_pod_may_have_no_resource_claims() {
    check(
        &pod(
            "  annotations: {kubernetes.io/config.mirror: x}",
            "  nodeName: node\n  resourceClaims: [{name: 'A B'}]",
            "    resources: {claims: [{name: 'A B'}]}\n",
        ),
        &["Forbidden []"],
    );
}

#[test]
fn a_variable_from_a_file_needs_an_empty_dir() {
    let variable = |volume: &str, path: &str| {
        format!(
            "    env: [{{name: A, valueFrom: {{fileKeyRef: {{volumeName: '{volume}', path: '{path}', key: K}}}}}}]\n"
        )
    };
    let volumes = "  volumes: [{name: e, emptyDir: {}}, {name: h, hostPath: {path: /h}}]";
    let own = "spec.containers[0].env[0].valueFrom.fileKeyRef";
    let cases: [(&str, &str, &[String]); 6] = [
        ("e", "a", &[]),
        ("e", "/a", &[]),
        ("e", "..a", &[]),
        ("e", "a/../b", &[format!("Invalid {own}.path")]),
        ("h", "a", &[format!("Invalid {own}.volumeName")]),
        ("", "a", &[format!("NotFound {own}.volumeName"), format!("Required {own}.volumeName")]),
    ];
    for (name, path, expected) in cases {
        assert_eq!(causes(Kind::Pod, &pod("", volumes, &variable(name, path))), expected, "{name} {path}");
    }
    check(&pod("", volumes, &variable("zz", "a")), &[&format!("NotFound {own}.volumeName")]);
}

#[test]
fn rules_by_exit_code_need_a_policy_and_are_judged_with_it() {
    let rules = "restartPolicyRules: [{action: X, exitCodes: {operator: In}}]";
    container(
        &format!("    {rules}\n"),
        &["NotSupported spec.containers[0].restartPolicyRules[0].action", "Required spec.containers[0].restartPolicy"],
    );
    spec(
        &format!("  initContainers: [{{name: i, image: i, {rules}}}]"),
        &["Required spec.initContainers[0].restartPolicy"],
    );
    spec(
        &format!("  initContainers: [{{name: i, image: i, restartPolicy: Never, {rules}}}]"),
        &["NotSupported spec.initContainers[0].restartPolicyRules[0].action"],
    );
}

#[test]
fn an_init_container_that_ends_is_not_resized_by_a_restart() {
    let policy = "resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, \
                  {resourceName: memory, restartPolicy: RestartContainer}]";
    spec(
        &format!("  initContainers: [{{name: i, image: i, {policy}}}]"),
        &["Invalid spec.initContainers[0].resizePolicy[1].restartPolicy"],
    );
    spec(&format!("  initContainers: [{{name: i, image: i, restartPolicy: Always, {policy}}}]"), &[]);
}

#[test]
fn a_host_name_override_is_judged_by_length_and_by_form() {
    let own = "spec.hostnameOverride";
    spec(&format!("  hostnameOverride: {}", "a".repeat(65)), &[&format!("TooLong {own}")]);
    spec(&format!("  hostnameOverride: {}_", "a".repeat(65)), &[&format!("Invalid {own}"), &format!("TooLong {own}")]);
}

#[test]
fn a_search_domain_may_begin_with_one_underscore() {
    spec("  dnsConfig: {searches: [_a_b.c, .]}", &[]);
    spec("  dnsConfig: {searches: [__a]}", &["Invalid spec.dnsConfig.searches[0]"]);
}

#[test]
fn resources_of_a_pod_bound_those_of_its_containers() {
    spec("  os: {name: windows}\n  resources: {limits: {foo: 1}, claims: [{name: x}]}", &["Forbidden spec.resources"]);
    // What the pod does not request is not bounded.
    check(
        &pod(
            "",
            "  resources: {requests: {memory: 1Gi}}",
            "    resources: {requests: {cpu: 1, ephemeral-storage: 1Gi}}\n",
        ),
        &[],
    );
    check(
        &pod("", "  resources: {requests: {cpu: 1}}", "    resources: {requests: {cpu: 2}}\n"),
        &["Invalid spec.resources.requests[cpu]"],
    );
    check(
        &pod(
            "",
            "  resources: {limits: {cpu: 1, hugepages-2Mi: 2Mi}}",
            "    resources: {limits: {cpu: 500m, hugepages-2Mi: 4Mi}}\n",
        ),
        &[
            "Invalid spec.resources.containers[0][hugepages-2Mi].limits",
            "Invalid spec.resources.limits[hugepages-2Mi]",
            "Invalid spec.resources.requests[hugepages-2Mi]",
        ],
    );
}

#[test]
fn keys_matched_by_the_pod_itself_may_not_be_selected_too() {
    let constraint = |selector: &str| {
        format!(
            "  topologySpreadConstraints: [{{maxSkew: 1, topologyKey: z, whenUnsatisfiable: DoNotSchedule, \
             matchLabelKeys: [x, k], labelSelector: {selector}}}]"
        )
    };
    let check_selector = |labels: &str, selector: &str, expected: &[&str]| {
        check(&pod(labels, &constraint(selector), ""), expected);
    };
    check_selector("  labels: {k: v}", "{matchLabels: {k: v}}", &["Invalid spec.topologySpreadConstraints[0][1]"]);
    check_selector(
        "  labels: {k: v}",
        "{matchExpressions: [{key: k, operator: Exists}]}",
        &["Invalid spec.topologySpreadConstraints[0][1]"],
    );
    // The pod has no such label, so nothing was made of the key.
    check_selector("", "{matchLabels: {k: v}}", &[]);
}

#[test]
fn a_template_of_a_claim_may_say_only_labels_and_annotations() {
    let template = |metadata: &str, spec: &str| {
        format!(
            "ephemeral: {{volumeClaimTemplate: {{metadata: {{{metadata}}}, \
             spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}{spec}}}}}}}"
        )
    };
    let own = "spec.volumes[0].ephemeral.volumeClaimTemplate";
    volume(
        &template(
            "uid: u, deletionTimestamp: 2026-01-01T00:00:00Z, deletionGracePeriodSeconds: 1, managedFields: [{}]",
            "",
        ),
        &[
            &format!("Forbidden {own}.metadata.deletionGracePeriodSeconds"),
            &format!("Forbidden {own}.metadata.deletionTimestamp"),
            &format!("Forbidden {own}.metadata.managedFields"),
            &format!("Forbidden {own}.metadata.uID"),
        ],
    );
    volume(&template("", ", dataSource: {kind: X, name: src}"), &[&format!("Invalid {own}.spec.dataSource")]);
    let same = filled_in(&pod(
        "",
        &format!(
            "  volumes: [{{name: v, {}}}]",
            template("", ", dataSource: {kind: PersistentVolumeClaim, name: src}")
        ),
        "",
    ));
    assert!(same["spec"]["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]["dataSourceRef"].is_null());
}

#[test]
fn a_claim_may_ask_for_part_of_a_byte() {
    volume(
        "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1500m}}}}}",
        &[],
    );
}

#[test]
fn the_name_of_a_made_claim_counts_only_when_the_claim_is_made() {
    let template = "{volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1}}}}}";
    let pod = |source: &str| {
        format!(
            "metadata: {{name: {}}}\nspec: {{containers: [{{name: c, image: i}}], volumes: [{{name: v, {source}}}]}}\n",
            "a".repeat(252)
        )
    };
    assert_eq!(causes(Kind::Pod, &pod(&format!("ephemeral: {template}"))), ["Invalid spec.volumes[0].name"]);
    assert_eq!(
        causes(Kind::Pod, &pod(&format!("emptyDir: {{}}, ephemeral: {template}"))),
        ["Forbidden spec.volumes[0].ephemeral"]
    );
}

#[test]
fn events_own_nothing() {
    for version in ["v1", "/v1"] {
        let metadata = format!("  ownerReferences: [{{apiVersion: {version}, kind: Event, name: e, uid: u}}]");
        check(&pod(&metadata, "", ""), &["Invalid metadata.ownerReferences"]);
    }
}

#[test]
fn a_windows_user_is_in_a_domain_of_good_labels() {
    let user = |domain: &str| format!("    securityContext: {{windowsOptions: {{runAsUserName: '{domain}\\user'}}}}\n");
    let own = "Invalid spec.containers[0].securityContext.windowsOptions.runAsUserName";
    container(&user(&"a".repeat(63)), &[]);
    container(&user(&"a".repeat(64)), &[own]);
    container(&user(&"\u{e9}".repeat(15)), &[]);
    container(&user(&"\u{e9}".repeat(16)), &[own]);
}

#[test]
fn a_pod_that_bounds_itself_bounds_its_huge_pages() {
    let pod = filled_in(&pod(
        "",
        "  resources: {requests: {memory: 1Gi}}",
        "    resources: {limits: {memory: 512Mi, hugepages-2Mi: 4Mi}}\n",
    ));
    assert_eq!(
        pod["spec"]["resources"],
        json!({"limits": {"hugepages-2Mi": "4Mi"}, "requests": {"memory": "1Gi", "hugepages-2Mi": "4Mi"}})
    );
}

#[test]
fn sums_are_rounded_after_they_are_made() {
    let mut text = pod("", "  resources: {limits: {cpu: 1}}", "    resources: {requests: {cpu: 100u}}\n");
    text.push_str("  - name: d\n    image: i\n    resources: {requests: {cpu: 100u}}\n");
    // As on the server, the pod's request is then below what the containers round up to.
    check(&text, &["Invalid spec.resources.requests[cpu]"]);
}

#[test]
fn old_apparmor_annotations_become_fields_only_where_they_are_good() {
    let annotated = |profile: &str, spec: &str| {
        let metadata = format!("  annotations: {{container.apparmor.security.beta.kubernetes.io/c: '{profile}'}}");
        filled_in(&pod(&metadata, spec, ""))["spec"]["containers"][0]["securityContext"].clone()
    };
    assert_eq!(
        annotated("localhost/x", ""),
        json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}})
    );
    assert!(annotated("localhost/x ", "").is_null());
    assert!(annotated(&format!("localhost/{}", "x".repeat(4096)), "").is_null());
    assert!(annotated("localhost/x", "  os: {name: windows}").is_null());
}

#[test]
fn what_only_the_server_sets_is_cleared() {
    let pod = filled_in(&pod(
        "  deletionTimestamp: 2026-01-01T00:00:00Z\n  deletionGracePeriodSeconds: 3\n  selfLink: /x\n  uid: u",
        "",
        "",
    ));
    assert_eq!(pod["metadata"], json!({"name": "p", "namespace": "default"}));
}

#[test]
fn base64_is_read_as_go_reads_it() {
    let secret = |data: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\ndata: {{a: {data}}}\n");
    for (data, expected) in [
        ("eA==", "eA=="),
        // The last digit says more than the byte holds.
        ("eB==", "eA=="),
        ("YWJ=", "YWI="),
        (r#""e\nA=\n=""#, "eA=="),
        ("[]", ""),
        ("[120, null, 1e1]", "eAAK"),
        ("\"\"", ""),
    ] {
        let answer = ask(Kind::Secret, &secret(data));
        let object = answer.object.unwrap_or_else(|| panic!("{data}: {:?}", answer.problems));
        assert_eq!(object.to_json()["data"]["a"], expected, "{data}");
    }
    for (data, expected) in [
        ("eA", "Base64 data[a]"),
        ("eA=", "Base64 data[a]"),
        ("e", "Base64 data[a]"),
        ("'-_=='", "Base64 data[a]"),
        ("' eA=='", "Base64 data[a]"),
        ("[256]", "TypeMismatch data[a][0]"),
        ("[x]", "TypeMismatch data[a][0]"),
        ("{}", "TypeMismatch data[a]"),
        ("1", "TypeMismatch data[a]"),
    ] {
        assert_eq!(causes(Kind::Secret, &secret(data)), [expected], "{data}");
    }
}

#[test]
fn times_are_read_as_go_reads_them() {
    let with = |time: &str| pod(&format!("  creationTimestamp: {time}"), "", "");
    for time in [
        "2026-01-31T12:00:00Z",
        "2026-01-31T1:00:00Z",
        "2026-01-31T12:00:00.5Z",
        "2026-01-31T12:00:00,1234567890123Z",
        "2026-01-31T12:00:00+05:30",
        "2024-02-29T23:59:59-08:00",
        "null",
    ] {
        check(&with(time), &[]);
    }
    for time in [
        "2026-01-31",
        "2026-01-31T12:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31T24:00:00Z",
        "2026-02-29T12:00:00Z",
        "2026-1-31T12:00:00Z",
        "20260131T120000Z",
        "2026-01-31t12:00:00z",
        "2026-01-31T12:00:00",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00+0530",
        "2026-01-31T12:00:00+05",
        "'2026-01-31T12:00:00Z[UTC]'",
        "' 2026-01-31T12:00:00Z'",
        "+002026-01-31T12:00:00Z",
        "''",
    ] {
        check(&with(time), &["TimeParse metadata.creationTimestamp"]);
    }
    check(&with("1"), &["TypeMismatch metadata.creationTimestamp"]);
}

#[test]
fn only_plain_spaces_may_stand_around_a_quantity() {
    let limits = |memory: &str| format!("    resources: {{limits: {{memory: {memory}}}}}\n");
    for good in ["' 1Mi '", "'\u{a0}1Mi'", "'1Mi\u{3000}'"] {
        container(&limits(good), &[]);
    }
    // In JSON these are escapes, and the server reads a quantity before it undoes them.
    for bad in [r#""1Mi\n""#, r#""\t1Mi""#, r#""1Mi\r""#, r#""1Mi\u2028""#, "''", "'1 Mi'"] {
        container(&limits(bad), &["QuantityParse spec.containers[0].resources.limits[memory]"]);
    }
    container(
        "    resources:\n      limits:\n        memory: |\n          1Mi\n",
        &["QuantityParse spec.containers[0].resources.limits[memory]"],
    );
}

#[test]
fn dockers_name_for_the_default_is_one_of_seccomp_alone() {
    const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/c";
    const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/c";
    let with = |annotation: &str, field: &str| {
        pod(
            &format!("  annotations: {{{annotation}: docker/default}}"),
            "",
            &format!("    securityContext: {{{field}: {{type: RuntimeDefault}}}}\n"),
        )
    };
    check(&with(SECCOMP, "seccompProfile"), &[]);
    check(
        &with(APPARMOR, "appArmorProfile"),
        &[
            "Forbidden spec.containers[0].securityContext.appArmorProfile.type",
            &format!("Invalid metadata.annotations[{APPARMOR}]"),
        ],
    );
}
