//! `cp`: a tar stream through `exec`, as kubectl has it; the container must have tar.

pub(super) mod pack;
mod unpack;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use portreeve_api::channel::STDOUT;
use tokio::sync::mpsc;

use super::client::{Client, with_query};
use super::exec::{Streams, carry};
use super::target::{default_container, pod_path};

/// Pieces of the tar stream that wait.
const QUEUE: usize = 8;
/// The most of a command's complaint that is kept.
const MAX_COMPLAINT_BYTES: usize = 4096;

/// Arguments of `cp`.
#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// A local path, or [NAMESPACE/]POD:PATH
    #[arg(value_name = "FROM")]
    from: String,
    /// A local path, or [NAMESPACE/]POD:PATH
    #[arg(value_name = "TO")]
    to: String,
    /// The namespace of a pod that is given without one
    #[arg(short, long, default_value = "default", value_parser = super::namespace)]
    namespace: String,
    /// The container [default: the one that the pod's annotation names, or the first]
    #[arg(short, long)]
    container: Option<String>,
}

/// A path in a container.
#[derive(Debug, PartialEq, Eq)]
struct Remote {
    namespace: String,
    pod: String,
    path: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Local(PathBuf),
    Remote(Remote),
}

fn place(text: &str, namespace: &str) -> anyhow::Result<Place> {
    // A path that starts like a path is one, whatever colons follow.
    let Some((pod, path)) = text.split_once(':').filter(|_| !text.starts_with(['/', '.'])) else {
        return Ok(Place::Local(text.into()));
    };
    let (namespace, pod) = match pod.split_once('/') {
        Some((namespace, pod)) => (namespace.to_owned(), pod),
        None => (namespace.to_owned(), pod),
    };
    if pod.is_empty() || namespace.is_empty() || path.is_empty() {
        bail!("{text:?} is not [NAMESPACE/]POD:PATH");
    }
    Ok(Place::Remote(Remote { namespace, pod: pod.to_owned(), path: clean(path) }))
}

/// The path without the steps back in it, by its letters alone as kubectl does it; what comes back from the container
/// is never cleaned, but refused.
fn clean(path: &str) -> String {
    if !path.split('/').any(|part| part == "..") {
        return path.to_owned();
    }
    let root = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            // Nothing is above the root.
            ".." if root => {}
            part => parts.push(part),
        }
    }
    match (root, parts.join("/")) {
        (true, rest) => format!("/{rest}"),
        (false, rest) if rest.is_empty() => ".".to_owned(),
        (false, rest) => rest,
    }
}

pub(crate) async fn run(client: &Client, args: CopyArgs) -> anyhow::Result<ExitCode> {
    let (from, to) = (place(&args.from, &args.namespace)?, place(&args.to, &args.namespace)?);
    let container = async |remote: &Remote| match args.container {
        Some(container) => Ok(container),
        None => default_container(client, &remote.namespace, &remote.pod).await,
    };
    match (from, to) {
        (Place::Local(from), Place::Remote(to)) => upload(client, &container(&to).await?, &from, to).await?,
        (Place::Remote(from), Place::Local(to)) => download(client, &container(&from).await?, from, to).await?,
        (Place::Local(_), Place::Local(_)) => bail!("one of the two must be in a pod, as POD:PATH"),
        (Place::Remote(_), Place::Remote(_)) => bail!("one of the two must be local: copy in two steps"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command; its exit code and what it complained of.
async fn command(
    client: &Client,
    container: &str,
    remote: &Remote,
    command: &[&str],
    input: Option<mpsc::Receiver<Bytes>>,
    mut output: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> anyhow::Result<(i32, String)> {
    let mut query = Streams { stdin: input.is_some(), tty: false }.query();
    query.push(("container", container));
    query.extend(command.iter().map(|word| ("command", *word)));
    let path = pod_path(&remote.namespace, &remote.pod, "exec");
    let (socket, protocol) = client.open(&with_query(&path, &query)).await?;
    let mut complaint = Vec::new();
    let code = carry(socket, protocol, input, None, |channel, bytes| {
        if channel == STDOUT {
            return output(bytes);
        }
        let room = MAX_COMPLAINT_BYTES.saturating_sub(complaint.len()).min(bytes.len());
        complaint.extend_from_slice(bytes.get(..room).unwrap_or_default());
        Ok(())
    })
    .await?;
    Ok((code, String::from_utf8_lossy(&complaint).trim().replace('\n', "; ")))
}

fn judge(remote: &Remote, (code, complaint): (i32, String)) -> anyhow::Result<()> {
    let pod = &remote.pod;
    match code {
        0 => Ok(()),
        126 | 127 => bail!("the container of pod {pod} has no tar, which cp needs there: {complaint}"),
        code => bail!("tar in pod {pod} failed with exit code {code}: {complaint}"),
    }
}

async fn upload(client: &Client, container: &str, from: &Path, mut to: Remote) -> anyhow::Result<()> {
    let name = from.canonicalize().with_context(|| format!("reading {}", from.display()))?;
    let name = name.file_name().and_then(|name| name.to_str()).context("the local path has no name to copy under")?;
    // As kubectl has it: into a directory under its own name, otherwise under the new name.
    let (exists, _) = command(client, container, &to, &["test", "-d", &to.path], None, |_| Ok(())).await?;
    if exists == 0 {
        to.path = format!("{}/{name}", to.path.trim_end_matches('/'));
    }
    let (directory, name) = match to.path.trim_end_matches('/').rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((directory, name)) => (directory, name),
        None => (".", to.path.as_str()),
    };
    let (pieces, input) = mpsc::channel(QUEUE);
    let packing = {
        let (from, name) = (from.to_owned(), name.to_owned());
        tokio::task::spawn_blocking(move || pack::pack(&from, &name, pieces))
    };
    let unpacked =
        command(client, container, &to, &["tar", "-xmf", "-", "-C", directory], Some(input), |_| Ok(())).await?;
    // A tar that is not there, or gave up, is the reason; the broken pipe here only its sign.
    judge(&to, unpacked)?;
    packing.await.context("packing")??;
    Ok(())
}

async fn download(client: &Client, container: &str, from: Remote, to: PathBuf) -> anyhow::Result<()> {
    let (pieces, input) = std::sync::mpsc::sync_channel::<Bytes>(QUEUE);
    let source = from.path.clone();
    let unpacking = tokio::task::spawn_blocking(move || unpack::unpack(input, &source, &to));
    let packed = command(client, container, &from, &["tar", "cf", "-", "--", &from.path], None, |bytes| {
        pieces
            .send(Bytes::copy_from_slice(bytes))
            .map_err(|_| std::io::Error::new(std::io::ErrorKind::BrokenPipe, "unpacking has stopped"))
    })
    .await;
    drop(pieces);
    let unpacked = unpacking.await.context("unpacking")?;
    match packed {
        // What stopped the unpacking is the reason, if it did.
        Err(error) => unpacked.and(Err(error)),
        Ok(packed) => judge(&from, packed).and(unpacked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_pod_only_when_it_does_not_start_like_a_path() {
        let remote = |namespace: &str| {
            Place::Remote(Remote { namespace: namespace.into(), pod: "web".into(), path: "/a:b".into() })
        };
        assert_eq!(place("web:/a:b", "default").unwrap(), remote("default"));
        assert_eq!(place("prod/web:/a:b", "default").unwrap(), remote("prod"));
        assert_eq!(place("./web:x", "default").unwrap(), Place::Local("./web:x".into()));
        assert_eq!(place("file", "default").unwrap(), Place::Local("file".into()));
        assert!(place("web:", "default").is_err());
    }

    #[test]
    fn steps_back_in_the_users_own_path_are_taken() {
        for (path, expected) in [
            ("/tmp/../etc/passwd", "/etc/passwd"),
            ("/../etc/./x", "/etc/x"),
            ("a/b/../c/", "a/c"),
            ("a/..", "."),
            ("../x/../y", "../y"),
            ("/srv/www/.", "/srv/www/."),
            ("/srv/www/", "/srv/www/"),
            ("/a..b/c", "/a..b/c"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
    }
}
