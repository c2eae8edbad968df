//! From `linux.sysctl` to files below /proc/sys, and which of them a container may set. Pure.
//!
//! Most kernel parameters are the machine's. A container sets those of its own namespaces and no others: whoever can
//! set `kernel.core_pattern` is root on the host (CVE-2022-0811).

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use portreeve_sys::clone::{NEW_IPC, NEW_NET, NEW_UTS};

use super::PlanError;
use super::namespaces::Namespaces;

/// One parameter to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sysctl {
    /// As the configuration names it.
    pub(crate) name: String,
    /// Its file, below /proc/sys; without `.` and `..`.
    pub(crate) file: PathBuf,
    pub(crate) value: String,
    /// `clone::NEW_*` flag of the namespace that it is a parameter of.
    pub(crate) namespace: u64,
}

impl Sysctl {
    pub(crate) fn refusal(&self, reason: impl Into<String>) -> PlanError {
        PlanError::new(format!("linux.sysctl[{}]", self.name), reason)
    }
}

/// System V shared memory, messages and semaphores: sysctl kernel.rst.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

/// The parameters of the configuration, in the order of their names.
pub(crate) fn plan(spec: &Spec, namespaces: &Namespaces) -> Result<Vec<Sysctl>, PlanError> {
    let given = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    let mut sysctls = Vec::new();
    for (name, value) in given.into_iter().flatten() {
        let refused = |reason: &str| PlanError::new(format!("linux.sysctl[{name}]"), reason);
        let file = file_of(name);
        // `net/../kernel/core_pattern` begins like a parameter of a network namespace.
        if file.split('/').any(|part| matches!(part, "" | "." | "..")) || file.contains('\0') {
            return Err(refused("is no name of a kernel parameter"));
        }
        // The kernel reads numbers up to the line's end and says nothing of what comes after it.
        if value.contains(['\n', '\r', '\0']) {
            return Err(refused("has a value of more than one line"));
        }
        let (namespace, kind) = if IPC.contains(&file.as_str()) || file.starts_with("fs/mqueue/") {
            (NEW_IPC, "IPC")
        } else if file.starts_with("net/") {
            (NEW_NET, "network")
        } else if file == "kernel/domainname" {
            (NEW_UTS, "UTS")
        } else if file == "kernel/hostname" {
            return Err(refused("is set by the field hostname"));
        } else {
            return Err(refused("is a parameter of the whole machine, not of a namespace"));
        };
        if !namespaces.has(namespace) {
            return Err(refused(&format!("is a parameter of the {kind} namespace, which would be the caller's")));
        }
        sysctls.push(Sysctl { name: name.clone(), file: file.into(), value: value.clone(), namespace });
    }
    sysctls.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(sysctls)
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` are the same; with slashes, dots belong to names (`eth0.100`).
fn file_of(name: &str) -> String {
    let separator = name.find(['.', '/']).and_then(|at| name.get(at..=at));
    if separator == Some("/") {
        return name.to_owned();
    }
    let exchange = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(exchange).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(names: &[&str], expected: &Expect) {
        let all = Namespaces { new: NEW_IPC | NEW_NET | NEW_UTS, ..Namespaces::default() };
        check_in(&all, names, expected);
    }

    fn check_in(namespaces: &Namespaces, names: &[&str], expected: &Expect) {
        let mut text = String::new();
        for name in names {
            let json = serde_json::json!({"ociVersion": "1.2.0", "linux": {"sysctl": {*name: "1"}}});
            text.push_str(&match plan(&serde_json::from_value(json).expect("spec"), namespaces) {
                Ok(sysctls) => sysctls.iter().map(|s| format!("{} <- {}\n", s.file.display(), s.value)).collect(),
                Err(error) => format!("{error}\n"),
            });
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn a_parameter_can_be_named_with_dots_or_slashes() {
        check(
            &["net.ipv4.ip_forward", "net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter"],
            &expect![[r#"
                net/ipv4/ip_forward <- 1
                net/ipv4/conf/eth0.100/rp_filter <- 1
                net/ipv4/conf/eth0.100/rp_filter <- 1
            "#]],
        );
    }

    #[test]
    fn parameters_of_own_namespaces_may_be_set() {
        let names = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shm_rmid_forced",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
            "fs.mqueue.msg_max",
            "net.core.somaxconn",
            "kernel.domainname",
        ];
        check(
            &names,
            &expect![[r#"
                kernel/msgmax <- 1
                kernel/msgmnb <- 1
                kernel/msgmni <- 1
                kernel/sem <- 1
                kernel/shm_rmid_forced <- 1
                kernel/shmall <- 1
                kernel/shmmax <- 1
                kernel/shmmni <- 1
                fs/mqueue/msg_max <- 1
                net/core/somaxconn <- 1
                kernel/domainname <- 1
            "#]],
        );
        check_in(
            &Namespaces::default(),
            &["kernel.sem", "fs.mqueue.msg_max", "net.core.somaxconn", "kernel.domainname"],
            &expect![[r#"
                linux.sysctl[kernel.sem]: is a parameter of the IPC namespace, which would be the caller's
                linux.sysctl[fs.mqueue.msg_max]: is a parameter of the IPC namespace, which would be the caller's
                linux.sysctl[net.core.somaxconn]: is a parameter of the network namespace, which would be the caller's
                linux.sysctl[kernel.domainname]: is a parameter of the UTS namespace, which would be the caller's
            "#]],
        );
    }

    #[test]
    fn cve_2022_0811_parameters_of_the_machine_may_not_be_set() {
        check(
            &[
                "kernel.core_pattern",
                "kernel/core_pattern",
                "vm.overcommit_memory",
                "fs.file-max",
                "kernel.hostname",
                "user.max_user_namespaces",
                "net/../kernel/core_pattern",
                "net",
                "net.",
                "/net/core/somaxconn",
                "",
                "fs/mqueue/../../kernel/core_pattern",
                "net.ipv4/../../kernel.core_pattern",
                "kernel.sem.x",
                "kernel.sem/",
                "fs.mqueue",
                "kernel.shm_rmid_forced+kernel.core_pattern",
            ],
            &expect![[r#"
                linux.sysctl[kernel.core_pattern]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[kernel/core_pattern]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[vm.overcommit_memory]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[fs.file-max]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[kernel.hostname]: is set by the field hostname
                linux.sysctl[user.max_user_namespaces]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[net/../kernel/core_pattern]: is no name of a kernel parameter
                linux.sysctl[net]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[net.]: is no name of a kernel parameter
                linux.sysctl[/net/core/somaxconn]: is no name of a kernel parameter
                linux.sysctl[]: is no name of a kernel parameter
                linux.sysctl[fs/mqueue/../../kernel/core_pattern]: is no name of a kernel parameter
                linux.sysctl[net.ipv4/../../kernel.core_pattern]: is no name of a kernel parameter
                linux.sysctl[kernel.sem.x]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[kernel.sem/]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[fs.mqueue]: is a parameter of the whole machine, not of a namespace
                linux.sysctl[kernel.shm_rmid_forced+kernel.core_pattern]: is a parameter of the whole machine, not of a namespace
            "#]],
        );
    }

    #[test]
    fn cve_2022_0811_a_value_is_one_line() {
        let all = Namespaces { new: NEW_IPC | NEW_NET | NEW_UTS, ..Namespaces::default() };
        for value in ["1\nkernel.core_pattern=|/x", "1\n", "1\r2", "1\u{0}2"] {
            let json = serde_json::json!({"ociVersion": "1.2.0", "linux": {"sysctl": {"kernel.sem": value}}});
            let error = plan(&serde_json::from_value(json).expect("spec"), &all).expect_err("refused");
            assert_eq!(error.to_string(), "linux.sysctl[kernel.sem]: has a value of more than one line");
        }
    }
}
