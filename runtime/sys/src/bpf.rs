//! bpf(2): the programs that decide which devices a cgroup v2 may use.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::raw::check;

/// One eBPF instruction, `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low, source register in the high four bits.
    pub registers: u8,
    /// Jump or memory offset.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

const PROGRAM_LOAD: libc::c_int = 5;
const PROGRAM_ATTACH: libc::c_int = 8;
const PROGRAM_DETACH: libc::c_int = 9;
const PROGRAM_QUERY: libc::c_int = 16;
const PROGRAM_BY_ID: libc::c_int = 13;
const INFO_BY_FD: libc::c_int = 15;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

#[repr(C, align(8))]
#[derive(Default)]
struct LoadArguments {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_LENGTH],
}

/// BPF_OBJ_NAME_LEN, the terminating zero included.
const NAME_LENGTH: usize = 16;

#[repr(C, align(8))]
#[derive(Default)]
struct InfoArguments {
    program_fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C, align(8))]
#[derive(Default)]
struct Info {
    before: [u64; 8],
    name: [u8; NAME_LENGTH],
}

#[repr(C, align(8))]
#[derive(Default)]
struct AttachArguments {
    target_fd: u32,
    program_fd: u32,
    attach_type: u32,
    flags: u32,
    replace_fd: u32,
    padding: u32,
}

#[repr(C, align(8))]
#[derive(Default)]
struct QueryArguments {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

fn call<T>(command: libc::c_int, arguments: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `arguments` is one of the structs above, laid out as the command's part of `union bpf_attr`, of the
    // size given; pointers within it are to slices that the callers keep alive. The kernel takes missing tail as zero.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(arguments), size_of::<T>()) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(answer).map_err(|_| io::Error::other("bpf gave no descriptor"))?;
    // SAFETY: the commands that answer with a descriptor give a new one, close-on-exec, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program of type cgroup/dev. Of `name` (letters, digits, `_` and `.`) the first 15 bytes count.
///
/// # Errors
/// `EPERM` without CAP_BPF or CAP_SYS_ADMIN in the initial namespace, `EINVAL` when the verifier refuses.
pub fn load_device_program(name: &str, program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut padded = [0; NAME_LENGTH];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(NAME_LENGTH - 1)) {
        *to = from;
    }
    let mut arguments = LoadArguments {
        name: padded,
        program_type: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadArguments::default()
    };
    owned(call(PROGRAM_LOAD, &mut arguments)?)
}

/// Programs of type cgroup/dev attached to a cgroup itself.
///
/// # Errors
/// `EPERM`, `EINVAL` when `cgroup` is not a cgroup v2 directory.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0_u32; 64];
    let mut arguments = QueryArguments {
        target_fd: number(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: 64,
        ..QueryArguments::default()
    };
    call(PROGRAM_QUERY, &mut arguments)?;
    let count = usize::try_from(arguments.count).unwrap_or(0);
    let mut programs = Vec::new();
    for id in ids.iter().take(count) {
        let mut by_id = [*id, 0, 0, 0];
        programs.push(owned(call(PROGRAM_BY_ID, &mut by_id)?)?);
    }
    Ok(programs)
}

/// The name that a program was loaded with; empty without one.
///
/// # Errors
/// `EPERM`, `EBADF` when `program` is no program.
pub fn program_name(program: BorrowedFd<'_>) -> io::Result<String> {
    let mut info = Info::default();
    let mut arguments = InfoArguments {
        program_fd: number(program),
        length: u32::try_from(size_of::<Info>()).unwrap_or(0),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    call(INFO_BY_FD, &mut arguments)?;
    Ok(info.name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect())
}

/// Attaches `program`; `replace` is exchanged for it in one step.
///
/// # Errors
/// `EPERM`, `ENOENT` when `replace` is not attached.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut arguments = AttachArguments {
        target_fd: number(cgroup),
        program_fd: number(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI | if replace.is_some() { REPLACE } else { 0 },
        replace_fd: replace.map_or(0, number),
        ..AttachArguments::default()
    };
    call(PROGRAM_ATTACH, &mut arguments)?;
    Ok(())
}

/// Detaches `program`.
///
/// # Errors
/// `ENOENT` when it is not attached.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut arguments = AttachArguments {
        target_fd: number(cgroup),
        program_fd: number(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        ..AttachArguments::default()
    };
    call(PROGRAM_DETACH, &mut arguments)?;
    Ok(())
}
