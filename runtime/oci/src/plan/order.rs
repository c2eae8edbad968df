//! In which order a container's own process does what it does. Pure: the order is data, which [`crate::init`] performs.
//!
//! Why so: the cgroup first, so that nothing escapes its limits. File systems are made detached before the root changes
//! (in a user namespace the kernel gives a procfs or sysfs only to someone who sees one) and attached after it, so that
//! no path of the container can be resolved on the host. Privileges go last. The seccomp filter is loaded as late as it
//! can be, so that it need not allow what the set-up does: before the container is ready when its listener has to be
//! told by then, else between the start and execve. The one privilege that this may take goes after it.
//!
//! Hooks that are to see the container's mounts beside the host's, or to add some, have them attached before the root
//! changes; no other container has.

use std::path::Path;

use oci_spec::runtime::Spec;
use portreeve_sys::clone::{NEW_CGROUP, NEW_MOUNT, NEW_NET, NEW_USER, NEW_UTS};

use super::identity::Identity;
use super::mounts::{MountOp, What};
use super::namespaces::Namespaces;
use super::sysctl::Sysctl;
use crate::create::Pivot;
use crate::hooks::{Hooks, Point};

/// One thing that only the first process of a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitStep {
    JoinCgroup,
    NewCgroupNamespace,
    JoinNamespaces,
    /// For a maker who may not: with the maker's own user id still, and before the mounts are cut off from the host's.
    OpenSources,
    BecomeRootOfUserNamespace,
    /// Until the maker has moved links into the network: parameters can be theirs.
    AwaitLinks,
    /// A new network begins with it down, and programs expect it.
    Loopback,
    Keyring,
    HostName,
    DomainName,
    AttachRoot,
    /// Where the host has it, for hooks to find.
    AttachRootInPlace,
    MakeFilesystems,
    ChangeRoot(Pivot),
    AttachMounts,
    Devices,
    Terminal,
    BindConsole,
    /// The maker runs hooks meanwhile.
    AwaitHooks,
    RunHooks,
    Sysctls,
    ReadOnlyPaths,
    MaskedPaths,
    MakeWorkingDirectory,
    /// Nodes, other mounts and the working directory may lie in them.
    ReadOnlyMounts,
    RootPropagation,
    ReadOnlyRoot,
}

/// One thing that every process of a container does once its mounts are as they shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessStep {
    Label,
    Environment,
    Streams,
    EnterDirectory,
    CloseDescriptors,
    Limits,
    /// That of descriptors, where the start needs more than it leaves.
    FewDescriptors,
    /// All of them, but what [`ProcessStep::Filter`] takes.
    DropPrivileges,
    EnterDirectoryAsUser,
    CheckDirectory,
    /// For a start that comes later: what cannot be executed then is said now.
    FindProgram,
    Filter,
    DropLastPrivilege,
    Ready,
    AwaitStart,
    /// Whose programs load a filter that comes later themselves.
    RunHooks,
    Execute,
}

/// What the order of the first process's steps depends on.
#[derive(Debug)]
pub(crate) struct Shape<'a> {
    pub(crate) spec: &'a Spec,
    /// As the configuration has them: a user namespace that is to be new counts as new.
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) mounts: &'a [MountOp],
    pub(crate) sysctls: &'a [Sysctl],
    pub(crate) pivot: Pivot,
    pub(crate) keep_keyring: bool,
    pub(crate) terminal: bool,
    pub(crate) hooks: &'a Hooks,
    /// Whether the process opens the sources of its mounts itself, because the maker may not.
    pub(crate) opens: bool,
}

/// What the order of the last steps depends on, beside who the program runs as.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct End<'a> {
    /// Whether there is a seccomp filter, and whether it has a listener.
    pub(crate) filter: Option<bool>,
    /// Whether the program is looked up before it is time to execute it.
    pub(crate) look_up: bool,
    pub(crate) hooks: Option<&'a Hooks>,
}

/// The steps of a container's first process up to those of [`process`].
pub(crate) fn container(shape: &Shape<'_>) -> Vec<InitStep> {
    use InitStep as S;
    let Shape { spec, namespaces, mounts, sysctls, .. } = shape;
    let linux = spec.linux().as_ref();
    // A process in between has joined them.
    let between = namespaces.has(NEW_USER) || namespaces.needs_intermediate();
    let own_dev = brings_dev(mounts);
    // A mount namespace that is joined keeps its root and mounts, and the caller's gets none: there is a chroot only.
    let (makes, joined) = (namespaces.new & NEW_MOUNT != 0, namespaces.joins(NEW_MOUNT));
    let pivot = if makes { shape.pivot } else { Pivot::MoveMount };
    let uts = namespaces.has(NEW_UTS);
    let hooked = makes && shape.hooks.any_before_pivot();
    let at = |point| shape.hooks.any_at(point);
    let listed = |paths: Option<&Vec<String>>| paths.is_some_and(|paths| !paths.is_empty());
    let steps = [
        (S::JoinCgroup, true),
        // Only now: a cgroup namespace has as its root the cgroups that its maker is in.
        (S::NewCgroupNamespace, namespaces.new & NEW_CGROUP != 0),
        (S::JoinNamespaces, !between && !namespaces.join.is_empty()),
        (S::OpenSources, makes && shape.opens),
        (S::BecomeRootOfUserNamespace, namespaces.has(NEW_USER)),
        (S::AwaitLinks, linux.and_then(|linux| linux.net_devices().as_ref()).is_some_and(|links| !links.is_empty())),
        (S::Loopback, namespaces.new & NEW_NET != 0),
        (S::Keyring, !shape.keep_keyring),
        (S::HostName, uts && spec.hostname().is_some()),
        (S::DomainName, uts && spec.domainname().is_some()),
        (S::AttachRoot, makes && !hooked),
        (S::AttachRootInPlace, hooked),
        (S::MakeFilesystems, makes),
        (S::ChangeRoot(pivot), !joined && !hooked),
        (S::AttachMounts, makes),
        (S::Devices, !joined && !own_dev),
        (S::Terminal, shape.terminal),
        (S::BindConsole, makes && shape.terminal && !own_dev),
        (S::AwaitHooks, at(Point::Prestart) || at(Point::CreateRuntime)),
        (S::RunHooks, at(Point::CreateContainer)),
        (S::ChangeRoot(pivot), hooked),
        (S::Sysctls, !sysctls.is_empty()),
        (S::ReadOnlyPaths, listed(linux.and_then(|linux| linux.readonly_paths().as_ref()))),
        (S::MaskedPaths, listed(linux.and_then(|linux| linux.masked_paths().as_ref()))),
        (S::MakeWorkingDirectory, !joined),
        (S::ReadOnlyMounts, makes && mounts.iter().any(|mount| mount.what.is_read_only_late())),
        (S::RootPropagation, linux.is_some_and(|linux| linux.rootfs_propagation().is_some())),
        (S::ReadOnlyRoot, spec.root().as_ref().is_some_and(|root| root.readonly().unwrap_or(false))),
    ];
    steps.into_iter().filter_map(|(step, wanted)| wanted.then_some(step)).collect()
}

/// The steps of every process.
pub(crate) fn process(identity: &Identity, end: End<'_>) -> Vec<ProcessStep> {
    use ProcessStep as S;
    let (loads, hears) = (end.filter.is_some(), end.filter == Some(true));
    let privileged = needs_privilege(identity, loads);
    let few = identity.few_descriptors().is_some();
    let steps = [
        (S::Label, true),
        (S::Environment, true),
        (S::Streams, true),
        (S::EnterDirectory, true),
        (S::CloseDescriptors, true),
        // They are the program's: what was opened and allocated until now may be more than they allow.
        (S::Limits, true),
        (S::DropPrivileges, true),
        (S::EnterDirectoryAsUser, true),
        (S::CheckDirectory, true),
        (S::FindProgram, end.look_up),
        (S::FewDescriptors, few && hears),
        (S::Filter, hears),
        (S::DropLastPrivilege, hears && privileged),
        (S::Ready, true),
        (S::AwaitStart, true),
        (S::RunHooks, end.hooks.is_some_and(|hooks| hooks.any_at(Point::StartContainer))),
        (S::FewDescriptors, few && !hears),
        (S::Filter, loads && !hears),
        (S::DropLastPrivilege, loads && !hears && privileged),
        (S::Execute, true),
    ];
    steps.into_iter().filter_map(|(step, wanted)| wanted.then_some(step)).collect()
}

/// Whether loading a filter takes CAP_SYS_ADMIN: it does without no_new_privs, seccomp(2).
pub(crate) fn needs_privilege(identity: &Identity, loads: bool) -> bool {
    loads && !identity.no_new_privileges
}

/// Whether the configuration brings its own /dev, which is then left as it is.
fn brings_dev(mounts: &[MountOp]) -> bool {
    mounts.iter().any(|op| op.destination == Path::new("/dev") && matches!(op.what, What::Bind { .. }))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use oci_spec::runtime::State;
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{identity, mounts, namespaces, sysctl};

    fn lines(steps: &[impl std::fmt::Debug]) -> String {
        steps.iter().map(|step| format!("{step:?}\n")).collect()
    }

    fn check(spec: Value, terminal: bool, expected: &Expect) {
        let spec: Spec = serde_json::from_value(spec).expect("spec");
        let namespaces = namespaces::plan(&spec).expect("namespaces");
        let shape = Shape {
            spec: &spec,
            namespaces: &namespaces,
            mounts: &mounts::plan(&spec).expect("mounts"),
            sysctls: &sysctl::plan(&spec, &namespaces).expect("sysctls"),
            pivot: Pivot::PivotRoot,
            keep_keyring: !terminal,
            terminal,
            hooks: &Hooks::plan(spec.hooks().as_ref(), State::default()).expect("hooks"),
            opens: false,
        };
        expected.assert_eq(&lines(&container(&shape)));
    }

    #[test]
    fn the_least_container() {
        let spec = json!({"ociVersion": "1.3.0", "linux": {"namespaces": [{"type": "mount"}]}});
        check(
            spec,
            false,
            &expect![[r"
                JoinCgroup
                AttachRoot
                MakeFilesystems
                ChangeRoot(PivotRoot)
                AttachMounts
                Devices
                MakeWorkingDirectory
            "]],
        );
    }

    #[test]
    fn a_container_with_everything() {
        let kinds = ["mount", "pid", "network", "ipc", "uts", "cgroup"].map(|kind| json!({"type": kind}));
        let spec = json!({
            "ociVersion": "1.3.0", "hostname": "a", "domainname": "b", "root": {"path": "rootfs", "readonly": true},
            "linux": {
                "namespaces": kinds, "sysctl": {"net.ipv4.ip_forward": "1"}, "rootfsPropagation": "rslave",
                "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
            },
        });
        check(
            spec,
            true,
            &expect![[r"
                JoinCgroup
                NewCgroupNamespace
                Loopback
                Keyring
                HostName
                DomainName
                AttachRoot
                MakeFilesystems
                ChangeRoot(PivotRoot)
                AttachMounts
                Devices
                Terminal
                BindConsole
                Sysctls
                ReadOnlyPaths
                MaskedPaths
                MakeWorkingDirectory
                RootPropagation
                ReadOnlyRoot
            "]],
        );
    }

    #[test]
    fn mounts_are_attached_before_the_root_changes_for_hooks_that_look_for_them() {
        let of = |kind: &str| {
            let hooks = json!({ kind: [{"path": "/bin/hook"}] });
            let linux = json!({"namespaces": [{"type": "mount"}], "maskedPaths": ["/proc/kcore"]});
            json!({"ociVersion": "1.3.0", "hooks": hooks, "linux": linux})
        };
        let ways = [("prestart", "AwaitHooks"), ("createRuntime", "AwaitHooks"), ("createContainer", "RunHooks")];
        for (kind, step) in ways {
            let spec: Spec = serde_json::from_value(of(kind)).expect("spec");
            let shape = Shape {
                spec: &spec,
                namespaces: &namespaces::plan(&spec).expect("namespaces"),
                mounts: &[],
                sysctls: &[],
                pivot: Pivot::PivotRoot,
                keep_keyring: true,
                terminal: true,
                hooks: &Hooks::plan(spec.hooks().as_ref(), State::default()).expect("hooks"),
                opens: false,
            };
            let expected = format!(
                "JoinCgroup\nAttachRootInPlace\nMakeFilesystems\nAttachMounts\nDevices\nTerminal\nBindConsole\n\
                 {step}\nChangeRoot(PivotRoot)\nMaskedPaths\nMakeWorkingDirectory\n"
            );
            assert_eq!(lines(&container(&shape)), expected, "{kind}");
        }
        check(
            of("startContainer"),
            false,
            &expect![[r"
                JoinCgroup
                AttachRoot
                MakeFilesystems
                ChangeRoot(PivotRoot)
                AttachMounts
                Devices
                MaskedPaths
                MakeWorkingDirectory
            "]],
        );
    }

    #[test]
    fn the_program_is_looked_up_before_the_filter_and_hooks_of_the_start_run_before_a_late_one() {
        use ProcessStep as S;
        let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"], "noNewPrivileges": true});
        let hooks = json!({"startContainer": [{"path": "/bin/hook"}]});
        let spec = json!({"ociVersion": "1.3.0", "process": process, "hooks": hooks});
        let spec: Spec = serde_json::from_value(spec).expect("spec");
        let hooks = Hooks::plan(spec.hooks().as_ref(), State::default()).expect("hooks");
        let identity = identity::plan(spec.process().as_ref().expect("process"), &spec).expect("identity");
        let of = |hears| {
            let end = End { filter: Some(hears), look_up: true, hooks: Some(&hooks) };
            let steps = super::process(&identity, end).into_iter().skip_while(|step| *step != S::FindProgram);
            steps.collect::<Vec<_>>()
        };
        assert_eq!(of(false), [S::FindProgram, S::Ready, S::AwaitStart, S::RunHooks, S::Filter, S::Execute]);
        assert_eq!(of(true), [S::FindProgram, S::Filter, S::Ready, S::AwaitStart, S::RunHooks, S::Execute]);
    }

    #[test]
    fn namespaces_are_joined_by_the_process_unless_one_in_between_has_to() {
        let of = |namespaces: Value| {
            let mappings = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
            let mut linux = json!({"namespaces": namespaces});
            if namespaces.as_array().is_some_and(|all| all.iter().any(|one| one["type"] == "user")) {
                linux["uidMappings"] = mappings.clone();
                linux["gidMappings"] = mappings;
            }
            let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.3.0", "linux": linux})).expect("spec");
            let namespaces = namespaces::plan(&spec).expect("namespaces");
            let shape = Shape {
                spec: &spec,
                namespaces: &namespaces,
                mounts: &[],
                sysctls: &[],
                pivot: Pivot::MoveMount,
                keep_keyring: true,
                terminal: false,
                hooks: &Hooks::plan(None, State::default()).expect("hooks"),
                opens: false,
            };
            container(&shape).into_iter().take_while(|step| *step != InitStep::AttachRoot).collect::<Vec<_>>()
        };
        let network = json!({"type": "network", "path": "/proc/7/ns/net"});
        let pid = json!({"type": "pid", "path": "/proc/7/ns/pid"});
        assert_eq!(of(json!([{"type": "mount"}, network])), [InitStep::JoinCgroup, InitStep::JoinNamespaces]);
        assert_eq!(of(json!([{"type": "mount"}, network, pid])), [InitStep::JoinCgroup]);
        let user = [InitStep::JoinCgroup, InitStep::BecomeRootOfUserNamespace];
        assert_eq!(of(json!([{"type": "mount"}, network, {"type": "user"}])), user);
    }

    #[test]
    fn without_a_mount_namespace_of_its_own_it_changes_its_root_at_most() {
        check(
            json!({"ociVersion": "1.3.0", "linux": {"namespaces": [{"type": "pid"}]}}),
            true,
            &expect![[r"
                JoinCgroup
                Keyring
                ChangeRoot(MoveMount)
                Devices
                Terminal
                MakeWorkingDirectory
            "]],
        );
        let joined = json!([{"type": "mount", "path": "/proc/7/ns/mnt"}]);
        check(
            json!({"ociVersion": "1.3.0", "linux": {"namespaces": joined}}),
            true,
            &expect![[r"
                JoinCgroup
                JoinNamespaces
                Keyring
                Terminal
            "]],
        );
    }

    #[test]
    fn a_dev_of_its_own_is_left_as_it_is() {
        let mount = json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]});
        let linux = json!({"namespaces": [{"type": "mount"}]});
        check(
            json!({"ociVersion": "1.3.0", "mounts": [mount], "linux": linux}),
            true,
            &expect![[r"
                JoinCgroup
                Keyring
                AttachRoot
                MakeFilesystems
                ChangeRoot(PivotRoot)
                AttachMounts
                Terminal
                MakeWorkingDirectory
            "]],
        );
    }

    #[test]
    fn the_filter_is_loaded_as_late_as_it_can_be() {
        let at = |no_new_privileges: bool, filter: Option<bool>| {
            let process = json!({
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"], "noNewPrivileges": no_new_privileges,
            });
            let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.3.0", "process": process})).expect("spec");
            let process = spec.process().as_ref().expect("process");
            let steps =
                super::process(&identity::plan(process, &spec).expect("identity"), End { filter, ..End::default() });
            let filters = steps.iter().filter(|step| **step == ProcessStep::Filter).count();
            let at = steps.iter().position(|step| *step == ProcessStep::Filter);
            let next = at.and_then(|at| steps.get(at + 1)).copied();
            assert_eq!(filters, usize::from(filter.is_some()), "once at most");
            let last = at.and_then(|at| steps.get(at + 2)).copied();
            (next, last.filter(|_| next == Some(ProcessStep::DropLastPrivilege)))
        };
        let (ready, execute) = (Some(ProcessStep::Ready), Some(ProcessStep::Execute));
        assert_eq!(at(true, None), (None, None));
        assert_eq!(at(false, None), (None, None));
        assert_eq!(at(true, Some(false)), (execute, None));
        assert_eq!(at(true, Some(true)), (ready, None));
        // Without no_new_privs it takes CAP_SYS_ADMIN, which goes next.
        let drop = Some(ProcessStep::DropLastPrivilege);
        assert_eq!(at(false, Some(false)), (drop, execute));
        assert_eq!(at(false, Some(true)), (drop, ready));
    }
}
