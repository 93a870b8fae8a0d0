//! Work on disks whose amount is known.
//!
//! Each tells `ready`, begins on a line of input, and tells `done`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
};

use clap::Subcommand;
use ebpfmetrics_suite as suite;

#[derive(Subcommand)]
pub(crate) enum DiskWork {
    /// Reads and writes blocks past the page cache, at places without order, with
    /// so many threads; each thread does that many of each.
    Direct {
        file: PathBuf,
        reads: u64,
        writes: u64,
        #[arg(default_value_t = 4096)]
        block: usize,
        #[arg(default_value_t = 1)]
        threads: u64,
    },
    /// Writes a file through the page cache, in pieces of 64 KiB.
    Write {
        file: PathBuf,
        bytes: u64,
        /// And has it written out.
        #[arg(long)]
        fsync: bool,
        /// And ends by itself.
        #[arg(long)]
        exit: bool,
        /// And removes it.
        #[arg(long)]
        remove: bool,
    },
    /// Writes every `of`th piece of 4 MiB of a file that is there.
    WriteShare { file: PathBuf, bytes: u64, first: u64, of: u64 },
    /// Writes every `of`th block of a file, so many of them from the block `first`.
    WriteBlocks { file: PathBuf, block: usize, first: u64, of: u64, count: u64 },
    /// Dirties so many bytes of a file and throws them away; then writes the first page.
    Truncate { file: PathBuf, bytes: usize },
    /// Writes a file through a mapping.
    MmapWrite { file: PathBuf, bytes: u64 },
    /// Writes so many files of so many bytes.
    SmallFiles { directory: PathBuf, count: u32, bytes: usize },
    /// Reads a file through the page cache, in pieces of 4 KiB.
    Read { file: PathBuf },
    /// Children one after another that each read so many blocks past the page cache.
    Children { file: PathBuf, count: u32, reads: u64 },
    /// A child that spins, touches memory, reads past the page cache and writes through it.
    /// Tells its pid, and what the kernel says that it used: CPU time in ns and minor
    /// faults by getrusage(2), and bytes read, dirtied and taken back by its own
    /// `/proc/self/io`.
    Child { file: PathBuf },
    /// A child, and another with the same pid, that read so many blocks; tells the pid.
    ReusePid { file: PathBuf, first: u64, second: u64 },
    /// Has memory of its own swapped out, and needs it again.
    PageOut { bytes: usize },
    /// Has the whole machine write out.
    Sync,
}

const PIECE: usize = 64 << 10;
const SHARE: usize = 4 << 20;

pub(crate) fn work(work: DiskWork) -> anyhow::Result<()> {
    crate::tell("ready")?;
    io::stdin().read_line(&mut String::new())?;
    match work {
        DiskWork::Direct { file, reads, writes, block, threads } => {
            let all: Vec<_> = (0..threads)
                .map(|number| {
                    let file = file.clone();
                    thread::spawn(move || direct(&file, reads, writes, block, number))
                })
                .collect();
            for one in all {
                one.join().expect("a thread does not panic")?;
            }
        }
        DiskWork::Write { file: path, bytes, fsync, exit, remove } => {
            let mut file = File::create(&path)?;
            for _ in 0..bytes / PIECE as u64 {
                file.write_all(&[7; PIECE])?;
            }
            if fsync {
                file.sync_all()?;
            }
            if remove {
                drop(file);
                fs::remove_file(path)?;
            }
            if exit {
                crate::tell("done")?;
                return Ok(());
            }
        }
        DiskWork::WriteShare { file, bytes, first, of } => {
            let file = OpenOptions::new().write(true).open(file)?;
            let share = vec![7; SHARE];
            for piece in (first..bytes / SHARE as u64).step_by(of as usize) {
                file.write_all_at(&share, piece * SHARE as u64)?;
            }
        }
        DiskWork::WriteBlocks { file, block, first, of, count } => {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
            let data = vec![7; block];
            for number in 0..count {
                file.write_all_at(&data, (first + number * of) * block as u64)?;
            }
            // ext4 writes a file that was truncated when it is closed
            std::mem::forget(file);
        }
        DiskWork::Truncate { file, bytes } => {
            let file = File::create(file)?;
            file.write_all_at(&vec![7; bytes], 0)?;
            file.set_len(0)?;
            crate::tell("done")?;
            io::stdin().read_line(&mut String::new())?;
            file.write_all_at(&[7; 4096], 0)?;
            std::mem::forget(file);
        }
        DiskWork::MmapWrite { file, bytes } => mmap_write(&file, bytes as usize)?,
        DiskWork::SmallFiles { directory, count, bytes } => {
            for number in 0..count {
                fs::write(directory.join(format!("{number}")), vec![7; bytes])?;
            }
        }
        DiskWork::Read { file } => {
            let mut file = File::open(file)?;
            while file.read(&mut [0; 4096])? > 0 {}
        }
        DiskWork::Children { file, count, reads } => {
            for number in 0..count {
                let read = || direct(&file, reads, 0, 4096, number.into()).expect("reads");
                suite::fork_and_wait(None, read)?;
            }
        }
        DiskWork::Child { file } => crate::tell(&used_by_a_child(&file)?)?,
        DiskWork::ReusePid { file, first, second } => {
            let read = |reads| direct(&file, reads, 0, 4096, 1).expect("reads");
            let (pid, _) = suite::fork_and_wait(None, || read(first))?;
            let (again, _) = suite::fork_and_wait(Some(pid), || read(second))?;
            anyhow::ensure!(pid == again, "asked for pid {pid}, got {again}");
            crate::tell(&pid.to_string())?;
        }
        DiskWork::PageOut { bytes } => page_out(bytes)?,
        DiskWork::Sync => suite::sync(),
    }
    crate::tell("done")?;
    loop {
        thread::park();
    }
}

fn used_by_a_child(file: &Path) -> anyhow::Result<String> {
    let (mut told, mut tells) = io::pipe()?;
    let before = suite::rusage_of_children();
    let pid = suite::fork_with_pid(None, || {
        crate::spin_for(std::time::Duration::from_millis(20));
        std::hint::black_box(vec![7_u8; 16 << 20]);
        direct(file, 50, 0, 4096, 1).expect("reads");
        let mut file = OpenOptions::new().write(true).open(file).expect("a file");
        file.write_all(&[7; 16 * PIECE]).expect("writes");
        file.sync_all().expect("writes");
        let io = fs::read("/proc/self/io").expect("/proc");
        tells.write_all(&io).expect("the parent reads");
    })?;
    suite::wait_for_settled(pid)?;
    let after = suite::rusage_of_children();
    drop(tells);
    let mut io = String::new();
    told.read_to_string(&mut io)?;
    let figure = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map(str::to_owned).unwrap_or_default()
    };
    Ok(format!(
        "{pid} {} {} {} {} {}",
        after.cpu_ns - before.cpu_ns,
        after.minor_faults - before.minor_faults,
        figure("read_bytes"),
        figure("write_bytes"),
        figure("cancelled_write_bytes"),
    ))
}

fn direct(path: &Path, reads: u64, writes: u64, block: usize, seed: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut size = file.metadata()?.len();
    if size == 0 {
        size = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
    }
    let blocks = size / block as u64;
    // O_DIRECT wants memory at whole blocks
    let mut memory = vec![7_u8; 2 * block.max(4096)]; // in pages of its own
    let start = memory.as_ptr().align_offset(block.max(4096));
    let buffer = &mut memory[start..start + block];
    let mut place = seed;
    for number in 0..reads.max(writes) {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed * 2 + 1);
        let offset = (place >> 20) % blocks * block as u64;
        if number < reads {
            file.read_exact_at(buffer, offset)?;
        }
        if number < writes {
            file.write_all_at(buffer, offset)?;
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "mmap(2)")]
fn mmap_write(path: &Path, bytes: usize) -> anyhow::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(bytes as u64)?;
    // SAFETY: a new mapping of our own file, unmapped with the process.
    let mapping = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            bytes,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::SHARED,
            &file,
            0,
        )?
    };
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: within the mapping.
        unsafe { mapping.cast::<u8>().add(offset).write_volatile(7) };
    }
    Ok(())
}

#[expect(unsafe_code, reason = "madvise(2)")]
fn page_out(bytes: usize) -> anyhow::Result<()> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping that nothing else uses, unmapped with the process.
    let memory = unsafe {
        let memory = mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE)?;
        madvise(memory, bytes, Advice::LinuxNoHugepage)?;
        for offset in (0..bytes).step_by(8) {
            // of every page something else, so that none is as good as another
            memory.cast::<u8>().add(offset).cast::<usize>().write(offset.wrapping_mul(0x9E37_79B9));
        }
        madvise(memory, bytes, Advice::LinuxPageOut)?;
        memory
    };
    let mut sum = 0;
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: within the mapping.
        sum += usize::from(unsafe { memory.cast::<u8>().add(offset).read_volatile() });
    }
    std::hint::black_box(sum);
    Ok(())
}
