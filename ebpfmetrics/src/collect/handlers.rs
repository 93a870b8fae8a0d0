//! The programs of a set: dispatchers stay attached, and the handlers they jump to are loaded
//! anew whenever a probe is added or removed.

use super::{column::Column, engine::PROCESS, filter::Filter};
use crate::{
    error::{Error, ErrorKind, Result},
    kernel::{Kernel, Requirements},
    object::{Object, ObjectLoader},
    process::CgroupHierarchy,
};

/// Maps of built-in probes: those of a set come from the probes.
const PROBE_MAPS: [&str; 14] = [
    "cpu_current_tasks",
    "cpu_slots",
    "cpu_overflow",
    "cpu_losses",
    "disk_names",
    "mem_epoch",
    "mem_tracked",
    "mem_cpu_offsets",
    "mem_losses",
    "mem_sum",
    "mem_sum_peak",
    "slab_slots",
    "slab_overflow",
    "slab_losses",
];

/// Dispatcher, its tracepoint, the map of its handler, and the handler. Releases first: a
/// process that is seen alive afterwards is not missed at its end.
pub(super) const HANDLERS: [(&str, &str, &str, &str); 3] = [
    ("process_on_release", "sched_process_free", "release_handler", "process_release"),
    ("process_on_exit", "sched_process_exit", "exit_handler", "process_exit"),
    ("process_on_fork", "sched_process_fork", "fork_handler", "process_fork"),
];

/// Checks that the kernel has the hooks of a probe.
pub(crate) fn require(probe: &str, requirements: &Requirements, kernel: &Kernel) -> Result<()> {
    let missing = kernel.missing(requirements);
    if missing.is_empty() {
        return Ok(());
    }
    let hooks: Vec<_> = missing.into_iter().collect();
    let text = format!(
        "probe {probe}: this kernel lacks the hook {}; Linux 5.10 or newer is required",
        hooks.join(", ")
    );
    Err(Error::new(ErrorKind::HookMissing, text))
}

/// The hierarchy of cgroup ids, and the kernel's number of its controller.
pub(crate) fn hierarchy(
    wanted: Option<&CgroupHierarchy>,
    kernel: &Kernel,
) -> Result<(CgroupHierarchy, i32)> {
    const UNIFIED: i32 = -1;
    let number = |hierarchy: &CgroupHierarchy| match hierarchy.enumerator() {
        None => Some(UNIFIED),
        Some(controller) => {
            let controllers = kernel.enumerators("cgroup_subsys_id")?;
            let found = controllers.into_iter().find(|(name, _)| *name == controller);
            found.map(|(_, number)| number as i32)
        }
    };
    match wanted {
        Some(hierarchy) => match number(hierarchy) {
            Some(number) if hierarchy.exists() => Ok((hierarchy.clone(), number)),
            known => {
                let text = match known {
                    Some(_) => format!(
                        "no cgroup v1 hierarchy has the controller {hierarchy}: mount one, or \
                         choose the unified hierarchy"
                    ),
                    None => format!("this kernel has no cgroup controller {hierarchy}"),
                };
                Err(Error::new(ErrorKind::InvalidOption, text))
            }
        },
        None => {
            // a controller that the BTF does not know is no reason not to measure
            let mounted = CgroupHierarchy::mounted();
            let known = number(&mounted).map(|number| (mounted, number));
            Ok(known.unwrap_or((CgroupHierarchy::Unified, UNIFIED)))
        }
    }
}

pub(super) fn without_probe_maps(loader: ObjectLoader) -> ObjectLoader {
    PROBE_MAPS.iter().fold(loader, |loader, map| loader.set_autocreate(map, false))
}

/// Before 6.2 page counts are plain numbers, and `rss_stat` has three arguments.
pub(super) fn walk_program(kernel: &Kernel) -> &'static str {
    match kernel.tracepoint_arguments("rss_stat") {
        Some(3) => "process_walk_plain",
        _ => "process_walk",
    }
}

pub(super) fn load_handlers(
    base: &Object,
    filter: &Filter,
    cgroup_number: i32,
    walk_program: &str,
    columns: &[(u64, Box<dyn Column>)],
    kernel: &Kernel,
) -> Result<Object> {
    let mut loader = ObjectLoader::new(PROCESS, ebpf_probes::PROCESS)
        .override_global("cgroup_hierarchy", cgroup_number)
        .reuse_maps(&base.map_handles());
    loader = filter.configure(without_probe_maps(loader));
    for (_, column) in columns {
        let part = column.walk_part()?;
        loader = loader.reuse_maps(&part.maps);
        for (name, value) in &part.globals {
            loader = loader.override_global_bytes(name, value);
        }
    }
    let mut handlers = loader.load(kernel)?;
    handlers.load_iterator(walk_program, "task", kernel)?;
    handlers.load_iterator("process_ends", "bpf_map_elem", kernel)?;
    for (_, tracepoint, _, handler) in HANDLERS {
        handlers.load_for_tracepoint(handler, tracepoint, kernel)?;
    }
    Ok(handlers)
}

/// Has the dispatchers jump to these handlers from here on.
pub(super) fn exchange(base: &Object, handlers: &Object) -> Result<()> {
    HANDLERS.iter().try_for_each(|(.., map, handler)| base.set_tail_call(map, 0, handlers, handler))
}
