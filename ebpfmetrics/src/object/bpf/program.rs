//! Commands on BTF, programs and links.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use super::{
    super::verifier_error::{VerifierError, with_log},
    Attr, Command, call, number, open,
};

const PROGRAM_TYPE_TRACEPOINT: u32 = 5;
const PROGRAM_TYPE_RAW_TRACEPOINT: u32 = 17;
const PROGRAM_TYPE_TRACING: u32 = 26;
const ATTACH_RAW_TRACEPOINT: u32 = 23;
const ATTACH_ITERATOR: u32 = 28;

/// The name of a program or map in the kernel: at most 15 bytes.
pub(super) fn object_name(name: &str) -> [u8; 16] {
    let mut short = [0; 16];
    for (to, &from) in short[..15].iter_mut().zip(name.as_bytes()) {
        *to = from;
    }
    short
}

#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    padding: u32,
}

impl Attr for BtfLoad {}

/// Loads the BTF of an object.
pub(in crate::object) fn load_btf(btf: &[u8]) -> Result<OwnedFd, VerifierError> {
    with_log("BPF_BTF_LOAD", |log| {
        let mut attr = BtfLoad {
            btf: btf.as_ptr() as u64,
            size: btf.len() as u32,
            log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            log_size: log.len() as u32,
            log_level: u32::from(!log.is_empty()),
            padding: 0,
        };
        open(Command::BtfLoad, &mut attr)
    })
}

/// What makes the kernel run a program.
#[derive(Clone, Copy, Debug)]
pub(in crate::object) enum Start {
    /// A tracepoint; the arguments have their kernel types.
    TypedTracepoint {
        /// Its type id in the kernel's BTF.
        id: u32,
    },
    /// A tracepoint; the arguments are plain numbers.
    RawTracepoint,
    /// A tracepoint; the arguments are the fields described in tracefs.
    Tracepoint,
    /// An iterator.
    Iterator {
        /// Its type id in the kernel's BTF.
        id: u32,
    },
    /// User space, with [`test_run`].
    TestRun,
}

/// A program to be loaded.
pub(in crate::object) struct Code<'a, I> {
    pub(in crate::object) name: &'a str,
    pub(in crate::object) license: &'a CStr,
    /// `struct bpf_insn`, of 8 bytes
    pub(in crate::object) instructions: &'a [I],
    /// The loaded BTF of the object.
    pub(in crate::object) btf: Option<BorrowedFd<'a>>,
    /// Function and line records of `.BTF.ext`, with the size of one record.
    pub(in crate::object) functions: (&'a [u8], usize),
    pub(in crate::object) lines: (&'a [u8], usize),
}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf_fd: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_btf_id: u32,
    attach_program_fd: u32,
    padding: u32,
}

impl Attr for ProgramLoad {}

/// Loads a program: the kernel verifies and compiles it.
pub(in crate::object) fn load_program<I>(
    code: &Code<'_, I>,
    start: Start,
) -> Result<OwnedFd, VerifierError> {
    const { assert!(size_of::<I>() == 8, "an instruction") };
    let (kind, expected_attach_type, attach_btf_id) = match start {
        Start::TypedTracepoint { id } => (PROGRAM_TYPE_TRACING, ATTACH_RAW_TRACEPOINT, id),
        Start::Iterator { id } => (PROGRAM_TYPE_TRACING, ATTACH_ITERATOR, id),
        Start::Tracepoint => (PROGRAM_TYPE_TRACEPOINT, 0, 0),
        Start::RawTracepoint | Start::TestRun => (PROGRAM_TYPE_RAW_TRACEPOINT, 0, 0),
    };
    let name = object_name(code.name);
    with_log("BPF_PROG_LOAD", |log| {
        let mut attr = ProgramLoad {
            kind,
            instruction_count: code.instructions.len() as u32,
            instructions: code.instructions.as_ptr() as u64,
            license: code.license.as_ptr() as u64,
            log_level: if log.is_empty() { 0 } else { 1 | 4 }, // each instruction, and statistics
            log_size: log.len() as u32,
            log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            name,
            expected_attach_type,
            attach_btf_id,
            ..ProgramLoad::default()
        };
        if let Some(btf) = &code.btf {
            attr.btf_fd = number(btf);
            let (functions, size) = code.functions;
            attr.functions = functions.as_ptr() as u64;
            attr.function_count = functions.len().checked_div(size).unwrap_or(0) as u32;
            attr.function_size = size as u32;
            let (lines, size) = code.lines;
            attr.lines = lines.as_ptr() as u64;
            attr.line_count = lines.len().checked_div(size).unwrap_or(0) as u32;
            attr.line_size = size as u32;
        }
        open(Command::ProgramLoad, &mut attr)
    })
}

#[repr(C)]
#[derive(Default)]
struct RawTracepointOpen {
    name: u64,
    program_fd: u32,
    padding: u32,
}

impl Attr for RawTracepointOpen {}

/// Attaches a program of [`Start::TypedTracepoint`], until the result is dropped.
pub(in crate::object) fn attach_typed_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // the program was loaded for one tracepoint
    let mut attr =
        RawTracepointOpen { program_fd: number(&program), ..RawTracepointOpen::default() };
    open(Command::RawTracepointOpen, &mut attr)
}

/// Attaches a program of [`Start::RawTracepoint`], until the result is dropped.
pub(in crate::object) fn attach_raw_tracepoint(
    program: BorrowedFd<'_>,
    tracepoint: &CStr,
) -> io::Result<OwnedFd> {
    let mut attr = RawTracepointOpen {
        name: tracepoint.as_ptr() as u64,
        program_fd: number(&program),
        ..RawTracepointOpen::default()
    };
    open(Command::RawTracepointOpen, &mut attr)
}

/// The first version of `struct perf_event_attr`.
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    unused: [u64; 6],
}

/// Attaches a program of [`Start::Tracepoint`], until the result is dropped.
pub(in crate::object) fn attach_tracepoint(
    program: BorrowedFd<'_>,
    tracepoint: u64,
) -> io::Result<OwnedFd> {
    use rustix::ioctl::opcode::{none, write};

    const TRACEPOINT: u32 = 2;
    const CLOSE_ON_EXEC: libc::c_ulong = 8;
    const ENABLE: u32 = none(b'$', 0) as u32;
    const SET_PROGRAM: u32 = write::<u32>(b'$', 8) as u32;
    let mut attr = PerfEvent {
        kind: TRACEPOINT,
        size: size_of::<PerfEvent>() as u32,
        config: tracepoint,
        ..PerfEvent::default()
    };
    #[expect(unsafe_code, reason = "no crate wraps it without libraries in C")]
    // SAFETY: attr outlives the calls and contains its size. The kernel has just opened the
    // descriptor for this process, and the ioctl commands take numbers.
    let (result, event) = unsafe {
        // The event is bound to one CPU. The program runs on all CPUs nevertheless.
        let event = libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_mut(&mut attr),
            -1,
            0,
            -1,
            CLOSE_ON_EXEC,
        );
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        let event = OwnedFd::from_raw_fd(event as i32);
        let mut result = libc::ioctl(event.as_raw_fd(), SET_PROGRAM as _, program.as_raw_fd());
        if result == 0 {
            result = libc::ioctl(event.as_raw_fd(), ENABLE as _, 0);
        }
        (result, event)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(event) }
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iterator_info: u64,
    iterator_info_length: u32,
    padding: u32,
}

impl Attr for LinkCreate {}

#[repr(C)]
#[derive(Default)]
struct IteratorCreate {
    link_fd: u32,
    flags: u32,
}

impl Attr for IteratorCreate {}

/// Starts an iteration with a program of [`Start::Iterator`]. Reading the result runs the
/// program. `map` is the map to iterate, for an iterator over the elements of a map.
pub(in crate::object) fn iterate(
    program: BorrowedFd<'_>,
    map: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info`: map_fd is its only field in 5.10. The kernel takes the rest
    // as zero.
    let info = map.as_ref().map(number);
    let mut link = LinkCreate {
        program_fd: number(&program),
        attach_type: ATTACH_ITERATOR,
        ..LinkCreate::default()
    };
    if let Some(info) = &info {
        link.iterator_info = std::ptr::from_ref(info) as u64;
        link.iterator_info_length = size_of_val(info) as u32;
    }
    let link = open(Command::LinkCreate, &mut link)?;
    open(Command::IteratorCreate, &mut IteratorCreate { link_fd: number(&link), flags: 0 })
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program_fd: u32,
    result: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
}

impl Attr for TestRun {}

/// Runs a program of [`Start::TestRun`] in the calling thread.
pub(in crate::object) fn test_run(program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = TestRun { program_fd: number(&program), ..TestRun::default() };
    call(Command::ProgramTestRun, &mut attr).map(drop)
}

#[repr(C)]
struct ObjectInfo {
    fd: u32,
    info_bytes: u32,
    info: u64,
}

impl Attr for ObjectInfo {}

/// `struct bpf_prog_info`, up to the last field used here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::object) struct ProgramInfo {
    before: [u64; 24],
    pub(in crate::object) run_time_ns: u64,
    pub(in crate::object) run_count: u64,
    /// Runs skipped because the program was already running on that CPU. Kernels before
    /// 5.12 do not report this number and do not skip runs.
    pub(in crate::object) recursion_misses: u64,
}

/// The kernel's statistics of a program.
pub(in crate::object) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = ProgramInfo::default();
    let mut attr = ObjectInfo {
        fd: number(&program),
        info_bytes: size_of_val(&info) as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    call(Command::ObjectInfo, &mut attr)?;
    Ok(info)
}
