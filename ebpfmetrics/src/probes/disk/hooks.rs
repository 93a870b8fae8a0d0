//! The hooks of this kernel.

use crate::{error::Result, kernel::Kernel, object::Object};

/// Programs, with their tracepoints where these differ between kernels.
#[derive(Clone, Debug)]
pub(super) struct Hooks {
    /// At the start of a request.
    pub(super) start: Option<(&'static str, &'static str)>,
    issue: &'static str,
    merge: &'static str,
    pub(super) dirty: Option<(&'static str, &'static str)>,
    queue_bio: &'static str,
}

impl Hooks {
    pub(super) fn of(kernel: &Kernel) -> Self {
        // before 5.11 to 5.13 the first argument was the queue
        let of =
            |tracepoint, program, program_of_queue| match kernel.tracepoint_arguments(tracepoint) {
                Some(2..) => program_of_queue,
                _ => program,
            };
        let start = if kernel.has_tracepoint("block_io_start") {
            Some(("disk_start", "block_io_start"))
        } else if kernel.has_tracepoint("block_getrq") {
            let program = of("block_getrq", "disk_get_request", "disk_get_request_of_queue");
            Some((program, "block_getrq"))
        } else {
            None
        };
        let dirty = if kernel.has_tracepoint("writeback_dirty_folio") {
            Some(("disk_dirty_folio", "writeback_dirty_folio"))
        } else if kernel.has_tracepoint("writeback_dirty_page") {
            Some(("disk_dirty_page", "writeback_dirty_page"))
        } else {
            None
        };
        Self {
            start,
            issue: of("block_rq_issue", "disk_issue", "disk_issue_of_queue"),
            merge: of("block_rq_merge", "disk_merge", "disk_merge_of_queue"),
            dirty,
            queue_bio: of("block_bio_queue", "disk_queue_bio", "disk_queue_bio_of_queue"),
        }
    }

    /// Whether the start of a request names the request.
    pub(super) fn start_is_request(&self) -> bool {
        self.start.is_some_and(|(_, tracepoint)| tracepoint == "block_io_start")
    }

    pub(super) fn attach(&self, object: &mut Object, kernel: &Kernel) -> Result<()> {
        if let Some((program, tracepoint)) = self.dirty {
            object.attach(program, tracepoint, kernel)?;
        }
        // completions first: an operation that starts from now on is also seen to complete
        object.attach("disk_complete", "block_rq_complete", kernel)?;
        object.attach(self.merge, "block_rq_merge", kernel)?;
        object.attach(self.issue, "block_rq_issue", kernel)?;
        if let Some((program, tracepoint)) = self.start {
            object.attach(program, tracepoint, kernel)?;
        }
        object.load_for_tracepoint("disk_complete_bio", "block_bio_complete", kernel)?;
        object.load_for_tracepoint(self.queue_bio, "block_bio_queue", kernel)
    }

    /// Attaches the programs for bios. They run for the bios of all devices.
    pub(super) fn attach_bios(&self, object: &mut Object) -> Result<()> {
        object.attach_loaded("disk_complete_bio")?;
        object.attach_loaded(self.queue_bio)
    }
}
