//! `image save|load` of tars, `image export|import` of directories.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow, bail};
use bytes::{Buf, Bytes};
use futures_util::stream;
use http::Method;
use portreeve_api::v1alpha1::{Image, ObjectList};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::{IMAGES, Logins};
use crate::verbs::client::{Answer, Body, Client, full, pieces, with_query};
use crate::verbs::copy::pack::pack;
use crate::verbs::terminal;

/// How much of a tar is read at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// Pieces of a tar that wait.
const QUEUE: usize = 8;

pub(super) async fn save(
    client: &Client,
    references: &[String],
    logins: &Logins,
    output: Option<PathBuf>,
) -> anyhow::Result<()> {
    let Some(path) = output else {
        if io::stdout().is_terminal() {
            bail!("a tar is nothing for a terminal; name a file by --output, or redirect the output");
        }
        let mut answer = ask(client, references, logins).await?;
        return copy(&mut answer, &mut io::stdout().lock()).await;
    };
    let mut interrupts = Interrupts::new()?;
    // Before anything is fetched: what cannot be written to costs nothing then.
    let mut file = Unfinished::new(&path)?;
    let work = async {
        let mut answer = ask(client, references, logins).await?;
        copy(&mut answer, &mut file.file).await
    };
    tokio::select! {
        // cancel-safe: nothing of it is used any more.
        done = work => done?,
        // cancel-safe: a signal that came stays known.
        () = interrupts.come() => {
            // Its file goes before the process does.
            drop(file);
            bail!("interrupted; {} is as it was", path.display());
        }
    }
    file.finish()
}

/// What would end the process at once. Made before anything is that must not be left behind.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        let waiting = "waiting for signals";
        Ok(Self { interrupt: interrupt.context(waiting)?, terminate: terminate.context(waiting)? })
    }

    async fn come(&mut self) {
        tokio::select! {
            // cancel-safe: both.
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

pub(super) async fn export(
    client: &Client,
    references: &[String],
    logins: &Logins,
    directory: PathBuf,
) -> anyhow::Result<()> {
    // The twin documents of the tar's other form are left out.
    into_directory(directory, Some("manifest.json"), ask(client, references, logins)).await
}

/// The files of an artifact.
pub(super) async fn artifact(
    client: &Client,
    reference: &str,
    logins: &Logins,
    directory: PathBuf,
) -> anyhow::Result<()> {
    let path = with_query(&format!("{IMAGES}/artifact"), &[("reference", reference)]);
    let auth = logins.body(&[reference])?;
    into_directory(directory, None, client.request_long(Method::POST, &path, "application/x-tar", full(auth))).await
}

/// Unpacks the tar that `ask` gets into a directory that is empty, or not there yet.
async fn into_directory(
    directory: PathBuf,
    without: Option<&'static str>,
    ask: impl Future<Output = anyhow::Result<Answer>>,
) -> anyhow::Result<()> {
    let shown = directory.display().to_string();
    let mut interrupts = Interrupts::new()?;
    let there_before = match fs::create_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::read_dir(&directory).with_context(|| format!("reading {shown}"))?.next().is_some() {
                bail!("{shown} is not empty; give a new directory");
            }
            true
        }
        made => made.map(|()| false).with_context(|| format!("creating {shown}"))?,
    };
    let (sender, tar) = mpsc::channel(QUEUE);
    let (target, given_up) = (directory.clone(), Arc::new(AtomicBool::new(false)));
    let tar = Pieces { pieces: tar, current: Bytes::new(), given_up: Arc::clone(&given_up) };
    let unpacking = tokio::task::spawn_blocking(move || unpack(tar, &target, without));
    let received = tokio::select! {
        // cancel-safe: nothing of it is used any more.
        received = receive(ask, sender) => received,
        // cancel-safe: a signal that came stays known.
        () = interrupts.come() => Err(anyhow!("interrupted")),
    };
    given_up.store(received.is_err(), Ordering::Relaxed);
    // Nothing is written any more from here on.
    let unpacked = unpacking.await?.with_context(|| format!("writing {shown}"));
    let done = received.and(unpacked);
    if done.is_err() {
        // Half of it would be in the way of the next try; all that is there came with this one.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let _told_by_the_next_try = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        if !there_before {
            let _told_by_the_next_try = fs::remove_dir(&directory);
        }
    }
    done
}

/// Hands on the pieces of the tar that `ask` gets.
async fn receive(ask: impl Future<Output = anyhow::Result<Answer>>, sender: mpsc::Sender<Bytes>) -> anyhow::Result<()> {
    let mut answer = ask.await?;
    while let Some(piece) = answer.piece().await? {
        // Whoever unpacks has stopped, and says why itself.
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    Ok(())
}

pub(super) async fn import(client: &Client, directory: PathBuf) -> anyhow::Result<()> {
    let shown = directory.display().to_string();
    if !directory.join("index.json").is_file() {
        bail!("{shown} is no OCI layout: it has no index.json; a tar is loaded by `image load`");
    }
    let (sender, tar) = mpsc::channel(QUEUE);
    let packing = tokio::task::spawn_blocking(move || pack(&directory, ".", sender));
    let body = pieces(stream::unfold(tar, |mut tar| async move { tar.recv().await.map(|piece| (Ok(piece), tar)) }));
    let loaded = send(client, body, &shown).await;
    // What could not be packed is why the rest was no archive.
    packing.await.context("packing")??;
    tell(loaded?)
}

pub(super) async fn load(client: &Client, file: PathBuf) -> anyhow::Result<()> {
    let body = if file.as_os_str() == "-" {
        let input = terminal::input();
        pieces(stream::unfold(input, |mut input| async move { input.recv().await.map(|piece| (Ok(piece), input)) }))
    } else {
        let opened = File::open(&file).await.with_context(|| format!("opening {}", file.display()))?;
        let is_dir = opened.metadata().await.is_ok_and(|metadata| metadata.is_dir());
        if is_dir {
            bail!(
                "{} is a directory; give the tar of an image, as `docker save` writes it, or use `image import`",
                file.display()
            );
        }
        pieces(stream::try_unfold(opened, |mut file| async move {
            let mut buffer = vec![0; CHUNK_BYTES];
            let read = file.read(&mut buffer).await?;
            buffer.truncate(read);
            Ok((read > 0).then(|| (Bytes::from(buffer), file)))
        }))
    };
    tell(send(client, body, &file.display().to_string()).await?)
}

async fn send(client: &Client, tar: Body, what: &str) -> anyhow::Result<ObjectList<Image>> {
    let answer = client.request_long(Method::POST, &format!("{IMAGES}/load"), "application/json", tar).await;
    answer.with_context(|| format!("loading {what}"))?.json().await
}

fn tell(images: ObjectList<Image>) -> anyhow::Result<()> {
    for image in images.items {
        writeln!(io::stdout(), "Loaded image: {}", image.metadata.name)?;
    }
    Ok(())
}

async fn ask(client: &Client, references: &[String], logins: &Logins) -> anyhow::Result<Answer> {
    let auth = logins.body(&references.iter().map(String::as_str).collect::<Vec<_>>())?;
    let query: Vec<(&str, &str)> = references.iter().map(|reference| ("reference", reference.as_str())).collect();
    let path = with_query(&format!("{IMAGES}/save"), &query);
    client.request_long(Method::POST, &path, "application/x-tar", full(auth)).await
}

async fn copy(answer: &mut Answer, out: &mut impl Write) -> anyhow::Result<()> {
    while let Some(piece) = answer.piece().await? {
        out.write_all(&piece).context("writing the tar")?;
    }
    out.flush().context("writing the tar")
}

/// A file that gets its name when it is whole, and is its owner's alone; what is no file (a pipe, a device) is written to as it is.
struct Unfinished {
    file: fs::File,
    /// Where it is until then, and where it goes.
    names: Option<(tempfile::TempPath, PathBuf)>,
}

impl Unfinished {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("creating {}", path.display());
        // A link is followed to its end: what it leads to is written, and the link stays.
        let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            let file = fs::File::options().write(true).open(path).with_context(failed)?;
            return Ok(Self { file, names: None });
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.is_dir() {
            bail!("{} is a directory; name the tar, or write a layout into it by `image export`", path.display());
        }
        let (file, temporary) = tempfile::Builder::new()
            .prefix(".portreeve-save-")
            .tempfile_in(directory)
            .with_context(failed)?
            .into_parts();
        Ok(Self { file, names: Some((temporary, path.to_owned())) })
    }

    fn finish(self) -> anyhow::Result<()> {
        let Some((temporary, path)) = self.names else { return Ok(()) };
        temporary.persist(&path).with_context(|| format!("writing {}", path.display()))?;
        Ok(())
    }
}

struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
    /// What still waits is not wanted any more.
    given_up: Arc<AtomicBool>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up"));
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}

/// Writes a tar's files, but for one of this name.
fn unpack(tar: Pieces, directory: &Path, without: Option<&str>) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        if without.is_none_or(|without| name != Path::new(without)) {
            entry.unpack_in(directory).with_context(|| format!("writing {}", name.display()))?;
        }
    }
    Ok(())
}
