//! What the watched process does: one thing over and over, on one CPU.

use std::{fmt, fs, path::PathBuf, process::Command, ptr};

use anyhow::{Context as _, Result, bail, ensure};

use crate::support::{self, Helper, pin_to_last_cpu, process_cpu_ns};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// Touches the pages of a region and gives them back, again and again.
    Touch,
    /// The same in a new process each time: each page is more than it ever held.
    Grow,
    /// `mmap` and `munmap`.
    Map,
    /// The same with one page touched.
    MapTouched,
    /// A child that ends at once.
    Fork,
    /// A child that executes a program that ends at once.
    Exec,
    /// A system call that has nothing to do with memory.
    GetParent,
    /// A compiler.
    Compile,
}

const ALL: [Work; 8] = [
    Work::Touch,
    Work::Grow,
    Work::Map,
    Work::MapTouched,
    Work::Fork,
    Work::Exec,
    Work::GetParent,
    Work::Compile,
];

const PAGE_BYTES: usize = 4096;
const REGION_PAGES: usize = 1024;
pub(crate) const REGION_BYTES: usize = REGION_PAGES * PAGE_BYTES;

impl Work {
    /// How often it is done in one of the parts of a run, of some 2 ms.
    fn repetitions(self) -> usize {
        match self {
            Self::Touch | Self::Grow | Self::Compile => 1,
            Self::Map | Self::MapTouched => 250,
            Self::Fork => 10,
            Self::Exec => 2,
            Self::GetParent => 5_000,
        }
    }

    /// Of a run; the best of them counts.
    fn parts(self) -> usize {
        match self {
            Self::Grow => 20,
            Self::Compile => 2,
            _ => 40,
        }
    }

    fn operations_per_repetition(self) -> usize {
        match self {
            Self::Touch | Self::Grow => REGION_PAGES,
            _ => 1,
        }
    }

    fn forks(self) -> bool {
        matches!(self, Self::Grow | Self::Fork | Self::Exec | Self::Compile)
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Touch => "page touched",
            Self::Grow => "page touched, new peak",
            Self::Map => "mmap and munmap",
            Self::MapTouched => "mmap, a page touched, munmap",
            Self::Fork => "fork, exit, wait",
            Self::Exec => "fork, exec, exit, wait",
            Self::GetParent => "getppid",
            Self::Compile => "compile",
        })
    }
}

/// A process that works when it is told to.
pub(crate) struct Worker {
    work: Work,
    helper: Helper,
}

/// What it did.
pub(crate) struct Run {
    /// In the best of its parts: other work on the machine can only disturb.
    pub(crate) ns_per_operation: f64,
    pub(crate) operations: u64,
    /// Of its own, by `getrusage`.
    pub(crate) faults: u64,
    /// Of those it waited for.
    pub(crate) child_faults: u64,
    /// Processes that it started itself.
    pub(crate) children: u64,
    /// How often it called `mmap`, and `munmap`, where that is known.
    pub(crate) maps: Option<u64>,
}

/// Some machines hide the release of 1 % of all processes.
pub(crate) fn nearly_all(processes: u64) -> u64 {
    (processes as f64 * 0.985).ceil() as u64
}

impl Run {
    /// How often a program must have run for it.
    pub(crate) fn events_at_least(&self, work: Work, program: &str) -> u64 {
        match work {
            Work::Touch if program.contains("resident") => self.operations,
            Work::Grow if program.contains("resident") => self.operations,
            Work::MapTouched if program.contains("resident") => 2 * self.operations,
            Work::Map | Work::MapTouched if program.contains("space") => 2 * self.operations,
            Work::Fork | Work::Exec if ["mem_exit", "mem_fork"].contains(&program) => {
                self.operations
            }
            _ => 0,
        }
    }
}

impl Worker {
    /// One for each kind of work that can be done here; says which cannot.
    pub(crate) fn start_all() -> Result<Vec<Self>> {
        let mut workers = Vec::new();
        for work in ALL {
            if work == Work::Compile && compiler().is_none() {
                println!("SKIPPED {work}: there is neither rustc nor cc here");
                continue;
            }
            let mut worker = Self { work, helper: Helper::start(&format!("{work:?}"))? };
            worker.play()?; // what only the first one does
            workers.push(worker);
        }
        Ok(workers)
    }

    pub(crate) fn work(&self) -> Work {
        self.work
    }

    pub(crate) fn pid(&self) -> u32 {
        self.helper.pid()
    }

    pub(crate) fn play(&mut self) -> Result<Run> {
        let (parts, repetitions) = (self.work.parts(), self.work.repetitions());
        let operations = repetitions * self.work.operations_per_repetition();
        let [best_ns, faults, child_faults] = self.helper.ask::<u64, 3>(repetitions)?;
        let total = |per_part: usize| (parts * per_part) as u64;
        Ok(Run {
            ns_per_operation: best_ns as f64 / operations as f64,
            operations: total(operations),
            faults,
            child_faults,
            children: if self.work.forks() { total(repetitions) } else { 0 },
            maps: matches!(self.work, Work::Map | Work::MapTouched).then(|| total(repetitions)),
        })
    }
}

/// The helper's side.
pub(crate) fn serve(name: &str) -> Result<()> {
    let work = ALL.into_iter().find(|work| format!("{work:?}") == name).context("what?")?;
    pin_to_last_cpu()?;
    // Others who take turns on this CPU would leave its caches cold.
    rustix::process::setpriority_process(None, -20)?;
    let mut desk = Desk::new(work)?;
    support::serve(|repetitions| {
        let before = Used::now()?;
        let mut best_ns = u64::MAX;
        for _ in 0..work.parts() {
            let start = Used::now()?;
            for _ in 0..repetitions {
                desk.work()?;
            }
            best_ns = best_ns.min(Used::now()?.cpu_ns - start.cpu_ns);
        }
        let after = Used::now()?;
        let (faults, of_children) =
            (after.faults - before.faults, after.child_faults - before.child_faults);
        Ok(format!("{best_ns} {faults} {of_children}"))
    })
}

/// By this process and those it waited for.
struct Used {
    cpu_ns: u64,
    faults: u64,
    child_faults: u64,
}

#[expect(unsafe_code, reason = "rustix has no getrusage")]
impl Used {
    fn now() -> Result<Self> {
        let usage = |of| {
            // SAFETY: all bits zero is a valid rusage, and the kernel fills it in.
            let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
            // SAFETY: the pointer is good for the call.
            let failed = unsafe { libc::getrusage(of, &raw mut usage) } != 0;
            ensure!(!failed, "getrusage: {}", std::io::Error::last_os_error());
            Ok(usage)
        };
        let (own, children) = (usage(libc::RUSAGE_SELF)?, usage(libc::RUSAGE_CHILDREN)?);
        let ns =
            |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
        Ok(Self {
            cpu_ns: process_cpu_ns() + ns(children.ru_utime) + ns(children.ru_stime),
            faults: own.ru_minflt as u64,
            child_faults: children.ru_minflt as u64,
        })
    }
}

/// What the work is done with.
struct Desk {
    work: Work,
    region: *mut u8,
    compiler: Option<Compiler>,
}

#[expect(unsafe_code, reason = "system calls are the work")]
impl Desk {
    fn new(work: Work) -> Result<Self> {
        let region = map(REGION_BYTES)?;
        // A page is to be one of 4 KiB.
        // SAFETY: the region is mapped, and nobody else knows it.
        let failed =
            unsafe { libc::madvise(region.cast(), REGION_BYTES, libc::MADV_NOHUGEPAGE) } != 0;
        ensure!(!failed, "madvise: {}", std::io::Error::last_os_error());
        let compiler = (work == Work::Compile).then(Compiler::new).transpose()?;
        Ok(Self { work, region, compiler })
    }

    fn work(&mut self) -> Result<()> {
        match self.work {
            Work::Touch => {
                self.touch(REGION_PAGES);
                // SAFETY: the region is mapped, and nobody keeps anything in it.
                let failed =
                    unsafe { libc::madvise(self.region.cast(), REGION_BYTES, libc::MADV_DONTNEED) }
                        != 0;
                ensure!(!failed, "madvise: {}", std::io::Error::last_os_error());
            }
            Work::Grow => child(|| self.touch(REGION_PAGES))?,
            Work::Map | Work::MapTouched => {
                let bytes = 16 * PAGE_BYTES;
                let memory = map(bytes)?;
                if self.work == Work::MapTouched {
                    // SAFETY: just mapped, for writing.
                    unsafe { memory.write_volatile(1) };
                }
                // SAFETY: just mapped, and nobody else knows it.
                let failed = unsafe { libc::munmap(memory.cast(), bytes) } != 0;
                ensure!(!failed, "munmap: {}", std::io::Error::last_os_error());
            }
            Work::Fork => child(|| {})?,
            Work::Exec => child(|| {
                let path = c"/bin/true".as_ptr();
                // SAFETY: strings end with 0 and arrays with a null pointer.
                unsafe { libc::execv(path, [path, ptr::null()].as_ptr()) };
                // SAFETY: ends the child.
                unsafe { libc::_exit(1) };
            })?,
            Work::GetParent => {
                std::hint::black_box(rustix::process::getppid());
            }
            Work::Compile => self.compiler.as_mut().context("no compiler")?.compile()?,
        }
        Ok(())
    }

    fn touch(&self, pages: usize) {
        for page in 0..pages {
            // SAFETY: the region is mapped for writing and has that many pages.
            unsafe { self.region.add(page * PAGE_BYTES).write_volatile(1) };
        }
    }
}

#[expect(unsafe_code, reason = "memory from the kernel itself, not from malloc")]
fn map(bytes: usize) -> Result<*mut u8> {
    let (access, what) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory wherever the kernel likes.
    let memory = unsafe { libc::mmap(ptr::null_mut(), bytes, access, what, -1, 0) };
    ensure!(memory != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    Ok(memory.cast())
}

#[expect(unsafe_code, reason = "fork() as it is")]
fn child(work: impl FnOnce()) -> Result<()> {
    // SAFETY: this process has one thread; the child only makes system calls.
    let child = unsafe { libc::fork() };
    match child {
        -1 => bail!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            work();
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        _ => {
            let mut status = 0;
            // SAFETY: the pointer is good for the call.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            ensure!(waited == child && status == 0, "a child ended with {status}");
            Ok(())
        }
    }
}

/// The first there is, with its arguments.
fn compiler() -> Option<(&'static str, &'static [&'static str])> {
    const RUSTC: &[&str] =
        &["--edition=2024", "--crate-type=lib", "--emit=obj", "-Ccodegen-units=1"];
    let there = |name: &str| {
        Command::new(name).arg("--version").output().is_ok_and(|it| it.status.success())
    };
    [("rustc", RUSTC), ("cc", &["-O1", "-c"])].into_iter().find(|(name, _)| there(name))
}

/// A compiler with something to compile.
struct Compiler {
    command: Command,
    directory: PathBuf,
}

impl Compiler {
    fn new() -> Result<Self> {
        let (name, arguments) = compiler().context("no compiler")?;
        let directory = std::env::temp_dir().join(format!("mem-cost-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let (file, text) = match name {
            "rustc" => ("small.rs", rust_source()),
            _ => ("small.c", c_source()),
        };
        fs::write(directory.join(file), text)?;
        let mut command = Command::new(name);
        command.args(arguments).args([file, "-o", "small.o"]).current_dir(&directory);
        Ok(Self { command, directory })
    }

    fn compile(&mut self) -> Result<()> {
        let status = self.command.status()?;
        ensure!(status.success(), "the compiler ended with {status}");
        Ok(())
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn rust_source() -> String {
    let function = |n: usize| {
        format!(
            "pub fn f{n}(words: &[&str]) -> Vec<String> {{
                 let mut all: Vec<_> = words.iter().map(|word| format!(\"{{word}} {n}\")).collect();
                 all.sort();
                 all
             }}\n"
        )
    };
    (0..20).map(function).collect()
}

fn c_source() -> String {
    let function = |n: usize| {
        format!(
            "int f{n}(const char *a, char *b) {{ \
                 int s = {n}; while (*a) {{ s = s * 31 + *a; *b++ = *a++ ^ s; }} \
                 return printf(\"%d %zu\\n\", s, strlen(b)); }}\n"
        )
    };
    let head = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n".to_owned();
    std::iter::once(head).chain((0..200).map(function)).collect()
}
