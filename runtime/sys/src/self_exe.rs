//! Protecting executables from the containers that they enter.
//!
//! A process shows its executable as `/proc/PID/exe`, a link that opens the file itself wherever the process is: who is
//! in a container with a clone of the runtime, or executes `/proc/self/exe` there, holds the host's file in his hands
//! (CVE-2019-5736). A mode or an environment variable keeps nobody away from it: where it is executed from does.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;

use crate::fd;
use crate::mount::{Change, NO_SUID, READ_ONLY, clone_tree, set_attributes};
use crate::raw::check_int;

const LINK: &str = "/proc/self/exe";

/// Whether nobody can write the running executable by way of this process: it lies on a mount that is read-only, or in
/// memory that is sealed.
///
/// # Errors
/// `ENOENT` without procfs.
pub fn is_out_of_reach() -> io::Result<bool> {
    if rustix::fs::statvfs(LINK)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    // Only files in memory have seals; others say EINVAL.
    let seals = rustix::fs::fcntl_get_seals(File::open(LINK)?);
    Ok(seals.is_ok_and(|seals| seals.contains(SealFlags::WRITE)))
}

/// Whether the file of the running executable is root's alone to change, and this process is not root: then a container
/// that it makes, whose users are this one and those lent to him, cannot change it either.
///
/// # Errors
/// `ENOENT` without procfs.
pub fn is_roots_alone() -> io::Result<bool> {
    let file = rustix::fs::stat(LINK)?;
    Ok(!rustix::process::geteuid().is_root() && file.st_uid == 0 && file.st_mode & 0o022 == 0)
}

/// The running executable, as [`read_only`] has it.
///
/// # Errors
/// As [`read_only`]; `ENOENT` or `ESTALE` also when an upgrade has put another file at its path.
pub fn read_only_executable() -> io::Result<OwnedFd> {
    read_only(Path::new(LINK))
}

/// The program at `path`, to be executed from a read-only, detached mount of its directory.
///
/// A process executed from it shows, as its `/proc/PID/exe`, a file that cannot be opened for writing through that
/// link, whatever the capabilities of the opener. The mount lives as long as the descriptor or a process executed from
/// it.
///
/// It is the directory that is mounted, and not the file: who holds the root of a detached mount may change its
/// attributes from any mount namespace that he administers, one of his own making too, and `/proc/PID/exe` would be
/// such a root: mount_setattr(2).
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOSYS` before Linux 5.12, `EINVAL` when it lies in another mount namespace,
/// `ENOENT` or `ESTALE` when it is not in the directory that it was in (a mount of one file among others).
pub fn read_only(path: &Path) -> io::Result<OwnedFd> {
    Ok(mounted(path)?.program)
}

#[derive(Debug)]
struct Mounted {
    /// Root of the mount. Closing it takes the mount apart, which waits for a grace period of RCU.
    tree: OwnedFd,
    program: OwnedFd,
}

fn mounted(path: &Path) -> io::Result<Mounted> {
    let wanted = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let place = rustix::fs::readlink(format!("/proc/self/fd/{}", wanted.as_raw_fd()), Vec::new())?;
    let place = Path::new(OsStr::from_bytes(place.as_bytes()));
    let (Some(directory), Some(name)) = (place.parent(), place.file_name()) else { return Err(Errno::NOENT.into()) };
    let tree = clone_tree(CWD, directory, false, true)?;
    set_attributes(tree.as_fd(), &Change { set: READ_ONLY | NO_SUID, ..Change::default() })?;
    let program = rustix::fs::openat(&tree, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let (wanted, found) = (rustix::fs::fstat(&wanted)?, rustix::fs::fstat(&program)?);
    if (wanted.st_dev, wanted.st_ino) != (found.st_dev, found.st_ino) {
        return Err(Errno::STALE.into());
    }
    Ok(Mounted { tree, program })
}

/// Where this process, or one that is cloned from it, can go on as if it had been executed there: a read-only, detached
/// mount of its program's directory, as [`read_only`] has it.
///
/// The kernel takes a millisecond, at times, to close the last descriptor of the mount: drop it when there is nothing
/// else to do.
#[derive(Debug)]
pub struct ReadOnlyPlace {
    _tree: OwnedFd,
    file: OwnedFd,
    layout: AddressSpace,
}

impl ReadOnlyPlace {
    /// Makes the mount, and asks the kernel whether a process may move there: this one has not moved then.
    ///
    /// To be called by a process with one thread.
    ///
    /// # Errors
    /// As [`read_only_executable`]; `EPERM` without CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, `EINVAL` from a kernel without
    /// CONFIG_CHECKPOINT_RESTORE, `EOPNOTSUPP` for a program that is not at a fixed address.
    pub fn make() -> io::Result<Self> {
        program_headers()?;
        let Mounted { tree, program } = mounted(Path::new(LINK))?;
        // A file to be mapped has to be open for reading.
        let place = format!("/proc/self/fd/{}", program.as_raw_fd());
        let file = rustix::fs::open(place, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let layout = AddressSpace::read(file.as_fd())?;
        match layout.install() {
            // All but that what is mapped now has to go first.
            Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
            other => other?,
        }
        Ok(Self { _tree: tree, file, layout })
    }

    /// Makes this process one that was executed there, without executing it again: code and constants are mapped anew,
    /// what can be written becomes memory of no file, and `/proc/PID/exe` leads there. Nothing that the process shows of
    /// itself leads to where it was executed from any more.
    ///
    /// To be called once, by the process that made the place or by a clone of it, with one thread, before it clones any
    /// that is to be protected as well. Needs no procfs.
    ///
    /// # Errors
    /// `ENOMEM`; what [`ReadOnlyPlace::make`] was not refused this is not refused either. The process goes on then, and
    /// `/proc/PID/exe` leads where it did.
    pub fn enter(&self) -> io::Result<()> {
        for segment in program_headers()?.iter().filter(|segment| segment.p_type == libc::PT_LOAD) {
            remap(segment, self.file.as_fd())?;
        }
        for segment in program_headers()?.iter().filter(|segment| segment.p_type == libc::PT_GNU_RELRO) {
            // What is written once, at the start, is constant afterwards; a last page that is shared with others is not.
            let (from, to) = (page_of(segment.p_vaddr)?, page_of(segment.p_vaddr.saturating_add(segment.p_memsz))?);
            // SAFETY: nobody writes there: the start code had done the same before it was mapped anew.
            check_int(unsafe { libc::mprotect(std::ptr::without_provenance_mut(from), to - from, libc::PROT_READ) })?;
        }
        self.layout.install()
    }
}

/// The headers by which the kernel has mapped this program; none for one that is not at a fixed address.
fn program_headers() -> io::Result<&'static [libc::Elf64_Phdr]> {
    let unsupported = || io::Error::from(Errno::OPNOTSUPP);
    // SAFETY: getauxval reads what the kernel has given the process, and answers 0 for what it has not.
    let (address, count, size) =
        unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM), libc::getauxval(libc::AT_PHENT)) };
    if address == 0 || usize::try_from(size) != Ok(size_of::<libc::Elf64_Phdr>()) {
        return Err(unsupported());
    }
    let (address, count) = (usize::try_from(address), usize::try_from(count));
    let (Ok(address), Ok(count)) = (address, count) else { return Err(unsupported()) };
    // SAFETY: the kernel has mapped so many headers there, for as long as the process lives.
    let headers = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), count) };
    // They are in a segment of the program themselves: where they lie tells whether its addresses are the real ones.
    let holds = |segment: &&libc::Elf64_Phdr| {
        let address = u64::try_from(address).unwrap_or(u64::MAX);
        segment.p_type == libc::PT_LOAD && (segment.p_vaddr..segment.p_vaddr + segment.p_filesz).contains(&address)
    };
    if headers.iter().any(|segment| holds(&segment)) { Ok(headers) } else { Err(unsupported()) }
}

/// The page of an address, as an address.
fn page_of(address: u64) -> io::Result<usize> {
    let address = usize::try_from(address).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(address & !(page_size()? - 1))
}

fn page_size() -> io::Result<usize> {
    // SAFETY: getauxval reads what the kernel has given the process.
    let size = usize::try_from(unsafe { libc::getauxval(libc::AT_PAGESZ) });
    size.ok().filter(|size| size.is_power_of_two()).ok_or_else(|| Errno::OPNOTSUPP.into())
}

/// Maps a segment of this program anew, where it is.
fn remap(segment: &libc::Elf64_Phdr, file: BorrowedFd<'_>) -> io::Result<()> {
    let from = page_of(segment.p_vaddr)?;
    let page = u64::try_from(page_size()?).map_err(|_| io::ErrorKind::InvalidInput)?;
    let to = page_of(segment.p_vaddr.saturating_add(segment.p_filesz).saturating_add(page - 1))?;
    let (length, place) = (to.saturating_sub(from), std::ptr::without_provenance_mut::<libc::c_void>(from));
    if length == 0 {
        return Ok(());
    }
    if segment.p_flags & libc::PF_W == 0 {
        let offset = segment.p_offset & !(page - 1);
        let execute = if segment.p_flags & libc::PF_X == 0 { 0 } else { libc::PROT_EXEC };
        let how = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: what is mapped over the segment are the bytes that are there already: those of the same file (its
        // device and inode were compared, and nobody can write to a file that is executed), at the same offset, and
        // nobody has written to a segment without PF_W. The kernel exchanges the mapping in one step.
        let mapped = unsafe { libc::mmap(place, length, libc::PROT_READ | execute, how, file.as_raw_fd(), offset) };
        return if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) };
    }
    // All of it is written to: in one step, and not page by page.
    let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: new memory, at an address that the kernel chooses.
    let copy = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, how, -1, 0) };
    if copy == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the segment's pages are mapped and can be read, those of `copy` are as many, and the two do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(std::ptr::with_exposed_provenance::<u8>(from), copy.cast::<u8>(), length) };
    // SAFETY: the copy takes the segment's place in one step. Its bytes are the segment's: there is one thread, and it has
    // written nothing there since it copied them.
    let moved = unsafe { libc::mremap(copy, length, length, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place) };
    if moved == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `struct prctl_mm_map`: what the kernel tells of a process's memory, and the file that it was executed from.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct AddressSpace {
    /// Begin and end of the code, the data, the heap; begin of the stack; begin and end of arguments and environment.
    places: [u64; 11],
    auxiliary: u64,
    auxiliary_size: u32,
    executable: u32,
}

impl AddressSpace {
    /// As it is now, but for the executable and the end of the heap, which grows. Source: proc_pid_stat(5), fields 26 to
    /// 28 and 45 to 51.
    fn read(executable: BorrowedFd<'_>) -> io::Result<Self> {
        let unreadable = || io::Error::from(io::ErrorKind::InvalidData);
        let text = std::fs::read("/proc/self/stat")?;
        let end = text.iter().rposition(|byte| *byte == b')').ok_or_else(unreadable)?;
        let rest = text.get(end + 1..).and_then(|rest| std::str::from_utf8(rest).ok()).ok_or_else(unreadable)?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The third field is the first one here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let numbers = [26, 27, 45, 46, 47, 47, 28, 48, 49, 50, 51];
        let mut places = [0; 11];
        for (place, number) in places.iter_mut().zip(numbers) {
            *place = field(number).ok_or_else(unreadable)?;
        }
        let executable = u32::try_from(executable.as_raw_fd()).map_err(|_| unreadable())?;
        Ok(Self { places, auxiliary: 0, auxiliary_size: 0, executable })
    }

    /// The kernel refuses a new executable while anything of the old one is mapped: prctl(2), `PR_SET_MM_EXE_FILE`.
    fn install(&self) -> io::Result<()> {
        const HEAP_END: usize = 5;
        let mut now = *self;
        // SAFETY: sbrk(0) moves nothing.
        let heap_end = unsafe { libc::sbrk(0) }.addr();
        now.places[HEAP_END] = u64::try_from(heap_end).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: `now` is a valid prctl_mm_map of the size given, and says what is so already, but for the executable.
        check_int(unsafe {
            libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, std::ptr::from_ref(&now), size_of::<Self>(), 0)
        })?;
        Ok(())
    }
}

/// A copy of the program at `path` in memory that can never be changed: where [`read_only`] cannot be had. It costs as
/// much memory as the file is long, for as long as a process executes it.
///
/// # Errors
/// `EACCES` when the file cannot be read, `ENOMEM`.
pub fn sealed_copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Where the machine makes files in memory without the right to execute them, that is asked for: Linux 6.3.
    let memory = match rustix::fs::memfd_create(c"portreeve", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(c"portreeve", flags)?,
        made => made?,
    };
    let mut copy = File::from(memory);
    io::copy(&mut File::open(path)?, &mut copy)?;
    let copy = OwnedFd::from(copy);
    fd::seal(&copy)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::clone::NEW_MOUNT;
    use crate::namespace;
    use crate::raw::check;

    #[test]
    fn cve_2019_5736_the_read_only_mount_stays_so_for_who_administers_another_namespace() {
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        let executable = read_only_executable().expect("a read-only mount");
        let attack = || {
            // Of this thread alone.
            namespace::unshare(NEW_MOUNT).expect("a mount namespace");
            let path = format!("/proc/thread-self/fd/{}", executable.as_raw_fd());
            // As who opens `/proc/PID/exe` of a process that was executed from it.
            let caught = File::open(path).expect("everybody may read it");
            set_attributes(caught.as_fd(), &Change { clear: READ_ONLY, ..Change::default() })
        };
        let refused = std::thread::scope(|scope| scope.spawn(attack).join().expect("the thread")).expect_err("refused");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "{refused}");
        let place = rustix::fs::fstatvfs(&executable).expect("its mount");
        assert!(place.f_flag.contains(StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID));
    }

    /// Set in a process that runs one test, and nothing beside it: who moves has one thread.
    const ALONE: &str = "PORTREEVE_TEST_ALONE";

    /// What somebody who looks at the process of the test can do with its executable when it has ended, which nobody may
    /// write to before: everything, if he has looked before it moved.
    fn watched_from_outside() {
        let folder = tempfile::tempdir().expect("folder");
        let program = folder.path().join("program");
        std::fs::copy(LINK, &program).expect("copy");
        let name = "self_exe::tests::cve_2019_5736_a_process_that_has_moved_shows_nothing_that_can_be_written";
        let mut command = std::process::Command::new(&program);
        command.args(["--exact", name, "--test-threads=1", "--nocapture"]).env(ALONE, "1");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().expect("spawn");
        let mut said = io::BufReader::new(child.stdout.take().expect("a pipe"));
        let mut caught = Vec::new();
        for word in ["here", "moved"] {
            let mut line = String::new();
            while !line.trim_end().ends_with(word) {
                line.clear();
                assert!(io::BufRead::read_line(&mut said, &mut line).expect("a line") > 0, "it ended before {word}");
            }
            caught.push(File::open(format!("/proc/{}/exe", child.id())).expect("its executable"));
            child.stdin.as_mut().expect("a pipe").write_all(b"x").expect("go on");
        }
        io::copy(&mut said, &mut io::sink()).expect("the rest");
        let status = child.wait().expect("wait");
        assert!(status.success(), "{status}");
        let write = |file: &File| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            File::options().write(true).open(path).map_err(|error| error.kind())
        };
        let [before, after] = caught.as_slice() else { panic!("two looks") };
        assert!(write(before).is_ok(), "what it was executed from");
        assert_eq!(write(after).expect_err("read-only"), io::ErrorKind::ReadOnlyFilesystem);
    }

    #[test]
    fn cve_2019_5736_a_process_that_has_moved_shows_nothing_that_can_be_written() {
        static CHANGED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(7);
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        // It comes with CONFIG_CHECKPOINT_RESTORE, as PR_SET_MM_MAP does.
        if !Path::new("/proc/sys/kernel/ns_last_pid").exists() {
            let _ = writeln!(io::stderr(), "SKIPPED: this kernel was built without CONFIG_CHECKPOINT_RESTORE");
            return;
        }
        if std::env::var_os(ALONE).is_none() {
            return watched_from_outside();
        }
        let was = rustix::fs::stat(LINK).expect("the executable");
        let kept: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        CHANGED.store(8, std::sync::atomic::Ordering::Relaxed);
        let arguments = std::fs::read("/proc/self/cmdline").expect("arguments");
        let mut word = [0];
        let mut said = |word_of_ours: &[u8]| {
            io::stdout().write_all(word_of_ours).and_then(|()| io::stdout().flush()).expect("say");
            io::stdin().read_exact(&mut word).expect("hear");
        };
        said(b"here\n");
        let place = ReadOnlyPlace::make().expect("a place");
        assert!(!is_out_of_reach().expect("a look"), "it is asked, and nothing is done");
        // As the allocator does when it has no more: the heap ends elsewhere than when the place was made.
        // SAFETY: new memory, which nobody uses.
        let grown = unsafe { libc::sbrk(1 << 20) };
        place.enter().expect("moved");
        // SAFETY: brk(0) moves nothing.
        let heap_end = check(unsafe { libc::syscall(libc::SYS_brk, 0) }).expect("the kernel's end of the heap");
        assert_eq!(usize::try_from(heap_end), Ok(grown.addr() + (1 << 20)));
        drop(place);
        said(b"moved\n");

        assert!(is_out_of_reach().expect("a look"));
        let now = rustix::fs::stat(LINK).expect("the executable");
        assert_eq!((now.st_dev, now.st_ino), (was.st_dev, was.st_ino), "the same file, by another mount");
        let files = std::fs::read_dir("/proc/self/map_files").expect("what is mapped");
        let mut seen = 0;
        for file in files.map(|file| file.expect("a mapping").path()) {
            let of = rustix::fs::stat(&file).expect("a file");
            if (of.st_dev, of.st_ino) == (was.st_dev, was.st_ino) {
                let place = rustix::fs::statvfs(&file).expect("its mount");
                assert!(place.f_flag.contains(StatVfsMountFlags::RDONLY), "{}", file.display());
                seen += 1;
            }
        }
        assert!(seen >= 2, "code and constants");

        // All that the process is made of is as it was.
        assert_eq!(CHANGED.load(std::sync::atomic::Ordering::Relaxed), 8);
        assert!(kept.iter().enumerate().all(|(number, text)| *text == number.to_string()));
        assert_eq!(std::fs::read("/proc/self/cmdline").expect("arguments"), arguments);
        std::panic::set_hook(Box::new(|_| {}));
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
        drop(std::panic::take_hook());
        assert_eq!(std::thread::spawn(|| 5).join().expect("a thread"), 5);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("what is mapped");
        assert!(!maps.lines().any(|line| line.contains(" rwx")), "{maps}");
        let child = crate::clone::clone3(&crate::clone::Clone3::default(), || {
            i32::from(!is_out_of_reach().is_ok_and(|out| out))
        });
        let exit = crate::process::wait(child.expect("a child").pidfd.as_fd()).expect("its end");
        assert_eq!(exit, crate::process::Exit::Code(0));
    }

    #[test]
    fn a_program_is_found_by_a_link_and_not_where_another_file_is_mounted() {
        if !rustix::process::geteuid().is_root() {
            let _ = writeln!(io::stderr(), "SKIPPED: mounting needs root");
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let (program, link, other) =
            (folder.path().join("a program"), folder.path().join("link"), folder.path().join("b"));
        std::fs::write(&program, "text").expect("write");
        std::fs::write(&other, "other").expect("write");
        std::os::unix::fs::symlink(&program, &link).expect("symlink");
        let found = read_only(&link).expect("the program");
        let read = |fd: &OwnedFd| std::fs::read_to_string(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("read");
        assert_eq!(read(&found), "text");
        let write = File::options().write(true).open(format!("/proc/self/fd/{}", found.as_raw_fd()));
        assert_eq!(write.expect_err("read-only").kind(), io::ErrorKind::ReadOnlyFilesystem);
        let covered = || {
            namespace::unshare(NEW_MOUNT).expect("a mount namespace");
            let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("/");
            let private =
                Change { propagation: Some(crate::mount::Propagation::Private), recursive: true, ..Change::default() };
            set_attributes(root.as_fd(), &private).expect("private");
            let tree = clone_tree(CWD, &other, false, true).expect("the other file");
            let target =
                rustix::fs::open(&program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("the program");
            crate::mount::attach(tree.as_fd(), target.as_fd()).expect("attach");
            read_only(&program)
        };
        let refused =
            std::thread::scope(|scope| scope.spawn(covered).join().expect("the thread")).expect_err("refused");
        assert_eq!(refused.raw_os_error(), Some(libc::ESTALE), "{refused}");
    }

    #[test]
    fn a_sealed_copy_is_the_program_and_cannot_be_written() {
        let mut copy = File::from(sealed_copy(Path::new(LINK)).expect("a copy"));
        assert_eq!(copy.write(b"overwritten").expect_err("sealed").kind(), io::ErrorKind::PermissionDenied);
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let mut text = Vec::new();
        File::open(&path).expect("a reader").read_to_end(&mut text).expect("read");
        assert!(text == std::fs::read(LINK).expect("the program"));
        assert!(rustix::fs::fcntl_get_seals(&copy).expect("seals").contains(SealFlags::WRITE | SealFlags::SEAL));
    }
}
