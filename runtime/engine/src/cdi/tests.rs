use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::catalogue::Catalogue;
use super::*;

/// Directories with specifications, which later ones win over.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        node.directories().iter().for_each(|directory| fs::create_dir(directory).unwrap());
        node
    }

    fn directories(&self) -> [PathBuf; 2] {
        ["static", "dynamic"].map(|name| self.0.path().join(name))
    }

    fn put(&self, file: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(file);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }

    fn resolve(&self, names: &[&str]) -> Result<Edits, String> {
        let names: Vec<DeviceName> = names.iter().map(|name| name.to_string().try_into().unwrap()).collect();
        resolve(&self.directories(), &names).map_err(|error| error.to_string())
    }

    /// What the devices make of a small specification.
    fn applied(&self, names: &[&str], own_users: bool) -> Value {
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.3.0",
            "process": {
                "user": {"uid": 1000, "gid": 2000}, "cwd": "/", "args": ["x"], "env": ["PATH=/bin", "A=first", "B=b"],
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []},
                {"destination": "/data/below/it", "type": "bind", "source": "/", "options": ["rbind"]},
                {"destination": "/opt", "type": "bind", "source": "/", "options": ["rbind"]},
            ],
            "linux": {
                "devices": [{"path": "/dev/there", "type": "c", "major": 1, "minor": 3}],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            },
        }))
        .unwrap();
        self.resolve(names).unwrap().apply(&mut spec, own_users);
        serde_json::to_value(spec).unwrap()
    }

    /// The environment that a device makes.
    fn environment(&self, names: &[&str]) -> Vec<String> {
        self.resolve(names).unwrap_or_else(|error| panic!("{error}")).environment().to_vec()
    }
}

/// A specification with one device, whose edits are these.
fn device(kind: &str, name: &str, edits: &Value) -> String {
    json!({"cdiVersion": "1.1.0", "kind": kind, "devices": [{"name": name, "containerEdits": edits}]}).to_string()
}

fn sets(variable: &str) -> Value {
    json!({ "env": [variable] })
}

fn parse(text: &str) -> Result<(), String> {
    let document = directory::parse(text.as_bytes(), false).map_err(|error| error.to_string())?;
    check::check(&document).map_err(|error| error.to_string())
}

#[test]
fn a_whole_specification_in_yaml_is_one() {
    let text = r#"
cdiVersion: "1.1.0"
kind: vendor.com/net.work
annotations: {who: vendor}
containerEdits:
  env: [A=b]
  hooks: null
devices:
  - name: 0
    annotations: {x: y}
    containerEdits:
      deviceNodes:
        - {path: /dev/x, hostPath: /dev/null, type: c, major: 1, minor: 3, fileMode: 0660, permissions: rw, uid: 1, gid: 2}
        - {path: /dev/y, hostPath: /dev/null, fileMode: 432, permissions: none}
      mounts:
        - {hostPath: /etc, containerPath: /host/etc, type: bind, options: [ro, rbind]}
      hooks:
        - {hookName: createContainer, path: /bin/true, args: [x], env: [A=b], timeout: 5}
      intelRdt: {closID: c, l3CacheSchema: "L3:0=f", memBwSchema: "MB:0=50", schemata: ["L3:0=f"], enableMonitoring: true}
      additionalGids: [5, 0]
      netDevices: [{hostInterfaceName: eth1, name: data}]
"#;
    parse(text).unwrap_or_else(|error| panic!("{error}"));
    let document = directory::parse(text.as_bytes(), false).unwrap();
    let modes: Vec<_> = document.devices[0].container_edits.device_nodes.iter().map(|node| node.file_mode).collect();
    assert_eq!((modes, document.devices[0].name.as_str()), (vec![Some(0o660), Some(0o660)], "0"));
}

#[test]
fn what_is_wrong_in_a_specification_is_told_with_its_field() {
    let with =
        |version: &str, kind: &str, devices: &str| format!("cdiVersion: {version}\nkind: {kind}\ndevices: {devices}");
    let edits = |edits: &str| with("1.1.0", "v/c", &format!("[{{name: d, containerEdits: {edits}}}]"));
    let one = "[{name: d, containerEdits: {env: [A=b]}}]";
    for (text, words) in [
        (String::new(), "missing field `cdiVersion`"),
        ("cdiVersion: 1.0.0\ndevices: []".to_owned(), "missing field `kind`"),
        (with("9.9.9", "v/c", one), "cdiVersion: \"9.9.9\" is not one of 0.1.0, 0.2.0, "),
        (with("1.0", "v/c", one), "cdiVersion: \"1.0\" is not one of"),
        (with("1.1.0", "vendor", one), "kind: \"vendor\" is no vendor and class with a /"),
        (with("1.1.0", "1v/c", one), "kind: the vendor \"1v\" has to begin with a letter"),
        (with("1.1.0", "v/c/d", one), "kind: '/' cannot be in the class \"c/d\""),
        (with("1.1.0", "v-/c", one), "kind: the vendor \"v-\" has to end with a letter or digit"),
        (with("1.1.0", "v/c", "[]"), "devices: there is none"),
        (with("1.1.0", "v/c", "[{name: d}]"), "devices[0].containerEdits: device \"d\" changes nothing"),
        (with("1.1.0", "v/c", "[{name: 'a b', containerEdits: {env: [A=b]}}]"), "devices[0].name: ' ' cannot be in"),
        (
            with("1.1.0", "v/c", "[{name: d, containerEdits: {env: [A=b]}}, {name: d, containerEdits: {env: [A=b]}}]"),
            "devices[1].name: there is a device \"d\" already",
        ),
        (with("1.1.0", "v/c", one) + "\nextra: 1", "unknown field `extra`"),
        (edits("{envs: [A=b]}"), "unknown field `envs`"),
        (edits("{env: [A=b], env: [C=d]}"), "duplicate"),
        (edits("{env: ['=b']}"), "devices[0].containerEdits.env: \"=b\" is no NAME=value"),
        (edits("{deviceNodes: [{hostPath: /dev/null}]}"), "deviceNodes[0].path: is missing"),
        (edits("{deviceNodes: [{path: /dev/x, type: d}]}"), "deviceNodes[0].type: \"d\" is not one of"),
        (edits("{deviceNodes: [{path: /dev/x, major: -1}]}"), "deviceNodes[0].major: -1:0 is no number"),
        (edits("{deviceNodes: [{path: /dev/x, permissions: rx}]}"), "deviceNodes[0].permissions: \"rx\""),
        (edits("{deviceNodes: [{path: /dev/x, fileMode: rw-}]}"), "the mode of a file"),
        (edits("{mounts: [{hostPath: /x}]}"), "mounts[0].containerPath: is missing"),
        (edits("{hooks: [{hookName: later, path: /x}]}"), "hooks[0].hookName: \"later\" is not one of prestart, "),
        (edits("{hooks: [{hookName: poststop}]}"), "hooks[0].path: is missing"),
        (edits("{hooks: [{hookName: poststop, path: /x, env: [A]}]}"), "hooks[0].env: \"A\" is no NAME=value"),
        (edits("{intelRdt: {closID: a/b}}"), "intelRdt.closID: \"a/b\" is no name of a group"),
        (edits("{intelRdt: {closID: a, enableCMT: true}}"), "cdiVersion: 1.1.0 has no intelRdt.enableCMT"),
        (edits("{netDevices: [{name: x}]}"), "netDevices[0].hostInterfaceName: is missing"),
        (
            edits("{netDevices: [{hostInterfaceName: a, name: x}, {hostInterfaceName: b, name: x}]}"),
            "netDevices[1].name: is that of another one already",
        ),
    ] {
        let error = parse(&text).expect_err(&text);
        assert!(error.contains(words), "{text}\n{error}");
    }
}

#[test]
fn a_version_has_what_it_had() {
    for (since, before, edits) in [
        ("0.4.0", "0.3.0", "{mounts: [{hostPath: /x, containerPath: /x, type: bind}]}"),
        ("0.5.0", "0.4.0", "{deviceNodes: [{path: /x, hostPath: /y}]}"),
        ("0.7.0", "0.6.0", "{additionalGids: [1]}"),
        ("0.7.0", "0.6.0", "{intelRdt: {closID: a, enableMBM: true}}"),
        ("1.1.0", "1.0.0", "{intelRdt: {enableMonitoring: true}}"),
        ("1.1.0", "1.0.0", "{intelRdt: {schemata: ['L3:0=f']}}"),
        ("1.1.0", "1.0.0", "{netDevices: [{hostInterfaceName: a, name: b}]}"),
    ] {
        let of = |version: &str| {
            parse(&format!("cdiVersion: {version}\nkind: v/c\ndevices: [{{name: d, containerEdits: {edits}}}]"))
        };
        of(since).unwrap_or_else(|error| panic!("{edits}: {error}"));
        of(&format!("v{since}")).unwrap_or_else(|error| panic!("{edits}: {error}"));
        let error = of(before).expect_err(edits);
        assert!(
            error.starts_with(&format!("cdiVersion: {before} has no ")) && error.contains(since),
            "{edits}: {error}"
        );
    }
    for (kind, name, since, before) in [("v/c.d", "d", "0.6.0", "0.5.0"), ("v/c", "0d", "0.5.0", "0.4.0")] {
        let of = |version: &str| {
            parse(&format!(
                "cdiVersion: {version}\nkind: {kind}\ndevices: [{{name: {name}, containerEdits: {{env: [A=b]}}}}]"
            ))
        };
        assert!(of(since).is_ok() && of(before).is_err(), "{kind}={name}");
    }
}

#[test]
fn later_directories_win_and_two_files_of_one_directory_do_not() {
    let node = Node::new();
    let first = node.put("static/a.json", &device("v/c", "d", &sets("FROM=static")));
    assert_eq!(node.environment(&["v/c=d"]), ["FROM=static"]);
    let second = node.put("static/b.yaml", &device("v/c", "d", &sets("FROM=other")));
    node.put("static/c.yml", &device("v/c", "e", &sets("E=e")));
    let error = node.resolve(&["v/c=d"]).unwrap_err();
    for word in ["v/c=d", first.to_str().unwrap(), second.to_str().unwrap()] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(node.environment(&["v/c=e"]), ["E=e"], "only the device itself is in doubt");
    node.put("dynamic/a.yaml", &device("v/c", "d", &sets("FROM=dynamic")));
    assert_eq!(node.environment(&["v/c=d"]), ["FROM=dynamic"]);
    assert_eq!(survey(&node.directories()).unusable, Vec::<String>::new());
}

#[test]
fn an_unknown_device_is_told_with_what_there_is_and_what_was_left_out() {
    let node = Node::new();
    node.put("static/a.json", &device("v/c", "d", &sets("A=b")));
    let broken = node.put("static/broken.yaml", "cdiVersion: 1.0.0\nkind: v/c\ndevices: []\n");
    let error = node.resolve(&["v/c=x"]).unwrap_err();
    let [one, two] = node.directories().map(|path| path.display().to_string());
    for word in ["v/c=x", &one, &two, "v/c=d", broken.to_str().unwrap(), "devices: there is none"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(node.resolve(&["o/c=x"]).unwrap_err().contains("no file is of kind o/c"));
    assert_eq!(node.environment(&["v/c=d"]), ["A=b"], "the file beside the broken one counts");
}

#[test]
fn only_files_that_root_alone_can_write_count_and_each_has_a_bound() {
    let node = Node::new();
    let text = device("v/c", "d", &sets("A=b"));
    let refused = |words: &str| {
        let error = node.resolve(&["v/c=d"]).unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
    };
    let path = node.put("static/a.json", &text);
    for mode in [0o666, 0o664] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        refused("it can be written by others than its owner");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(node.environment(&["v/c=d"]), ["A=b"]);
    let [directory, _] = node.directories();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777)).unwrap();
    refused("the directory can be written by others");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        refused("it belongs to user 12345");
    }
    fs::remove_file(&path).unwrap();

    let elsewhere = node.put("elsewhere", &text);
    symlink(&elsewhere, &path).unwrap();
    assert_eq!(node.environment(&["v/c=d"]), ["A=b"], "a link is what it leads to");
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o666)).unwrap();
    refused("it can be written by others");
    fs::remove_file(&path).unwrap();

    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    refused("it is no regular file");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("no file is of kind v/c");
    fs::remove_dir(&path).unwrap();
    node.put("static/a.json", &" ".repeat((4 << 20) + 1));
    refused("it is longer than 4194304 bytes");
    node.put("static/a.json", &text);
    node.put("static/a.txt", "no specification");
    for number in 0..512 {
        node.put(&format!("static/z{number:03}.yaml"), &device("v/z", &format!("d{number}"), &sets("A=b")));
    }
    assert_eq!(node.environment(&["v/c=d", "v/z=d510"]).len(), 2);
    let error = node.resolve(&["v/z=d511"]).unwrap_err();
    assert!(error.contains("more than 512"), "{error}");
    assert_eq!(survey(&node.directories()).unusable.len(), 1);
}

#[test]
fn what_is_nested_too_deep_is_no_specification() {
    for text in ["[".repeat(2000), "{a: ".repeat(2000), format!("annotations: {}", "[".repeat(2000))] {
        assert!(parse(&text).is_err());
        assert!(directory::parse(text.as_bytes(), true).is_err());
    }
}

#[test]
fn edits_of_a_file_come_once_and_before_those_of_its_devices() {
    let node = Node::new();
    let text = json!({
        "cdiVersion": "0.3.0", "kind": "v/c", "containerEdits": {"env": ["FILE=1", "A=file"]},
        "devices": [
            {"name": "d", "containerEdits": {"env": ["A=d", "C=d"]}},
            {"name": "e", "containerEdits": {"env": ["A=e"]}},
        ],
    });
    node.put("static/a.json", &text.to_string());
    node.put("dynamic/b.json", &device("v/o", "o", &sets("A=o")));
    assert_eq!(node.environment(&["v/c=e", "v/o=o", "v/c=d"]), ["FILE=1", "A=file", "A=e", "A=o", "A=d", "C=d"]);
    let env = node.applied(&["v/c=e", "v/o=o", "v/c=d"], false)["process"]["env"].clone();
    assert_eq!(env, json!(["PATH=/bin", "A=d", "B=b", "FILE=1", "C=d"]));
}

#[test]
fn nodes_are_the_machines_with_a_rule_each() {
    let node = Node::new();
    let edits = json!({"deviceNodes": [
        {"path": "/dev/there", "hostPath": "/dev/zero", "permissions": "r"},
        {"path": "/dev/full"},
        {"path": "/dev/said", "type": "b", "major": 7, "minor": 9, "fileMode": 0o640, "uid": 0, "gid": 6},
        {"path": "/dev/closed", "hostPath": "/dev/null", "permissions": "none"},
        {"path": "/dev/fifo", "type": "p"},
    ]});
    node.put("static/a.json", &device("v/c", "d", &edits));
    let spec = node.applied(&["v/c=d"], false);
    assert_eq!(
        spec["linux"]["devices"],
        json!([
            {"path": "/dev/there", "type": "c", "major": 1, "minor": 5, "uid": 1000, "gid": 2000},
            {"path": "/dev/full", "type": "c", "major": 1, "minor": 7, "uid": 1000, "gid": 2000},
            {"path": "/dev/said", "type": "b", "major": 7, "minor": 9, "fileMode": 0o640, "uid": 0, "gid": 6},
            {"path": "/dev/closed", "type": "c", "major": 1, "minor": 3, "uid": 1000, "gid": 2000},
            {"path": "/dev/fifo", "type": "p", "major": 0, "minor": 0, "uid": 1000, "gid": 2000},
        ])
    );
    assert_eq!(
        spec["linux"]["resources"]["devices"],
        json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"},
            {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 9, "access": "rwm"},
        ])
    );
}

#[test]
fn mounts_take_the_place_of_others_and_come_parents_first() {
    let node = Node::new();
    let target = node.put("target", "");
    symlink(&target, node.0.path().join("link")).unwrap();
    let edits = json!({"mounts": [
        {"hostPath": "/etc", "containerPath": "/data", "options": ["ro", "rbind", "rslave"]},
        {"hostPath": node.0.path().join("link"), "containerPath": "/opt"},
        {"hostPath": "tmpfs", "containerPath": "/scratch/x", "type": "tmpfs", "options": ["size=1m"]},
    ]});
    node.put("static/a.json", &device("v/c", "d", &edits));
    let spec = node.applied(&["v/c=d"], false);
    let mounts: Vec<(&str, &str, &str)> = spec["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let text = |name: &str| one[name].as_str().unwrap_or_default();
            (text("destination"), text("type"), text("source"))
        })
        .collect();
    assert_eq!(
        mounts,
        [
            ("/proc", "proc", "proc"),
            ("/dev", "tmpfs", "tmpfs"),
            ("/data", "", "/etc"),
            ("/opt", "bind", target.canonicalize().unwrap().to_str().unwrap()),
            ("/scratch/x", "tmpfs", "tmpfs"),
            ("/data/below/it", "bind", "/"),
        ]
    );
    assert_eq!(spec["mounts"][2]["options"], json!(["ro", "rbind", "rslave"]));
    let mapped = node.applied(&["v/c=d"], true);
    assert_eq!(mapped["mounts"][2]["options"], json!(["ro", "rbind", "rslave", "idmap"]));
    assert_eq!(mapped["mounts"][4]["options"], json!(["size=1m"]));
}

#[test]
fn hooks_groups_and_shares_are_handed_on() {
    let node = Node::new();
    let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let hooks: Vec<Value> = kinds
        .iter()
        .map(|kind| json!({"hookName": kind, "path": format!("/{kind}"), "args": [kind, "x"], "env": ["A=b"], "timeout": 7}))
        .collect();
    let edits = json!({
        "hooks": hooks, "additionalGids": [44, 0, 44, 5],
        "intelRdt": {"closID": "c", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=9", "schemata": ["L2:0=f"], "enableMonitoring": true},
    });
    node.put("static/a.json", &device("v/c", "d", &edits));
    let spec = node.applied(&["v/c=d"], false);
    for kind in kinds {
        let expected = json!([{"path": format!("/{kind}"), "args": [kind, "x"], "env": ["A=b"], "timeout": 7}]);
        assert_eq!(spec["hooks"][kind], expected, "{kind}");
    }
    assert_eq!(
        spec["linux"]["intelRdt"],
        json!({"closID": "c", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=9", "schemata": ["L2:0=f"], "enableMonitoring": true})
    );
    let found = node.resolve(&["v/c=d"]).unwrap();
    assert_eq!((found.groups(), found.has_hooks()), (&[44, 5][..], true));
}

#[test]
fn what_cannot_be_done_is_refused_by_its_file_and_field() {
    let node = Node::new();
    let place = tempfile::tempdir().unwrap();
    let link = place.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    for (edits, words) in [
        (
            json!({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}),
            ".netDevices: links of the node are not moved",
        ),
        (json!({"hooks": [{"hookName": "poststop", "path": "bin/x"}]}), ".hooks[0]: path bin/x is not absolute"),
        (
            json!({"hooks": [{"hookName": "poststop", "path": "/x", "timeout": 0}]}),
            ".hooks[0]: timeout is not above zero",
        ),
        (json!({"mounts": [{"hostPath": "/no/such", "containerPath": "/x"}]}), ".mounts[0]: hostPath /no/such: "),
        (json!({"mounts": [{"hostPath": "x", "containerPath": "/x"}]}), ".mounts[0]: hostPath x is not absolute"),
        (json!({"mounts": [{"hostPath": "/", "containerPath": "/.."}]}), ".mounts[0]: containerPath /.. is no"),
        (json!({"deviceNodes": [{"path": "/dev/no-such"}]}), ".deviceNodes[0]: /dev/no-such: "),
        (json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]}), "/etc/passwd is no device"),
        (json!({"deviceNodes": [{"path": "/dev/x", "hostPath": link}]}), " is a link"),
        (json!({"deviceNodes": [{"path": "/dev/null", "type": "b"}]}), "type b is not that of /dev/null"),
        (json!({"deviceNodes": [{"path": "dev/null"}]}), "path dev/null is no absolute path"),
    ] {
        let path = node.put("static/a.json", &device("v/c", "d", &edits));
        let error = node.resolve(&["v/c=d"]).unwrap_err();
        let place = format!("{}: device \"d\": containerEdits.", path.display());
        assert!(error.starts_with(&place) && error.contains(words), "{edits}: {error}");
    }
}

#[test]
fn a_pod_with_users_of_its_own_has_the_machines_nodes_and_no_hooks_of_the_creation() {
    let node = Node::new();
    let refused = |edits: Value| {
        node.put("static/a.json", &device("v/c", "d", &edits));
        node.resolve(&["v/c=d"]).unwrap().check_own_users().map_err(|error| error.to_string())
    };
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let error = refused(json!({"hooks": [{"hookName": kind, "path": "/x"}]})).unwrap_err();
        assert!(error.contains("hooks[0]: ") && error.contains("hostUsers: true"), "{error}");
    }
    assert!(refused(json!({"hooks": [{"hookName": "poststop", "path": "/x"}]})).is_ok());
    let other =
        json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "type": "c", "major": 5, "minor": 1}]});
    assert!(refused(other).unwrap_err().contains("/dev/null is not 5:1"));
    assert!(
        refused(json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}, {"path": "/dev/zero"}]})).is_ok()
    );
    let spec = node.applied(&["v/c=d"], true);
    let paths: Vec<_> = spec["linux"]["devices"].as_array().unwrap().iter().map(|one| one["path"].clone()).collect();
    assert_eq!(paths, [json!("/dev/there"), json!("/dev/zero")]);
    let bound = spec["mounts"].as_array().unwrap().iter().find(|one| one["destination"] == "/dev/x").unwrap();
    assert_eq!(
        (&bound["source"], &bound["options"]),
        (&json!("/dev/null"), &json!(["bind", "nosuid", "noexec"])),
        "without a map: these are no files of a volume"
    );
    assert_eq!(spec["linux"]["resources"]["devices"].as_array().unwrap().len(), 3);
}

#[test]
fn names_are_checked_and_kept_as_they_are() {
    for good in ["vendor.com/class=name", "v/c=0", "a-b_c.d/e-f.g=h:i.j_k-l"] {
        let name = DeviceName::try_from(good.to_owned()).unwrap_or_else(|error| panic!("{good}: {error}"));
        assert_eq!(name.to_string(), good);
        let json = serde_json::to_string(&name).unwrap();
        assert_eq!(serde_json::from_str::<DeviceName>(&json).unwrap(), name);
    }
    for bad in
        ["", "gpu0", "v/c", "v/c=", "/c=d", "v/=d", "v=d", "v/c=a=b", "v/c=-a", "v/c=a.", "1/c=d", "v/1=d", "v/c=ä"]
    {
        assert!(DeviceName::try_from(bad.to_owned()).is_err(), "{bad}");
    }
}

#[test]
fn nothing_is_read_where_no_device_is_asked_for() {
    let edits = resolve(&[PathBuf::from("/proc/self/mem")], &[]).unwrap();
    assert!(!edits.has_hooks() && edits.groups().is_empty());
    assert!(Catalogue::read(&[Path::new("/no/such/directory").to_owned()]).find(&[]).unwrap().is_empty());
}
