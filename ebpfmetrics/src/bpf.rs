//! The system calls that get programs into the kernel, run and read them.

use std::{
    collections::BTreeSet,
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
enum Command {
    MapUpdateElement = 2,
    ProgramLoad = 5,
    ProgramTestRun = 10,
    ProgramNextId = 11,
    MapNextId = 12,
    ObjectInfo = 15,
    RawTracepointOpen = 17,
    BtfLoad = 18,
    MapFreeze = 22,
    LinkCreate = 28,
    IteratorCreate = 33,
}

const PROGRAM_TYPE_TRACEPOINT: u32 = 5;
const PROGRAM_TYPE_RAW_TRACEPOINT: u32 = 17;
const PROGRAM_TYPE_TRACING: u32 = 26;
const ATTACH_RAW_TRACEPOINT: u32 = 23;
const ATTACH_ITERATOR: u32 = 28;

/// The parts of `union bpf_attr`, each up to the last field that is used here and
/// in Linux 5.10.
trait Attr {}

/// Descriptors are small positive numbers, which the kernel counts unsigned.
fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd() as u32
}

fn bpf(command: Command, attr: &mut impl Attr) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "aya attaches only what its own loader has loaded")]
    // SAFETY: attr outlives the call and is as long as its given size; it is of this
    // module, whose functions point it at memory of the length that they state.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of_val(attr),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn open(command: Command, attr: &mut impl Attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    #[expect(unsafe_code, reason = "a system call gives a number")]
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
#[derive(Default)]
struct NextId {
    start_id: u32,
    next_id: u32,
    open_flags: u32,
    padding: u32,
}

impl Attr for NextId {}

/// The programs in the kernel, by id. By number alone: opening each to list it would
/// keep some of them from being freed.
pub(crate) fn program_ids() -> BTreeSet<u32> {
    ids(Command::ProgramNextId)
}

/// The maps in the kernel, by id.
pub(crate) fn map_ids() -> BTreeSet<u32> {
    ids(Command::MapNextId)
}

fn ids(next: Command) -> BTreeSet<u32> {
    let mut attr = NextId::default();
    let mut ids = BTreeSet::new();
    while bpf(next, &mut attr).is_ok() {
        ids.insert(attr.next_id);
        attr.start_id = attr.next_id;
    }
    ids
}

/// Why the kernel refused something, and what it says about it.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed")]
pub(crate) struct Refusal {
    call: &'static str,
    #[source]
    pub(crate) error: io::Error,
    pub(crate) log: String,
}

/// Tries once, and only if that fails asks for the reasons, which takes longer.
fn logged(
    call: &'static str,
    attempt: impl Fn(&mut [u8]) -> io::Result<OwnedFd>,
) -> Result<OwnedFd, Refusal> {
    /// Older kernels take no more.
    const LARGEST: usize = (u32::MAX >> 8) as usize;
    let mut log = Vec::new();
    // a signal may interrupt the verifier
    let attempt = |log: &mut [u8]| {
        let again = |result: &io::Result<_>| matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        (0..4).map(|_| attempt(log)).find(|result| !again(result)).unwrap_or_else(|| attempt(log))
    };
    let mut result = attempt(&mut log);
    for length in [64 << 10, 1 << 20, LARGEST] {
        match &result {
            Ok(_) => break,
            Err(error) if !log.is_empty() && error.raw_os_error() != Some(libc::ENOSPC) => break,
            Err(_) => {}
        }
        log.clear();
        log.resize(length, 0);
        result = attempt(&mut log);
    }
    result.map_err(|error| {
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        Refusal { call, error, log: log.into_owned() }
    })
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

/// Tells the kernel the types of an object.
pub(crate) fn load_btf(btf: &[u8]) -> Result<OwnedFd, Refusal> {
    logged("BPF_BTF_LOAD", |log| {
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

/// What a program is started by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// A tracepoint, with arguments of the types that the kernel gives them.
    TypedTracepoint {
        /// Its id in the kernel's BTF.
        id: u32,
    },
    /// A tracepoint, with its arguments as plain numbers.
    RawTracepoint,
    /// A tracepoint, with arguments as tracefs describes them.
    Tracepoint,
    /// An iterator.
    Iterator {
        /// Its id in the kernel's BTF.
        id: u32,
    },
    /// User space, with [`run`].
    Call,
}

/// A program as the kernel is to load it.
pub(crate) struct Code<'a, I> {
    pub(crate) name: &'a str,
    pub(crate) license: &'a CStr,
    /// `struct bpf_insn`, of 8 bytes
    pub(crate) instructions: &'a [I],
    /// What the kernel knows the object's types by.
    pub(crate) btf: Option<BorrowedFd<'a>>,
    /// Records about functions and lines, with the size of each.
    pub(crate) functions: (&'a [u8], usize),
    pub(crate) lines: (&'a [u8], usize),
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

/// Has the kernel verify and compile a program.
pub(crate) fn load_program<I>(code: &Code<'_, I>, start: Start) -> Result<OwnedFd, Refusal> {
    const { assert!(size_of::<I>() == 8, "an instruction") };
    let (kind, expected_attach_type, attach_btf_id) = match start {
        Start::TypedTracepoint { id } => (PROGRAM_TYPE_TRACING, ATTACH_RAW_TRACEPOINT, id),
        Start::Iterator { id } => (PROGRAM_TYPE_TRACING, ATTACH_ITERATOR, id),
        Start::Tracepoint => (PROGRAM_TYPE_TRACEPOINT, 0, 0),
        Start::RawTracepoint | Start::Call => (PROGRAM_TYPE_RAW_TRACEPOINT, 0, 0),
    };
    let mut name = [0; 16];
    for (to, &from) in name[..15].iter_mut().zip(code.name.as_bytes()) {
        *to = from;
    }
    logged("BPF_PROG_LOAD", |log| {
        let mut attr = ProgramLoad {
            kind,
            instruction_count: code.instructions.len() as u32,
            instructions: code.instructions.as_ptr() as u64,
            license: code.license.as_ptr() as u64,
            log_level: if log.is_empty() { 0 } else { 1 | 4 }, // what it does, and statistics
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
pub(crate) fn attach_typed_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // the program knows which
    let mut attr =
        RawTracepointOpen { program_fd: number(&program), ..RawTracepointOpen::default() };
    open(Command::RawTracepointOpen, &mut attr)
}

/// Attaches a program of [`Start::RawTracepoint`], until the result is dropped.
pub(crate) fn attach_raw_tracepoint(
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

/// The part of `struct perf_event_attr` that has always been there.
#[repr(C)]
#[derive(Default)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    unused: [u64; 6],
}

/// Attaches a program of [`Start::Tracepoint`], until the result is dropped.
pub(crate) fn attach_tracepoint(program: BorrowedFd<'_>, tracepoint: u64) -> io::Result<OwnedFd> {
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
    // SAFETY: attr outlives the calls and tells its size; the kernel has just opened
    // the descriptor for us, and the commands take numbers.
    let (result, event) = unsafe {
        // of any process, on one CPU: the program runs on all of them nevertheless
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
}

impl Attr for LinkCreate {}

#[repr(C)]
#[derive(Default)]
struct IteratorCreate {
    link_fd: u32,
    flags: u32,
}

impl Attr for IteratorCreate {}

/// Begins a pass of a program of [`Start::Iterator`]: reading runs it.
pub(crate) fn iterate(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let link = open(
        Command::LinkCreate,
        &mut LinkCreate {
            program_fd: number(&program),
            attach_type: ATTACH_ITERATOR,
            ..LinkCreate::default()
        },
    )?;
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

/// Runs a program of [`Start::Call`] in the calling thread.
pub(crate) fn run(program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = TestRun { program_fd: number(&program), ..TestRun::default() };
    bpf(Command::ProgramTestRun, &mut attr).map(drop)
}

#[repr(C)]
struct ObjectInfo {
    fd: u32,
    info_bytes: u32,
    info: u64,
}

impl Attr for ObjectInfo {}

/// The part of `struct bpf_prog_info` that is of use here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProgramInfo {
    before: [u64; 24],
    pub(crate) run_time_ns: u64,
    pub(crate) run_count: u64,
    /// Runs that were skipped because the program was under way on that CPU. Kernels that
    /// do not tell (before 5.12) do not skip.
    pub(crate) recursion_misses: u64,
}

/// What the kernel has counted of a program.
pub(crate) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = ProgramInfo::default();
    let mut attr = ObjectInfo {
        fd: number(&program),
        info_bytes: size_of_val(&info) as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(Command::ObjectInfo, &mut attr)?;
    Ok(info)
}

#[repr(C)]
#[derive(Default)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Attr for MapElement {}

/// Sets the first element of an array map, whose values have this length.
pub(crate) fn set_first(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let key = 0_u32;
    let mut attr = MapElement {
        map_fd: number(&map),
        key: std::ptr::from_ref(&key) as u64,
        value: value.as_ptr() as u64,
        ..MapElement::default()
    };
    bpf(Command::MapUpdateElement, &mut attr).map(drop)
}

#[repr(C)]
struct MapFreeze {
    map_fd: u32,
}

impl Attr for MapFreeze {}

/// Lets user space change a map no more: programs are compiled with its values.
pub(crate) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::MapFreeze, &mut MapFreeze { map_fd: number(&map) }).map(drop)
}
