//! Snapshots: what probes measured in a window, as plain data.
//!
//! All types here can be built without a kernel, for unit tests, and serialized (feature
//! `serde`). [`Rows`] is implemented by everything that has one row per process;
//! [`delta`] and the functions of [`group`](crate::group) accept any of them.

mod delta;
#[cfg(feature = "serde")]
pub mod duration_ns;
mod losses;
mod probe_snapshot;
mod process;
mod provenance;
mod rows;
mod set;
mod usage;
mod window;

pub use delta::{Delta, delta};
pub use losses::{Loss, LossCause, LossScope, Losses, NoLoss};
pub use probe_snapshot::{Overflow, ProbeSnapshot};
pub use process::{CgroupUsage, Process};
pub use provenance::{Provenance, Source};
pub use rows::{Row, Rows};
#[cfg(feature = "serde")]
pub use set::Json;
pub use set::{Handle, ProbeView, SetProcess, Snapshot};
pub(crate) use set::{Part, TypedPart};
pub(crate) use usage::sum_of;
pub use usage::{Usage, add_known, add_known_duration, known_duration_since, known_since};
pub use window::Window;

#[cfg(test)]
pub(crate) mod testing;
