//! Loading and running programs.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya_obj::{Function, ProgramSection, generated::bpf_map_type};

use super::{
    bpf::{self, program::Start},
    error::{failed, hook_missing, invalid, rejected},
    loader::raise_memlock_limit,
    map_handle::MapHandle,
    object::Object,
};
use crate::{
    error::{Error, Result},
    kernel::{Kernel, btf::Hook},
};

/// A program of an object, relocated for the kernel.
pub(super) struct Program {
    section: ProgramSection,
    license: CString,
    function: Function,
    /// Set once it is loaded.
    fd: Option<OwnedFd>,
    /// Detaches it when dropped.
    pub(super) link: Option<OwnedFd>,
}

impl Program {
    pub(super) fn all(object: aya_obj::Object) -> BTreeMap<String, Self> {
        let aya_obj::Object { programs, mut functions, .. } = object;
        let program = |(name, program): (String, aya_obj::Program)| {
            let function = functions.remove(&program.function_key())?;
            let (section, license) = (program.section, program.license);
            Some((name, Self { section, license, function, fd: None, link: None }))
        };
        programs.into_iter().filter_map(program).collect()
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.fd.is_some()
    }

    pub(super) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        let not_loaded = || io::Error::other("the program is not loaded");
        self.fd.as_ref().map(AsFd::as_fd).ok_or_else(not_loaded)
    }

    /// Whether its section is the one for this kind of start.
    fn starts_by(&self, start: Start) -> bool {
        matches!(
            (&self.section, start),
            (ProgramSection::BtfTracePoint, Start::TypedTracepoint { .. })
                | (ProgramSection::TracePoint, Start::Tracepoint)
                | (ProgramSection::Iter { sleepable: false }, Start::Iterator { .. })
                | (ProgramSection::RawTracePoint, Start::RawTracepoint | Start::TestRun)
        )
    }
}

impl Object {
    /// Loads a program (section `tp_btf`) for a tracepoint, without attaching it. It can be
    /// attached later by [`attach_loaded`](Self::attach_loaded), or called by
    /// [`set_tail_call`](Self::set_tail_call).
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach).
    pub fn load_for_tracepoint(
        &mut self,
        program: &str,
        tracepoint: &str,
        kernel: &Kernel,
    ) -> Result<()> {
        let hook = kernel.btf().tracepoint(tracepoint);
        let Hook { id } = self.hook(program, "tracepoint", tracepoint, hook)?;
        self.load(program, Start::TypedTracepoint { id })
    }

    /// Loads an iterator program (section `iter`). `iterates` is the name of the iterator,
    /// such as `task` or `bpf_map_elem`.
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach).
    pub fn load_iterator(&mut self, program: &str, iterates: &str, kernel: &Kernel) -> Result<()> {
        let hook = kernel.btf().iterator(iterates);
        let Hook { id } = self.hook(program, "iterator", iterates, hook)?;
        self.load(program, Start::Iterator { id })
    }

    /// Loads a program (section `raw_tp`) that user space runs by
    /// [`test_run`](Self::test_run).
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach).
    pub fn load_callable(&mut self, program: &str) -> Result<()> {
        self.load(program, Start::TestRun)
    }

    /// Runs a program of [`load_callable`](Self::load_callable) in the calling thread.
    ///
    /// # Errors
    /// [`System`](crate::ErrorKind::System) if it is not loaded or the kernel refuses.
    pub fn test_run(&self, program: &str) -> Result<()> {
        let result = self.program(program)?.fd().and_then(bpf::program::test_run);
        result.map_err(|error| self.program_failed("BPF_PROG_TEST_RUN", program, error))
    }

    /// Starts an iteration of an iterator program. Reading the file runs the program.
    ///
    /// # Errors
    /// [`System`](crate::ErrorKind::System) if it is not loaded or the kernel refuses.
    pub fn iterate(&self, program: &str) -> Result<File> {
        self.start_iteration(program, None)
    }

    /// Like [`iterate`](Self::iterate), for a program that iterates over the elements of a
    /// map (section `iter/bpf_map_elem`).
    ///
    /// # Errors
    /// Those of [`iterate`](Self::iterate), and
    /// [`InvalidObject`](crate::ErrorKind::InvalidObject) if there is no such map.
    pub fn iterate_map(&self, program: &str, map: &str) -> Result<File> {
        self.start_iteration(program, Some(self.handle(map)?))
    }

    fn start_iteration(&self, program: &str, map: Option<&MapHandle>) -> Result<File> {
        let start = |fd: BorrowedFd<'_>| bpf::program::iterate(fd, map.map(AsFd::as_fd));
        let file = self.program(program)?.fd().and_then(start);
        file.map(File::from).map_err(|error| {
            self.program_failed("BPF_LINK_CREATE or BPF_ITER_CREATE", program, error)
        })
    }

    /// Sets an element of a `PROG_ARRAY` map: `bpf_tail_call` with this index runs the
    /// program. A program that was set before is exchanged atomically. The program must be
    /// loaded for the same hook as the calling one. `program_of` may be this object.
    ///
    /// The kernel clears the array when the last descriptor of it is closed.
    ///
    /// # Errors
    /// [`InvalidObject`](crate::ErrorKind::InvalidObject) if there is no such map or program;
    /// [`System`](crate::ErrorKind::System) if the program is not loaded, or for another hook.
    pub fn set_tail_call(
        &self,
        prog_array: &str,
        index: u32,
        program_of: &Object,
        program: &str,
    ) -> Result<()> {
        let map = self.prog_array(prog_array)?;
        let set = |fd: BorrowedFd<'_>| {
            bpf::map::update(map.as_fd(), Some(&index), &fd.as_raw_fd().to_ne_bytes())
        };
        program_of.program(program)?.fd().and_then(set).map_err(|error| {
            let target = format!("map {prog_array} with program {program} of {}", program_of.name);
            failed(self.name, "BPF_MAP_UPDATE_ELEM", target, error)
        })
    }

    /// Clears an element of a `PROG_ARRAY` map: `bpf_tail_call` with this index continues
    /// after the call. Does nothing if it is not set.
    ///
    /// # Errors
    /// [`InvalidObject`](crate::ErrorKind::InvalidObject) if there is no such map.
    pub fn clear_tail_call(&self, prog_array: &str, index: u32) -> Result<()> {
        let map = self.prog_array(prog_array)?;
        bpf::map::delete(map.as_fd(), &index).map(drop).map_err(|error| {
            failed(self.name, "BPF_MAP_DELETE_ELEM", format_args!("map {prog_array}"), error)
        })
    }

    fn prog_array(&self, map: &str) -> Result<&MapHandle> {
        let kind = bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY;
        self.map_of_shape(map, &[kind], Some(size_of::<u32>()), Some(size_of::<u32>()))
    }

    /// Loads a program whose section fits the kind of start.
    pub(super) fn load(&mut self, name: &str, start: Start) -> Result<()> {
        let object = self.name;
        let btf = self.btf.as_ref().map(AsFd::as_fd);
        let Some(program) = self.programs.get_mut(name).filter(|it| it.starts_by(start)) else {
            let text = format!("it has no program {name} of the expected type");
            return Err(invalid(object, text));
        };
        let function = &program.function;
        let code = bpf::program::Code {
            name,
            license: &program.license,
            instructions: &function.instructions,
            btf,
            functions: (&function.func_info.func_info_bytes(), function.func_info_rec_size),
            lines: (&function.line_info.line_info_bytes(), function.line_info_rec_size),
        };
        let denied = |error: &io::Error| error.raw_os_error() == Some(libc::EPERM);
        let fd = match bpf::program::load_program(&code, start) {
            Err(error) if denied(&error.error) && raise_memlock_limit() => {
                bpf::program::load_program(&code, start)
            }
            result => result,
        };
        let fd = fd.map_err(|error| rejected(object, format_args!("program {name}"), error))?;
        program.fd = Some(fd);
        Ok(())
    }

    fn hook(&self, program: &str, kind: &str, name: &str, hook: Option<Hook>) -> Result<Hook> {
        hook.ok_or_else(|| hook_missing(self.name, program, format_args!("{kind} {name}")))
    }

    pub(super) fn program_failed(&self, call: &str, program: &str, error: io::Error) -> Error {
        failed(self.name, call, format_args!("program {program}"), error)
    }
}
