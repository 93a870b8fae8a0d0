//! A probe that reads fields of the kernel's tasks: the OOM score and the timer slack of
//! every process.
//!
//! It has no hooks. Its BPF program continues the walk over all tasks that the set makes for
//! each snapshot, and writes a record about the task at hand.
//!
//! ```no_run
//! use ebpfmetrics::Probe;
//! use task_probe::TaskProbe;
//!
//! let mut probe = TaskProbe::builder().load()?;
//! for process in &probe.snapshot()?.processes {
//!     println!("{} {:?}", process.id, process.usage.oom_score_adj);
//! }
//! # Ok::<(), ebpfmetrics::Error>(())
//! ```

mod record;

use std::{ops::AddAssign, time::Duration};

use ebpfmetrics::{
    Kernel, ProcessId, Result, Usage,
    kit::{
        Collector, Loading, NoLoss, Object, Reading, Record, Requirements, SetOptions, Single,
        Span, Task, WalkPart, WalkTimes, invalid_record,
    },
    snapshot::{ProbeSnapshot, Source, add_known_duration},
};

use crate::record::{TasksTaskRecord, tasks_kind};

#[repr(C, align(8))]
struct Aligned<T>(T);

static OBJECT: &[u8] = &Aligned(*include_bytes!("../objects/tasks.bpf.o")).0;

/// Reads settings of every process from the kernel's tasks.
pub type TaskProbe = Single<Tasks>;

/// The settings of every process.
pub type TaskSnapshot = ProbeSnapshot<TaskUsage, ()>;

/// Settings of a process. They are gauges: as of the walk, or of the last one that showed the
/// process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskUsage {
    /// Threads that the walk showed.
    pub threads: u64,
    /// Adjustment of the OOM score. `task->signal->oom_score_adj`.
    pub oom_score_adj: Option<i64>,
    /// The largest timer slack of a thread. `task->timer_slack_ns`. Sums of processes have
    /// the sum.
    pub timer_slack: Option<Duration>,
}

impl AddAssign<&Self> for TaskUsage {
    fn add_assign(&mut self, more: &Self) {
        self.threads += more.threads;
        self.oom_score_adj = self.oom_score_adj.max(more.oom_score_adj);
        add_known_duration(&mut self.timer_slack, more.timer_slack);
    }
}

impl Usage for TaskUsage {
    fn since(&self, _: &Self) -> Self {
        *self
    }
}

ebpfmetrics::usage_operators!(TaskUsage);

/// Options of a [`TaskProbe`].
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is loaded until load()"]
pub struct TaskProbeBuilder {
    set: SetOptions,
}

ebpfmetrics::probe_builder!(TaskProbeBuilder, Tasks);

/// What the probe is, for the library.
pub struct Tasks {
    object: Object,
}

impl Collector for Tasks {
    const NAME: &'static str = "tasks";

    type Options = TaskProbeBuilder;
    type Counters = ();
    type Gauges = TaskUsage;
    type Usage = TaskUsage;
    type System = ();
    type Loss = NoLoss;

    fn requirements() -> Requirements {
        Requirements { iterators: ["task"].into(), ..Default::default() }
    }

    fn load(_: TaskProbeBuilder, loading: &Loading<'_>) -> Result<Self> {
        let mut object = loading.object(Self::NAME, OBJECT).load(loading.kernel)?;
        object.load_iterator("tasks_walk", "task", loading.kernel)?;
        Ok(Self { object })
    }

    fn attach(&mut self, _: &Kernel) -> Result<()> {
        Ok(())
    }

    fn object(&self) -> Option<&Object> {
        Some(&self.object)
    }

    fn object_mut(&mut self) -> Option<&mut Object> {
        Some(&mut self.object)
    }

    fn walk_part(&self) -> Result<WalkPart> {
        Ok(WalkPart::program("tasks_walk"))
    }

    fn task_record(
        &mut self,
        _: &Task,
        record: Record<'_>,
        _: &WalkTimes,
        reading: &mut Reading<Self>,
    ) -> Result<()> {
        if u32::from(record.kind) != tasks_kind::TASK {
            return Err(invalid_record("of unknown kind"));
        }
        let record: &TasksTaskRecord = record.get()?;
        let slack = Some(Duration::from_nanos(record.timer_slack_ns));
        reading.gauges.threads += 1;
        reading.gauges.oom_score_adj = Some(record.oom_score_adj);
        reading.gauges.timer_slack = reading.gauges.timer_slack.max(slack);
        Ok(())
    }

    fn usage(&self, _: ProcessId, _: &(), gauges: Option<&TaskUsage>, _: Span) -> TaskUsage {
        gauges.copied().unwrap_or_default()
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::new("threads", "iter/task"),
            Source::new("oom_score_adj", "iter/task: task->signal->oom_score_adj"),
            Source::new("timer_slack", "iter/task: task->timer_slack_ns"),
        ]
    }
}
