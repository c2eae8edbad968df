//! Names in the kernel that two agents could be given by mistake: each belongs to one agent of the machine.
//!
//! ```text
//!   /run/portreeve-claims/<SHA-256 of the run directory>.json   {"version": 1, "run": "/run/a", "names": [...]}
//!        locked while that agent lives; what it says also holds while the agent is stopped and its pods run
//! ```
//!
//! An agent cleans up below its cgroup root, on its bridge and in its table whatever it does not know. Hence it must
//! be sure that the names are its own before it touches anything.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::config::Config;

/// Root's alone, unlike `/run/lock`, where anybody could put something in our way.
const CLAIMS: &str = "/run/portreeve-claims";

/// How long the lock of an agent that is gone may outlive it: what a killed agent had just forked keeps the lock
/// until it executes its program.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long other agents may take to claim their names.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// The names of an agent, its own for as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    directory: PathBuf,
    path: PathBuf,
    run: PathBuf,
    _lock: Flock<File>,
}

/// Of what is written here. A newer one may have names of kinds that are not known here.
const VERSION: u32 = 1;

/// What a claim's file says.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    run: PathBuf,
    names: BTreeSet<Name>,
}

/// A name that the kernel gives to one thing only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Name {
    /// With everything below it.
    CgroupRoot(String),
    /// In the network namespace with this inode.
    Bridge(String, u64),
    /// In the network namespace with this inode.
    NftTable(String, u64),
}

impl Name {
    /// Whether one thing would be meant by both.
    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::CgroupRoot(a), Self::CgroupRoot(b)) => Path::new(a).starts_with(b) || Path::new(b).starts_with(a),
            _ => self == other,
        }
    }

    fn flag(&self) -> &'static str {
        match self {
            Self::CgroupRoot(_) => "--cgroup-root",
            Self::Bridge(..) => "--bridge",
            Self::NftTable(..) => "--nft-table",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CgroupRoot(path) => write!(f, "cgroupRoot {path}"),
            Self::Bridge(name, _) => write!(f, "bridge {name}"),
            Self::NftTable(name, _) => write!(f, "nftTable {name}"),
        }
    }
}

impl Claim {
    /// Claims the names of the agent with this configuration, whose run directory exists.
    ///
    /// # Errors
    /// When one of them belongs to another agent that runs, or that is stopped while its pods run.
    pub(crate) fn take(config: &Config) -> anyhow::Result<Self> {
        let namespace = Path::new("/proc/self/ns/net");
        let netns = fs::metadata(namespace).with_context(|| format!("reading {}", namespace.display()))?.ino();
        let names = [
            Name::CgroupRoot(config.cgroup_root.clone()),
            Name::Bridge(config.bridge.clone(), netns),
            Name::NftTable(config.nft_table.clone(), netns),
        ];
        Self::take_in(Path::new(CLAIMS), &config.run, names.into())
    }

    fn take_in(directory: &Path, run: &Path, mut names: BTreeSet<Name>) -> anyhow::Result<Self> {
        // An agent is the same by whatever link it is reached.
        let run = run.canonicalize().with_context(|| format!("resolving {}", run.display()))?;
        let _turn = turn(directory)?;
        let own = format!("{}.json", hex::encode(Sha256::digest(run.as_os_str().as_encoded_bytes())));
        let path = directory.join(&own);
        let listing = || format!("listing {}", directory.display());
        for entry in fs::read_dir(directory).with_context(listing)? {
            let entry = entry.with_context(listing)?;
            let other = entry.path();
            // What is no file was not put there by an agent.
            let is_file = entry.file_type().with_context(listing)?.is_file();
            if is_file && other != path && other.extension().is_some_and(|extension| extension == "json") {
                judge(&other, &names, &run)?;
            }
        }
        // The file is replaced, never changed: a claim is whole whenever its agent is killed.
        let before = match open(&path) {
            Ok(file) => Some(
                lock(file, LOCK_PATIENCE)
                    .with_context(|| format!("locking {}", path.display()))?
                    .with_context(|| format!("another agent uses {}", run.display()))?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
        };
        // Pods that were started under other names still use those.
        if before.is_some() && has_pods(&run) {
            names.extend(read(&path)?.record().map(|record| record.names).unwrap_or_default());
        }
        let beside = path.with_extension("new");
        let written = || format!("writing {}", beside.display());
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside);
        let file = file.with_context(written)?;
        let lock = lock(file, LOCK_PATIENCE).with_context(written)?.with_context(written)?;
        serde_json::to_writer(&*lock, &Record { version: VERSION, run: run.clone(), names }).with_context(written)?;
        fs::rename(&beside, &path).with_context(written)?;
        Ok(Self { directory: directory.to_owned(), path, run, _lock: lock })
    }

    /// Gives the names back, unless pods still use them.
    ///
    /// # Errors
    /// When the claim's file cannot be removed.
    pub(crate) fn release(self) -> anyhow::Result<()> {
        let _turn = turn(&self.directory)?;
        if has_pods(&self.run) {
            return Ok(());
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Locks an open file, or tells by `None` that somebody else holds the lock for longer than `patience`.
pub(crate) fn lock(mut file: File, patience: Duration) -> io::Result<Option<Flock<File>>> {
    let begin = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((unlocked, Errno::EWOULDBLOCK)) if begin.elapsed() < patience => file = unlocked,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, other)) => return Err(other.into()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until no other agent reads or writes claims.
fn turn(directory: &Path) -> anyhow::Result<Flock<File>> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("making {}", directory.display()));
        }
        _ => {}
    }
    let locking = || format!("locking {}", directory.display());
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(directory).with_context(locking)?;
    let facts = opened.metadata().with_context(locking)?;
    if facts.uid() != nix::unistd::geteuid().as_raw() || facts.mode() & 0o022 != 0 {
        bail!("{} can be written by others than root; remove it, and it is made anew", directory.display());
    }
    let turn = lock(opened, TURN_PATIENCE).with_context(locking)?;
    turn.with_context(|| {
        format!(
            "another agent holds the lock of {} for more than {TURN_PATIENCE:?}; is it stopped?",
            directory.display()
        )
    })
}

/// Refuses names that the claim in this file has; removes it when nobody can need it any more. `own` is the run
/// directory of the agent that wants the names.
fn judge(path: &Path, names: &BTreeSet<Name>, own: &Path) -> anyhow::Result<()> {
    let locking = || format!("locking {}", path.display());
    let record = match read(path)? {
        Reading::Record(record) => record,
        Reading::Newer { run: Some(run) } if has_pods(&run) => {
            bail!(
                "the agent of {} is of a newer version, and which names are its own cannot be read from {}; use that \
                 version for this agent too",
                run.display(),
                path.display()
            );
        }
        Reading::Newer { .. } | Reading::Damaged => {
            let file = open(path).with_context(locking)?;
            if lock(file, LOCK_PATIENCE).with_context(locking)?.is_none() {
                bail!(
                    "{} belongs to an agent that runs, and which names are its own cannot be read from it (another \
                     version, or damaged); restart that agent, or use its version for this one too",
                    path.display()
                );
            }
            return Ok(());
        }
    };
    let run = record.run.display();
    let met = names.iter().find_map(|name| Some((name, record.names.iter().find(|other| name.meets(other))?)));
    let patience = if met.is_some() { LOCK_PATIENCE } else { Duration::ZERO };
    let alive = lock(open(path).with_context(locking)?, patience).with_context(locking)?.is_none();
    let pods = has_pods(&record.run);
    if let Some((name, other)) = met.filter(|_| alive || pods) {
        // Moved, and a link put in its place: these are our own pods, and nobody's to remove.
        if record.run.canonicalize().is_ok_and(|leads| leads == own) {
            bail!(
                "{run} leads to {own} now, and the pods in it were started when {run} was the directory itself; put it \
                 back (`rm {run} && mv {own} {run}`) and start the agent again",
                own = own.display()
            );
        }
        let belongs = if name == other {
            format!("{name} belongs to the agent of {run}")
        } else {
            format!("{name} meets {other}, which belongs to the agent of {run}")
        };
        let stopped = if alive {
            String::new()
        } else {
            let sandboxes = record.run.join("sandboxes");
            format!(
                ", which is stopped while its pods stay (in {}; remove it once they are drained)",
                sandboxes.display()
            )
        };
        bail!("{belongs}{stopped}; give this agent another {}", name.flag());
    }
    if !alive && !record.run.exists() {
        fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

/// What could be read of a claim's file.
#[derive(Debug)]
enum Reading {
    Record(Record),
    /// By a newer version, of the agent with this run directory.
    Newer {
        run: Option<PathBuf>,
    },
    Damaged,
}

impl Reading {
    fn record(self) -> Option<Record> {
        match self {
            Self::Record(record) => Some(record),
            Self::Newer { .. } | Self::Damaged => None,
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Reading> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        run: Option<PathBuf>,
    }
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    if let Ok(Head { version, run }) = serde_json::from_slice(&bytes)
        && version > VERSION
    {
        return Ok(Reading::Newer { run });
    }
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Reading::Record(record)),
        Err(error) => {
            // Written whole or not at all: what cut it short was the end of the machine, and of the pods with it.
            warn!(path = %path.display(), %error, "damaged claim");
            Ok(Reading::Damaged)
        }
    }
}

/// Whether an agent left pods in its run directory; one that cannot be looked at may have some.
fn has_pods(run: &Path) -> bool {
    match fs::read_dir(run.join("sandboxes")) {
        Ok(mut sandboxes) => sandboxes.next().is_some(),
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn claims(&self) -> PathBuf {
            self.0.path().join("claims")
        }

        fn files(&self) -> usize {
            fs::read_dir(self.claims()).unwrap().count()
        }

        fn run(&self, name: &str) -> PathBuf {
            let run = self.0.path().join(name);
            fs::create_dir_all(&run).unwrap();
            run
        }

        fn claim(&self, run: &str, names: &[Name]) -> Result<Claim, String> {
            Claim::take_in(&self.claims(), &self.run(run), names.iter().cloned().collect())
                .map_err(|error| format!("{error:#}"))
        }
    }

    fn cgroup(path: &str) -> Name {
        Name::CgroupRoot(path.to_owned())
    }

    #[test]
    fn a_name_of_a_running_agent_is_refused_with_its_owner() {
        let machine = Machine::new();
        let names = [cgroup("/a"), Name::Bridge("br".into(), 1), Name::NftTable("t".into(), 1)];
        let _a = machine.claim("a", &names).unwrap();
        for name in names {
            let error = machine.claim("b", std::slice::from_ref(&name)).unwrap_err();
            let owner = machine.run("a").display().to_string();
            assert!(error.contains(&format!("{name} belongs to the agent of {owner}")), "{error}");
            assert!(error.contains(name.flag()), "{error}");
        }
        let others = [cgroup("/ab"), Name::Bridge("br".into(), 2), Name::NftTable("t".into(), 2)];
        machine.claim("b", &others).unwrap();
    }

    #[test]
    fn cgroup_roots_within_each_other_meet() {
        let machine = Machine::new();
        let _a = machine.claim("a", &[cgroup("/a/b")]).unwrap();
        for (path, meets) in [("/a", true), ("/a/b/c", true), ("/a/b", true), ("/a/bc", false), ("/b", false)] {
            assert_eq!(machine.claim("b", &[cgroup(path)]).is_err(), meets, "{path}");
        }
    }

    #[test]
    fn the_names_of_a_stopped_agent_are_its_own_while_it_has_pods() {
        let machine = Machine::new();
        drop(machine.claim("a", &[cgroup("/a")]).unwrap());
        fs::create_dir_all(machine.run("a").join("sandboxes/one")).unwrap();
        let error = machine.claim("b", &[cgroup("/a")]).unwrap_err();
        assert!(error.contains("stopped"), "{error}");
        // Under another name the pods that it has keep the first one.
        drop(machine.claim("a", &[cgroup("/other")]).unwrap());
        machine.claim("b", &[cgroup("/a")]).unwrap_err();
        machine.claim("b", &[cgroup("/other")]).unwrap_err();
        fs::remove_dir(machine.run("a").join("sandboxes/one")).unwrap();
        machine.claim("b", &[cgroup("/a")]).unwrap();
    }

    #[test]
    fn a_claim_goes_with_its_run_directory_or_when_it_is_released() {
        let machine = Machine::new();
        drop(machine.claim("a", &[cgroup("/a")]).unwrap());
        fs::create_dir_all(machine.run("a").join("sandboxes/one")).unwrap();
        fs::remove_dir_all(machine.run("a")).unwrap();
        let b = machine.claim("b", &[cgroup("/a")]).unwrap();
        assert_eq!(machine.files(), 1);
        b.release().unwrap();
        assert_eq!(machine.files(), 0);
    }

    #[test]
    fn a_claim_whose_file_is_gone_is_released_all_the_same() {
        let machine = Machine::new();
        let a = machine.claim("a", &[cgroup("/a")]).unwrap();
        fs::remove_file(&a.path).unwrap();
        a.release().unwrap();
        let a = machine.claim("a", &[cgroup("/a")]).unwrap();
        fs::remove_dir_all(machine.claims()).unwrap();
        a.release().unwrap();
        machine.claim("b", &[cgroup("/a")]).unwrap();
    }

    #[test]
    fn an_agent_takes_its_own_names_again_and_only_once() {
        let machine = Machine::new();
        let a = machine.claim("a", &[cgroup("/a")]).unwrap();
        let error = machine.claim("a", &[cgroup("/a")]).unwrap_err();
        assert!(error.contains("another agent uses"), "{error}");
        drop(a);
        std::os::unix::fs::symlink(machine.run("a"), machine.0.path().join("link")).unwrap();
        fs::create_dir_all(machine.run("a").join("sandboxes/one")).unwrap();
        machine.claim("link", &[cgroup("/a")]).unwrap();
    }

    #[test]
    fn a_run_directory_that_was_moved_and_linked_back_is_no_other_agents() {
        let machine = Machine::new();
        drop(machine.claim("a", &[cgroup("/a")]).unwrap());
        let (run, moved) = (machine.run("a"), machine.0.path().join("moved"));
        fs::create_dir_all(run.join("sandboxes/one")).unwrap();
        fs::rename(&run, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &run).unwrap();
        let error = machine.claim("a", &[cgroup("/a")]).unwrap_err();
        assert!(error.contains(&format!("{} leads to {} now", run.display(), moved.display())), "{error}");
        assert!(!error.contains("drained"), "{error}");
        fs::remove_file(&run).unwrap();
        fs::rename(&moved, &run).unwrap();
        machine.claim("a", &[cgroup("/a")]).unwrap();
    }

    #[test]
    fn of_agents_that_start_at_once_one_gets_the_name() {
        let machine = Machine::new();
        let won = std::thread::scope(|scope| {
            let start = |at: usize| {
                let machine = &machine;
                scope.spawn(move || machine.claim(&format!("run{at}"), &[cgroup("/a")]))
            };
            let all: Vec<_> = (0..4).map(start).collect();
            let claims: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
            claims.iter().filter(|claim| claim.is_ok()).count()
        });
        assert_eq!(won, 1);
    }

    #[test]
    fn a_damaged_claim_stops_nobody() {
        let machine = Machine::new();
        fs::create_dir(machine.claims()).unwrap();
        // Nor does what no agent has put there.
        nix::unistd::mkfifo(&machine.claims().join("fifo.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(machine.claims().join("folder.json")).unwrap();
        fs::write(machine.claims().join("x.json"), "{").unwrap();
        machine.claim("a", &[cgroup("/a")]).unwrap();
    }

    #[test]
    fn what_a_running_agent_claims_counts_also_where_it_cannot_be_read() {
        let machine = Machine::new();
        let a = machine.claim("a", &[cgroup("/a")]).unwrap();
        for text in ["{", r#"{"version": 2, "run": "/nowhere", "names": [{"pool": "x"}]}"#] {
            fs::write(&a.path, text).unwrap();
            let error = machine.claim("b", &[cgroup("/b")]).unwrap_err();
            assert!(error.contains("belongs to an agent that runs"), "{error}");
        }
        let run = machine.run("a");
        let newer = serde_json::json!({ "version": 2, "run": run, "names": [{ "pool": "x" }] });
        fs::write(&a.path, newer.to_string()).unwrap();
        drop(a);
        machine.claim("b", &[cgroup("/b")]).unwrap();
        fs::create_dir_all(run.join("sandboxes/one")).unwrap();
        let error = machine.claim("b", &[cgroup("/b")]).unwrap_err();
        assert!(error.contains("newer version"), "{error}");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_no_place_for_claims() {
        use std::os::unix::fs::PermissionsExt;
        let machine = Machine::new();
        fs::create_dir(machine.claims()).unwrap();
        fs::set_permissions(machine.claims(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = machine.claim("a", &[cgroup("/a")]).unwrap_err();
        assert!(error.contains("can be written by others"), "{error}");
    }
}
