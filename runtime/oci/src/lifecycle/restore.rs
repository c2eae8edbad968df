//! Files of CRIU's into a container.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{ContainerState, LinuxNamespace, LinuxNamespaceType, Spec};
use portreeve_sys::clone::{Clone3, NEW_IPC, NEW_MOUNT, NEW_NET, NEW_PID, NEW_TIME, NEW_UTS, clone3};
use portreeve_sys::process::{Exit, pidfd_open, wait};
use portreeve_sys::socket::message_pair;

use super::checkpoint::{NETWORK, NULL, PROCESSES};
use super::record::ProcessRecord;
use super::store::link_of;
use super::{CgroupChoice, Container, CreatedContainer, Id, LifecycleError, Root, Rootless};
use crate::Pid;
use crate::cgroup::{Cgroup, Join};
use crate::config::Config;
use crate::create::{self, RootFs, open_joins};
use crate::criu::{self, Criu, CriuError, CriuOptions, FIRST_FD, Images, Notice, Request, Restore, Terms};
use crate::error::{CreateError, SetupError, Step, Warning};
use crate::hooks::{Hooks, Point, Terms as HookTerms};
use crate::init::{attach_root, make_mount_points, place_of_null, place_of_root};
use crate::plan::mounts;
use crate::prepare::Wanted;
use crate::spawn::describe;
use crate::{CgroupMode, gate, handshake, prepare, rdt};

/// CRIU's log.
const LOG: &str = "restore.log";

/// How to restore a container.
#[derive(Debug)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// What is said to CRIU for a checkpoint and for a restoration.
    pub criu: CriuOptions,
    /// Whether the caller lacks the privileges of the host's root.
    pub rootless: Rootless,
    /// Another label for its processes, with the security module's name: `apparmor:LABEL`.
    pub lsm_profile: Option<String>,
    /// Another SELinux context for its mounts.
    pub lsm_mount_context: Option<String>,
}

impl RestoreOptions {
    /// What the bundle says, and nothing else.
    #[must_use]
    pub fn new(criu: CriuOptions) -> Self {
        Self { criu, rootless: Rootless::No, lsm_profile: None, lsm_mount_context: None }
    }
}

/// What CRIU has made.
struct Restored {
    pid: Pid,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
    warnings: Vec<Warning>,
}

impl Root {
    /// Makes a container from the bundle's configuration, and its processes from the images of a checkpoint; they run
    /// then. Standard streams that were pipes of its maker's are this process's now.
    ///
    /// The caller is as that of [`create()`](crate::create()), and becomes the parent of the container's first process.
    ///
    /// # Errors
    /// [`LifecycleError`]; nothing is left of the container then, or what could not be removed is left for
    /// [`Container::delete`].
    pub fn restore(
        &self,
        id: &Id,
        bundle: &Path,
        mut config: Config,
        options: &RestoreOptions,
    ) -> Result<CreatedContainer, LifecycleError> {
        let criu = Criu::find(options.criu.program.as_deref())?;
        let images = Images::open(&options.criu.images, options.criu.work.as_deref())?;
        let (mut container, lock) = self.reserve_for(id, bundle, &mut config, options.rootless)?;
        match container.restore(&config, options, &criu, &images) {
            Ok(restored) => {
                let Restored { pid, pidfd, terminal, mut warnings } = restored;
                warnings.extend(config.warnings.into_iter().map(|what| Warning { what, errno: None }));
                Ok(CreatedContainer { container, pidfd, pid, terminal, warnings })
            }
            Err(error) => Err(container.discard(lock, error)),
        }
    }
}

impl Container {
    fn restore(
        &mut self,
        config: &Config,
        options: &RestoreOptions,
        criu: &Criu,
        images: &Images,
    ) -> Result<Restored, LifecycleError> {
        let spec = &config.spec;
        let plan = criu::plan(spec).map_err(CreateError::from)?;
        let hooks = Hooks::plan(spec.hooks().as_ref(), create::state(spec, ContainerState::Creating));
        let hooks = hooks.map_err(CreateError::from)?.about(self.id.as_str(), &self.record.bundle);
        let descriptors = images.descriptors()?;
        let copying = |source| self.file("copying a descriptor for", "", source);
        let mut streams = Streams::of(&descriptors).map_err(copying)?;
        let joins = open_joins(&plan.namespaces).map_err(CriuError::from)?;
        let joined = streams.add_namespaces(&joins).map_err(copying)?;
        self.record.descriptors = descriptors_now(descriptors);
        self.record.restored = true;
        let (cgroup, passed_over) = self.occupy(config, &CgroupChoice::FromConfig, options.rootless)?;
        let (join, mut warnings, _held) = match &cgroup {
            Some(cgroup) => {
                let claimed = create::claim(cgroup, self.record.cgroup_made);
                if let Err(error) = &claimed {
                    self.forget_taken(error)?;
                }
                let (new, held) = claimed?;
                let (join, warnings) = create::limit(cgroup, new, spec, options.rootless, false)?;
                (join, warnings, Some(held))
            }
            None => (Join::of_nothing(), Vec::new(), None),
        };
        warnings.extend(passed_over);
        // CRIU puts the processes into their cgroups itself, before they have any memory: its own is not the container's.
        let ignores = options.criu.cgroups == CgroupMode::Ignore;
        let join = rdt::join(if ignores { join } else { Join::of_nothing() }, spec, self.id.as_str())?;

        let root = self.prepare_root(spec, cgroup.as_ref()).map_err(CriuError::from)?;
        let fds: Vec<BorrowedFd<'_>> = streams.fds.iter().map(AsFd::as_fd).collect();
        let hierarchies = cgroup.as_ref().map(Cgroup::mount_sources).unwrap_or_default();
        let cover = self.path.clone();
        let externals = externals(plan.external_mounts(&hierarchies), place_of_null(&cover));
        let request = Request::restore(
            &options.criu,
            &Restore {
                root: &place_of_root(&cover),
                cgroup: cgroup.as_ref().map(Cgroup::path),
                externals: &externals,
                inherited: &streams.inherited,
                joined: &joined,
                lsm_profile: options.lsm_profile.as_deref(),
                lsm_mount_context: options.lsm_mount_context.as_deref(),
                log: LOG,
            },
        );
        let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let terms = Terms {
            namespaces: NEW_MOUNT,
            first: &|| attach_root(&cover, root.as_fd()),
            join: Some(&join),
            // Its own words would come between those of the program. A job of a shell has the terminal of CRIU.
            streams: if options.criu.shell_job { own.map(Some) } else { [None; 3] },
            images: Some(images),
            fds: &fds,
            umask: None,
        };
        let mut refused = None;
        let mut terminal = None;
        let mut process = None;
        let done = criu.begin(&terms)?.ask("restore the container", &request, |notice, fds| {
            let heeded = match notice.script.as_str() {
                "setup-namespaces" => run_hooks(&hooks, notice),
                "post-restore" => self.keep(notice, cgroup.as_ref()).map(|kept| process = Some(kept)),
                "orphan-pts-master" => {
                    terminal = fds.into_iter().next();
                    Ok(())
                }
                _ => Ok(()),
            };
            heeded.map_err(|error| refused = Some(error)).is_ok()
        });
        match (done, refused, process) {
            (Ok(_), _, Some((pid, pidfd))) => Ok(Restored { pid, pidfd, terminal, warnings }),
            (_, Some(refused), _) => Err(refused),
            (Err(error), ..) => Err(images.explain(error, LOG).into()),
            (Ok(_), ..) => {
                let reason = "it did not say which process it has restored".to_owned();
                Err(CriuError::Failed { verb: "restore the container", reason }.into())
            }
        }
    }

    /// The root file system, detached, with the mount points that it lacks: it may be another one than that of the
    /// checkpoint.
    fn prepare_root(&self, spec: &Spec, cgroup: Option<&Cgroup>) -> Result<OwnedFd, SetupError> {
        let rootfs = RootFs::Directory(self.record.rootfs.clone());
        let failed = |error: crate::plan::PlanError| io::Error::other(error.to_string());
        let ops = mounts::plan(spec).map_err(failed).step("reading the mounts", "")?;
        let wanted = Wanted {
            rootfs: &rootfs,
            receives: false,
            mounts: &ops,
            cgroup,
            devices: &[],
            user_namespace: None,
            owner: (0, 0),
            label: None,
            rootless: Rootless::No,
        };
        let own = wanted.open()?;
        apart(NEW_MOUNT, || make_mount_points(&self.path, own.root.as_fd(), &ops, &own.sources))?;
        prepare::root(&rootfs, false, None, (0, 0), None)
    }

    /// Writes down the restored process, which does not run yet: one that nobody knows of never does.
    fn keep(&mut self, notice: &Notice, cgroup: Option<&Cgroup>) -> Result<(Pid, OwnedFd), LifecycleError> {
        let failed = |error| self.file("looking for the process of", "", error);
        let pid = Pid::from_raw(notice.pid).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let pidfd = pidfd_open(pid).map_err(failed)?;
        let process = ProcessRecord::of(pid).map_err(failed)?;
        if let Some(cgroup) = cgroup
            && !cgroup.processes()?.contains(&pid)
        {
            let reason = "the images do not say in which cgroup its processes were: restore it with \
                          --manage-cgroups-mode ignore, as it was checkpointed"
                .to_owned();
            return Err(CriuError::Failed { verb: "restore the container", reason }.into());
        }
        gate::passed(self.directory.as_fd()).map_err(|error| self.file("making the gate in", "", error))?;
        self.record.process = Some(process);
        self.save()?;
        Ok((pid, pidfd))
    }
}

/// Those of a creation that run outside the container; the others have left what they did in the images.
fn run_hooks(hooks: &Hooks, notice: &Notice) -> Result<(), LifecycleError> {
    let run = |point| hooks.run(point, notice.pid, HookTerms::default());
    let ran = run(Point::Prestart).and_then(|()| run(Point::CreateRuntime));
    ran.map_err(|error| CreateError::from(error).into())
}

/// Mounts of the host, in CRIU's words: `mnt[NAME]:SOURCE`.
fn externals(binds: Vec<(PathBuf, PathBuf)>, null: PathBuf) -> Vec<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt as _;
    let each = |(name, source): (PathBuf, PathBuf)| {
        [b"mnt[", name.as_os_str().as_bytes(), b"]:", source.as_os_str().as_bytes()].concat()
    };
    binds.into_iter().chain([(PathBuf::from(NULL), null)]).map(each).collect()
}

/// What CRIU gets of ours: streams that were the first maker's, and namespaces.
struct Streams {
    fds: Vec<OwnedFd>,
    /// Name in the images, and number in CRIU's process.
    inherited: Vec<(String, i32)>,
}

impl Streams {
    /// `descriptors` is what the streams of the first process were at the checkpoint.
    fn of(descriptors: &[String]) -> io::Result<Self> {
        let mut streams = Self { fds: Vec::new(), inherited: Vec::new() };
        let own = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        for (name, own) in descriptors.iter().zip(own) {
            let known = streams.inherited.iter().any(|(known, _)| known == name);
            if is_pipe(name) && !known {
                streams.add(name.clone(), own.try_clone_to_owned()?);
            }
        }
        Ok(streams)
    }

    fn add(&mut self, name: String, fd: OwnedFd) {
        // At most as many as streams and namespaces.
        let number = FIRST_FD.saturating_add(i32::try_from(self.fds.len()).unwrap_or(i32::MAX));
        self.fds.push(fd);
        self.inherited.push((name, number));
    }

    /// Adds namespaces that are not restored; answers those that CRIU joins by a path.
    fn add_namespaces(&mut self, joins: &[(u64, OwnedFd)]) -> io::Result<Vec<(&'static str, PathBuf)>> {
        let mut joined = Vec::new();
        for (kind, fd) in joins {
            let name = match *kind {
                NEW_NET => {
                    self.add(NETWORK.to_owned(), fd.try_clone()?);
                    continue;
                }
                NEW_PID => {
                    self.add(PROCESSES.to_owned(), fd.try_clone()?);
                    continue;
                }
                NEW_IPC => "ipc",
                NEW_UTS => "uts",
                NEW_TIME => "time",
                _ => continue,
            };
            joined.push((name, PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))));
        }
        Ok(joined)
    }
}

fn is_pipe(descriptor: &str) -> bool {
    descriptor.starts_with("pipe:[")
}

/// What the streams of a restored process are: those of this process that were pipes of another.
fn descriptors_now(before: Vec<String>) -> Vec<String> {
    before.into_iter().zip(0..).map(|(was, number)| if is_pipe(&was) { link_of(number) } else { was }).collect()
}

/// Does something in a process of its own, with new namespaces that end with it.
fn apart(namespaces: u64, act: impl Fn() -> Result<(), SetupError>) -> Result<(), SetupError> {
    let failed = "making a process of its own";
    let (ours, theirs) = message_pair().step(failed, "")?;
    let child = clone3(&Clone3 { namespaces, ..Clone3::default() }, || match act() {
        Ok(()) => 0,
        Err(error) => {
            // Who does not hear it sees the code.
            let _ = handshake::failed(theirs.as_fd(), &error);
            1
        }
    })
    .step(failed, "")?;
    drop(theirs);
    let said = handshake::next(ours.as_fd()).step(failed, "");
    let ended = wait(child.pidfd.as_fd()).step(failed, "")?;
    match said? {
        handshake::Message::Failed(error) => Err(error),
        _ if ended == Exit::Code(0) => Ok(()),
        _ => Err(io::Error::other(format!("it {}", describe(ended)))).step(failed, ""),
    }
}

/// Adds the time namespace that CRIU gives what it restores, so that clocks go on where they stood.
pub(super) fn with_clocks(mut spec: Spec) -> Spec {
    let Some(linux) = spec.linux_mut() else { return spec };
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    let has = namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Time);
    if !has && Path::new("/proc/self/ns/time").exists() {
        let mut time = LinuxNamespace::default();
        time.set_typ(LinuxNamespaceType::Time);
        namespaces.push(time);
    }
    spec
}
