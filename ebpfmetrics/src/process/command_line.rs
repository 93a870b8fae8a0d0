//! Command lines, from `/proc`.

use std::collections::{HashMap, HashSet};

use super::{Comm, ProcessId, ProcessInfo};

impl ProcessId {
    /// The arguments of the process as `/proc/PID/cmdline` has them now, the program first.
    /// Bytes that are not UTF-8 are replaced. Empty for kernel threads and
    /// zombies, and while a process executes another program.
    ///
    /// `None` if the process has ended, if `/proc` hides it (`hidepid`, another PID
    /// namespace), or if the pid belongs to another process by now. A call reads two files:
    /// some 20 µs.
    ///
    /// ```no_run
    /// use ebpfmetrics::{CpuProbe, Probe as _};
    ///
    /// let snapshot = CpuProbe::builder().load()?.snapshot()?;
    /// for process in &snapshot.processes {
    ///     let arguments = process.id.command_line().unwrap_or_default();
    ///     println!("{} {}", process.id.pid, arguments.join(" "));
    /// }
    /// # Ok::<(), ebpfmetrics::Error>(())
    /// ```
    pub fn command_line(self) -> Option<Vec<String>> {
        let (process, _) = self.open().ok()??;
        process.cmdline().ok()
    }
}

/// Command lines that were read, kept while their processes have rows: so those of ended
/// processes are still there.
///
/// ```no_run
/// use std::time::Duration;
///
/// use ebpfmetrics::{CpuProbe, Probe as _, process::CommandLines};
///
/// let probe = CpuProbe::builder().load()?;
/// let mut lines = CommandLines::default();
/// for interval in probe.intervals(Duration::from_secs(1)) {
///     let snapshot = interval?.snapshot;
///     lines.read(snapshot.processes.iter().map(|row| (row.id, &row.info)));
///     for row in &snapshot.processes {
///         println!("{} {:?}", row.id.pid, lines.get(row.id));
///     }
/// }
/// # Ok::<(), ebpfmetrics::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct CommandLines {
    known: HashMap<ProcessId, (Comm, Vec<String>)>,
}

impl CommandLines {
    /// Reads the command lines of live processes that are new or have another name than at
    /// the last call, and forgets those of processes that are not among these.
    pub fn read<'a>(&mut self, processes: impl IntoIterator<Item = (ProcessId, &'a ProcessInfo)>) {
        let mut present = HashSet::new();
        for (id, info) in processes {
            present.insert(id);
            let is_known = self.known.get(&id).is_some_and(|(comm, _)| *comm == info.comm);
            if is_known || info.exited {
                continue;
            }
            if let Some(line) = id.command_line().filter(|line| !line.is_empty()) {
                self.known.insert(id, (info.comm, line));
            }
        }
        self.known.retain(|id, _| present.contains(id));
    }

    /// The command line of a process, as [`ProcessId::command_line`]; `None` if it was not read
    /// while the process lived, or is empty.
    pub fn get(&self, id: ProcessId) -> Option<&[String]> {
        self.known.get(&id).map(|(_, line)| line.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use procfs::process::Process;

    use super::*;
    use crate::process::TICK_NS;

    /// As the walk has it: to 10 ms from `/proc` suffices.
    fn id(pid: u32) -> ProcessId {
        let stat = Process::new(pid as i32).unwrap().stat().unwrap();
        ProcessId { pid, start_time_ns: stat.starttime * TICK_NS }
    }

    #[test]
    fn a_command_line_is_kept_while_its_process_has_a_row() {
        let mut child = Command::new("sleep").args(["600", "0.5"]).spawn().unwrap();
        let id = id(child.id());
        let earlier = ProcessId { start_time_ns: id.start_time_ns - 1_000_000_000, ..id };
        let mut lines = CommandLines::default();
        let info = |comm: &str, exited| ProcessInfo {
            comm: comm.into(),
            exited,
            ..ProcessInfo::default()
        };
        // the kernel lets the parent go on before the arguments are in place
        let read = (0..1000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            id.command_line().filter(|line| !line.is_empty())
        });
        lines.read([(id, &info("sleep", false)), (earlier, &info("sleep", false))]);
        child.kill().unwrap();
        child.wait().unwrap();
        let expected = ["sleep", "600", "0.5"].map(str::to_owned);
        assert_eq!(read.as_deref(), Some(&expected[..]));
        assert_eq!((id.command_line(), earlier.command_line()), (None, None));
        lines.read([(id, &info("sleep", true))]);
        assert_eq!(lines.get(id), Some(&expected[..]));
        assert_eq!(lines.get(earlier), None);
        lines.read([]);
        assert_eq!(lines.get(id), None);
    }

    #[test]
    fn a_command_line_is_read_again_when_the_name_changes() {
        let mut lines = CommandLines::default();
        let own = id(std::process::id());
        let before = ProcessInfo { comm: "before".into(), ..ProcessInfo::default() };
        lines.known.insert(own, ("before".into(), vec!["before".to_owned()]));
        lines.read([(own, &before)]);
        assert_eq!(lines.get(own).unwrap(), ["before"]);
        lines.read([(own, &ProcessInfo { comm: "after".into(), ..before })]);
        assert_eq!(lines.get(own), own.command_line().as_deref());
        assert_ne!(lines.get(own).unwrap(), ["before"]);
    }
}
