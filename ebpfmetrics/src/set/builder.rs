use super::ProbeSet;
use crate::{
    collect::{
        Filter,
        collector::Collector,
        engine::{self, Engine, Options},
    },
    error::{Error, ErrorKind, Result},
    kernel::{Kernel, checks},
    process::CgroupHierarchy,
};

/// Options of a [`ProbeSet`].
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is loaded until build()"]
pub struct ProbeSetBuilder {
    options: SetOptions,
}

impl ProbeSetBuilder {
    /// Selects which processes the set measures; every process by default.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.options.0.filter = filter;
        self
    }

    /// Measures what a process starts from then on. It is named by its pid in the caller's PID
    /// namespace, and is in the filter, but does not count.
    pub(crate) fn filter_by_caller(mut self, caller: u32) -> Self {
        self.options.0.caller = Some(caller);
        self.filter(Filter::tree(caller))
    }

    /// The hierarchy that cgroup ids belong to; [`CgroupHierarchy::mounted`] by default.
    pub fn cgroup_hierarchy(mut self, hierarchy: CgroupHierarchy) -> Self {
        self.options.0.cgroup_hierarchy = Some(hierarchy);
        self
    }

    /// Maximum number of rows for ended processes per window. Further ones are counted together,
    /// see [`Overflow`](crate::snapshot::Overflow). 8,192 by default.
    pub fn max_exited(mut self, processes: u32) -> Self {
        self.options.0.max_exited = processes;
        self
    }

    /// Maximum number of ended processes that the kernel keeps until they are read. This includes
    /// zombies and running processes with a thread that has exited. Further ones are counted as
    /// the loss `ended_table_full`. 32,768 by default.
    ///
    /// Kernel memory is allocated as processes end: 0.9 KiB each, and 16 bytes per entry in
    /// any case.
    pub fn max_ended(mut self, processes: u32) -> Self {
        self.options.0.max_ended = processes;
        self
    }

    /// Loads and attaches the set. Its first window starts here.
    ///
    /// # Errors
    /// What the machine lacks, by [`ErrorKind`]; the text says how to fix it.
    pub fn build(self) -> Result<ProbeSet> {
        let kernel = super::read_kernel()?;
        self.build_on(&kernel)
    }

    /// Like [`build`](Self::build), with a description of the kernel that was read before.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_on(self, kernel: &Kernel) -> Result<ProbeSet> {
        let engine = Engine::load(self.options.0, kernel);
        let engine =
            engine.map_err(|error| checks::explain(error, "set", &engine::requirements()))?;
        Ok(ProbeSet { engine })
    }

    pub(super) fn from_options(options: SetOptions) -> Self {
        Self { options }
    }
}

/// Options of the set that contains a single probe. A field of the probe's builder; the methods
/// that [`probe_builder!`](crate::probe_builder) adds set it.
#[derive(Clone, Debug, Default)]
pub struct SetOptions(pub(super) Options);

impl SetOptions {
    #[doc(hidden)]
    pub fn set_filter(&mut self, filter: Filter) {
        self.0.filter = filter;
    }

    #[doc(hidden)]
    pub fn set_cgroup_hierarchy(&mut self, hierarchy: CgroupHierarchy) {
        self.0.cgroup_hierarchy = Some(hierarchy);
    }

    #[doc(hidden)]
    pub fn set_max_exited(&mut self, processes: u32) {
        self.0.max_exited = processes;
    }

    #[doc(hidden)]
    pub fn set_max_ended(&mut self, processes: u32) {
        self.0.max_ended = processes;
    }

    /// Refuses options that belong to the set.
    pub(super) fn check_default(&self) -> Result<()> {
        let default = Options::default();
        let Options { filter, cgroup_hierarchy, max_exited, max_ended, .. } = &self.0;
        let differs = [
            ("filter", *filter != default.filter),
            ("cgroup_hierarchy", *cgroup_hierarchy != default.cgroup_hierarchy),
            ("max_exited", *max_exited != default.max_exited),
            ("max_ended", *max_ended != default.max_ended),
        ];
        match differs.into_iter().find(|(_, differs)| *differs) {
            None => Ok(()),
            Some((option, _)) => {
                let text = format!(
                    "{option} is an option of the set: pass it to ProbeSet::builder(), not to the \
                     builder of a probe that is added"
                );
                Err(Error::new(ErrorKind::InvalidOption, text))
            }
        }
    }
}

/// Options of a probe. It is loaded by itself with `load()`, or into a set with
/// [`ProbeSet::add`].
pub trait ProbeBuilder: Sized {
    /// Description of the probe.
    type Collector: Collector<Options = Self>;

    /// The options of the set that a single probe is loaded into.
    fn set_options(&mut self) -> Option<&mut SetOptions>;
}

/// Implements [`ProbeBuilder`](crate::kit::ProbeBuilder) for the builder of a collector, with
/// the methods that all builders have: `filter`, `cgroup_hierarchy`, `max_exited`,
/// `max_ended`, `load` and `load_on`. The struct has a field `set` of type
/// [`SetOptions`](crate::kit::SetOptions).
#[macro_export]
macro_rules! probe_builder {
    ($builder:ty, $collector:ty) => {
        impl $crate::kit::ProbeBuilder for $builder {
            type Collector = $collector;

            fn set_options(&mut self) -> Option<&mut $crate::kit::SetOptions> {
                Some(&mut self.set)
            }
        }

        impl $builder {
            /// Selects which processes the probe measures; every process by default. If the probe
            /// is added to a set, this is an option of the set.
            pub fn filter(mut self, filter: $crate::Filter) -> Self {
                self.set.set_filter(filter);
                self
            }

            /// The hierarchy that cgroup ids belong to; the one that is mounted by default. If the
            /// probe is added to a set, this is an option of the set.
            pub fn cgroup_hierarchy(mut self, hierarchy: $crate::process::CgroupHierarchy) -> Self {
                self.set.set_cgroup_hierarchy(hierarchy);
                self
            }

            /// Maximum number of rows for ended processes per window. Further ones are counted
            /// together. 8,192 by default. If the probe is added to a set, this is an option of
            /// the set.
            pub fn max_exited(mut self, processes: u32) -> Self {
                self.set.set_max_exited(processes);
                self
            }

            /// Maximum number of ended processes that the kernel keeps until they are read, see
            /// `ProbeSetBuilder::max_ended`. 32,768 by default. If the probe is added to a set,
            /// this is an option of the set.
            pub fn max_ended(mut self, processes: u32) -> Self {
                self.set.set_max_ended(processes);
                self
            }

            /// Loads and attaches the probe by itself. Its first window starts here.
            ///
            /// # Errors
            /// What the machine lacks, by `ErrorKind`; the text says how to fix it.
            pub fn load(self) -> $crate::Result<$crate::kit::Single<$collector>> {
                $crate::kit::Single::load(self)
            }

            /// Like [`load`](Self::load), with a description of the kernel that was read before.
            ///
            /// # Errors
            /// As [`load`](Self::load).
            pub fn load_on(
                self,
                kernel: &$crate::Kernel,
            ) -> $crate::Result<$crate::kit::Single<$collector>> {
                $crate::kit::Single::load_on(self, kernel)
            }
        }
    };
}
