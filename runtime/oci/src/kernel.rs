//! What this machine's kernel offers, for `doctor`: each fact with what to do when it lacks.

use std::os::fd::AsFd;
use std::path::Path;

use portreeve_sys::mount::{self, Change};
use portreeve_sys::{capability, process, seccomp};
use rustix::fs::CWD;

use crate::cgroup::{self, Version};

/// How much the lack of a facility matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The facility is there.
    Present,
    /// It lacks, and something optional will not work.
    Limited,
    /// It lacks, and containers cannot run.
    Missing,
}

/// One thing about the kernel or the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Short name, for example `cgroup`.
    pub name: &'static str,
    /// Whether it is there.
    pub verdict: Verdict,
    /// What was found, for example `v1 hybrid: cpu cpuset memory pids`.
    pub found: String,
    /// What to do about its lack; `None` when nothing has to be done.
    pub advice: Option<String>,
}

impl Fact {
    fn present(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Present, found: found.into(), advice: None }
    }

    fn lacking(name: &'static str, verdict: Verdict, found: impl Into<String>, advice: &str) -> Self {
        Self { name, verdict, found: found.into(), advice: Some(advice.to_owned()) }
    }
}

/// Looks at the running kernel; mounts nothing anywhere and leaves nothing behind.
#[must_use]
pub fn survey() -> Vec<Fact> {
    vec![
        privilege(),
        release(),
        cgroups(),
        controllers(),
        mount_interface(),
        overlay(),
        seccomp_filters(),
        user_namespaces(),
        capabilities(),
        apparmor(),
        selinux(),
        swap(),
    ]
}

fn privilege() -> Fact {
    match process::user_id() {
        0 => Fact::present("root", "running as root"),
        uid => Fact::lacking("root", Verdict::Missing, format!("running as user {uid}"), "run portreeve as root"),
    }
}

/// Major and minor number of the running kernel.
fn version() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut parts = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn release() -> Fact {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let found = format!("Linux {}", text.trim());
    match version() {
        Some(version) if version >= (5, 14) => Fact::present("kernel", found),
        Some(version) if version >= (5, 12) => {
            Fact::lacking("kernel", Verdict::Limited, found, "5.14 and later kill a whole cgroup in one step")
        }
        _ => Fact::lacking(
            "kernel",
            Verdict::Missing,
            found,
            "Linux 5.12 or later is needed (mount_setattr); 6.1 or later is better",
        ),
    }
}

fn cgroups() -> Fact {
    match cgroup::version() {
        Ok(Version::V2) => Fact::present("cgroup", "version 2"),
        Ok(Version::V1) if cgroup::is_hybrid() => {
            Fact::present("cgroup", "version 1, with a unified hierarchy beside it")
        }
        Ok(Version::V1) => Fact::present("cgroup", "version 1"),
        Err(_) => Fact::lacking("cgroup", Verdict::Missing, "not mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
    }
}

fn controllers() -> Fact {
    let list = cgroup::controllers().unwrap_or_default();
    let found = list.join(" ");
    let lacking: Vec<&str> =
        ["cpu", "cpuset", "memory", "pids"].into_iter().filter(|name| !list.iter().any(|have| have == name)).collect();
    if lacking.is_empty() {
        return Fact::present("controllers", found);
    }
    let advice = format!(
        "limits of {} cannot be set; the kernel's command line may turn them off (cgroup_disable=), or a service manager has not delegated them",
        lacking.join(", ")
    );
    let verdict = if lacking.iter().any(|name| matches!(*name, "memory" | "cpu" | "pids")) {
        Verdict::Missing
    } else {
        Verdict::Limited
    };
    Fact::lacking("controllers", verdict, found, &advice)
}

fn mount_interface() -> Fact {
    let advice = "needs Linux 5.12 or later and CAP_SYS_ADMIN";
    let tried = mount::clone_tree(CWD, Path::new("/"), false, false)
        .and_then(|tree| mount::set_attributes(tree.as_fd(), &Change { set: mount::READ_ONLY, ..Change::default() }));
    match tried {
        Ok(()) => Fact::present("mount", "open_tree and mount_setattr work"),
        Err(error) => Fact::lacking("mount", Verdict::Missing, format!("mount_setattr: {error}"), advice),
    }
}

fn overlay() -> Fact {
    match mount::new_filesystem("overlay") {
        Ok(filesystem) => {
            let by_layers = mount::set_string(filesystem.as_fd(), "lowerdir+", "/").is_ok();
            if by_layers {
                Fact::present("overlay", "available, layers one by one")
            } else {
                Fact::lacking(
                    "overlay",
                    Verdict::Limited,
                    "available, all layers as one option",
                    "images with more than about 60 layers need Linux 6.8",
                )
            }
        }
        Err(error) => Fact::lacking(
            "overlay",
            Verdict::Missing,
            error.to_string(),
            "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS",
        ),
    }
}

/// Whether containers can write to root file systems whose changes lie in `directory`, an empty directory: makes an
/// overlay that is attached nowhere.
///
/// # Errors
/// The directories that are needed for it cannot be made in `directory`.
pub fn overlay_upon(directory: &Path) -> std::io::Result<Fact> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| directory.join(name));
    for directory in [&lower, &upper, &work] {
        std::fs::create_dir(directory)?;
    }
    let made = mount::new_filesystem("overlay").and_then(|filesystem| {
        for (key, directory) in [("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)] {
            mount::set_string(filesystem.as_fd(), key, directory)?;
        }
        mount::create(filesystem.as_fd(), 0)
            .map_err(|error| mount::complaint(filesystem.as_fd()).map_or(error, std::io::Error::other))
    });
    Ok(match made {
        Ok(_overlay) => Fact::present("state", "its file system can hold what containers write"),
        Err(error) => Fact::lacking(
            "state",
            Verdict::Missing,
            format!("no overlay can be put upon its file system: {error}"),
            "choose a root on ext4, xfs, btrfs or tmpfs",
        ),
    })
}

fn seccomp_filters() -> Fact {
    const RETURN_ERRNO: u32 = 0x0005_0000;
    if seccomp::action_available(RETURN_ERRNO) {
        Fact::present("seccomp", "filters work")
    } else {
        Fact::lacking(
            "seccomp",
            Verdict::Missing,
            "no filters",
            "a kernel with CONFIG_SECCOMP_FILTER; or run containers with seccompProfile Unconfined",
        )
    }
}

fn user_namespaces() -> Fact {
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    match limit {
        None => Fact::lacking(
            "user namespaces",
            Verdict::Limited,
            "none",
            "pods with hostUsers: false need a kernel with CONFIG_USER_NS",
        ),
        Some(0) => Fact::lacking(
            "user namespaces",
            Verdict::Limited,
            "limited to 0",
            "sysctl -w user.max_user_namespaces=15000, for pods with hostUsers: false",
        ),
        Some(limit) if version() >= Some((5, 19)) => Fact::present("user namespaces", format!("up to {limit}")),
        Some(limit) => {
            let advice = "pods with hostUsers: false need Linux 5.19 or later (id-mapped layers of an overlay)";
            Fact::lacking("user namespaces", Verdict::Limited, format!("up to {limit}"), advice)
        }
    }
}

/// Capabilities that the agent itself needs, and what is lost without each.
const NEEDED: [(u32, &str, Verdict, &str); 7] = [
    (21, "CAP_SYS_ADMIN", Verdict::Missing, "nothing can be mounted"),
    (12, "CAP_NET_ADMIN", Verdict::Missing, "pods get no network"),
    (18, "CAP_SYS_CHROOT", Verdict::Limited, "exec does not work, nor does hostUsers: false before Linux 6.13"),
    (27, "CAP_MKNOD", Verdict::Missing, "device nodes cannot be made"),
    (19, "CAP_SYS_PTRACE", Verdict::Limited, "processes of other users cannot be looked at"),
    (
        24,
        "CAP_SYS_RESOURCE",
        Verdict::Limited,
        "oom_score_adj cannot be lowered and hard resource limits cannot be raised",
    ),
    (40, "CAP_CHECKPOINT_RESTORE", Verdict::Limited, "checkpoints do not work"),
];

fn capabilities() -> Fact {
    let have = capability::get().map(|sets| sets.effective).unwrap_or(0);
    let lacking: Vec<_> = NEEDED.iter().filter(|(number, ..)| have & (1 << number) == 0).collect();
    let Some(worst) = lacking.iter().map(|(_, _, verdict, _)| *verdict).max() else {
        return Fact::present("capabilities", "all that are needed");
    };
    let names: Vec<&str> = lacking.iter().map(|(_, name, ..)| *name).collect();
    let losses: Vec<String> = lacking.iter().map(|(_, name, _, loss)| format!("without {name} {loss}")).collect();
    let advice =
        format!("{}; give it to the agent (CapabilityBoundingSet= of its service), or live without", losses.join(", "));
    Fact::lacking("capabilities", worst, format!("lacking {}", names.join(", ")), &advice)
}

fn apparmor() -> Fact {
    let enabled =
        std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    if enabled {
        return Fact::present("apparmor", "enabled");
    }
    Fact::lacking(
        "apparmor",
        Verdict::Limited,
        "not enabled",
        "profiles cannot be applied; boot with apparmor=1 security=apparmor where they are wanted",
    )
}

fn selinux() -> Fact {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        Fact::present("selinux", "enabled")
    } else {
        Fact::present("selinux", "not enabled")
    }
}

fn swap() -> Fact {
    let devices =
        std::fs::read_to_string("/proc/swaps").map(|text| text.lines().count().saturating_sub(1)).unwrap_or(0);
    Fact::present("swap", if devices == 0 { "none".to_owned() } else { format!("{devices} devices") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lack_comes_with_what_to_do_about_it() {
        let facts = survey();
        assert!(facts.len() > 8);
        for fact in facts {
            assert_eq!(fact.verdict == Verdict::Present, fact.advice.is_none(), "{fact:?}");
            assert!(!fact.found.is_empty(), "{fact:?}");
        }
    }

    #[test]
    fn a_directory_on_which_no_overlay_can_be_is_named() {
        if process::user_id() != 0 {
            return;
        }
        let home = tempfile::tempdir().expect("a temporary directory");
        let fact = overlay_upon(home.path()).expect("directories in it");
        assert_eq!(fact.verdict, Verdict::Present, "{fact:?}");
        assert!(overlay_upon(home.path()).is_err(), "it is not empty any more");
        assert!(overlay_upon(Path::new("/proc")).is_err());
    }

    #[test]
    fn a_lacking_capability_is_named_with_its_loss() {
        let fact = capabilities();
        let have = capability::get().expect("capabilities").effective;
        let resource = have & (1 << capability::CAP_SYS_RESOURCE) != 0;
        assert_eq!(resource, !fact.found.contains("CAP_SYS_RESOURCE"), "{fact:?}");
        if !resource {
            assert!(fact.advice.expect("advice").contains("oom_score_adj"));
        }
    }
}
