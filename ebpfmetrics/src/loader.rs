//! Types, objects, programs and maps in the kernel. The only file that names aya.

use std::{
    error::Error as StdError,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU16, Ordering},
};

use aya::{
    Btf, BtfError, Ebpf, EbpfError, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray, ProgramArray},
    programs::{
        BtfTracePoint, Iter, Program, ProgramError, RawTracePoint, RawTracePointRunOptions,
        TestRun as _, TracePoint,
    },
};
use aya_obj::btf::BtfKind;
use bytemuck::{NoUninit, Pod};

use crate::{
    Cost, Error, ErrorKind, Health, Kernel, ProgramCost, Requirements, Result,
    preflight::preflight_for, sys,
};

/// How an object is to be loaded.
pub(crate) struct Loader {
    probe: &'static str,
    requirements: Requirements,
    bytes: &'static [u8],
    globals: Vec<(&'static str, Vec<u8>)>,
    entries: Vec<(&'static str, u32)>,
}

impl Loader {
    pub(crate) fn new(
        probe: &'static str,
        requirements: Requirements,
        bytes: &'static [u8],
    ) -> Self {
        Self { probe, requirements, bytes, globals: Vec::new(), entries: Vec::new() }
    }

    /// Sets a `const volatile` of the object.
    pub(crate) fn global(mut self, name: &'static str, value: impl NoUninit) -> Self {
        self.globals.push((name, bytemuck::bytes_of(&value).to_vec()));
        self
    }

    /// Sets the size of a map.
    pub(crate) fn entries(mut self, map: &'static str, entries: u32) -> Self {
        self.entries.push((map, entries));
        self
    }

    /// What to report of a probe for whom the kernel's BTF cannot be read: the
    /// first thing that it lacks.
    pub(crate) fn lacking<P: crate::Probe>(error: Error) -> Error {
        let preflight = preflight_for(&[(P::NAME, P::requirements())]);
        preflight.require().err().unwrap_or(error)
    }

    /// Creates the maps and fits the programs to the kernel; none is loaded yet.
    pub(crate) fn load(self, kernel: &Kernel) -> Result<Object> {
        let missing = kernel.missing(self.requirements.tracepoints, self.requirements.iterators);
        if !missing.is_empty() {
            return Err(self.explain("finding its hooks", None));
        }
        let ebpf = match self.try_load(kernel) {
            Err(error) if permission_denied(&error) && raise_memlock_limit() => {
                self.try_load(kernel)
            }
            result => result,
        };
        let (ebpf, stream) =
            ebpf.map_err(|error| self.explain("creating its maps", Some(Box::new(error))))?;
        Ok(Object { ebpf, loader: self, stream, buffer: RecordBuffer::default() })
    }

    fn try_load(&self, kernel: &Kernel) -> Result<(Ebpf, u16), EbpfError> {
        // Tells the records of probes that share a walk apart: there are never 65,536.
        static STREAMS: AtomicU16 = AtomicU16::new(0);
        let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&kernel.btf().0));
        loader.override_global("stream", bytemuck::bytes_of(&stream), false);
        for (name, value) in &self.globals {
            loader.override_global(name, value.as_slice(), true);
        }
        for (map, entries) in &self.entries {
            loader.map_max_entries(map, *entries);
        }
        Ok((loader.load(self.bytes)?, stream))
    }

    /// The error to report: what the machine lacks if it lacks something, else
    /// what the kernel said.
    fn explain(&self, doing: &str, cause: Option<Box<dyn StdError + Send + Sync>>) -> Error {
        let preflight = preflight_for(&[(self.probe, self.requirements.clone())]);
        let error = match preflight.require() {
            Err(lacking) => lacking,
            Ok(()) => {
                let kind = match &cause {
                    Some(cause) if permission_denied(cause.as_ref()) => ErrorKind::PermissionDenied,
                    _ => ErrorKind::System,
                };
                let text = cause.as_deref().map(chain).unwrap_or_default();
                let hint = if kind == ErrorKind::PermissionDenied {
                    "; the capabilities are there, so a security module or a seccomp filter \
                     (as of container runtimes) forbids it"
                } else {
                    ""
                };
                Error::new(kind, format!("probe {}: {doing} failed: {text}{hint}", self.probe))
            }
        };
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }
}

/// An object in the kernel. Dropping it detaches its programs and frees its maps.
pub(crate) struct Object {
    ebpf: Ebpf,
    loader: Loader,
    stream: u16,
    buffer: RecordBuffer,
}

impl Object {
    /// What the records of its iterator are marked with.
    pub(crate) fn stream(&self) -> u16 {
        self.stream
    }

    /// Memory for walks, kept between them.
    pub(crate) fn buffer(&mut self) -> &mut RecordBuffer {
        &mut self.buffer
    }

    /// From here on its iterators hand every task to that of another object, which
    /// has to stay loaded for as long.
    pub(crate) fn hand_on_to(&mut self, next: &Object, iterator: &'static str) -> Result<()> {
        const MAP: &str = "next_iterator";
        let Some(program) = next.ebpf.program(iterator) else {
            let text = format!("probe {}: no program {iterator}", next.loader.probe);
            return Err(Error::new(ErrorKind::InvalidObject, text));
        };
        let set = |map: Option<&mut Map>,
                   program: &Program|
         -> Result<(), Box<dyn StdError + Send + Sync>> {
            let map = map.ok_or("no such map in its object")?;
            let mut programs = ProgramArray::try_from(map)?;
            Ok(programs.set(0, program.fd()?, 0)?)
        };
        set(self.ebpf.map_mut(MAP), program).map_err(|error| {
            let text = format!("probe {}: joining its walk failed", self.loader.probe);
            Error::new(ErrorKind::System, text).with_source(error)
        })
    }

    /// Its iterators hand tasks on to nobody.
    pub(crate) fn hand_on_to_none(&mut self) {
        if let Some(Ok(mut programs)) =
            self.ebpf.map_mut("next_iterator").map(ProgramArray::try_from)
        {
            // what was never set is no loss
            let _ = programs.clear_index(&0);
        }
    }

    /// Loads a program and attaches it to a tracepoint of the kernel.
    pub(crate) fn attach(
        &mut self,
        program: &'static str,
        tracepoint: &str,
        kernel: &Kernel,
    ) -> Result<()> {
        let attach = |program: &mut BtfTracePoint| {
            program.load(tracepoint, &kernel.btf().0)?;
            program.attach().map(drop)
        };
        let result = attach(self.program(program)?);
        result.map_err(|error| self.refused(program, error))
    }

    /// Loads a program and attaches it to a tracepoint by its name under tracefs.
    pub(crate) fn attach_classic(
        &mut self,
        program: &'static str,
        category: &str,
        tracepoint: &str,
    ) -> Result<()> {
        let attach = |program: &mut TracePoint| {
            program.load()?;
            program.attach(category, tracepoint).map(drop)
        };
        let result = attach(self.program(program)?);
        result.map_err(|error| self.refused(program, error))
    }

    /// Loads a program and attaches it to a tracepoint of the kernel, whose arguments
    /// it gets as plain numbers.
    pub(crate) fn attach_raw(&mut self, program: &'static str, tracepoint: &str) -> Result<()> {
        let attach = |program: &mut RawTracePoint| {
            program.load()?;
            program.attach(tracepoint).map(drop)
        };
        let result = attach(self.program(program)?);
        result.map_err(|error| self.refused(program, error))
    }

    /// Loads the program of an iterator.
    pub(crate) fn load_iterator(
        &mut self,
        program: &'static str,
        iterates: &str,
        kernel: &Kernel,
    ) -> Result<()> {
        let result = self.program::<Iter>(program)?.load(iterates, &kernel.btf().0);
        result.map_err(|error| self.refused(program, error))
    }

    /// Loads a program that user space runs itself.
    pub(crate) fn load_callable(&mut self, program: &'static str) -> Result<()> {
        let result = self.program::<RawTracePoint>(program)?.load();
        result.map_err(|error| self.refused(program, error))
    }

    /// Runs a program of [`load_callable`](Self::load_callable) in the calling thread.
    pub(crate) fn call(&mut self, program: &'static str) -> Result<()> {
        let result =
            self.program::<RawTracePoint>(program)?.test_run(RawTracePointRunOptions::new());
        result.map(drop).map_err(|error| self.refused(program, error))
    }

    /// One pass of an iterator over everything it iterates; replaces what is in
    /// `output`.
    pub(crate) fn iterate(
        &mut self,
        program: &'static str,
        output: &mut RecordBuffer,
    ) -> Result<()> {
        let open = |program: &mut Iter| {
            let link = program.attach()?;
            program.take_link(link)?.into_file().map_err(|e| io::Error::other(e).into())
        };
        let file: Result<fs::File, ProgramError> = open(self.program(program)?);
        let mut file = file.map_err(|error| self.refused(program, error))?;
        output.fill(&mut file).map_err(|error| {
            let text = format!("probe {}: reading {program} failed", self.loader.probe);
            Error::new(ErrorKind::System, text).with_source(error)
        })
    }

    fn program<'a, T>(&'a mut self, name: &str) -> Result<&'a mut T>
    where
        &'a mut T: TryFrom<&'a mut Program>,
    {
        let probe = self.loader.probe;
        self.ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidObject,
                format!("probe {probe}: no program {name} of the expected type in its object"),
            )
        })
    }

    fn refused(&self, program: &str, error: ProgramError) -> Error {
        if let ProgramError::LoadError { io_error, verifier_log } = &error {
            let log = verifier_log.to_string();
            // The verifier's complaint comes last but for its statistics.
            let statistics = ["processed ", "stack depth ", "verification time "];
            let verdict = log
                .lines()
                .rev()
                .find(|l| !l.is_empty() && !statistics.iter().any(|start| l.starts_with(start)));
            if let Some(verdict) = verdict.filter(|_| !permission_denied(io_error)) {
                let text = format!(
                    "probe {}: the kernel's verifier refused {program}: {verdict}",
                    self.loader.probe
                );
                return Error::new(ErrorKind::VerifierRejected, text).with_verifier_log(log);
            }
        }
        self.loader.explain(&format!("loading {program}"), Some(Box::new(error)))
    }

    fn map(&self, name: &str) -> Result<&Map> {
        self.ebpf.map(name).ok_or_else(|| {
            let text = format!("probe {}: no map {name} in its object", self.loader.probe);
            Error::new(ErrorKind::InvalidObject, text)
        })
    }

    /// Every entry of a hash map.
    pub(crate) fn read_all<K: Pod, V: Pod>(&self, map: &str) -> Result<Vec<(K, V)>> {
        self.batch(map, sys::read_all)
    }

    /// Every entry of a hash map, which is empty afterwards.
    pub(crate) fn take_all<K: Pod, V: Pod>(&self, map: &str) -> Result<Vec<(K, V)>> {
        self.batch(map, sys::take_all)
    }

    /// Deletes entries of a hash map.
    pub(crate) fn delete<K: Pod>(&self, map: &str, keys: &[K]) -> Result<()> {
        self.batch(map, |fd| sys::delete_all(fd, keys))
    }

    fn batch<T>(
        &self,
        map: &str,
        operation: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Result<T> {
        let data = map_data(self.map(map)?);
        operation(data.fd().as_fd()).map_err(|error| self.unreadable(map, error))
    }

    /// One element of an array map.
    pub(crate) fn element<T: Pod>(&self, map: &str, index: u32) -> Result<T> {
        let array = Array::<&MapData, Value<T>>::try_from(self.map(map)?);
        let element = array.and_then(|array| array.get(&index, 0));
        element.map(|value| value.0).map_err(|error| self.unreadable(map, error))
    }

    /// Sets one element of an array map.
    pub(crate) fn set_element<T: Pod>(&mut self, map: &str, index: u32, value: T) -> Result<()> {
        let set = |map: &mut Map| -> Result<(), MapError> {
            Array::<&mut MapData, Value<T>>::try_from(map)?.set(index, Value(value), 0)
        };
        self.map(map)?;
        let result = self.ebpf.map_mut(map).map_or(Ok(()), set);
        result.map_err(|error| self.unreadable(map, error))
    }

    /// One element of a per-CPU array, for every CPU.
    pub(crate) fn per_cpu<T: Pod>(&self, map: &str, index: u32) -> Result<Vec<T>> {
        let array = PerCpuArray::<&MapData, Value<T>>::try_from(self.map(map)?);
        let elements = array.and_then(|array| array.get(&index, 0));
        let elements = elements.map_err(|error| self.unreadable(map, error))?;
        Ok(elements.iter().map(|value| value.0).collect())
    }

    /// The losses of the probe, by cause.
    pub(crate) fn losses(&self, causes: &[&'static str]) -> Result<Vec<(&'static str, u64)>> {
        let count = |(index, &cause): (usize, &&'static str)| {
            Ok((cause, self.per_cpu::<u64>("losses", index as u32)?.iter().sum()))
        };
        causes.iter().enumerate().map(count).collect()
    }

    fn unreadable(&self, map: &str, error: impl StdError + Send + Sync + 'static) -> Error {
        let text = format!("probe {}: map {map} cannot be accessed", self.loader.probe);
        Error::new(ErrorKind::System, text).with_source(error)
    }

    pub(crate) fn health(&self) -> Result<Health> {
        let mut health = Health::default();
        for (name, map) in self.ebpf.maps() {
            health.map_bytes += self.map_bytes(map).map_err(|e| self.unreadable(name, e))?;
        }
        health.programs = self.loaded().count();
        Ok(health)
    }

    fn map_bytes(&self, map: &Map) -> io::Result<u64> {
        fd_info(map_data(map).fd().as_fd(), "memlock:")?
            .ok_or_else(|| io::Error::other("no memlock line in fdinfo"))
    }

    /// How often the kernel skipped one of its programs because it was under way on
    /// the same CPU already. Kernels that do not tell (before 5.12) do not skip.
    pub(crate) fn skipped_runs(&self) -> Result<u64> {
        let skipped = |(name, program): (&str, &Program)| {
            let unreadable = |error: Box<dyn StdError + Send + Sync>| {
                let text = format!("probe {}: no information on {name}", self.loader.probe);
                Error::new(ErrorKind::System, text).with_source(error)
            };
            let fd = program.fd().map_err(|error| unreadable(error.into()))?;
            let skipped = fd_info(fd.as_fd(), "recursion_misses:");
            Ok(skipped.map_err(|error| unreadable(error.into()))?.unwrap_or(0))
        };
        self.loaded().map(skipped).sum()
    }

    pub(crate) fn cost(&self) -> Result<Cost> {
        let mut cost = Cost::default();
        for (name, program) in self.loaded() {
            let info = program.info().map_err(|error| {
                let text = format!("probe {}: no information on {name}", self.loader.probe);
                Error::new(ErrorKind::System, text).with_source(error)
            })?;
            cost.programs.push(ProgramCost {
                program: name.to_owned(),
                run_count: info.run_count(),
                run_time: info.run_time(),
            });
        }
        Ok(cost)
    }

    fn loaded(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.ebpf.programs().filter(|(_, program)| program.fd().is_ok())
    }
}

/// What an iterator wrote, aligned for records of 8-byte fields. Keeps its memory
/// from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct RecordBuffer {
    words: Vec<u64>,
    length: usize,
}

impl RecordBuffer {
    /// The kernel hands out at most this much at a time.
    const PIECE: usize = 32 << 10;

    fn fill(&mut self, file: &mut impl io::Read) -> io::Result<()> {
        self.length = 0;
        loop {
            if self.words.len() * 8 < self.length + Self::PIECE {
                let words = (self.words.len() * 2).max(2 * Self::PIECE / 8);
                self.words.resize(words, 0);
            }
            let free = &mut bytemuck::cast_slice_mut(&mut self.words)[self.length..];
            match file.read(free) {
                Ok(0) => return Ok(()),
                Ok(length) => self.length += length,
                // after a long stretch without output, for us to let others run
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length]
    }
}

/// A number that the kernel tells of an object of BPF.
fn fd_info(fd: BorrowedFd<'_>, name: &str) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.and_then(|value| value.trim().parse().ok()))
}

fn map_data(map: &Map) -> &MapData {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data) => data,
        _ => unreachable!("the objects of this crate have no map of another type"),
    }
}

/// A value that the kernel wrote, in the form that aya asks for.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value<T>(T);

#[expect(unsafe_code, reason = "the way to tell aya what a type may hold")]
// SAFETY: any bit pattern is a T, Value is nothing but a T.
unsafe impl<T: Pod> aya::Pod for Value<T> {}

/// The kernel's BTF as aya relocates against it.
pub(crate) struct KernelBtf(Btf);

impl KernelBtf {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        Btf::parse(bytes, aya::Endianness::default()).map(Self)
    }

    pub(crate) fn has_iterator(&self, name: &str) -> bool {
        self.0.id_by_type_name_kind(&format!("bpf_iter_{name}"), BtfKind::Func).is_ok()
    }
}

pub(crate) fn enable_statistics() -> Result<OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| {
        let kind = match permission_denied(&error) {
            true => ErrorKind::PermissionDenied,
            false => ErrorKind::System,
        };
        let text = "eBPF run time statistics need CAP_SYS_ADMIN and Linux 5.8";
        Error::new(kind, text).with_source(error)
    })
}

/// Whether EPERM or EACCES stands at the root of an error.
fn permission_denied(error: &(dyn StdError + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(this) = error {
        if this.downcast_ref::<io::Error>().is_some_and(|e| {
            // EACCES is also what the verifier says to a bad program
            e.raw_os_error() == Some(libc::EPERM)
        }) {
            return true;
        }
        error = this.source();
    }
    false
}

/// The texts of an error and its causes, each cut: aya prints whole type tables.
fn chain(error: &(dyn StdError + Send + Sync + 'static)) -> String {
    const LONGEST: usize = 300;
    let mut texts: Vec<String> = Vec::new();
    let mut error: Option<&dyn StdError> = Some(error);
    while let Some(this) = error {
        let text: String = this.to_string().chars().take(LONGEST).collect();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        error = this.source();
    }
    texts.join(": ")
}

/// Kernels before 5.11 charge maps to this limit; later ones never look at it.
/// Raised as libbpf does: only once the kernel has refused, and as far as one may.
fn raise_memlock_limit() -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Memlock);
    limit.current.is_some()
        && setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_ok()
}
