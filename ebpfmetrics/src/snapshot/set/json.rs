//! The snapshot of a set as JSON.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{super::CgroupUsage, Snapshot};
use crate::process::{ProcessId, ProcessInfo};

/// How the snapshot of a set serializes the figures of a probe.
pub struct Json<U, S> {
    pub(super) usage: UsageJson<U>,
    pub(super) system: for<'a> fn(&'a S) -> Box<dyn erased_serde::Serialize + 'a>,
}

/// Usage in the window, since the start, and in other cgroups.
type UsageJson<U> =
    for<'a> fn(&'a U, &'a U, &'a [CgroupUsage<U>]) -> Box<dyn erased_serde::Serialize + 'a>;

impl<U: Serialize, S: Serialize> Json<U, S> {
    /// By the types' own `Serialize`.
    #[expect(clippy::new_without_default, reason = "not a value")]
    pub fn new() -> Self {
        #[derive(Serialize)]
        struct Usage<'a, U> {
            #[serde(flatten)]
            usage: &'a U,
            total: &'a U,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            other_cgroups: &'a [CgroupUsage<U>],
        }
        Self {
            usage: |usage, total, other_cgroups| Box::new(Usage { usage, total, other_cgroups }),
            system: |system| Box::new(system),
        }
    }
}

impl<U, S> Clone for Json<U, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<U, S> Copy for Json<U, S> {}

/// One process: its identity, and an object per probe.
#[derive(Serialize)]
struct ProcessJson<'a> {
    #[serde(flatten)]
    id: &'a ProcessId,
    #[serde(flatten)]
    info: &'a ProcessInfo,
    #[serde(flatten)]
    probes: BTreeMap<&'a str, Box<dyn erased_serde::Serialize + 'a>>,
}

impl Serialize for Snapshot {
    /// `window`, `processes` (each with its identity and an object per probe),
    /// `overflow_processes`, `losses`, and the fields of each probe's figures of the
    /// machine under the probe's name in `system`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let processes: Vec<_> = (self.rows.iter().enumerate())
            .map(|(row, (id, info))| {
                let probes = self.parts.iter();
                let probes =
                    probes.filter_map(|(_, part)| Some((part.probe(), part.usage(row)?))).collect();
                ProcessJson { id, info, probes }
            })
            .collect();
        let system: BTreeMap<_, _> = (self.parts.iter())
            .filter_map(|(_, part)| Some((part.probe(), part.system()?)))
            .collect();
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("window", &self.window)?;
        map.serialize_entry("processes", &processes)?;
        map.serialize_entry("overflow_processes", &self.overflow_processes)?;
        map.serialize_entry("system", &system)?;
        map.serialize_entry("losses", &self.losses)?;
        map.end()
    }
}
