//! `portreeve demo`: the whole agent on a throwaway directory, with nothing fetched from anywhere.
//!
//! It makes an image of this very executable, starts an agent beside any other, drops a
//! manifest with two pods, fetches the page of one through its published port, and removes
//! every trace at the end.

mod image;
pub(crate) mod page;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Clean up and exit once the page was fetched, instead of waiting for Ctrl-C
    #[arg(long)]
    once: bool,
}

const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(20);

/// Runs the demo.
///
/// # Errors
/// When the agent does not start, or the pods do not become ready within 30 s.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    // Ctrl-C is waited for below; the agent is in a process group that the terminal's Ctrl-C does not reach.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGINT);
    stop.add(Signal::SIGTERM);
    // A closed terminal: what was made is removed.
    stop.add(Signal::SIGHUP);
    stop.thread_block().context("blocking SIGINT, SIGTERM and SIGHUP")?;

    let home = tempfile::Builder::new().prefix("portreeve-demo-").tempdir().context("making a throwaway directory")?;
    let out = &mut std::io::stdout();
    let mut demo = Demo::start(home.path(), out)?;
    let shown = demo.show(out).and_then(|()| if args.once { Ok(()) } else { demo.stay(out, &stop) });
    // The terminal may be closed by now.
    let _ = writeln!(out, "\nStopping the pods and removing every trace ...");
    let ended = demo.end();
    shown?;
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// The agent of the demo; it goes, and takes with it what it made, whatever ends the demo.
#[derive(Debug)]
struct Demo<'a> {
    home: &'a Path,
    agent: Child,
}

impl<'a> Demo<'a> {
    fn start(home: &'a Path, out: &mut impl Write) -> anyhow::Result<Self> {
        for folder in ["manifests", "images"] {
            std::fs::create_dir(home.join(folder)).with_context(|| format!("making {folder} in {}", home.display()))?;
        }
        writeln!(out, "Making an image of {} ...", program())?;
        image::write(&home.join("images/demo.tar"))?;
        writeln!(out, "Starting an agent in {} ...", home.display())?;
        let log = std::fs::File::create(home.join("agent.log")).context("creating the agent's log")?;
        let agent = Command::new("/proc/self/exe")
            .arg("agent")
            .arg("--ephemeral")
            .args(["--with-parent", &std::process::id().to_string()])
            .args(["--listen", "127.0.0.1:0", "--node-name", "demo"])
            .arg("--manifests")
            .arg(home.join("manifests"))
            .arg("--root")
            .arg(home.join("root"))
            .arg("--run")
            .arg(home.join("run"))
            .arg("--preload")
            .arg(home.join("images"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("starting the agent")?;
        Ok(Self { home, agent })
    }

    fn run_dir(&self) -> String {
        self.home.join("run").display().to_string()
    }

    fn show(&self, out: &mut impl Write) -> anyhow::Result<()> {
        self.wait("the agent answers", || Ok(self.client(&["get", "pods"])?.is_some()))?;
        let port = free_port()?;
        writeln!(out, "Dropping a manifest with two pods into {} ...", self.home.join("manifests").display())?;
        let dropped = Instant::now();
        std::fs::write(self.home.join("manifests/demo.yaml"), manifest(port)).context("writing the manifest")?;
        self.wait("both pods are ready", || self.ready(2))?;
        let elapsed = dropped.elapsed().as_millis();
        writeln!(out, "Both pods are ready after {elapsed} ms. Fetching http://127.0.0.1:{port}/ ...")?;
        let page = fetch(port)?;
        writeln!(out, "\n    {}\n", page.trim_end())?;
        if !page.contains(GREETING) {
            bail!("the published port answered something else than the demo's page");
        }
        writeln!(out, "$ portreeve get pods -o wide")?;
        write!(out, "{}", self.client(&["get", "pods", "-o", "wide"])?.context("`get pods` failed")?)?;
        Ok(())
    }

    /// Says what to try, and waits for a signal.
    fn stay(&self, out: &mut impl Write, stop: &SigSet) -> anyhow::Result<()> {
        writeln!(out, "\nThe demo stays up until Ctrl-C. Try:\n")?;
        for verb in ["get pods -o wide", "describe pod web", "logs web -f", "get events"] {
            writeln!(out, "    {} --run {} {verb}", program(), self.run_dir())?;
        }
        stop.wait().map(drop).context("waiting for Ctrl-C")
    }

    /// The output of a client verb; `None` when it failed.
    fn client(&self, verb: &[&str]) -> anyhow::Result<Option<String>> {
        let output = Command::new("/proc/self/exe")
            .arg("--run")
            .arg(self.home.join("run"))
            .args(verb)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running portreeve {}", verb.join(" ")))?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    fn ready(&self, wanted: usize) -> anyhow::Result<bool> {
        let Some(text) = self.client(&["get", "pods", "-o", "json"])? else { return Ok(false) };
        let list: serde_json::Value = serde_json::from_str(&text).context("reading the list of pods")?;
        let is_ready = |pod: &&serde_json::Value| {
            let conditions = pod.pointer("/status/conditions").and_then(|c| c.as_array());
            let is = |c: &serde_json::Value, key: &str, value: &str| c.get(key).is_some_and(|found| found == value);
            conditions.is_some_and(|all| all.iter().any(|c| is(c, "type", "Ready") && is(c, "status", "True")))
        };
        Ok(list
            .get("items")
            .and_then(|items| items.as_array())
            .is_some_and(|pods| pods.iter().filter(is_ready).count() == wanted))
    }

    fn wait(&self, what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !done()? {
            let gone = !Path::new("/proc").join(self.agent.id().to_string()).join("exe").exists();
            if gone || begun.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.home.join("agent.log")).unwrap_or_default();
                let pods = self.client(&["get", "events"])?.unwrap_or_default();
                let why = if gone { "the agent ended before".to_owned() } else { format!("waited {PATIENCE:?} until") };
                bail!("{why} {what}\n{pods}\nthe agent's log:\n{log}");
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// Ends the agent, which, being ephemeral, removes what it made; once it has ended there is nothing to do.
    fn end(&mut self) -> anyhow::Result<()> {
        // Not waited for yet, its process id is nobody else's.
        if self.agent.try_wait().context("asking for the agent's state")?.is_none() {
            kill(Pid::from_raw(i32::try_from(self.agent.id())?), Signal::SIGTERM).context("ending the agent")?;
        }
        let status = self.agent.wait().context("waiting for the agent")?;
        if !status.success() {
            let log = std::fs::read_to_string(self.home.join("agent.log")).unwrap_or_default();
            bail!("the agent ended with {status}; its log:\n{log}");
        }
        Ok(())
    }
}

impl Drop for Demo<'_> {
    fn drop(&mut self) {
        // After a panic; in the usual way it has ended, and its failure is known.
        let _ended = self.end();
    }
}

const GREETING: &str = "Portreeve runs what its manifests say.";

fn manifest(port: u16) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  terminationGracePeriodSeconds: 5
  containers:
    - name: page
      image: {image}
      imagePullPolicy: Never
      args: [demo-page, --text, "{GREETING}"]
      ports:
        - containerPort: 8080
          hostPort: {port}
      readinessProbe:
        httpGet: {{ port: 8080 }}
        periodSeconds: 1
      resources:
        limits: {{ cpu: 500m, memory: 64Mi }}
---
apiVersion: v1
kind: Pod
metadata:
  name: neighbour
spec:
  terminationGracePeriodSeconds: 5
  containers:
    - name: page
      image: {image}
      imagePullPolicy: Never
      args: [demo-page, --text, "A pod without a published port."]
      readinessProbe:
        tcpSocket: {{ port: 8080 }}
        periodSeconds: 1
"#,
        image = image::REFERENCE,
    )
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

fn fetch(port: u16) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("connecting to the published port {port}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(|| format!("asking the published port {port}"))?;
    let mut response = String::new();
    stream.read_to_string(&mut response).with_context(|| format!("reading from the published port {port}"))?;
    match response.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => bail!("the published port {port} answered: {response}"),
    }
}

fn program() -> String {
    std::env::current_exe().map_or_else(|_| "portreeve".to_owned(), |path| path.display().to_string())
}
