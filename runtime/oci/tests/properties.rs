//! What must hold for every configuration, however odd: reading and planning end, with an answer.

use oci_spec::runtime::Spec;
use portreeve_oci::{check, config};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

/// Something in every field that planning looks at.
fn full() -> Value {
    json!({
        "ociVersion": "1.3.0",
        "hostname": "box",
        "domainname": "example.org",
        "root": {"path": "rootfs", "readonly": true},
        "annotations": {"a": "b"},
        "process": {
            "terminal": true, "consoleSize": {"height": 25, "width": 80},
            "user": {"uid": 1000, "gid": 1000, "umask": 18, "additionalGids": [1, 2]},
            "args": ["true"], "env": ["PATH=/bin", "A=B"], "cwd": "/tmp",
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"],
                "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
            "noNewPrivileges": true, "apparmorProfile": "x", "selinuxLabel": "y", "oomScoreAdj": 10,
            "scheduler": {"policy": "SCHED_FIFO", "priority": 1, "flags": ["SCHED_RESET_ON_FORK"]},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
            "execCPUAffinity": {"initial": "0-3,7", "final": "1"}
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=755", "strictatime"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "rro", "rslave", "idmap"],
                "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"},
                {"type": "network", "path": "/proc/1/ns/net"}, {"type": "user"}],
            "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}],
            "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}],
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}],
            "cgroupsPath": "/a/b", "rootfsPropagation": "slave",
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
            "personality": {"domain": "LINUX32"},
            "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0,2-3", "flags": ["MPOL_F_STATIC_NODES"]},
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3}],
                "memory": {"limit": 1048576, "swap": 2097152, "reservation": 4096},
                "cpu": {"shares": 100, "quota": 10000, "period": 100_000, "cpus": "0-1", "mems": "0"},
                "pids": {"limit": 10}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
                "unified": {"memory.high": "1"}
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "/run/agent", "listenerMetadata": "x",
                "syscalls": [{"names": ["read", "socket"], "action": "SCMP_ACT_NOTIFY",
                    "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]
            }
        }
    })
}

/// Places of every value in `value`.
fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| pointers(value, &format!("{at}/{key}"), into)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| pointers(value, &format!("{at}/{index}"), into));
        }
        _ => {}
    }
}

#[derive(Debug, Clone)]
enum Edit {
    Replace(Value),
    Remove,
    Repeat(usize),
}

fn edits() -> impl Strategy<Value = Edit> {
    let odd = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(4_294_967_295_u64),
        json!(1e300),
        json!(""),
        json!("/"),
        json!(".."),
        json!("../../etc"),
        json!("a\u{0}b"),
        json!("\u{202e}=\n"),
        json!("x".repeat(5000)),
        json!("0-99999999999"),
        json!([]),
        json!({}),
        json!([[[[]]]]),
    ];
    prop_oneof![
        4 => select(odd.to_vec()).prop_map(Edit::Replace),
        1 => Just(Edit::Remove),
        1 => (2..200_usize).prop_map(Edit::Repeat),
    ]
}

fn apply(root: &mut Value, pointer: &str, edit: &Edit) {
    if let (Edit::Remove, Some((parent, name))) = (edit, pointer.rsplit_once('/')) {
        if let Some(map) = root.pointer_mut(parent).and_then(Value::as_object_mut) {
            map.remove(name);
        }
        return;
    }
    let Some(target) = root.pointer_mut(pointer) else { return };
    match (edit, target) {
        (Edit::Replace(value), target) => *target = value.clone(),
        (Edit::Repeat(times), Value::Array(list)) => {
            *list = list.iter().cycle().take(list.len() * times).cloned().collect()
        }
        (Edit::Repeat(times), Value::String(text)) => *text = text.repeat(*times),
        _ => {}
    }
}

/// What was read is planned or refused, and reads the same when it is written down again.
fn holds(bytes: &[u8]) {
    let Ok(read) = config::parse(bytes) else { return };
    assert_eq!(read.raw, bytes);
    let _planned_or_refused = check(&read.spec);
    let again: Spec = serde_json::from_slice(&serde_json::to_vec(&read.spec).expect("JSON")).expect("the same");
    assert_eq!(again, read.spec);
}

#[test]
fn the_whole_configuration_is_read_and_planned() {
    let read = config::parse(&serde_json::to_vec(&full()).expect("JSON")).expect("a configuration");
    check(&read.spec).expect("a plan");
}

proptest! {
    #[test]
    fn a_damaged_configuration_is_planned_or_refused(changes in vec((any::<Index>(), edits()), 1..6)) {
        let mut value = full();
        for (at, edit) in &changes {
            let mut places = Vec::new();
            pointers(&value, "", &mut places);
            apply(&mut value, &places[at.index(places.len())], edit);
        }
        holds(&serde_json::to_vec(&value).expect("JSON"));
    }

    #[test]
    fn damaged_bytes_are_refused_or_read(
        damage in vec((any::<Index>(), any::<u8>()), 0..8),
        cut in any::<Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = serde_json::to_vec(&full()).expect("JSON");
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        holds(&bytes);
    }
}
