//! A file system for each engine, fresh: what others have written and removed before makes no difference.
//!
//! On an ext4 without a journal it would make the whole difference: the kernel looks past every inode that was removed
//! within some seconds, and files that are made after thousands were removed cost several times as much.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use portreeve_e2e::wait_until;

/// Bytes of the file system; its file has holes where nothing was written.
const SIZE: u64 = 8 << 30;

/// A file system in a file, mounted for this process and its children.
pub(crate) struct Disk {
    file: PathBuf,
    place: PathBuf,
}

impl Disk {
    /// Makes the mounts of this process its own, and `home/disk` the place of everything temporary.
    pub(crate) fn prepare(home: &Path) {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: this needs root");
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("mounts of our own");
        let place = home.join("disk");
        std::fs::create_dir(&place).expect("a place for a file system");
        tempfile::env::override_temp_dir(&place).expect("nobody has said this before");
    }

    /// Makes one, and mounts it there.
    pub(crate) fn fresh(home: &Path) -> Self {
        let disk = Self { file: home.join("file-system"), place: home.join("disk") };
        let file = std::fs::File::create(&disk.file).expect("a file for a file system");
        file.set_len(SIZE).expect("a file for a file system");
        // Nothing is left to be done in the background.
        let options = ["-q", "-F", "-N", "300000", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        run(Command::new("mkfs.ext4").args(options).arg(&disk.file));
        run(Command::new("mount").args(["-o", "loop"]).arg(&disk.file).arg(&disk.place));
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The last who had something open may still be ending.
        wait_until("nobody uses the file system", 20, || umount(&self.place).map_err(|error| error.to_string()));
        std::fs::remove_file(&self.file).expect("removing the file of a file system");
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
