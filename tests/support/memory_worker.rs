//! A process whose memory the tests know to the page: it does what it is told, one
//! line at a time, and answers each with a line.
//!
//! Regions are named by a number of the test's choice; sizes are in KiB.
#![expect(unsafe_code, reason = "mmap(2) and its like are what is under test")]

use std::{
    collections::HashMap,
    io::{self, BufRead as _},
    ptr,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use ebpfmetrics_suite as suite;

const PAGE: usize = 4096;

struct Region {
    address: *mut u8,
    bytes: usize,
}

struct Worker {
    regions: HashMap<usize, Region>,
    /// The end of a pipe that children wait for, and their pids.
    holding: Option<(libc::c_int, Vec<u32>)>,
}

pub(crate) fn serve() -> anyhow::Result<()> {
    // What the allocator and the streams take at their first use is not of the test.
    let mut worker = Worker { regions: HashMap::with_capacity(4096), holding: None };
    let mut line = String::with_capacity(1 << 16);
    super::tell("ready")?;
    loop {
        line.clear();
        if io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let (command, numbers) = words.split_first().context("an empty line")?;
        let numbers: Vec<usize> = numbers.iter().filter_map(|word| word.parse().ok()).collect();
        let answer = worker.obey(command, &numbers, &words).with_context(|| line.clone())?;
        super::tell(&answer)?;
    }
}

impl Worker {
    fn obey(&mut self, command: &str, n: &[usize], words: &[&str]) -> anyhow::Result<String> {
        let ok = || Ok("ok".to_owned());
        match (command, n) {
            // private memory, not touched yet
            ("map", &[id, kib]) => self.map(id, kib << 10, libc::MAP_PRIVATE)?,
            // many regions from a number on; a gap keeps the kernel from merging them
            ("map-many", &[first, count, kib]) => {
                for id in first..first + count {
                    self.map(id, kib << 10, libc::MAP_PRIVATE)?;
                }
            }
            ("unmap-many", &[first, count]) => {
                for id in first..first + count {
                    self.unmap(id)?;
                }
            }
            ("map-shared", &[id, kib]) => self.map(id, kib << 10, libc::MAP_SHARED)?,
            ("map-huge", &[id, kib]) => {
                self.map(id, kib << 10, libc::MAP_PRIVATE | libc::MAP_HUGETLB)?;
            }
            ("map-file", &[id, ..]) => self.map_file(id, words.last().context("a path")?)?,
            ("touch", &[id]) => self.region(id)?.touch(),
            ("read", &[id]) => self.region(id)?.read(),
            ("lock", &[id]) => {
                let region = self.region(id)?;
                // SAFETY: a region of this process.
                check(unsafe { libc::mlock(region.address.cast(), region.bytes) })?;
            }
            ("drop-pages", &[id]) => {
                let region = self.region(id)?;
                // SAFETY: nothing points into it.
                check(unsafe {
                    libc::madvise(region.address.cast(), region.bytes, libc::MADV_DONTNEED)
                })?;
            }
            ("page-out", &[id]) => {
                let region = self.region(id)?;
                // SAFETY: advice only.
                check(unsafe {
                    libc::madvise(region.address.cast(), region.bytes, libc::MADV_PAGEOUT)
                })?;
            }
            ("transparent-huge", &[id]) => {
                let region = self.region(id)?;
                // SAFETY: advice only.
                check(unsafe {
                    libc::madvise(region.address.cast(), region.bytes, libc::MADV_HUGEPAGE)
                })?;
            }
            ("unmap", &[id]) => self.unmap(id)?,
            ("remap", &[id, kib]) => self.remap(id, kib << 10)?,
            // the program break up, in that many steps, and down again in one
            ("brk", &[steps, kib]) => {
                for _ in 0..steps {
                    move_break((kib << 10) as isize)?;
                }
            }
            ("unbrk", &[kib]) => move_break(-((kib << 10) as isize))?,
            ("stack", &[kib]) => {
                std::hint::black_box(use_stack(kib << 10));
            }
            // up for so many ms, and gone again
            ("spike", &[kib, ms]) => {
                self.map(usize::MAX, kib << 10, libc::MAP_PRIVATE)?;
                self.region(usize::MAX)?.touch();
                std::thread::sleep(Duration::from_millis(ms as u64));
                self.unmap(usize::MAX)?;
            }
            ("faults", &[]) => return faults(libc::RUSAGE_SELF),
            // a thread that touches a region and stays
            ("thread-touch", &[id]) => {
                let region = self.region(id)?;
                let (address, bytes) = (region.address as usize, region.bytes);
                let (done, is_done) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    Region { address: address as *mut u8, bytes }.touch();
                    done.send(()).expect("the worker waits");
                    std::thread::park();
                });
                is_done.recv()?;
            }
            // a child that touches so much, tells its faults, and exits
            ("child-touch", &[kib]) => return self.child_touch(kib << 10),
            // so many children that touch so much each and live until `release`; their pids
            ("hold", &[count, kib]) => return self.hold(count, kib << 10),
            ("release", &[]) => {
                let (pipe, children) = self.holding.take().context("nobody holds")?;
                // SAFETY: opened in hold().
                check(unsafe { libc::close(pipe) })?;
                children.into_iter().try_for_each(|pid| suite::wait_for(pid).map(drop))?;
            }
            // so many times a few children at once, which touch up to so much, fork, execute
            // this program, share their memory and end in some order
            ("churn", &[rounds, kib]) => churn(rounds, kib << 10)?,
            // a child with the address space of this process, until the next line
            ("share", &[]) => return share_address_space(None),
            // the same, but after so many ms the child executes `sleep 60`
            ("share-and-exec", &[ms]) => return share_address_space(Some(ms)),
            // the largest resident set of a child that has been waited for, in KiB
            ("children-high-water", &[]) => {
                return Ok(rusage(libc::RUSAGE_CHILDREN)?.ru_maxrss.to_string());
            }
            ("exec", &[]) => {
                use std::os::unix::process::CommandExt as _;
                let this = std::env::current_exe()?;
                return Err(std::process::Command::new(this).arg("memory").exec().into());
            }
            // the first thread ends; another answers from here on
            ("leader-exits", &[]) => {
                let regions = std::mem::take(&mut self.regions);
                let worker = Worker { regions, holding: None };
                let worker = suite::Unchecked(worker);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(50));
                    super::tell("ok").expect("the test reads");
                    let mut worker = worker.into_inner();
                    for line in io::stdin().lines() {
                        let line = line.expect("the test writes");
                        let words: Vec<_> = line.split_whitespace().collect();
                        let n: Vec<_> = words[1..].iter().filter_map(|w| w.parse().ok()).collect();
                        let answer = worker.obey(words[0], &n, &words).expect("a known command");
                        super::tell(&answer).expect("the test reads");
                    }
                });
                suite::exit_thread()
            }
            _ => bail!("unknown command"),
        }
        ok()
    }

    fn region(&self, id: usize) -> anyhow::Result<&Region> {
        self.regions.get(&id).context("no such region")
    }

    fn map(&mut self, id: usize, bytes: usize, flags: libc::c_int) -> anyhow::Result<()> {
        self.regions.insert(id, map_anonymous(bytes, flags)?);
        Ok(())
    }

    fn map_file(&mut self, id: usize, path: &str) -> anyhow::Result<()> {
        use std::os::fd::AsRawFd as _;
        let file = std::fs::File::open(path)?;
        let bytes = file.metadata()?.len() as usize;
        // SAFETY: a new mapping where the kernel likes.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        ensure!(address != libc::MAP_FAILED, io::Error::last_os_error());
        self.regions.insert(id, Region { address: address.cast(), bytes });
        Ok(())
    }

    fn unmap(&mut self, id: usize) -> anyhow::Result<()> {
        let region = self.regions.remove(&id).context("no such region")?;
        // SAFETY: nothing points into it.
        check(unsafe { libc::munmap(region.address.cast(), region.bytes) })
    }

    fn remap(&mut self, id: usize, bytes: usize) -> anyhow::Result<()> {
        let region = self.regions.get_mut(&id).context("no such region")?;
        // SAFETY: nothing points into it.
        let address = unsafe {
            libc::mremap(region.address.cast(), region.bytes, bytes, libc::MREMAP_MAYMOVE)
        };
        ensure!(address != libc::MAP_FAILED, io::Error::last_os_error());
        *region = Region { address: address.cast(), bytes };
        Ok(())
    }

    fn hold(&mut self, count: usize, bytes: usize) -> anyhow::Result<String> {
        let (mut held, mut go) = ([0; 2], [0; 2]);
        // SAFETY: two descriptors are written each.
        unsafe {
            check(libc::pipe(held.as_mut_ptr()))?;
            check(libc::pipe(go.as_mut_ptr()))?;
        }
        let mut children = Vec::new();
        for _ in 0..count {
            children.push(suite::fork(|| {
                suite::die_with_parent();
                // SAFETY: opened above.
                unsafe { libc::close(go[1]) };
                let region = anonymous(bytes).expect("memory");
                region.touch();
                let mut byte = 0_u8;
                // SAFETY: one byte each.
                unsafe {
                    libc::write(held[1], (&raw const byte).cast(), 1);
                    libc::read(go[0], (&raw mut byte).cast(), 1);
                }
            })?);
        }
        for _ in 0..count {
            let mut byte = 0_u8;
            // SAFETY: one byte.
            check(unsafe { libc::read(held[0], (&raw mut byte).cast(), 1) } as libc::c_int)?;
        }
        for descriptor in [held[0], held[1], go[0]] {
            // SAFETY: opened above.
            check(unsafe { libc::close(descriptor) })?;
        }
        let pids: Vec<_> = children.iter().map(u32::to_string).collect();
        self.holding = Some((go[1], children));
        Ok(pids.join(" "))
    }

    fn child_touch(&mut self, bytes: usize) -> anyhow::Result<String> {
        let mut pipe = [0; 2];
        // SAFETY: two descriptors are written.
        check(unsafe { libc::pipe(pipe.as_mut_ptr()) })?;
        let (pid, _) = suite::fork_and_wait(None, || {
            self.map(usize::MAX, bytes, libc::MAP_PRIVATE).expect("memory");
            self.regions[&usize::MAX].touch();
            let faults = faults(libc::RUSAGE_SELF).expect("rusage");
            // SAFETY: bytes that outlive the call.
            unsafe { libc::write(pipe[1], faults.as_ptr().cast(), faults.len()) };
        })?;
        let mut text = [0_u8; 64];
        // SAFETY: as long as is said.
        let length = unsafe { libc::read(pipe[0], text.as_mut_ptr().cast(), text.len()) };
        for descriptor in pipe {
            // SAFETY: opened above.
            check(unsafe { libc::close(descriptor) })?;
        }
        Ok(format!("{pid} {}", str::from_utf8(&text[..length as usize])?))
    }
}

fn map_anonymous(bytes: usize, flags: libc::c_int) -> anyhow::Result<Region> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes.
    let address =
        unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags | libc::MAP_ANONYMOUS, -1, 0) };
    ensure!(address != libc::MAP_FAILED, io::Error::last_os_error());
    Ok(Region { address: address.cast(), bytes })
}

fn anonymous(bytes: usize) -> anyhow::Result<Region> {
    map_anonymous(bytes, libc::MAP_PRIVATE)
}

fn churn(rounds: usize, most: usize) -> anyhow::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..rounds {
        let mut children = Vec::new();
        for _ in 0..4 {
            let (kind, bytes, drops) = (random(4), PAGE + random(most), random(2) == 0);
            children.push(suite::fork(|| {
                let region = anonymous(bytes).expect("memory");
                region.touch();
                if drops {
                    // SAFETY: nothing points into it.
                    unsafe { libc::madvise(region.address.cast(), bytes / 2, libc::MADV_DONTNEED) };
                }
                match kind {
                    0 => drop(suite::fork_and_wait(None, || region.touch())),
                    1 => execute_nothing(),
                    // in the memory of this process, until it is replaced
                    2 => {
                        let child = share_address_space(Some(1)).expect("a child");
                        // SAFETY: no memory is involved.
                        unsafe { libc::kill(child.parse().expect("a pid"), libc::SIGKILL) };
                    }
                    _ => {}
                }
            })?);
        }
        children.into_iter().try_for_each(|pid| suite::wait_for(pid).map(drop))?;
    }
    Ok(())
}

fn execute_nothing() {
    let arguments = [c"workload".as_ptr(), c"job".as_ptr(), c"burn".as_ptr(), c"0".as_ptr()];
    let arguments: Vec<_> = arguments.into_iter().chain([ptr::null()]).collect();
    // SAFETY: strings and an array that end as they must.
    unsafe { libc::execv(c"/proc/self/exe".as_ptr(), arguments.as_ptr()) };
}

impl Region {
    fn touch(&self) {
        for page in (0..self.bytes).step_by(PAGE) {
            // SAFETY: within the region.
            unsafe { self.address.add(page).write_volatile(1) };
        }
    }

    fn read(&self) {
        for page in (0..self.bytes).step_by(PAGE) {
            // SAFETY: within the region.
            std::hint::black_box(unsafe { self.address.add(page).read_volatile() });
        }
    }
}

fn check(result: libc::c_int) -> anyhow::Result<()> {
    ensure!(result >= 0, io::Error::last_os_error());
    Ok(())
}

/// By the system call: the library's own notion of the break is not moved.
fn move_break(by: isize) -> anyhow::Result<()> {
    // SAFETY: above what the allocator has taken, as nothing allocates in between.
    unsafe {
        let now = libc::syscall(libc::SYS_brk, 0);
        let wanted = now + by as libc::c_long;
        ensure!(libc::syscall(libc::SYS_brk, wanted) == wanted, "the break does not move");
    }
    Ok(())
}

/// Goes that deep; returns something, lest it be left out.
#[inline(never)]
fn use_stack(bytes: usize) -> u8 {
    let frame = std::hint::black_box([1_u8; PAGE]);
    if bytes <= PAGE { frame[0] } else { use_stack(bytes - PAGE).wrapping_add(frame[PAGE - 1]) }
}

/// `MINOR MAJOR`
fn faults(who: libc::c_int) -> anyhow::Result<String> {
    let usage = rusage(who)?;
    Ok(format!("{} {}", usage.ru_minflt, usage.ru_majflt))
}

fn rusage(who: libc::c_int) -> anyhow::Result<libc::rusage> {
    // SAFETY: plain data, filled in.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        check(libc::getrusage(who, &raw mut usage))?;
        Ok(usage)
    }
}

/// Tells the pid of a child that lives until this process ends.
fn share_address_space(exec_after_ms: Option<usize>) -> anyhow::Result<String> {
    extern "C" fn wait(exec_after_ms: *mut libc::c_void) -> libc::c_int {
        suite::die_with_parent();
        let ms = exec_after_ms as usize;
        if ms > 0 {
            std::thread::sleep(Duration::from_millis(ms as u64));
            let (program, time) = (c"/bin/sleep", c"60");
            let arguments = [program.as_ptr(), time.as_ptr(), ptr::null()];
            // SAFETY: strings and an array that end as they must.
            unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
        }
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    const STACK: usize = 64 << 10;
    let stack = Box::leak(vec![0_u8; STACK].into_boxed_slice());
    // SAFETY: a stack of its own, which is never given back.
    let pid = unsafe {
        libc::clone(
            wait,
            stack.as_mut_ptr().add(STACK).cast(),
            libc::CLONE_VM | libc::SIGCHLD,
            ptr::without_provenance_mut(exec_after_ms.unwrap_or(0)),
        )
    };
    check(pid)?;
    Ok(pid.to_string())
}
