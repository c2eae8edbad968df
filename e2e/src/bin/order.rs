//! Lists the functions that `portreeve runtime` goes through, for the linker to put beside each other.
//!
//! A start of a program of 20 MB that needs 600 KB of it reads pages all over the file, and the kernel maps 64 KiB around
//! each one: memory and time. `e2e/order` runs this; what it prints is `agent/cli/order.ld`, a linker script that names
//! each function in the order of its first call. Functions are found by stepping through every verb, one instruction at a
//! time (ptrace(2)), so that the list is whole and no program is needed that a machine may not have.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc::{PTRACE_EVENT_EXEC, c_int};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use portreeve_e2e::Bundle;
use serde_json::json;

/// Crates whose constants a start reads. Constants have no names by which they could be chosen one by one.
const CONSTANTS: [&str; 12] = [
    "portreeve_oci",
    "portreeve_sys",
    "oci_spec",
    "serde_json",
    "serde_core",
    "rustix",
    "nix",
    "anyhow",
    "std",
    "alloc",
    "core",
    "hashbrown",
];

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [program] = arguments.as_slice() else { bail!("usage: order PROGRAM (with its symbols)") };
    let functions = Functions::of(program)?;
    let mut called = Called::default();
    for verb in ["run", "create", "start", "exec", "state", "delete"] {
        let before = called.in_order.len();
        Scene::set(program, verb)?.play(verb, &functions, &mut called)?;
        eprintln!("{verb}: {} functions that no verb before it called", called.in_order.len() - before);
    }
    let script = script(&functions, &called, &members_of_libc()?);
    std::io::stdout().write_all(script.as_bytes()).context("writing the linker script")
}

/// The functions of a program by their addresses; several names may stand for one.
struct Functions(BTreeMap<u64, Vec<String>>);

impl Functions {
    fn of(program: &Path) -> Result<Self> {
        let mut functions: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for line in symbols(program, &[])?.lines() {
            if let [address, kind, name] = line.splitn(3, ' ').collect::<Vec<_>>()[..]
                && "tTwWi".contains(kind)
            {
                functions.entry(u64::from_str_radix(address, 16)?).or_default().push(name.to_owned());
            }
        }
        ensure!(functions.len() > 1000, "{} has no symbols: build it with strip = \"none\"", program.display());
        Ok(Self(functions))
    }

    /// Where the function begins that an instruction is in; `None` for what is not of the program.
    fn at(&self, instruction: u64) -> Option<u64> {
        let last = *self.0.last_key_value()?.0;
        let (start, _) = self.0.range(..=instruction).next_back()?;
        (instruction <= last).then_some(*start)
    }
}

/// What nm(1) prints.
fn symbols(file: &Path, more: &[&str]) -> Result<String> {
    let output = Command::new("nm").arg("--defined-only").args(more).arg(file).output().context("running nm")?;
    ensure!(output.status.success(), "nm {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// In which member of the C library's archive each function is; without those that are in several.
fn members_of_libc() -> Result<BTreeMap<String, String>> {
    let output = Command::new("cc").arg("-print-file-name=libc.a").output().context("asking cc for the C library")?;
    let archive = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    let mut members: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in symbols(&archive, &["--print-file-name"])?.lines() {
        // libc.a:MEMBER:ADDRESS KIND NAME
        let Some((file, symbol)) = line.rsplit_once(':') else { continue };
        let (Some((_, member)), Some(name)) = (file.rsplit_once(':'), symbol.split(' ').nth(2)) else { continue };
        members.entry(name.to_owned()).or_default().insert(member.to_owned());
    }
    members.retain(|_, members| members.len() == 1);
    Ok(members.into_iter().filter_map(|(name, members)| Some((name, members.into_iter().next()?))).collect())
}

/// The functions that were called, by the address at which each begins.
#[derive(Default)]
struct Called {
    known: HashSet<u64>,
    in_order: Vec<u64>,
}

impl Called {
    fn add(&mut self, function: u64) {
        if self.known.insert(function) {
            self.in_order.push(function);
        }
    }
}

/// A container of its own for each verb.
struct Scene<'a> {
    program: &'a Path,
    home: tempfile::TempDir,
}

const ID: &str = "ordered";

impl<'a> Scene<'a> {
    fn set(program: &'a Path, verb: &str) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("prt-order-").tempdir().context("making a directory")?;
        let name = home.path().file_name().context("a name")?.to_string_lossy().into_owned();
        // What another process is executed in has to be there until it is deleted.
        let arguments: &[&str] = if verb == "exec" { &["/bin/sleep", "1000"] } else { &["/bin/true"] };
        // What engines give to every container.
        let linux = json!({ "linux": {
            "resources": { "memory": { "limit": 64 << 20 }, "pids": { "limit": 64 }, "cpu": { "shares": 512 } },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
                "syscalls": [{ "names": ["swapon", "reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
            },
        } });
        let options = json!(["nosuid", "noexec", "nodev", "relatime", "ro"]);
        let cgroup =
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options });
        let file =
            json!({ "destination": "/etc/hosts", "source": "/etc/hosts", "options": ["rbind", "rprivate", "ro"] });
        let bundle = Bundle::plain(home.path().join("bundle"), ID, &format!("/{name}"), arguments).with(linux);
        bundle.with_mount(cgroup).with_mount(file).save();
        Ok(Self { program, home })
    }

    /// Goes through one verb step by step, after what has to be before it.
    fn play(self, verb: &str, functions: &Functions, called: &mut Called) -> Result<()> {
        let before: &[&str] = match verb {
            "start" | "state" | "delete" => &["create"],
            "exec" => &["create", "start"],
            _ => &[],
        };
        for verb in before {
            let status = self.command(verb).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
            ensure!(status.success(), "{verb}: {status}");
        }
        trace(self.command(verb), self.program, functions, called).with_context(|| format!("stepping through {verb}"))
    }

    fn command(&self, verb: &str) -> Command {
        let bundle = self.home.path().join("bundle");
        // It stops before it becomes the program, so that no instruction is missed.
        let mut command = Command::new("sh");
        command.args(["-c", r#"[ -z "$STOPPED" ] || kill -STOP $$; exec "$@""#, "sh"]);
        command.arg(self.program).args(["runtime", "--root"]).arg(self.home.path().join("state")).arg(verb);
        match verb {
            "run" | "create" => command.arg("--bundle").arg(bundle).arg(ID),
            "exec" => command.args([ID, "/bin/true"]),
            "delete" => command.args(["--force", ID]),
            _ => command.arg(ID),
        };
        command
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        // Mostly it is gone: what is left is that of a verb that failed, or did not delete it.
        let _ = self.command("delete").stderr(Stdio::null()).status();
    }
}

/// Runs a command to its end, and steps through it and its children as long as they are the program.
fn trace(mut command: Command, program: &Path, functions: &Functions, called: &mut Called) -> Result<()> {
    let null = Stdio::null;
    let child = command.env("STOPPED", "yes").stdin(null()).stdout(null()).spawn()?;
    let shell = Pid::from_raw(c_int::try_from(child.id())?);
    waitpid(shell, Some(WaitPidFlag::WUNTRACED))?;
    let births = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    ptrace::seize(shell, births | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL)?;
    kill(shell, Signal::SIGCONT)?;

    let ours = std::fs::metadata(program)?;
    let mut begun = false;
    let mut others = BTreeSet::new();
    let code = loop {
        let (pid, signal) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL))? {
            WaitStatus::Exited(pid, status) if pid == shell => break status,
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => {
                others.remove(&pid);
                continue;
            }
            WaitStatus::PtraceEvent(pid, _, PTRACE_EVENT_EXEC) => {
                let now = std::fs::metadata(format!("/proc/{pid}/exe"))?;
                if (now.dev(), now.ino()) != (ours.dev(), ours.ino()) {
                    ptrace::detach(pid, None)?;
                    others.remove(&pid);
                    continue;
                }
                begun = true;
                (pid, None)
            }
            WaitStatus::PtraceEvent(pid, ..) => {
                others.insert(pid);
                (pid, None)
            }
            WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                // Gone when it was killed meanwhile.
                if let Ok(instruction) = instruction_of(pid)
                    && let Some(function) = functions.at(instruction)
                {
                    called.add(function);
                }
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            _ => continue,
        };
        let gone = if begun { ptrace::step(pid, signal) } else { ptrace::cont(pid, signal) };
        ensure!(matches!(gone, Ok(()) | Err(Errno::ESRCH)), "stepping: {gone:?}");
    };
    others.remove(&shell);
    for pid in others {
        // The process of a container that was created, which waits for its start.
        ptrace::interrupt(pid)?;
        waitpid(pid, Some(WaitPidFlag::__WALL))?;
        ptrace::detach(pid, None)?;
    }
    ensure!(begun && code == 0, "it ended with {code}");
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn instruction_of(pid: Pid) -> nix::Result<u64> {
    Ok(ptrace::getregs(pid)?.rip)
}

#[cfg(target_arch = "aarch64")]
fn instruction_of(pid: Pid) -> nix::Result<u64> {
    Ok(ptrace::getregs(pid)?.pc)
}

/// GNU ld's and lld's: `INSERT` adds to the script that they have.
fn script(functions: &Functions, called: &Called, libc: &BTreeMap<String, String>) -> String {
    let mut sections = BTreeSet::new();
    let mut text = String::new();
    let names = called.in_order.iter().filter_map(|start| functions.0.get(start)).flatten();
    for section in names.filter_map(|name| section_of(name, libc)) {
        if sections.insert(section.clone()) {
            text.push_str(&format!("    {section}\n"));
        }
    }
    let constants: String =
        CONSTANTS.iter().map(|name| format!("    *lib{name}-*.rlib:*(.rodata .rodata.*)\n")).collect();
    format!(
        "/* Written by e2e/order: what the verbs of `portreeve runtime` call, in the order of their first calls. */\n\
         SECTIONS {{\n  .text.runtime : {{\n{text}  }}\n}}\nINSERT BEFORE .text;\n\
         SECTIONS {{\n  .rodata.runtime : {{\n    *libc.a:*(.rodata .rodata.*)\n{constants}  }}\n}}\nINSERT BEFORE .rodata;\n"
    )
}

/// The section that a function was compiled into.
fn section_of(name: &str, libc: &BTreeMap<String, String>) -> Option<String> {
    match libc.get(name) {
        _ if name == "main" => Some("*(.text.main)".to_owned()),
        _ if name.starts_with("_R") => {
            // Growing a vector counts as unlikely, and happens at every start.
            let name = for_any_compiler(name);
            Some(format!("*(.text.{name} .text.unlikely.{name})"))
        }
        Some(member) => Some(format!("*libc.a:{member}(.text .text.*)")),
        None => None,
    }
}

/// A name with a star for what differs from compiler to compiler: the hashes of crates, `Cs…_`.
/// Source: The Rust Reference, "Symbol name mangling", v0.
fn for_any_compiler(name: &str) -> String {
    let name = name.split_once(".llvm.").map_or(name, |(name, _)| name);
    let mut pattern = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("Cs") {
        let (before, hash) = rest.split_at(at);
        pattern.push_str(before);
        let Some((digits, after)) = hash.split_once('_') else { break };
        if digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            pattern.push_str("Cs*_");
        } else {
            pattern.push_str(digits);
            pattern.push('_');
        }
        rest = after;
    }
    pattern.push_str(rest);
    pattern
}
