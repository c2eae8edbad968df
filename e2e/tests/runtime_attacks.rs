//! Published attacks on runtimes, performed: each fails here.
//!
//! Which test performs which attack of those that concern a runtime; what images, networks and nodes have to withstand
//! is tested where these are. `c:` is a test of `runtime/oci/tests/containers`, `u:` one beside the code, `e:` one of
//! this directory, and what has no letter is in this file.
//!
//! ```text
//! 2019-5736            the runtime is overwritten through /proc/PID/exe
//!                      cve_2019_5736_* (by what is entered, an image, a neighbour; what waits; who may not mount)
//!                      c: attacks::cve_2019_5736_*   u: sys self_exe::tests::cve_2019_5736_*
//! 2019-16884, -19921   a /proc that is none, or a volume over it, swallows labels and parameters
//! 2019-18837           cve_2019_16884_a_proc_that_is_none_is_refused
//! 2023-27561, -28642   c: attacks::cve_2019_16884_*, cve_2019_19921_*
//!                      e: runtime_mounts a_mount_may_lie_in_the_image_where_nothing_of_the_host_is_touched
//! 2020-15257           a socket of ours is reached from the host's network
//!                      cve_2020_15257_nothing_of_ours_can_be_talked_to_from_the_hosts_network
//! 2021-21334           a neighbour's, or the caller's, environment
//!                      cve_2022_29162_36109_and_2021_21334_nothing_of_the_callers_is_the_containers
//! 2021-30465           a mount point is exchanged with a link meanwhile
//! 2024-45310           e: runtime_races cve_2021_30465_*   c: races::*
//! 2021-41103           state directories that others may enter
//! 2024-25621           a_container_cannot_start_or_see_another_by_its_state_directory
//!                      e: runtime_cli the_state_directory_is_the_owners_alone
//! 2021-43784           lengths that overflow
//!                      cve_2021_43784_what_is_huge_is_refused_or_works
//! 2022-0185            calls that lead into the kernel's mount and namespace code
//!                      c: filters::the_default_profile_refuses_unshare_in_run_and_exec
//!                      u: oci seccomp::compile::tests::the_default_profile_refuses_what_leads_out_of_a_container
//! 2022-0492            release_agent
//!                      cve_2022_0492_a_release_agent_is_out_of_reach
//!                      c: attacks::cve_2022_0492_the_cgroup_mount_cannot_be_written
//! 2022-0811            a parameter of the host by the value of another
//!                      e: runtime_namespaces cve_2022_0811_*, a_sysctl_of_the_host_is_refused
//!                      c: mounts::cve_2022_0811_parameters_of_the_host_stay
//! 2022-24769, -27649   inheritable capabilities
//! 2022-27651, -29162   cve_2022_29162_36109_and_2021_21334_nothing_of_the_callers_is_the_containers
//!                      e: runtime_exec a_capability_is_added_without_being_inheritable
//! 2022-2995, -36109    groups of the caller
//! 2023-25173           cve_2022_29162_36109_and_2021_21334_nothing_of_the_callers_is_the_containers
//!                      e: runtime_process the_user_its_groups_and_its_mask_are_those_given
//! 2022-4318            a line break in a name
//!                      cve_2022_4318_a_line_in_a_name_is_no_line_of_a_file
//! 2023-2640, -30549    set-user-ID by way of a mount
//!                      e: runtime_mounts each_flag_of_a_new_file_system, each_recursive_flag_reaches_the_mounts_below
//! 2023-25809           cgroups of the host in a user namespace without one for cgroups
//!                      cve_2023_25809_the_hosts_cgroups_are_read_only_for_users_of_their_own
//! 2024-21626           a descriptor of the host, a working directory outside
//!                      e: runtime_exec cve_2024_21626_*, runtime_process a_working_directory_outside_of_the_root_*,
//!                         runtime_streams descriptors_are_handed_on_by_their_number_and_no_others
//!                      c: attacks::cve_2024_21626_*, a_program_has_no_descriptor_but_its_own
//! 2024-3154            annotations that change what is made
//! 2026-53488, -53492   annotations_change_nothing
//!                      e: runtime_systemd annotations_are_properties_of_the_unit
//! 2024-5154            a mount point that is a link makes files on the host
//!                      c: attacks::cve_2024_5154_*   e: runtime_mounts a_destination_is_followed_inside_the_root_only
//! 2024-8676            mounts of a checkpoint, and images that others may write to
//! 2026-50195           e: runtime_checkpoint cve_2024_8676_*, only_what_runs_is_checkpointed_*
//! 2024-40635           ids beyond what a number holds
//! 2026-46680           e: runtime_process ids_that_are_no_users_are_refused
//! 2025-24965           a file that a handler writes into the root
//!                      cve_2025_24965_what_another_handler_would_write_is_not_written
//! 2025-31133           what masks, and what is masked, replaced by links
//! 2025-62161           cve_2025_31133_masked_paths_that_are_links_mask_nothing_else
//!                      e: runtime_races cve_2025_31133_and_52565_*, cve_2025_31133_a_masked_path_that_changes_*
//!                      c: attacks::cve_2025_31133_masked_paths_are_covered_by_the_real_null_device
//! 2025-52565           /dev/console from a link, or to one
//!                      e: runtime_races cve_2025_52565_a_console_that_changes_*
//!                      c: terminals::cve_2025_52565_*, a_dev_console_that_is_a_link_does_not_reach_the_host
//! 2025-52881           writes to procfs led elsewhere
//! 2025-62596           cve_2019_16884_a_proc_that_is_none_is_refused (a procfs of our own is written, whatever is there)
//!                      cve_2025_52881_a_procfs_of_a_neighbour_is_not_written_through
//!                      e: runtime_process cve_2025_52881_a_label_is_written_nowhere_else
//!                      c: attacks::cve_2019_19921_a_volume_over_proc_is_refused
//! 2025-54867           a root that is a link
//!                      e: runtime_mounts a_root_that_is_a_link_or_a_file_is_refused   c: attacks::a_root_that_is_a_link_*
//! 2025-47291           users of their own outside of the cgroup
//!                      cve_2025_47291_users_of_their_own_are_in_the_containers_cgroup
//! 2026-30892           a user that is read as another
//!                      e: runtime_exec cve_2026_30892_a_user_that_is_no_number_is_refused
//! 2026-41579, -47766   a /dev that is a link
//!                      c: attacks::cve_2026_41579_*
//!                      e: runtime_mounts a_mount_may_lie_in_the_image_where_nothing_of_the_host_is_touched
//! 2026-47262           memory and time at creation
//!                      a_configuration_that_is_too_much_is_refused_in_bounded_time_and_memory
//!                      cve_2026_47262_a_list_of_users_without_end_is_not_read_to_it
//! no number            a device of a user namespace that is another file, a procfs of other processes
//!                      a_device_for_users_of_their_own_is_no_other_file_of_the_host
//!                      users_of_their_own_do_not_get_a_procfs_of_other_processes
//! no number            a pid that was given away, a pid file that is a link, typing into the caller's terminal
//!                      a_process_that_took_over_a_pid_is_not_signalled, a_pid_file_is_not_written_through_a_link,
//!                      a_terminal_of_the_caller_cannot_be_typed_into
//! ```

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::statvfs::{FsFlags, statvfs};
use portreeve_e2e::{Attempts, Bundle, Report, Runtime, patience, skipped, wait_until};
use serde_json::{Value, json};

/// What is in a file and when it was last touched.
fn fingerprint(path: &Path) -> (Vec<u8>, i64, i64) {
    let file = std::fs::metadata(path).expect("a file");
    (std::fs::read(path).expect("a file"), file.mtime(), file.ctime())
}

/// Everything below a directory, by name.
fn names(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

fn capable(names: &[&str]) -> Value {
    let given = json!({ "bounding": names, "effective": names, "permitted": names });
    json!({ "process": { "capabilities": given } })
}

/// For how long programs are hunted: for half of it they come by, and in the other half nobody executes them, so that
/// what was caught can be written unless something else forbids it.
const HUNT: Duration = Duration::from_secs(4);

/// Each hunter takes a processor for itself: of several at once none would be given anything.
static TURN: Mutex<()> = Mutex::new(());

/// A container that hunts the programs of other processes in its pid namespace, and may look at any of them.
fn hunt(runtime: &Runtime) -> Bundle {
    let bundle = runtime.bundle(&["prey", &HUNT.as_millis().to_string()]);
    begin_hunt(runtime, bundle.with(capable(&["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"])))
}

fn begin_hunt(runtime: &Runtime, bundle: Bundle) -> Bundle {
    runtime.create(&bundle, &[]).ok();
    runtime.call(&["start", bundle.id()]).ok();
    bundle
}

/// What a hunter says when it is over.
fn bag(hunter: &Bundle) -> Value {
    wait_until("the hunt is over", 20, || serde_json::from_str(&hunter.output()).map_err(|error| error.to_string()))
}

/// That a hunter could open nothing for writing, nor take read-only away from where it lies.
fn caught_nothing(hunter: &Bundle, when: &str) {
    let said = bag(hunter);
    assert_eq!((&said["opened"], &said["loosened"]), (&json!([]), &json!([])), "{when}: {said}");
}

#[test]
fn cve_2019_5736_the_runtime_cannot_be_overwritten_by_what_is_entered() {
    let test = "cve_2019_5736_the_runtime_cannot_be_overwritten_by_what_is_entered";
    let Some(mut runtime) = Runtime::for_test(test) else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let victim = runtime.use_copy();
    let before = fingerprint(&victim);
    let hunter = hunt(&runtime);
    let begun = Instant::now();
    let mut entered = 0;
    while begun.elapsed() < HUNT / 2 {
        runtime.exec(&hunter, &[], &["/prober", "exit", "0"]).ok();
        entered += 1;
    }
    assert!(entered > 1, "it was given something to catch");
    caught_nothing(&hunter, &format!("after {entered} processes"));
    assert!(fingerprint(&victim) == before, "the runtime was overwritten");
}

#[test]
fn cve_2019_5736_the_runtime_cannot_be_overwritten_by_an_image() {
    let Some(mut runtime) = Runtime::for_test("cve_2019_5736_the_runtime_cannot_be_overwritten_by_an_image") else {
        return;
    };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let victim = runtime.use_copy();
    let before = fingerprint(&victim);
    let hunter = hunt(&runtime);
    let path = format!("/proc/{}/ns/pid", runtime.pid(&hunter));
    let begun = Instant::now();
    while begun.elapsed() < HUNT / 2 {
        // The container's program is the runtime itself: by name, and as the interpreter of a script.
        for arguments in [&["/proc/self/exe", "--version"][..], &["/script"]] {
            let bundle = runtime.bundle_of(arguments);
            let bundle = bundle.with_namespace("pid", Some(json!({ "type": "pid", "path": path })));
            bundle.file("script", "#!/proc/self/exe\n");
            std::fs::set_permissions(bundle.root().join("script"), PermissionsExt::from_mode(0o755)).unwrap();
            // It may run or not: what counts is the file.
            let _ = runtime.run(&bundle, &[]);
            std::fs::remove_dir_all(bundle.path()).unwrap();
        }
    }
    caught_nothing(&hunter, "after programs that are the runtime");
    assert!(fingerprint(&victim) == before, "the runtime was overwritten");
}

#[test]
fn cve_2019_5736_the_runtime_cannot_be_overwritten_by_a_neighbour() {
    let test = "cve_2019_5736_the_runtime_cannot_be_overwritten_by_a_neighbour";
    let Some(mut runtime) = Runtime::for_test(test) else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let victim = runtime.use_copy();
    let before = fingerprint(&victim);
    let hunter = hunt(&runtime);
    let path = format!("/proc/{}/ns/pid", runtime.pid(&hunter));
    let begun = Instant::now();
    let mut came = 0;
    while begun.elapsed() < HUNT / 2 {
        // It stays in the runtime's own program for as long as nobody starts it.
        let bundle = runtime.bundle(&["wait"]);
        let bundle = bundle.with_namespace("pid", Some(json!({ "type": "pid", "path": path })));
        runtime.create(&bundle, &[]).ok();
        runtime.call(&["delete", "--force", bundle.id()]).ok();
        std::fs::remove_dir_all(bundle.path()).unwrap();
        came += 1;
    }
    assert!(came > 1, "it was given something to catch");
    caught_nothing(&hunter, &format!("after {came} containers"));
    assert!(fingerprint(&victim) == before, "the runtime was overwritten");
}

#[test]
fn what_makes_a_container_is_hidden_from_root_without_capabilities() {
    let test = "what_makes_a_container_is_hidden_from_root_without_capabilities";
    let Some(mut runtime) = Runtime::for_test(test) else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let victim = std::fs::metadata(runtime.use_copy()).unwrap();
    let host = std::fs::metadata("/").unwrap();
    // It sees the processes of the host. Those with users of their own belong to root, as it does.
    let bundle = runtime.bundle(&["prey", &HUNT.as_millis().to_string()]);
    let hunter = begin_hunt(&runtime, bundle.with_namespace("pid", None).with(capable(&[])));
    let begun = Instant::now();
    let mut came = 0;
    while begun.elapsed() < HUNT {
        // A process is made for the ids of a mount, another one for a mount that is to stay as it is.
        let mapped = json!([{ "containerID": 0, "hostID": 70_000, "size": 65_536 }]);
        let volume = runtime.world().path("volume");
        std::fs::create_dir_all(&volume).unwrap();
        let mount = json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["bind"] });
        let mut with_ids = mount.clone();
        (with_ids["uidMappings"], with_ids["gidMappings"]) = (mapped.clone(), mapped);
        let with_ids = runtime.bundle(&["wait"]).with_mount(with_ids);
        let with_users = runtime.bundle(&["wait"]).with_users(100_000, 65_536).with_mount(mount);
        for bundle in [with_ids, with_users] {
            runtime.create(&bundle, &[]).ok();
            runtime.call(&["delete", "--force", bundle.id()]).ok();
            std::fs::remove_dir_all(bundle.path()).unwrap();
            came += 1;
        }
    }
    assert!(came > 2, "it was given something to catch");
    let said = bag(&hunter);
    let files: Vec<_> = said["caught"].as_array().unwrap().iter().map(|file| file["id"].clone()).collect();
    assert!(!files.contains(&json!([victim.dev(), victim.ino()])), "after {came} containers: {said}");
    let roots = said["roots"].as_array().unwrap();
    // Its own it sees, in any case.
    let root_of_host = json!([[victim.dev(), victim.ino()], [host.dev(), host.ino()]]);
    assert!(!roots.is_empty() && !roots.contains(&root_of_host), "after {came} containers: {said}");
}

/// Whether the file that a process shows as its executable lies where nobody can write.
fn executes_what_is_read_only(pid: impl std::fmt::Display) -> bool {
    statvfs(format!("/proc/{pid}/exe").as_str()).unwrap().flags().contains(FsFlags::ST_RDONLY)
}

#[test]
fn cve_2019_5736_what_waits_for_its_start_shows_no_file_that_can_be_written() {
    let test = "cve_2019_5736_what_waits_for_its_start_shows_no_file_that_can_be_written";
    let Some(mut runtime) = Runtime::for_test(test) else { return };
    let copy = runtime.use_copy();
    std::fs::set_permissions(runtime.world().path(""), PermissionsExt::from_mode(0o711)).unwrap();
    let neighbour = runtime.bundle(&["wait"]);
    runtime.create(&neighbour, &[]).ok();
    let joined = json!({ "type": "pid", "path": format!("/proc/{}/ns/pid", runtime.pid(&neighbour)) });
    let clocks = json!({ "linux": { "timeOffsets": { "boottime": { "secs": 7 } } } });
    let bundle = || runtime.bundle(&["wait"]);
    // Which process leaves the file, the first or the maker, depends on who sees the first.
    let mut cases = vec![
        ("processes of its own", bundle()),
        ("users of its own", bundle().with_users(100_000, 65536)),
        ("processes of a neighbour", bundle().with_namespace("pid", Some(joined.clone()))),
        ("processes of the host", bundle().with_namespace("pid", None)),
    ];
    if Path::new("/proc/self/ns/time").exists() {
        let time = Some(json!({ "type": "time" }));
        cases.push(("clocks of its own", bundle().with_namespace("time", time).with(clocks)));
    }
    for (what, bundle) in cases {
        runtime.create(&bundle, &[]).ok();
        let pid = runtime.pid(&bundle);
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/exe")).unwrap().file_name(), copy.file_name(), "{what}");
        assert!(executes_what_is_read_only(pid), "{what}");
        let mapped = std::fs::read_dir(format!("/proc/{pid}/map_files")).unwrap().flatten();
        for file in mapped.map(|entry| entry.path()) {
            let place = statvfs(file.as_path()).unwrap();
            assert!(place.flags().contains(FsFlags::ST_RDONLY), "{what}: {}", file.display());
        }
        runtime.call(&["delete", "--force", bundle.id()]).ok();
    }
    // Where somebody of the container's sees the maker, that has left the file as well.
    let bundle = bundle().with_namespace("pid", Some(joined));
    let call = runtime.begin_run(&bundle, &[]);
    runtime.wait_status(&bundle, "running");
    assert!(executes_what_is_read_only(call.pid()));
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    let _ended = call.finish();
}

/// `create` that waits for somebody to take its call, before it has made anything.
fn waiting_create(runtime: &Runtime, user: u32) -> (portreeve_e2e::Call, OwnedFd, UnixStream) {
    let bundle = runtime.bundle(&["wait"]);
    std::fs::write(bundle.path().join("config.json"), bundle.config().to_string()).unwrap();
    let place = runtime.world().path(&format!("user-{user}-{}", bundle.id()));
    std::fs::create_dir(&place).unwrap();
    chown(&place, Some(user), Some(user)).unwrap();
    let path = place.join("socket");
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    // One may wait to be taken, and one does.
    socket::listen(&socket, Backlog::new(0).unwrap()).unwrap();
    let first = UnixStream::connect(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    let mut command = runtime.world().command("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
    command.arg(runtime.program()).arg("--root").arg(place.join("state")).args(["create", "--bundle"]);
    command.arg(bundle.path()).arg("--pidfd-socket").arg(&path).arg(bundle.id());
    let call = runtime.begin(command);
    wait_until("it calls", 20, || {
        // What changes the user is executed first, and may ask somebody for it: whose descriptors these are is known before
        // they are looked at.
        let exe = std::fs::read_link(format!("/proc/{}/exe", call.pid())).map_err(|error| error.to_string())?;
        let links = std::fs::read_dir(format!("/proc/{}/fd", call.pid())).map_err(|error| error.to_string())?;
        let links: Vec<_> = links.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
        let calls = !exe.ends_with("setpriv") && links.iter().any(|link| link.to_string_lossy().starts_with("socket:"));
        if calls { Ok(()) } else { Err(format!("{}: {links:?}", exe.display())) }
    });
    (call, socket, first)
}

#[test]
fn cve_2019_5736_the_runtime_is_out_of_reach_also_where_it_may_not_mount() {
    let test = "cve_2019_5736_the_runtime_is_out_of_reach_also_where_it_may_not_mount";
    let Some(mut runtime) = Runtime::for_test(test) else { return };
    let copy = runtime.use_copy();
    std::fs::set_permissions(runtime.world().path(""), PermissionsExt::from_mode(0o711)).unwrap();
    // What root makes leaves the file by itself where the kernel has CONFIG_CHECKPOINT_RESTORE.
    let moves = Path::new("/proc/sys/kernel/ns_last_pid").exists();
    let of_root = if moves { "the file" } else { "a read-only mount" };
    // Who executes it, whose it is, and from where it then runs.
    for (user, owner, expected) in [(0, 0, of_root), (1234, 1234, "sealed memory"), (1234, 0, "the file")] {
        chown(&copy, Some(owner), Some(owner)).unwrap();
        let (call, _socket, _first) = waiting_create(&runtime, user);
        let exe = format!("/proc/{}/exe", call.pid());
        let link = std::fs::read_link(&exe).unwrap();
        let found = match link.to_string_lossy() {
            name if name.starts_with("/memfd:") => "sealed memory",
            _ if executes_what_is_read_only(call.pid()) => "a read-only mount",
            _ if link == copy => "the file",
            _ => "elsewhere",
        };
        call.signal(Signal::SIGKILL);
        let _ended = call.finish();
        assert_eq!(found, expected, "user {user}, owner {owner}: {}", link.display());
    }
}

#[test]
fn cve_2019_16884_a_proc_that_is_none_is_refused() {
    let Some(runtime) = Runtime::for_test("cve_2019_16884_a_proc_that_is_none_is_refused") else { return };
    // Writes to the process's own attributes and to sysctls would go to a file of the image.
    let with = |bundle: Bundle| {
        let mounts: Vec<_> = bundle.config()["mounts"].as_array().unwrap()[1..].to_vec();
        bundle.with(json!({ "mounts": mounts, "linux": { "sysctl": { "kernel.msgmax": "9000" } } }))
    };
    let bundle = with(runtime.bundle(&["try", "read /proc/sys/kernel/msgmax"]));
    bundle.file("proc/sys/kernel/msgmax", "a file of the image");
    bundle.file("proc/self/attr/exec", "");
    let answer = runtime.run(&bundle, &[]);
    let file = std::fs::read_to_string(bundle.root().join("proc/sys/kernel/msgmax")).unwrap();
    assert_eq!(file, "a file of the image", "it was written instead of the kernel's: {}", answer.stderr);
    // A volume over procfs, or below it.
    let bundle = runtime.bundle(&["report"]);
    let source = bundle.folder("source");
    for destination in ["/proc", "/proc/self", "/proc/sys"] {
        for kind in ["bind", "tmpfs", "cgroup"] {
            let options = if kind == "bind" { json!(["bind"]) } else { json!([]) };
            let mount = json!({ "destination": destination, "type": kind, "source": source, "options": options });
            let answer = runtime.run(&runtime.bundle(&["report"]).with_mount(mount), &[]);
            assert_ne!(answer.code, 0, "{kind} at {destination}: {}", answer.stdout);
        }
    }
    let bundle = runtime.bundle(&["report"]);
    let mount = json!({ "destination": "/proc/net", "type": "tmpfs", "source": "tmpfs" });
    assert_ne!(runtime.run(&bundle.with_mount(mount), &[]).code, 0);
}

#[test]
fn cve_2025_52881_a_procfs_of_a_neighbour_is_not_written_through() {
    let Some(runtime) = Runtime::for_test("cve_2025_52881_a_procfs_of_a_neighbour_is_not_written_through") else {
        return;
    };
    let neighbour = runtime.bundle(&["wait"]);
    runtime.start_waiting(&neighbour);
    let look = ["/prober", "try", "read /proc/sys/kernel/msgmax"];
    let of_the_neighbour = || runtime.exec(&neighbour, &[], &look).ok();
    let before = of_the_neighbour();
    assert!(before.contains("8192"), "what the kernel gives to a new namespace: {before}");
    let pid = runtime.pid(&neighbour);
    let with_proc_of = |source: &str, kind: &str| {
        let bundle = runtime.bundle(&["try", "read /proc/sys/kernel/msgmax"]);
        let mut mounts = bundle.config()["mounts"].as_array().unwrap().clone();
        assert_eq!(mounts[0]["destination"], "/proc");
        mounts[0] = json!({ "destination": "/proc", "type": "bind", "source": source, "options": [kind] });
        bundle.with(json!({ "mounts": mounts, "linux": { "sysctl": { "kernel.msgmax": "9000" } } }))
    };
    // The kernel binds nothing of another mount namespace.
    let answer = runtime.run(&with_proc_of(&format!("/proc/{pid}/root/proc"), "bind"), &[]);
    assert_ne!(answer.code, 0, "{}", answer.stdout);
    assert_eq!(of_the_neighbour(), before);
    // What it does bind is a procfs of the neighbour's processes that lies in the caller's.
    let source = runtime.world().path("procfs");
    std::fs::create_dir(&source).unwrap();
    let source = source.display().to_string();
    runtime.world().sh(&format!("nsenter --pid=/proc/{pid}/ns/pid mount -t proc proc {source}"));
    for kind in ["bind", "rbind"] {
        let attempts = runtime.attempts(&with_proc_of(&source, kind));
        assert_eq!(attempts.value("read /proc/sys/kernel/msgmax"), "9000\n", "{kind}: its own is set");
        assert_eq!(of_the_neighbour(), before, "{kind}");
    }
    runtime.world().sh(&format!("umount {source}"));
}

#[test]
fn cve_2021_43784_what_is_huge_is_refused_or_works() {
    let Some(runtime) = Runtime::for_test("cve_2021_43784_what_is_huge_is_refused_or_works") else { return };
    let rows: Vec<_> = (0..2000).map(|row| json!({ "containerID": row, "hostID": 100_000 + row, "size": 1 })).collect();
    let many_maps = runtime.bundle(&["report"]).with_users(100_000, 1).with(json!({
        "linux": { "uidMappings": rows, "gidMappings": rows },
    }));
    let long = "x".repeat(200_000);
    let deep = format!("/{}", "d/".repeat(3000));
    let cases = [
        many_maps,
        runtime.bundle(&["report"]).with(json!({ "process": { "args": ["/prober", long] } })),
        runtime.bundle(&["report"]).with(json!({ "process": { "cwd": deep } })),
        runtime.bundle(&["report"]).with(json!({ "root": { "path": deep } })),
        runtime.bundle(&["report"]).with_mount(json!({ "destination": deep, "type": "tmpfs", "source": "tmpfs" })),
        runtime.bundle(&["report"]).with_mount(json!({ "destination": "/mnt", "type": "tmpfs", "source": long })),
        runtime.bundle(&["report"]).with(json!({ "linux": { "maskedPaths": [format!("/{long}")] } })),
        runtime.bundle_of(&[&format!("/{long}")]),
    ];
    for (number, bundle) in cases.iter().enumerate() {
        let answer = runtime.run(bundle, &[]);
        if answer.code == 0 {
            assert_eq!(Report::parse(&answer.stdout)["ids"]["uid"], json!([0, 0, 0, 0]), "case {number}");
        } else {
            assert!(!answer.stderr.trim().is_empty(), "case {number}");
            assert!(!answer.stderr.contains("panicked"), "case {number}: {}", answer.stderr);
        }
        assert_eq!(runtime.leftovers(), Vec::<String>::new(), "case {number}");
    }
}

#[test]
fn a_configuration_that_is_too_much_is_refused_in_bounded_time_and_memory() {
    let test = "a_configuration_that_is_too_much_is_refused_in_bounded_time_and_memory";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let bundle = runtime.bundle(&["report"]);
    let path = bundle.path().join("config.json");
    let create = || {
        let begun = Instant::now();
        let answer = runtime.call(&["create", "--bundle", bundle.path().to_str().unwrap(), bundle.id()]);
        assert_ne!(answer.code, 0);
        assert!(!answer.stderr.contains("panicked"), "{}", answer.stderr);
        assert!(begun.elapsed() < patience(10), "it took {:?}", begun.elapsed());
        assert_eq!(runtime.leftovers(), Vec::<String>::new());
        answer.stderr
    };
    std::fs::write(&path, vec![b' '; 64 << 20]).unwrap();
    create();
    std::fs::write(&path, "[".repeat(1 << 20)).unwrap();
    create();
    let deep = format!("{{\"ociVersion\":\"1.0.2\",\"annotations\":{}", "{\"a\":".repeat(100_000));
    std::fs::write(&path, deep).unwrap();
    create();
    std::fs::write(&path, b"\xff\xfe\x00").unwrap();
    create();
    // What is no file: nobody ever writes to the other side, or it never ends.
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    create();
    std::fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    create();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    create();
    std::fs::remove_dir(&path).unwrap();
    create();
}

#[test]
fn cve_2020_15257_nothing_of_ours_can_be_talked_to_from_the_hosts_network() {
    let test = "cve_2020_15257_nothing_of_ours_can_be_talked_to_from_the_hosts_network";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let waiting = runtime.bundle(&["wait"]);
    runtime.create(&waiting, &[]).ok();
    let bundle = runtime.bundle(&["try", "read /proc/net/unix"]).with_namespace("network", None);
    let attempts = runtime.attempts(&bundle);
    let sockets = attempts.value("read /proc/net/unix").as_str().unwrap();
    let abstracts: Vec<_> = sockets.lines().filter_map(|line| line.split_once('@')).collect();
    assert!(abstracts.is_empty(), "{abstracts:?}");
}

#[test]
fn a_container_cannot_start_or_see_another_by_its_state_directory() {
    let Some(runtime) = Runtime::for_test("a_container_cannot_start_or_see_another_by_its_state_directory") else {
        return;
    };
    let waiting = runtime.bundle(&["wait"]);
    runtime.create(&waiting, &[]).ok();
    // As a user who owns nothing there, with the directory itself mounted into its root.
    let state = format!("list /state/{}", waiting.id());
    let root = json!({ "destination": "/state", "type": "bind", "source": runtime.root(), "options": ["bind"] });
    let bundle = runtime.bundle(&["try", "list /state", &state]).with_mount(root);
    let bundle = bundle.with(json!({ "process": { "user": { "uid": 1000, "gid": 1000 }, "capabilities": null } }));
    let attempts = runtime.attempts(&bundle);
    for operation in ["list /state", &state] {
        assert_eq!(attempts.errno(operation), "EACCES", "{operation}");
    }
    assert_eq!(runtime.status(&waiting).as_deref(), Some("created"));
}

#[test]
fn a_process_that_took_over_a_pid_is_not_signalled() {
    let Some(runtime) = Runtime::for_test("a_process_that_took_over_a_pid_is_not_signalled") else { return };
    let bundle = runtime.bundle(&["wait"]);
    runtime.start_waiting(&bundle);
    let pid = runtime.pid(&bundle);
    // The record is made to name another process: as if the kernel had given the number away again.
    let mut other = std::process::Command::new(portreeve_e2e::prober())
        .arg("wait")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut changed = 0;
    for path in names(&runtime.root().join(bundle.id())) {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if path.extension().is_some_and(|kind| kind == "json") && text.contains(&pid.to_string()) {
            let text = text.replace(&pid.to_string(), &other.id().to_string());
            std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            changed += 1;
        }
    }
    let status = runtime.status(&bundle);
    let killed = runtime.call(&["kill", bundle.id(), "KILL"]);
    let alive = other.try_wait().unwrap().is_none();
    other.kill().unwrap();
    other.wait().unwrap();
    // Another runtime may keep the pid where this does not find it.
    assert!(changed > 0 || std::env::var_os("PORTREEVE_RUNTIME").is_some(), "no record names the process");
    if changed > 0 {
        assert!(alive, "the other process was killed: {killed:?}");
        assert_ne!(status.as_deref(), Some("running"), "it is not the container's");
        assert_ne!(killed.code, 0);
    }
    runtime.call(&["delete", "--force", bundle.id()]).ok();
    // What was not its pid any more is gone with the cgroup all the same.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
}

/// The mounts of a report without what differs between two containers of one configuration: numbers, and the names of
/// their bundles and cgroups.
fn mounts_alike(report: &Report, bundle: &Bundle) -> Vec<Value> {
    let mut mounts = report["mounts"].clone();
    let mounts = mounts.as_array_mut().expect("the container sees its procfs");
    for mount in &mut *mounts {
        let fields = mount.as_object_mut().expect("an object");
        for numbered in ["id", "parent", "device"] {
            fields.remove(numbered);
        }
        let root = fields["root"].as_str().expect("a root").replace(&format!("bundle-{}", bundle.id()), "BUNDLE");
        fields.insert("root".into(), json!(root));
    }
    std::mem::take(mounts)
}

#[test]
fn annotations_change_nothing() {
    let Some(runtime) = Runtime::for_test("annotations_change_nothing") else { return };
    let plain_bundle = runtime.bundle(&["report"]);
    let plain = runtime.report(&plain_bundle);
    let annotations = json!({
        "org.systemd.property.TimeoutStopUSec": "uint64 1", "run.oci.handler": "wasm",
        "run.oci.keep_original_groups": "1",
        "run.oci.hooks.stdout": "/escaped", "org.criu.config": "/etc/passwd", "module.wasm.image/variant": "compat",
        "run.oci.mount_context_type": "context", "run.oci.seccomp_fail_unknown_syscall": "1", "bundle": "/etc",
        "cdi.k8s.io/vendor": "vendor.com/class=all", "io.containerd.runc.v2.group": "x",
    });
    let bundle = runtime.bundle(&["report"]).with(json!({ "annotations": annotations }));
    let with = runtime.report(&bundle);
    for key in ["ids", "capabilities", "seccomp", "env", "args", "cwd", "rlimits", "no_new_privileges", "devices"] {
        assert!(!plain[key].is_null(), "{key} is not told");
        assert_eq!(plain[key], with[key], "{key}");
    }
    assert_eq!(mounts_alike(&plain, &plain_bundle), mounts_alike(&with, &bundle));
    // A new namespace has a number that may be any; the caller's have his.
    let callers = |report: &Report| -> BTreeSet<String> {
        let namespaces = report["namespaces"].as_object().expect("the container sees its procfs").clone();
        let same =
            |kind: &str, seen: &Value| seen == runtime.world().sh(&format!("readlink /proc/self/ns/{kind}")).trim();
        namespaces.into_iter().filter(|(kind, seen)| same(kind, seen)).map(|(kind, _)| kind).collect()
    };
    assert_eq!(callers(&plain), callers(&with));
    assert!(callers(&with).contains("user") && !callers(&with).contains("net"), "{}", with["namespaces"]);
}

#[test]
fn a_terminal_of_the_caller_cannot_be_typed_into() {
    let Some(runtime) = Runtime::for_test("a_terminal_of_the_caller_cannot_be_typed_into") else { return };
    // The caller's own terminal as the standard streams of a container without one.
    let bundle = runtime.bundle(&["try", "tiocsti", "open /dev/tty rw"]);
    // Writes its configuration.
    let _ = runtime.run(&bundle, &[]);
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    let mut command = runtime.world().command("setsid");
    command.args(["--ctty", "--wait"]).arg(runtime.program()).arg("--root").arg(runtime.root());
    command.args(["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()]);
    command.stdin(terminal.slave.try_clone().unwrap());
    let answer = runtime.begin(command).finish();
    let attempts = Attempts::parse(&answer.ok());
    assert_ne!(attempts.errno("tiocsti"), "ok");
    assert_ne!(attempts.errno("open /dev/tty rw"), "ok");
}

#[test]
fn a_pid_file_is_not_written_through_a_link() {
    let Some(runtime) = Runtime::for_test("a_pid_file_is_not_written_through_a_link") else { return };
    let target = runtime.world().path("target");
    std::fs::write(&target, "of somebody else").unwrap();
    let link = runtime.world().path("pid");
    symlink(&target, &link).unwrap();
    let bundle = runtime.bundle(&["wait"]);
    // Replaced by a file, or refused.
    let _ = runtime.create(&bundle, &["--pid-file", link.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "of somebody else");
}

/// Operations to try, as arguments of the prober.
fn trying(operations: &[String]) -> Vec<&str> {
    std::iter::once("try").chain(operations.iter().map(String::as_str)).collect()
}

#[test]
fn cve_2022_0492_a_release_agent_is_out_of_reach() {
    let Some(runtime) = Runtime::for_test("cve_2022_0492_a_release_agent_is_out_of_reach") else { return };
    let controllers = ["memory", "pids", "devices", "cpu"];
    let mut operations = vec!["list /sys/fs/cgroup".to_owned(), "open /sys/fs/cgroup/release_agent w".to_owned()];
    for name in controllers {
        operations.push(format!("open /sys/fs/cgroup/{name}/release_agent w"));
        operations.push(format!("mkdir /tmp/{name}"));
    }
    // The hierarchies anew, in namespaces of its own making where these are allowed.
    operations.extend(["user", "mount", "cgroup"].map(|kind| format!("unshare {kind}")));
    for name in controllers {
        operations.push(format!("mount none /tmp/{name} cgroup 0"));
        operations.push(format!("open /tmp/{name}/release_agent w"));
    }
    for capabilities in [&[][..], &["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]] {
        let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"] });
        let bundle = runtime.bundle(&trying(&operations)).with(capable(capabilities)).with_mount(mount);
        let attempts = runtime.attempts(&bundle);
        assert_ne!(attempts.value("list /sys/fs/cgroup"), &json!([]), "its cgroups are there");
        for operation in operations.iter().filter(|operation| operation.contains("release_agent")) {
            assert_ne!(attempts.errno(operation), "ok", "{operation} with {capabilities:?}");
        }
    }
}

#[test]
fn cve_2022_29162_36109_and_2021_21334_nothing_of_the_callers_is_the_containers() {
    let test = "cve_2022_29162_36109_and_2021_21334_nothing_of_the_callers_is_the_containers";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // A caller with groups, inheritable capabilities and an environment.
    let as_caller = |arguments: &[&str]| {
        let mut command = runtime.world().command("setpriv");
        command.args(["--groups=5,6", "--inh-caps=+chown,+kill,+net_bind_service", "env", "SECRET=of the caller"]);
        command.arg(runtime.program()).arg("--root").arg(runtime.root()).args(arguments);
        runtime.begin(command).finish()
    };
    let seen = |report: &Report, groups: &Value| {
        assert_eq!(&report["ids"]["groups"], groups);
        assert_eq!(report.capabilities("inheritable"), BTreeSet::new());
        assert_eq!(report.capabilities("ambient"), BTreeSet::new());
        assert_eq!(report["env"]["SECRET"], Value::Null);
    };
    for groups in [json!([]), json!([2000, 2001])] {
        let user = json!({ "process": { "user": { "uid": 0, "gid": 0, "additionalGids": groups } } });
        let bundle = runtime.bundle(&["report"]).with(user.clone());
        bundle.save();
        let ran = as_caller(&["run", "--bundle", bundle.path().to_str().unwrap(), bundle.id()]);
        seen(&Report::parse(&ran.ok()), &groups);
        let waiting = runtime.bundle(&["wait"]).with(user);
        runtime.start_waiting(&waiting);
        seen(&Report::parse(&as_caller(&["exec", waiting.id(), "/prober", "report"]).ok()), &groups);
    }
}

#[test]
fn cve_2022_4318_a_line_in_a_name_is_no_line_of_a_file() {
    let Some(runtime) = Runtime::for_test("cve_2022_4318_a_line_in_a_name_is_no_line_of_a_file") else { return };
    let line = "/home\nintruder:x:0:0::/:/bin/sh";
    let bundle = runtime.bundle(&["report"]);
    let files = ["etc/passwd", "etc/group"].map(|name| bundle.root().join(name));
    let before = files.each_ref().map(|file| fingerprint(file));
    let process = json!({ "env": [format!("HOME={line}"), format!("USER={line}")], "cwd": line });
    let report = runtime.report(&bundle.with(json!({ "process": process })));
    assert_eq!((&report["env"]["HOME"], &report["cwd"]), (&json!(line), &json!(line)), "it is a name, as it is");
    assert!(files.each_ref().map(|file| fingerprint(file)) == before, "a file of the image was written");
}

#[test]
fn cve_2023_25809_the_hosts_cgroups_are_read_only_for_users_of_their_own() {
    let test = "cve_2023_25809_the_hosts_cgroups_are_read_only_for_users_of_their_own";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // Neither a cgroup nor a network namespace: /sys is the host's, with all that is mounted below it.
    let place = if portreeve_e2e::cgroup_version() == 2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    let operations = [format!("mkdir {place}/prt-made"), format!("write {place}/cgroup.procs 0")];
    let bundle = runtime.bundle(&trying(&operations)).with_users(100_000, 65536);
    let bundle = bundle.with_namespace("cgroup", None).with_namespace("network", None);
    let attempts = runtime.attempts(&bundle.with(capable(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"])));
    assert_eq!(attempts.errno(&operations[0]), "EROFS");
    assert_ne!(attempts.errno(&operations[1]), "ok");
}

#[test]
fn a_device_for_users_of_their_own_is_no_other_file_of_the_host() {
    let test = "a_device_for_users_of_their_own_is_no_other_file_of_the_host";
    let Some(runtime) = Runtime::for_test(test) else { return };
    // The path is one of the container. Nodes that cannot be made there are the host's of the same name.
    let secret = runtime.world().path("secret");
    std::fs::write(&secret, "of the host").unwrap();
    let folder = runtime.world().path("folder");
    std::fs::create_dir(&folder).unwrap();
    for path in [secret.to_str().unwrap(), folder.to_str().unwrap(), "/dev/zero"] {
        let device = json!([{ "path": path, "type": "c", "major": 1, "minor": 3 }]);
        let bundle = runtime.bundle(&["try", &format!("read {path}")]).with_users(100_000, 65536);
        let answer = runtime.run(&bundle.with(json!({ "linux": { "devices": device } })), &[]);
        assert_ne!(answer.code, 0, "{path}: {}", answer.stdout);
        assert!(answer.stderr.contains("the host has another file there than 1:3"), "{path}: {}", answer.stderr);
    }
    let device = json!([{ "path": "/dev/zero", "type": "c", "major": 1, "minor": 5 }]);
    let bundle = runtime.bundle(&["try", "open /dev/zero r"]).with_users(100_000, 65536);
    let attempts = runtime.attempts(&bundle.with(json!({ "linux": { "devices": device } })));
    assert_eq!(attempts.errno("open /dev/zero r"), "ok");
}

#[test]
fn users_of_their_own_do_not_get_a_procfs_of_other_processes() {
    let Some(runtime) = Runtime::for_test("users_of_their_own_do_not_get_a_procfs_of_other_processes") else { return };
    // Where the host's procfs is covered in parts, the kernel refuses them one of their own.
    runtime.world().sh("mount --bind /dev/null /proc/uptime");
    let answer = runtime.run(&runtime.bundle(&["try", "list /proc"]).with_users(100_000, 65536), &[]);
    runtime.world().sh("umount /proc/uptime");
    assert_ne!(answer.code, 0, "{}", answer.stdout);
    assert!(answer.stdout.is_empty() && answer.stderr.contains("proc"), "{}{}", answer.stdout, answer.stderr);
}

#[test]
fn cve_2025_24965_what_another_handler_would_write_is_not_written() {
    let Some(runtime) = Runtime::for_test("cve_2025_24965_what_another_handler_would_write_is_not_written") else {
        return;
    };
    let outside = runtime.world().path("outside");
    let annotations = json!({ "run.oci.handler": "krun", "krun.cpus": "1" });
    let bundle = runtime.bundle(&["report"]).with(json!({ "annotations": annotations }));
    symlink(&outside, bundle.root().join(".krun_config.json")).unwrap();
    assert_eq!(runtime.report(&bundle)["pid"], 1);
    assert!(!outside.exists(), "it was written through the link");
}

#[test]
fn cve_2025_31133_masked_paths_that_are_links_mask_nothing_else() {
    let Some(runtime) = Runtime::for_test("cve_2025_31133_masked_paths_that_are_links_mask_nothing_else") else {
        return;
    };
    let outside = runtime.world().path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "of the host").unwrap();
    let mounts = runtime.world().mounts();
    let lists =
        |masked: &[&str], read_only: &[&str]| json!({ "linux": { "maskedPaths": masked, "readonlyPaths": read_only } });
    let with_links = |operations: &[&str]| {
        let bundle = runtime.bundle(&[&["try"], operations].concat());
        bundle.file("inside/secret", "of the image");
        bundle.file("fixed/file", "of the image");
        for (target, name) in [
            ("/inside/secret", "through"),
            ("/inside", "around"),
            ("/fixed", "still"),
            (outside.to_str().unwrap(), "out"),
            ("../../../../../../..", "up"),
        ] {
            symlink(target, bundle.root().join(name)).unwrap();
        }
        bundle
    };
    // In the root a link leads to what it names there; out of it, nowhere.
    let bundle = with_links(&["read /inside/secret", "create /fixed/new x"]);
    let attempts = runtime.attempts(&bundle.with(lists(&["/through", "/out", "/out/file"], &["/still", "/out"])));
    assert_eq!(attempts.value("read /inside/secret"), "");
    assert_eq!(attempts.errno("create /fixed/new x"), "EROFS");
    let bundle = with_links(&["list /inside"]);
    assert_eq!(runtime.attempts(&bundle.with(lists(&["/around/../up/around"], &[]))).value("list /inside"), &json!([]));
    // A magic link of procfs leads to a file that no name in the root is of.
    for link in ["/proc/self/root", "/proc/self/fd/0", "/proc/1/cwd"] {
        for change in [lists(&[link], &[]), lists(&[], &[link])] {
            let answer = runtime.run(&with_links(&["list /"]).with(change.clone()), &[]);
            assert_ne!(answer.code, 0, "{change}: {}", answer.stdout);
        }
    }
    assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "of the host");
    assert_eq!(runtime.world().mounts(), mounts);
}

#[test]
fn cve_2025_47291_users_of_their_own_are_in_the_containers_cgroup() {
    let test = "cve_2025_47291_users_of_their_own_are_in_the_containers_cgroup";
    let Some(runtime) = Runtime::for_test(test) else { return };
    let limited = json!({ "linux": { "resources": { "pids": { "limit": 20 } } } });
    let bundle = runtime.bundle(&["wait"]).with_users(100_000, 65536).with(limited);
    runtime.start_waiting(&bundle);
    let held = runtime.cgroup_value(&bundle, "pids/cgroup.procs", "cgroup.procs");
    assert_eq!(held, runtime.pid(&bundle).to_string());
    assert_eq!(runtime.cgroup_value(&bundle, "pids/pids.max", "pids.max"), "20");
    let entered = runtime.exec(&bundle, &[], &["/prober", "fork", "40"]).ok();
    let entered: Value = serde_json::from_str(&entered).unwrap();
    assert!(entered["came_to_be"].as_u64().is_some_and(|count| count < 20), "{entered}");
}

#[test]
fn cve_2026_47262_a_list_of_users_without_end_is_not_read_to_it() {
    let test = "cve_2026_47262_a_list_of_users_without_end_is_not_read_to_it";
    let Some(runtime) = Runtime::for_test(test) else { return };
    type Make = fn(&Path);
    let prepare: [(&str, Make); 4] = [
        ("a hole", |path| std::fs::File::create(path).unwrap().set_len(1 << 36).unwrap()),
        ("a line", |path| std::fs::write(path, vec![b'x'; 8 << 20]).unwrap()),
        ("a pipe", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
        ("a device", |path| symlink("/dev/zero", path).unwrap()),
    ];
    for (what, make) in prepare {
        let bundle = runtime.bundle(&["report"]);
        let path = bundle.root().join("etc/passwd");
        std::fs::remove_file(&path).unwrap();
        make(&path);
        // As little memory as a container can have here: what the runtime reads for it counts.
        let limited = json!({ "linux": { "resources": { "memory": { "limit": 64 << 20 } } } });
        let begun = Instant::now();
        let report = runtime.report(&bundle.with(limited));
        assert!(begun.elapsed() < patience(10), "{what} took {:?}", begun.elapsed());
        assert_eq!(report["env"]["HOME"], "/", "{what}");
    }
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders =
        ["tests", "../runtime/oci/tests/containers", "../runtime/oci/src/seccomp/compile", "../runtime/sys/src"];
    let mut sources = String::new();
    for folder in folders.map(|folder| home.join(folder)) {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            return skipped("every_test_that_the_table_names_is_there", "the sources are elsewhere");
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|kind| kind == "rs") {
                sources += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let table = include_str!("runtime_attacks.rs").lines().take_while(|line| line.starts_with("//!"));
    let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '*');
    let names: BTreeSet<&str> = table.flat_map(|line| line.split(|c| !part(c))).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| name.matches('_').count() > 2).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        let wanted = name.strip_suffix('*').map_or_else(|| format!("fn {name}("), |begin| format!("fn {begin}"));
        assert!(sources.contains(&wanted), "there is no {wanted}");
    }
}
