//! Attaching programs to hooks.

use std::{
    ffi::CString,
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{
    bpf::program::{self, Start},
    error::hook_missing,
    object::Object,
};
use crate::{
    error::Result,
    kernel::{Kernel, tracepoint_id},
};

impl Object {
    /// Loads a program (section `tp_btf`) and attaches it to a tracepoint, named without its
    /// category. The arguments have their kernel types. The program runs from now on, so
    /// attach a program that reverts a count before the one that counts.
    ///
    /// # Errors
    /// [`HookMissing`](crate::ErrorKind::HookMissing) if this kernel has no such tracepoint;
    /// [`VerifierRejected`](crate::ErrorKind::VerifierRejected) with the log of the verifier;
    /// [`InvalidObject`](crate::ErrorKind::InvalidObject) if there is no such program, or it
    /// is in another section; [`PermissionDenied`](crate::ErrorKind::PermissionDenied),
    /// [`ResourceLimit`](crate::ErrorKind::ResourceLimit) and
    /// [`System`](crate::ErrorKind::System) if a system call fails.
    pub fn attach(&mut self, program: &str, tracepoint: &str, kernel: &Kernel) -> Result<()> {
        self.load_for_tracepoint(program, tracepoint, kernel)?;
        self.attach_loaded(program)
    }

    /// Attaches a program of [`load_for_tracepoint`](Self::load_for_tracepoint).
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach).
    pub fn attach_loaded(&mut self, program: &str) -> Result<()> {
        self.link(program, "BPF_RAW_TRACEPOINT_OPEN", program::attach_typed_tracepoint)
    }

    /// Loads a program (section `tracepoint`) and attaches it to a tracepoint, named by its
    /// category and name in tracefs. Its arguments are the fields of the trace record, which
    /// are the same in all kernels. It costs more than with [`attach`](Self::attach).
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach). Without tracefs, the tracepoint is missing.
    pub fn attach_tracepoint(
        &mut self,
        program: &str,
        category: &str,
        tracepoint: &str,
    ) -> Result<()> {
        self.load(program, Start::Tracepoint)?;
        let id = tracepoint_id(category, tracepoint).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                let hook = format!("tracepoint {category}/{tracepoint} in tracefs");
                return hook_missing(self.name, program, hook).with_source(error);
            }
            self.program_failed("reading tracefs", program, error)
        })?;
        self.link(program, "perf_event_open", |fd| program::attach_tracepoint(fd, id))
    }

    /// Loads a program (section `raw_tp`) and attaches it to a tracepoint. Its arguments are
    /// plain numbers.
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach).
    pub fn attach_raw_tracepoint(&mut self, program: &str, tracepoint: &str) -> Result<()> {
        self.load(program, Start::RawTracepoint)?;
        let link = self
            .program(program)?
            .fd()
            .and_then(|fd| program::attach_raw_tracepoint(fd, &CString::new(tracepoint)?));
        let link = link.map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                let hook = format!("raw tracepoint {tracepoint}");
                return hook_missing(self.name, program, hook).with_source(error);
            }
            self.program_failed("BPF_RAW_TRACEPOINT_OPEN", program, error)
        })?;
        self.program_mut(program)?.link = Some(link);
        Ok(())
    }

    fn link(
        &mut self,
        program: &str,
        call: &'static str,
        attach: impl FnOnce(BorrowedFd<'_>) -> io::Result<OwnedFd>,
    ) -> Result<()> {
        let link = self.program(program)?.fd().and_then(attach);
        let link = link.map_err(|error| self.program_failed(call, program, error))?;
        self.program_mut(program)?.link = Some(link);
        Ok(())
    }
}
