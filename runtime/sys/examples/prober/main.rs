//! Tells from inside a container what a process there sees and may do.
//!
//! A witness, independent of the code under test: it stands on the C library and procfs alone and is linked statically,
//! so that it runs in an empty root. What it says is JSON on its standard output.
//!
//! ```text
//! prober report [SYSCTL...]       what this process is and sees
//! prober try OPERATION...         performs each operation ("open /etc/x r") and tells how it ended
//! prober wait                     says "ready" and waits; SIGTERM ends it with 0
//! prober catch SIGNAL...          says "ready", then the number of each of these signals; SIGTERM ends it with 0
//! prober exit CODE                ends so
//! prober signal NUMBER            ends by this signal
//! prober eat MEBIBYTES            touches that much memory and says "ate"
//! prober spin MILLISECONDS        uses the processor that long and tells how much it got
//! prober fork COUNT               starts that many children, each of which waits, and tells how many came to be
//! prober hook FILE NAME [CODE]    appends what a hook is given to a file and ends with the code
//! prober prey MILLISECONDS        tries for that long to open the programs of other processes for writing
//! prober exchange FIRST SECOND    exchanges two names until it is ended
//! prober agent SOCKET ERRNO       answers a seccomp filter's notifications, with 0: lets the calls go on
//! ```

mod attack;
mod attempt;
mod report;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let (verb, rest) = match arguments.get(1..) {
        Some([verb, rest @ ..]) => (verb.as_str(), rest),
        _ => ("report", [].as_slice()),
    };
    let number = || -> Result<i32, Failure> { Ok(rest.first().ok_or("a number is missing")?.parse()?) };
    match verb {
        "report" => say(&report::report(rest)),
        "try" => say(&rest.iter().map(|operation| attempt::attempt(operation)).collect()),
        "wait" => catch(&[]),
        "catch" => catch(&rest.iter().map(|text| text.parse()).collect::<Result<Vec<i32>, _>>()?),
        "exit" => std::process::exit(number()?),
        "signal" => end_by(number()?),
        "eat" => eat(usize::try_from(number()?)?),
        "spin" => spin(Duration::from_millis(u64::try_from(number()?)?)),
        "fork" => fork(number()?),
        "hook" => hook(rest),
        "prey" => say(&attack::prey(Duration::from_millis(u64::try_from(number()?)?))?),
        "exchange" | "agent" => match rest {
            [first, second] if verb == "exchange" => attack::exchange(first, second),
            [socket, errno] => attack::agent(socket, errno.parse()?),
            _ => Err(format!("{verb} takes two words").into()),
        },
        _ => Err(format!("there is no verb {verb}").into()),
    }
}

/// One line, at once: who reads may wait for it.
fn say(value: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// Waits for signals by name rather than by handlers, so that the first process of a pid namespace gets them, too.
fn catch(signals: &[i32]) -> Result<(), Failure> {
    // SAFETY: a signal set is plain memory, and zero is a value of it.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in signals.iter().chain(&[libc::SIGTERM]) {
        // SAFETY: `set` is a live signal set.
        if unsafe { libc::sigaddset(&raw mut set, *signal) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    // SAFETY: `set` lives through the call, and the old mask is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    say(&json!("ready"))?;
    loop {
        let mut signal = 0;
        // SAFETY: both live through the call.
        let code = unsafe { libc::sigwait(&raw const set, &raw mut signal) };
        if code != 0 {
            return Err(std::io::Error::from_raw_os_error(code).into());
        }
        if signals.contains(&signal) {
            say(&json!(signal))?;
        }
        if signal == libc::SIGTERM {
            return Ok(());
        }
    }
}

fn end_by(signal: i32) -> Result<(), Failure> {
    // SAFETY: the call takes numbers.
    if unsafe { libc::kill(libc::getpid(), signal) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // The first process of a pid namespace outlives its own signals.
    Err("the signal did not end this process".into())
}

fn eat(mebibytes: usize) -> Result<(), Failure> {
    let mut memory = vec![0_u8; mebibytes << 20];
    for page in memory.chunks_mut(4096) {
        page.fill(1);
    }
    std::hint::black_box(&memory);
    say(&json!("ate"))
}

fn spin(time: Duration) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut turns = 0_u64;
    while begun.elapsed() < time {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `used` lives through the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut used) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let used_ms = used.tv_sec * 1000 + used.tv_nsec / 1_000_000;
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis())?;
    say(&json!({ "used_ms": used_ms, "elapsed_ms": elapsed_ms }))
}

fn fork(count: i32) -> Result<(), Failure> {
    let mut children = Vec::new();
    let mut errno = Value::Null;
    for _ in 0..count {
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            -1 => {
                errno = json!(attempt::last_errno());
                break;
            }
            0 => loop {
                // SAFETY: the call takes nothing.
                unsafe { libc::pause() };
            },
            child => children.push(child),
        }
    }
    for child in &children {
        // SAFETY: both calls take numbers and no memory; the child was not waited for.
        unsafe {
            libc::kill(*child, libc::SIGKILL);
        }
        // SAFETY: as before.
        unsafe {
            libc::waitpid(*child, std::ptr::null_mut(), 0);
        }
    }
    say(&json!({ "came_to_be": children.len(), "errno": errno }))
}

/// One line per hook; a hook of a container's own program finds the file inside the container.
fn hook(arguments: &[String]) -> Result<(), Failure> {
    let [file, name, rest @ ..] = arguments else { return Err("a hook takes a file and a name".into()) };
    let mut state = String::new();
    std::io::stdin().read_to_string(&mut state)?;
    let mut line = report::whereabouts();
    if let Some(fields) = line.as_object_mut() {
        fields.insert("name".into(), json!(name));
        fields.insert("state".into(), serde_json::from_str(&state).unwrap_or(Value::String(state)));
        fields.insert("root".into(), report::entries("/"));
    }
    let mut out = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
    out.write_all(format!("{line}\n").as_bytes())?;
    if let Some(code) = rest.first() {
        eprintln!("{name} was told to end with {code}");
        std::process::exit(code.parse()?);
    }
    Ok(())
}
