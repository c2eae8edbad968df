//! How much memory a call of the runtime needs. Most of it is the program's own text and constants, of which the kernel
//! maps 64 KiB around each page that is touched: see `agent/cli/build.rs`.

use std::io::Write;
use std::process::{ChildStdin, Stdio};

use portreeve_e2e::{Call, Runtime};
use serde_json::json;

/// Of the most memory that a process has had. Source: proc_pid_status(5), `VmHWM`.
const KIB: u64 = 4096;

#[test]
fn run_and_exec_need_at_most_4_mib() {
    let Some(runtime) = Runtime::for_test("run_and_exec_need_at_most_4_mib") else { return };
    let bundle = runtime.bundle_of(&["cat"]).with(json!({ "linux": {
        "resources": { "memory": { "limit": 64 << 20 }, "pids": { "limit": 64 } },
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }],
        },
    } }));
    bundle.save();
    let run = Held::begin(&runtime, &["run", "--bundle", bundle.path().to_str().expect("UTF-8"), bundle.id()]);
    let exec = Held::begin(&runtime, &["exec", bundle.id(), "cat"]);
    let peaks = [("run", run.peak()), ("exec", exec.peak())];
    // The container's cat has the input of the run, which is the last to end.
    exec.release();
    run.release();
    for (verb, peak) in peaks {
        assert!(peak <= KIB, "{verb} needed {peak} KiB: write the list of functions anew with e2e/order");
    }
    assert_eq!(runtime.status(&bundle), None);
}

/// A call that goes on for as long as its standard input is open.
struct Held {
    call: Call,
    input: ChildStdin,
}

impl Held {
    fn begin(runtime: &Runtime, arguments: &[&str]) -> Self {
        let mut command = runtime.command(arguments);
        command.stdin(Stdio::piped());
        let mut call = runtime.begin(command);
        let mut input = call.stdin().expect("a pipe");
        input.write_all(b"there\n").expect("a line for cat");
        call.wait_for("there");
        Self { call, input }
    }

    /// Of the runtime's own process so far.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.call.pid())).expect("its figures");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn release(self) {
        drop(self.input);
        let answer = self.call.finish();
        assert_eq!(answer.code, 0, "{}", answer.stderr);
    }
}
