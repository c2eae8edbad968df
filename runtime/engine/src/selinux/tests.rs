//! Nodes as files below a directory describe them.

use super::*;
use crate::sandbox::{Namespaces, SandboxMetadata};

const LXC: &str = "# containers\nprocess = \"system_u:system_r:container_t:s0\"\n\
                   content = \"system_u:object_r:virt_var_lib_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n";

/// A node whose policy is `targeted`, with these defaults of containers.
fn node(contexts: &str) -> (tempfile::TempDir, Selinux) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        (ENFORCE, "1"),
        (CURRENT, "system_u:system_r:unconfined_service_t:s0\0"),
        (CONFIG, "# SELINUXTYPE=mls\nSELINUX=enforcing\nSELINUXTYPE=targeted\n"),
        ("etc/selinux/targeted/contexts/lxc_contexts", contexts),
    ] {
        put(&root, path, text);
    }
    let selinux = Selinux::at(root.path());
    (root, selinux)
}

fn put(root: &tempfile::TempDir, path: &str, text: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn pod(selinux: Option<SelinuxOptions>) -> SandboxConfig {
    SandboxConfig {
        metadata: SandboxMetadata { name: "a".into(), namespace: "b".into(), uid: "u".into(), attempt: 0 },
        owner: Owner::Cri,
        hostname: String::new(),
        log_directory: PathBuf::new(),
        dns: Default::default(),
        port_mappings: Vec::new(),
        bandwidth: Default::default(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: "/x".into(),
        namespaces: Namespaces::default(),
        privileged: false,
        selinux,
        sysctls: Default::default(),
        resources: Default::default(),
        handler: None,
    }
}

fn level(level: &str) -> Option<SelinuxOptions> {
    Some(SelinuxOptions { level: level.to_owned(), ..SelinuxOptions::default() })
}

fn labels(process: &str, files: &str) -> Labels {
    Labels { process: process.to_owned(), files: files.to_owned() }
}

#[test]
fn pods_have_a_pair_of_categories_of_their_own_which_their_containers_share() {
    let (root, selinux) = node(LXC);
    let made: Vec<_> = (0..20).map(|_| selinux.of_pod(&pod(None)).unwrap().unwrap()).collect();
    for (labels, held) in &made {
        let level = held.as_ref().unwrap().level();
        assert_eq!(labels.process, format!("system_u:system_r:container_t:{level}"));
        assert_eq!(labels.files, format!("system_u:object_r:container_file_t:{level}"));
        assert_eq!(selinux.of_container(Some(labels), None).unwrap().as_ref(), Some(labels));
    }
    let different: std::collections::BTreeSet<_> = made.iter().map(|(labels, _)| &labels.process).collect();
    assert_eq!(different.len(), made.len());
    assert_eq!(survey_selinux(root.path()).unwrap().unwrap(), "system_u:system_r:container_t:s0");
}

#[test]
fn a_level_that_a_record_has_is_held_and_no_new_pod_has_it() {
    let (_root, selinux) = node(LXC);
    let found = labels("u:r:t:s0:c3,c9", "u:object_r:f:s0:c3,c9");
    assert_eq!(selinux.hold(&found).unwrap().level(), "s0:c3,c9");
    assert!(selinux.hold(&labels("u:r:t", "u:object_r:f")).is_none());
}

#[test]
fn each_part_that_is_asked_for_takes_the_place_of_the_usual_one() {
    let (_root, selinux) = node(LXC);
    let all = SelinuxOptions { user: "u".into(), role: "r".into(), kind: "t".into(), level: "s0:c1,c2".into() };
    let (whole, held) = selinux.of_pod(&pod(Some(all))).unwrap().unwrap();
    assert_eq!(whole, labels("u:r:t:s0:c1,c2", "u:object_r:container_file_t:s0:c1,c2"));
    assert_eq!(held.unwrap().level(), "s0:c1,c2");

    let kind = SelinuxOptions { kind: "container_init_t".into(), ..SelinuxOptions::default() };
    let asked = selinux.of_container(Some(&whole), Some(&kind)).unwrap().unwrap();
    assert_eq!(asked, labels("u:r:container_init_t:s0:c1,c2", &whole.files));
    let other = selinux.of_container(Some(&whole), level("s0").as_ref()).unwrap().unwrap();
    assert_eq!(other, labels("u:r:t:s0", "u:object_r:container_file_t:s0"));
    let nothing = SelinuxOptions::default();
    assert_eq!(selinux.of_container(Some(&whole), Some(&nothing)).unwrap().unwrap(), whole);
}

#[test]
fn what_is_no_part_of_a_label_is_refused_by_its_name() {
    let (_root, selinux) = node(LXC);
    for (asked, field) in [
        (level("s0,c1,c5"), "selinux_options.level"),
        (Some(SelinuxOptions { kind: "a:b".into(), ..SelinuxOptions::default() }), "selinux_options.type"),
        (Some(SelinuxOptions { user: "a\n".into(), ..SelinuxOptions::default() }), "selinux_options.user"),
        (Some(SelinuxOptions { role: "x y".into(), ..SelinuxOptions::default() }), "selinux_options.role"),
    ] {
        let EngineError::Invalid { field: named, .. } = selinux.of_pod(&pod(asked)).unwrap_err() else { panic!() };
        assert_eq!(named, field);
    }
}

#[test]
fn without_selinux_nothing_has_a_label_whatever_is_asked_for() {
    let asked = level("nonsense");
    let absent = tempfile::tempdir().unwrap();
    let (unloaded, _) = node(LXC);
    put(&unloaded, CURRENT, "kernel\0");
    for root in [&absent, &unloaded] {
        assert_eq!(survey_selinux(root.path()).unwrap(), None);
        let selinux = Selinux::at(root.path());
        assert!(selinux.of_pod(&pod(asked.clone())).unwrap().is_none());
        assert!(selinux.of_container(None, asked.as_ref()).unwrap().is_none());
    }
    // Nor have pods of manifests, wherever they are.
    let (_root, selinux) = node(LXC);
    assert!(selinux.of_pod(&SandboxConfig { owner: Owner::Node, ..pod(None) }).unwrap().is_none());
    assert!(selinux.of_container(None, None).unwrap().is_none());
}

#[test]
fn a_pod_that_sees_the_nodes_processes_or_ipc_has_the_labels_that_it_asks_for_alone() {
    let (_root, selinux) = node(LXC);
    for namespaces in [
        Namespaces { pid: PidNamespace::Node, ..Namespaces::default() },
        Namespaces { ipc: IpcNamespace::Node, ..Namespaces::default() },
    ] {
        let with = |selinux| SandboxConfig { namespaces: namespaces.clone(), ..pod(selinux) };
        assert!(selinux.of_pod(&with(None)).unwrap().is_none());
        let (asked, _) = selinux.of_pod(&with(level("s0:c1"))).unwrap().unwrap();
        assert_eq!(asked.process, "system_u:system_r:container_t:s0:c1");
    }
    // A container of such a pod asks for itself.
    let asked = selinux.of_container(None, level("s0:c1").as_ref()).unwrap().unwrap();
    assert_eq!(asked.files, "system_u:object_r:container_file_t:s0:c1");
}

#[test]
fn a_policy_that_knows_no_containers_confines_none_and_says_so_to_who_asks() {
    for contexts in ["", "process = \"u:r:t\"\n"] {
        let (root, selinux) = node(contexts);
        assert!(selinux.of_pod(&pod(None)).unwrap().is_none());
        let error = selinux.of_pod(&pod(level("s0"))).unwrap_err().to_string();
        let place = root.path().join("etc/selinux/targeted/contexts/lxc_contexts");
        assert!(error.contains(&place.display().to_string()) && error.contains("container-selinux"), "{error}");
        assert_eq!(survey_selinux(root.path()).unwrap_err().to_string(), error);
    }
    let (_root, selinux) = node("process = \"u:r\"\nfile = \"u:r:t\"\n");
    let error = portreeve_sys::chain(&selinux.of_pod(&pod(None)).unwrap_err());
    assert!(error.contains("lxc_contexts") && error.contains("process: \"u:r\" is no context"), "{error}");
}

#[test]
fn a_policy_without_levels_gives_none() {
    let (_root, selinux) = node("process=\"u:r:t\"\nfile=\"u:object_r:f\"\n");
    let (made, held) = selinux.of_pod(&pod(None)).unwrap().unwrap();
    assert_eq!((made, held.is_none()), (labels("u:r:t", "u:object_r:f"), true));
}

#[test]
fn what_is_installed_for_containers_goes_before_the_policys_own_file() {
    let (root, selinux) = node(LXC);
    put(&root, CONTAINERS, &LXC.replace("container_t", "other_t"));
    let (made, held) = selinux.of_pod(&pod(None)).unwrap().unwrap();
    assert_eq!(made.process, format!("system_u:system_r:other_t:{}", held.unwrap().level()));
}
