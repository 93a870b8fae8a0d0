//! Types, objects, programs and maps in the kernel. The only file that names aya.

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    ffi::CString,
    fs, io,
    ops::Deref,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use aya::{
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, ProgramArray, RingBuf, Stack},
    sys::SyscallError,
};
use aya_obj::{EbpfSectionKind, Function, ProgramSection};
use bytemuck::{NoUninit, Pod};

use crate::{
    Cost, Error, ErrorKind, Health, Kernel, ProgramCost, Requirements, Result,
    bpf::{self, Refusal, Start},
    btf::{Btf, Hook},
    preflight::preflight_for,
    records::RecordBuffer,
    sys,
};

/// An error with its causes.
type Cause = Box<dyn StdError + Send + Sync>;

/// How a BPF object is to be loaded: what it needs, and what is set in it beforehand.
///
/// ```no_run
/// # use ebpfmetrics::{Kernel, Requirements, Result, kit::{Loader, Object}};
/// # fn load(kernel: &Kernel, object: &'static [u8]) -> Result<Object> {
/// let requirements = Requirements {
///     tracepoints: ["sched_process_exit", "sched_process_free", "net_dev_queue"].into(),
///     iterators: ["task"].into(),
/// };
/// let mut object = Loader::new("net", requirements, object)
///     .global("loopback_counts", 0_u8)
///     .entries("counts", 16_384)
///     .load(kernel)?;
/// object.load_iterator("net_tasks", "task", kernel)?;
/// object.attach("net_queue", "net_dev_queue", kernel)?;
/// # Ok(object)
/// # }
/// ```
pub struct Loader {
    probe: &'static str,
    requirements: Requirements,
    bytes: &'static [u8],
    globals: Vec<(&'static str, Vec<u8>)>,
    entries: Vec<(&'static str, u32)>,
    shared: Option<Arc<SharedMaps>>,
    left_out: Vec<&'static str>,
}

/// Maps of an object that another is to use too, by their names in both.
pub(crate) struct SharedMaps(Vec<(&'static str, OwnedFd)>);

impl SharedMaps {
    fn get(&self, map: &str) -> Option<BorrowedFd<'_>> {
        let (_, fd) = self.0.iter().find(|(name, _)| *name == map)?;
        Some(fd.as_fd())
    }
}

impl Loader {
    /// The object of a probe, as clang made it: 8-byte aligned, as `include_bytes!` in a
    /// `#[repr(align(8))]` makes it. The name of the probe is for the texts of errors.
    pub fn new(probe: &'static str, requirements: Requirements, bytes: &'static [u8]) -> Self {
        Self {
            probe,
            requirements,
            bytes,
            globals: Vec::new(),
            entries: Vec::new(),
            shared: None,
            left_out: Vec::new(),
        }
    }

    /// Sets a `const volatile` of the object, which then is a constant to the verifier;
    /// the value is as long as the variable (a `bool` of C is a `u8`).
    pub fn global(mut self, name: &'static str, value: impl NoUninit) -> Self {
        self.globals.push((name, bytemuck::bytes_of(&value).to_vec()));
        self
    }

    /// Sets the `max_entries` of a map, which the kernel takes memory for at loading
    /// unless the map has `BPF_F_NO_PREALLOC`.
    pub fn entries(mut self, map: &'static str, entries: u32) -> Self {
        self.entries.push((map, entries));
        self
    }

    /// Uses maps of another object in place of its own.
    pub(crate) fn share(mut self, maps: Arc<SharedMaps>) -> Self {
        self.shared = Some(maps);
        self
    }

    /// Does not create a map: for code that uses it only where a `const volatile`
    /// says so, which the verifier then removes.
    pub(crate) fn leave_out(mut self, map: &'static str) -> Self {
        self.left_out.push(map);
        self
    }

    fn shared(&self, map: &str) -> Option<BorrowedFd<'_>> {
        self.shared.as_ref()?.get(map)
    }

    /// The description of the running kernel, for a probe.
    ///
    /// # Errors
    /// Where its BTF cannot be read: the first thing that the probe lacks.
    pub fn kernel(probe: &'static str, requirements: Requirements) -> Result<Kernel> {
        Kernel::read().map_err(|error| {
            let preflight = preflight_for(&[(probe, requirements)]);
            preflight.require().err().unwrap_or(error)
        })
    }

    /// Creates the maps and fits the programs to the kernel; none of them is loaded yet,
    /// so those that this kernel could not take do no harm.
    ///
    /// # Errors
    /// What the machine lacks if it lacks something ([`HookMissing`](ErrorKind::HookMissing),
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) and others);
    /// [`InvalidObject`](ErrorKind::InvalidObject) if there is no such map to be sized;
    /// else [`System`](ErrorKind::System) with what the kernel said.
    pub fn load(self, kernel: &Kernel) -> Result<Object> {
        let missing = kernel.missing(&self.requirements);
        if !missing.is_empty() {
            return Err(self.explain("finding its hooks", None));
        }
        let parts = match self.try_load(kernel) {
            Err(error) if permission_denied(error.as_ref()) && raise_memlock_limit() => {
                self.try_load(kernel)
            }
            result => result,
        };
        let (parts, stream) =
            parts.map_err(|error| self.explain("creating its maps", Some(error)))?;
        let object = Object { parts, loader: self, stream, buffer: RecordBuffer::default() };
        for (map, _) in &object.loader.entries {
            object.map(map)?;
        }
        Ok(object)
    }

    /// What aya's `EbpfLoader` does, but for reading and parsing the whole of the
    /// kernel's BTF for each object and searching it for each type.
    fn try_load(&self, kernel: &Kernel) -> Result<(Parts, u16), Cause> {
        // Tells the records of probes that share a walk apart: there are never 65,536.
        static STREAMS: AtomicU16 = AtomicU16::new(0);
        let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
        let mut object = aya_obj::Object::parse(self.bytes)?;
        let mut globals: std::collections::HashMap<&str, (&[u8], bool)> =
            self.globals.iter().map(|(name, value)| (*name, (value.as_slice(), true))).collect();
        globals.insert("stream", (bytemuck::bytes_of(&stream), false));
        let hierarchy = kernel.cgroup_hierarchy_number();
        globals.insert("cgroup_hierarchy", (bytemuck::bytes_of(&hierarchy), false));
        object.patch_map_data(globals)?;

        let features = aya::features();
        let btf = match features.btf() {
            Some(features) => object.fixup_and_sanitize_btf(features)?.map(aya::Btf::to_bytes),
            None => None,
        };
        let btf = btf.as_deref().map(bpf::load_btf).transpose()?;
        relocate(&mut object, kernel.btf())?;

        let (mut maps, mut left_out) = (BTreeMap::new(), Vec::new());
        for (name, mut map) in object.maps.drain() {
            if self.left_out.contains(&name.as_str()) {
                left_out.push((name, map));
                continue;
            }
            if let Some(fd) = self.shared(&name) {
                maps.insert(name, (MapData::from_fd(fd.try_clone_to_owned()?)?, map));
                continue;
            }
            if let Some((_, entries)) = self.entries.iter().find(|(map, _)| *map == name) {
                map.set_max_entries(*entries);
            }
            let created = MapData::create(map.clone(), &name, btf.as_ref().map(|fd| fd.as_fd()))?;
            fill(&created, &map)?;
            maps.insert(name, (created, map));
        }
        let text = object.functions.keys().map(|(section, _)| *section).collect();
        let place = |name, created: &MapData, map| (name, created.fd().as_fd().as_raw_fd(), map);
        let places = maps.iter().map(|(name, (created, map))| place(name.as_str(), created, map));
        // The kernel wants a map in the code that it then removes: any will do.
        let any = maps.values().next().map(|(created, _)| created);
        let left_out = left_out.iter().filter_map(|(name, map)| Some(place(name, any?, map)));
        object.relocate_maps(places.chain(left_out), &text)?;
        object.relocate_calls(&text)?;
        object.sanitize_functions(features);

        let aya_obj::Object { programs, mut functions, .. } = object;
        let programs = programs.into_iter().filter_map(|(name, program)| {
            let function = functions.remove(&program.function_key())?;
            let (section, license) = (program.section, program.license);
            Some((name, Program { section, license, function, fd: None, attached: None }))
        });
        let size = |map: &aya_obj::Map| (map.key_size() as usize, map.value_size() as usize);
        let sizes = maps.iter().map(|(name, (_, map))| (name.clone(), size(map))).collect();
        let maps =
            maps.into_iter().map(|(name, (created, _))| Ok((name, Map::from_map_data(created)?)));
        let maps = maps.collect::<Result<_, MapError>>()?;
        let parts = Parts { btf, programs: programs.collect(), maps, sizes };
        Ok((parts, stream))
    }

    /// The error to report: what the machine lacks if it lacks something, else
    /// what the kernel said.
    fn explain(&self, doing: &str, cause: Option<Cause>) -> Error {
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

/// Size and members of a struct in the BTF of an object.
pub(crate) fn layout(object: &[u8], name: &str) -> Option<(usize, Vec<(String, usize)>)> {
    let object = aya_obj::Object::parse(object).ok()?;
    Btf::parse(object.btf.as_ref()?.to_bytes())?.layout(name)
}

/// The enumerators of an enum in the BTF of an object.
pub(crate) fn enumerators(object: &[u8], name: &str) -> Option<Vec<(String, u32)>> {
    let object = aya_obj::Object::parse(object).ok()?;
    Btf::parse(object.btf.as_ref()?.to_bytes())?.enumerators(name)
}

/// Fits an object to the kernel by their types.
fn relocate(
    object: &mut aya_obj::Object,
    kernel: &Btf<impl Deref<Target = [u8]>>,
) -> Result<(), Cause> {
    if !object.has_btf_relocations() {
        return Ok(());
    }
    let own = object.btf.as_ref().map(aya::Btf::to_bytes).unwrap_or_default();
    let own = Btf::parse(own).ok_or("its BTF is not as known here")?;
    // of the kernel's 126,000 types some 400, which is what takes the time
    let few = kernel.only(&own.names());
    Ok(object.relocate_btf(&aya::Btf::parse(&few, aya::Endianness::default())?)?)
}

/// Puts the object's variables into a map that holds some, constants for good.
fn fill(created: &MapData, map: &aya_obj::Map) -> Result<(), SyscallError> {
    let fd = created.fd().as_fd();
    let failed = |call| move |io_error| SyscallError { call, io_error };
    if !map.data().is_empty() {
        bpf::set_first(fd, map.data()).map_err(failed("BPF_MAP_UPDATE_ELEM"))?;
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        bpf::freeze(fd).map_err(failed("BPF_MAP_FREEZE"))?;
    }
    Ok(())
}

/// What an object consists of in the kernel. Dropping it detaches its programs and
/// frees its maps.
struct Parts {
    /// What the kernel knows its types by.
    btf: Option<OwnedFd>,
    programs: BTreeMap<String, Program>,
    maps: BTreeMap<String, Map>,
    /// Sizes of the key and of the value of each map.
    sizes: BTreeMap<String, (usize, usize)>,
}

/// A program, fitted to the kernel.
struct Program {
    section: ProgramSection,
    license: CString,
    function: Function,
    /// There once it is loaded.
    fd: Option<OwnedFd>,
    /// Detaches it when dropped.
    attached: Option<OwnedFd>,
}

impl Program {
    fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        let not_loaded = || io::Error::other("the program is not loaded");
        self.fd.as_ref().map(|fd| fd.as_fd()).ok_or_else(not_loaded)
    }
}

/// An object in the kernel. Dropping it detaches its programs and frees its maps.
///
/// Programs and maps go by their names in C. Keys and values of maps are
/// [`record!`](crate::record)s or plain numbers, of the very size that they have in C: else
/// it is an [`InvalidObject`](ErrorKind::InvalidObject), never memory of something else.
///
/// | section of a program | is loaded by |
/// |---|---|
/// | `tp_btf/NAME` | [`attach`](Self::attach) |
/// | `tracepoint/NAME` | [`attach_classic`](Self::attach_classic) |
/// | `raw_tp/NAME` | [`attach_raw`](Self::attach_raw), [`load_callable`](Self::load_callable) |
/// | `iter/task` | [`load_iterator`](Self::load_iterator) |
///
/// | type of a map | is read and written by |
/// |---|---|
/// | `HASH`, `LRU_HASH` | [`read_all`](Self::read_all), [`take_all`](Self::take_all), [`lookup`](Self::lookup), [`put_all`](Self::put_all), [`delete`](Self::delete) |
/// | `ARRAY` | [`element`](Self::element), [`elements`](Self::elements), [`set_element`](Self::set_element) |
/// | `PERCPU_ARRAY` | [`per_cpu`](Self::per_cpu), [`losses`](Self::losses) |
/// | `STACK` | [`push`](Self::push) |
pub struct Object {
    parts: Parts,
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
        let Some(program) = next.parts.programs.get(iterator) else {
            let text = format!("probe {}: no program {iterator}", next.loader.probe);
            return Err(Error::new(ErrorKind::InvalidObject, text));
        };
        let map = map_data(self.map(MAP)?).fd().as_fd();
        let set = |fd: BorrowedFd<'_>| bpf::set_first(map, &fd.as_raw_fd().to_ne_bytes());
        program.fd().and_then(set).map_err(|error| {
            let text = format!("probe {}: joining its walk failed", self.loader.probe);
            Error::new(ErrorKind::System, text).with_source(error)
        })
    }

    /// Its iterators hand tasks on to nobody.
    pub(crate) fn hand_on_to_none(&mut self) {
        if let Some(Ok(mut programs)) =
            self.parts.maps.get_mut("next_iterator").map(ProgramArray::try_from)
        {
            // what was never set is no loss
            let _ = programs.clear_index(&0);
        }
    }

    /// Loads a program (section `tp_btf`) and attaches it to a tracepoint of the kernel, by
    /// its name without category. It gets the arguments with their types. From here on it
    /// runs, so what undoes a count is attached before what counts.
    ///
    /// # Errors
    /// [`HookMissing`](ErrorKind::HookMissing) if this kernel has no such tracepoint;
    /// [`VerifierRejected`](ErrorKind::VerifierRejected) with the verifier's log;
    /// [`InvalidObject`](ErrorKind::InvalidObject) if there is no such program, or one of
    /// another section; what the machine lacks.
    pub fn attach(
        &mut self,
        program: &'static str,
        tracepoint: &str,
        kernel: &Kernel,
    ) -> Result<()> {
        self.load_hook(program, tracepoint, kernel)?;
        self.attach_hook(program)
    }

    /// Loads a program for a tracepoint, to be attached when it is needed.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn load_hook(
        &mut self,
        program: &'static str,
        tracepoint: &str,
        kernel: &Kernel,
    ) -> Result<()> {
        let hook = kernel.btf().tracepoint(tracepoint);
        let start = self.hook(program, tracepoint, hook)?;
        self.load(program, Start::TypedTracepoint { id: start.id })
    }

    /// Attaches a program of [`load_hook`](Self::load_hook).
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn attach_hook(&mut self, program: &'static str) -> Result<()> {
        self.attach_with(program, "BPF_RAW_TRACEPOINT_OPEN", bpf::attach_typed_tracepoint)
    }

    /// Loads a program (section `tracepoint`) and attaches it to a tracepoint by its
    /// category and name under tracefs. It gets the fields as the tracer would write them,
    /// and costs more than with [`attach`](Self::attach): for hooks whose typed arguments
    /// differ between kernels.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach), and where tracefs cannot be had.
    pub fn attach_classic(
        &mut self,
        program: &'static str,
        category: &str,
        tracepoint: &str,
    ) -> Result<()> {
        self.load(program, Start::Tracepoint)?;
        self.attach_with(program, "perf_event_open", |fd| {
            bpf::attach_tracepoint(fd, sys::tracepoint_id(category, tracepoint)?)
        })
    }

    /// Loads a program (section `raw_tp`) and attaches it to a tracepoint of the kernel,
    /// whose arguments it gets as plain numbers.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn attach_raw(&mut self, program: &'static str, tracepoint: &str) -> Result<()> {
        self.load(program, Start::RawTracepoint)?;
        self.attach_with(program, "BPF_RAW_TRACEPOINT_OPEN", |fd| {
            bpf::attach_raw_tracepoint(fd, &CString::new(tracepoint)?)
        })
    }

    /// Loads the program of an iterator (section `iter/..`), by what it iterates: `task`.
    /// It runs when the probe is read: see [`TaskProbe`](crate::kit::TaskProbe).
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn load_iterator(
        &mut self,
        program: &'static str,
        iterates: &str,
        kernel: &Kernel,
    ) -> Result<()> {
        let hook = kernel.btf().iterator(iterates);
        let start = self.hook(program, iterates, hook)?;
        self.load(program, Start::Iterator { id: start.id })
    }

    /// Loads a program (section `raw_tp`) that user space runs itself, by
    /// [`call`](Self::call).
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub fn load_callable(&mut self, program: &'static str) -> Result<()> {
        self.load(program, Start::Call)
    }

    /// Runs a program of [`load_callable`](Self::load_callable) in the calling thread.
    ///
    /// # Errors
    /// Where it has not been loaded, or the kernel refuses.
    pub fn call(&mut self, program: &'static str) -> Result<()> {
        let result = self.program(program)?.fd().and_then(bpf::run);
        result.map_err(|error| self.failed("running", program, "BPF_PROG_TEST_RUN", error))
    }

    /// One pass of an iterator over everything it iterates; replaces what is in
    /// `output`.
    pub(crate) fn iterate(
        &mut self,
        program: &'static str,
        output: &mut RecordBuffer,
    ) -> Result<()> {
        let file = self.program(program)?.fd().and_then(bpf::iterate);
        let file =
            file.map_err(|error| self.failed("running", program, "BPF_ITER_CREATE", error))?;
        output.fill(&mut fs::File::from(file)).map_err(|error| {
            let text = format!("probe {}: reading {program} failed", self.loader.probe);
            Error::new(error.kind(), text).with_source(error)
        })
    }

    /// Has the kernel load a program, which is in a section for that kind of start.
    fn load(&mut self, name: &'static str, start: Start) -> Result<()> {
        let btf = self.parts.btf.as_ref().map(|fd| fd.as_fd());
        let program = self.parts.programs.get_mut(name).filter(|program| {
            matches!(
                (&program.section, start),
                (ProgramSection::BtfTracePoint, Start::TypedTracepoint { .. })
                    | (ProgramSection::TracePoint, Start::Tracepoint)
                    | (ProgramSection::Iter { sleepable: false }, Start::Iterator { .. })
                    | (ProgramSection::RawTracePoint, Start::RawTracepoint | Start::Call)
            )
        });
        let Some(program) = program else {
            let probe = self.loader.probe;
            let text =
                format!("probe {probe}: no program {name} of the expected type in its object");
            return Err(Error::new(ErrorKind::InvalidObject, text));
        };
        let function = &program.function;
        let code = bpf::Code {
            name,
            license: &program.license,
            instructions: &function.instructions,
            btf,
            functions: (&function.func_info.func_info_bytes(), function.func_info_rec_size),
            lines: (&function.line_info.line_info_bytes(), function.line_info_rec_size),
        };
        match bpf::load_program(&code, start) {
            Ok(fd) => {
                program.fd = Some(fd);
                Ok(())
            }
            Err(refusal) => Err(self.refused(name, refusal)),
        }
    }

    fn attach_with(
        &mut self,
        name: &'static str,
        call: &'static str,
        attach: impl FnOnce(BorrowedFd<'_>) -> io::Result<OwnedFd>,
    ) -> Result<()> {
        let attached = self.program(name)?.fd().and_then(attach);
        let attached = attached.map_err(|error| self.failed("attaching", name, call, error))?;
        self.program(name)?.attached = Some(attached);
        Ok(())
    }

    fn program(&mut self, name: &str) -> Result<&mut Program> {
        let probe = self.loader.probe;
        self.parts.programs.get_mut(name).ok_or_else(|| {
            let text = format!("probe {probe}: no program {name} in its object");
            Error::new(ErrorKind::InvalidObject, text)
        })
    }

    fn hook(&self, program: &str, name: &str, hook: Option<Hook>) -> Result<Hook> {
        let doing = || format!("finding {name} for {program}");
        hook.ok_or_else(|| {
            self.loader.explain(&doing(), Some("this kernel has no such hook".into()))
        })
    }

    fn failed(&self, doing: &str, program: &str, call: &'static str, io_error: io::Error) -> Error {
        let cause = SyscallError { call, io_error };
        self.loader.explain(&format!("{doing} {program}"), Some(Box::new(cause)))
    }

    fn refused(&self, program: &str, refusal: Refusal) -> Error {
        // The verifier's complaint comes last but for its statistics.
        let statistics = ["processed ", "stack depth ", "verification time "];
        let verdict = refusal
            .log
            .lines()
            .rev()
            .find(|l| !l.is_empty() && !statistics.iter().any(|start| l.starts_with(start)));
        if let Some(verdict) = verdict.filter(|_| !permission_denied(&refusal.error)) {
            let text = format!(
                "probe {}: the kernel's verifier refused {program}: {verdict}",
                self.loader.probe
            );
            return Error::new(ErrorKind::VerifierRejected, text).with_verifier_log(refusal.log);
        }
        self.loader.explain(&format!("loading {program}"), Some(Box::new(refusal)))
    }

    fn map(&self, name: &str) -> Result<&Map> {
        self.parts.maps.get(name).ok_or_else(|| {
            let text = format!("probe {}: no map {name} in its object", self.loader.probe);
            Error::new(ErrorKind::InvalidObject, text)
        })
    }

    /// Every entry of a hash map (not a per-CPU one).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidObject`] if its keys and values are not of these sizes; where
    /// the kernel refuses to be read.
    pub fn read_all<K: Pod, V: Pod>(&self, map: &str) -> Result<Vec<(K, V)>> {
        self.batch::<K, _>(map, Some(size_of::<V>()), sys::read_all)
    }

    /// Every entry of a hash map (not a per-CPU one), which is empty afterwards. What is
    /// written meanwhile is taken now or next time.
    ///
    /// # Errors
    /// As for [`read_all`](Self::read_all).
    pub fn take_all<K: Pod, V: Pod>(&self, map: &str) -> Result<Vec<(K, V)>> {
        self.batch::<K, _>(map, Some(size_of::<V>()), sys::take_all)
    }

    /// The value of a key of a hash map, which keeps it.
    ///
    /// # Errors
    /// As for [`read_all`](Self::read_all).
    pub fn lookup<K: Pod, V: Pod>(&self, map: &str, key: &K) -> Result<Option<V>> {
        let hash = HashMap::<&MapData, Value<K>, Value<V>>::try_from(self.map(map)?);
        match hash.and_then(|hash| hash.get(&Value(*key), 0)) {
            Ok(value) => Ok(Some(value.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.unreadable(map, error)),
        }
    }

    /// A ring buffer, to be read by one reader at a time.
    pub(crate) fn ring(&self, map: &str) -> Result<Ring> {
        let fd = self.duplicate(map)?;
        let ring = MapData::from_fd(fd).and_then(Map::from_map_data).and_then(RingBuf::try_from);
        ring.map(Ring).map_err(|error| self.unreadable(map, error))
    }

    /// Maps for the loader of another object.
    pub(crate) fn share(&self, maps: &[&'static str]) -> Result<Arc<SharedMaps>> {
        let share = |&map| Ok((map, self.duplicate(map)?));
        Ok(Arc::new(SharedMaps(maps.iter().map(share).collect::<Result<_>>()?)))
    }

    fn duplicate(&self, map: &str) -> Result<OwnedFd> {
        let fd = map_data(self.map(map)?).fd().as_fd();
        fd.try_clone_to_owned().map_err(|error| self.unreadable(map, error))
    }

    /// Puts entries into a hash map, in place of those that are there.
    ///
    /// # Errors
    /// As for [`read_all`](Self::read_all), and where it is full.
    pub fn put_all<K: Pod, V: Pod>(&mut self, map: &str, entries: &[(K, V)]) -> Result<()> {
        self.batch::<K, _>(map, Some(size_of::<V>()), |fd| sys::put_all(fd, entries))
    }

    /// Deletes entries of a hash map; those already gone are no error.
    ///
    /// # Errors
    /// As for [`read_all`](Self::read_all).
    pub fn delete<K: Pod>(&self, map: &str, keys: &[K]) -> Result<()> {
        self.batch::<K, _>(map, None, |fd| sys::delete_all(fd, keys))
    }

    fn unlike(&self, map: &str, expected: &str) -> Error {
        let text = format!("probe {}: map {map} is not {expected}", self.loader.probe);
        Error::new(ErrorKind::InvalidObject, text)
    }

    /// The kernel goes by the sizes of the map, whatever the buffers are.
    fn batch<K, T>(
        &self,
        name: &str,
        value: Option<usize>,
        operation: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Result<T> {
        let map = self.map(name)?;
        let sizes = self.parts.sizes.get(name).copied().unwrap_or_default();
        let is_hash = matches!(map, Map::HashMap(_) | Map::LruHashMap(_));
        if !is_hash || sizes != (size_of::<K>(), value.unwrap_or(sizes.1)) {
            return Err(self.unlike(name, "a hash of such keys and values"));
        }
        operation(map_data(map).fd().as_fd()).map_err(|error| self.unreadable(name, error))
    }

    /// One element of an array map.
    ///
    /// # Errors
    /// Where there is no such map or element, or it is of another size.
    pub fn element<T: Pod>(&self, map: &str, index: u32) -> Result<T> {
        let array = Array::<&MapData, Value<T>>::try_from(self.map(map)?);
        let element = array.and_then(|array| array.get(&index, 0));
        element.map(|value| value.0).map_err(|error| self.unreadable(map, error))
    }

    /// Sets one element of an array map.
    ///
    /// # Errors
    /// As for [`element`](Self::element).
    pub fn set_element<T: Pod>(&mut self, map: &str, index: u32, value: T) -> Result<()> {
        let set = |map: &mut Map| -> Result<(), MapError> {
            Array::<&mut MapData, Value<T>>::try_from(map)?.set(index, Value(value), 0)
        };
        self.map(map)?;
        let result = self.parts.maps.get_mut(map).map_or(Ok(()), set);
        result.map_err(|error| self.unreadable(map, error))
    }

    /// Elements of an array map from `first` on, at most `count`.
    ///
    /// # Errors
    /// As for [`element`](Self::element).
    pub fn elements<T: Pod>(&self, map: &str, first: u32, count: usize) -> Result<Vec<T>> {
        let array = self.map(map)?;
        let sizes = self.parts.sizes.get(map).copied().unwrap_or_default();
        if !matches!(array, Map::Array(_)) || sizes != (size_of::<u32>(), size_of::<T>()) {
            return Err(self.unlike(map, "an array of such values"));
        }
        let elements = sys::read_elements(map_data(array).fd().as_fd(), first, count);
        elements.map_err(|error| self.unreadable(map, error))
    }

    /// Puts a value on top of a stack map.
    ///
    /// # Errors
    /// Where it is full.
    pub fn push<T: Pod>(&mut self, map: &str, value: T) -> Result<()> {
        let push = |map: &mut Map| -> Result<(), MapError> {
            Stack::<&mut MapData, Value<T>>::try_from(map)?.push(Value(value), 0)
        };
        self.map(map)?;
        let result = self.parts.maps.get_mut(map).map_or(Ok(()), push);
        result.map_err(|error| self.unreadable(map, error))
    }

    /// One element of a per-CPU array, for every CPU that may ever be there.
    ///
    /// # Errors
    /// As for [`element`](Self::element).
    pub fn per_cpu<T: Pod>(&self, map: &str, index: u32) -> Result<Vec<T>> {
        let array = PerCpuArray::<&MapData, Value<T>>::try_from(self.map(map)?);
        let elements = array.and_then(|array| array.get(&index, 0));
        let elements = elements.map_err(|error| self.unreadable(map, error))?;
        Ok(elements.iter().map(|value| value.0).collect())
    }

    /// What was lost since the object was loaded: what it counted itself with `count_loss`
    /// (its map `losses`, of `DEFINE_LOSSES`), by the names of the causes in the order of
    /// their enum; and `run_skipped`, how often the kernel did not run one of its programs
    /// because that was under way on the same CPU already (5.12 and newer).
    ///
    /// # Errors
    /// Where there is no such map, or fewer causes in it.
    pub fn losses(&self, causes: &[&'static str]) -> Result<Vec<(&'static str, u64)>> {
        let count = |(index, &cause): (usize, &&'static str)| {
            Ok((cause, self.per_cpu::<u64>("losses", index as u32)?.iter().sum()))
        };
        let mut losses = causes.iter().enumerate().map(count).collect::<Result<Vec<_>>>()?;
        let mut skipped = 0;
        for (name, program) in self.loaded().filter(|(_, program)| program.attached.is_some()) {
            let info = program.fd().and_then(bpf::program_info);
            skipped += info.map_err(|error| self.untold(name, error))?.recursion_misses;
        }
        losses.push(("run_skipped", skipped));
        Ok(losses)
    }

    fn unreadable(&self, map: &str, error: impl StdError + Send + Sync + 'static) -> Error {
        let text = format!("probe {}: map {map} cannot be accessed", self.loader.probe);
        Error::new(ErrorKind::System, text).with_source(error)
    }

    /// What its maps and programs take; for [`Probe::health`](crate::Probe::health).
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn health(&self) -> Result<Health> {
        let mut health = Health::default();
        for (name, map) in &self.parts.maps {
            if self.loader.shared(name).is_some() {
                continue; // the object that it is of has it
            }
            let bytes = sys::fd_info(map_data(map).fd().as_fd(), "memlock");
            health.map_bytes += bytes.map_err(|error| self.unreadable(name, error))?;
        }
        health.programs = self.loaded().count();
        Ok(health)
    }

    fn untold(&self, program: &str, error: io::Error) -> Error {
        let text = format!("probe {}: no information on {program}", self.loader.probe);
        Error::new(ErrorKind::System, text).with_source(error)
    }

    /// How often its programs ran; for [`Probe::cost`](crate::Probe::cost).
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn cost(&self) -> Result<Cost> {
        let mut cost = Cost::default();
        for (name, program) in self.loaded() {
            let info = program.fd().and_then(bpf::program_info);
            let info = info.map_err(|error| self.untold(name, error))?;
            cost.programs.push(ProgramCost {
                program: name.to_owned(),
                run_count: info.run_count,
                run_time: Duration::from_nanos(info.run_time_ns),
            });
        }
        Ok(cost)
    }

    fn loaded(&self) -> impl Iterator<Item = (&str, &Program)> {
        let programs = self.parts.programs.iter().map(|(name, program)| (name.as_str(), program));
        programs.filter(|(_, program)| program.fd.is_some())
    }
}

/// A ring buffer, of which this is the one reader.
pub(crate) struct Ring(RingBuf<MapData>);

impl Ring {
    /// Takes the next record, if there is one; it is gone from the buffer afterwards.
    pub(crate) fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.0.next().map(|record| read(&record))
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn map_data(map: &Map) -> &MapData {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::BloomFilter(data)
        | Map::CgroupArray(data)
        | Map::CgroupStorage(data)
        | Map::CgrpStorage(data)
        | Map::CpuMap(data)
        | Map::DevMap(data)
        | Map::DevMapHash(data)
        | Map::HashMap(data)
        | Map::HashOfMaps(data)
        | Map::InodeStorage(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuCgroupStorage(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::PerfEventArray(data)
        | Map::ProgramArray(data)
        | Map::Queue(data)
        | Map::ReusePortSockArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data)
        | Map::SockHash(data)
        | Map::SockMap(data)
        | Map::Stack(data)
        | Map::StackTraceMap(data)
        | Map::Unsupported(data)
        | Map::XskMap(data) => data,
    }
}

/// A value that the kernel wrote, in the form that aya asks for.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value<T>(T);

#[expect(unsafe_code, reason = "the way to tell aya what a type may hold")]
// SAFETY: any bit pattern is a T, Value is nothing but a T.
unsafe impl<T: Pod> aya::Pod for Value<T> {}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> aya_obj::Object {
        aya_obj::Object::parse(ebpf_probes::CPU).unwrap()
    }

    fn load(kernel: &Kernel) -> Object {
        Loader::new("test", Requirements::default(), ebpf_probes::CPU).load(kernel).unwrap()
    }

    fn instructions(object: &aya_obj::Object) -> Vec<Vec<[i64; 5]>> {
        let numbers = |i: &aya_obj::generated::bpf_insn| {
            [i.code.into(), i.dst_reg().into(), i.src_reg().into(), i.off.into(), i.imm.into()]
        };
        let functions = object.functions.values();
        functions.map(|function| function.instructions.iter().map(numbers).collect()).collect()
    }

    #[test]
    fn few_types_relocate_as_the_whole_of_them_does() {
        let before = instructions(&object());
        let (mut by_few, mut by_all) = (object(), object());
        relocate(&mut by_few, Kernel::read().unwrap().btf()).unwrap();
        by_all.relocate_btf(&aya::Btf::from_sys_fs().unwrap()).unwrap();
        assert_ne!(before, instructions(&by_few), "something was there to relocate");
        assert!(instructions(&by_few) == instructions(&by_all));
    }

    #[test]
    fn iterators_of_two_objects_share_a_walk() {
        let kernel = Kernel::read().unwrap();
        let (mut first, mut second) = (load(&kernel), load(&kernel));
        assert!(first.hand_on_to(&second, "cpu_tasks").is_err(), "it is not loaded yet");
        for object in [&mut first, &mut second] {
            object.load_iterator("cpu_tasks", "task", &kernel).unwrap();
        }
        let (of_first, of_second) = (first.stream(), second.stream());
        let mut output = RecordBuffer::default();
        let mut streams = |first: &mut Object| {
            first.iterate("cpu_tasks", &mut output).unwrap();
            let wrote = |stream: &u16| output.of(*stream).len() > 0;
            [of_first, of_second].into_iter().filter(wrote).collect::<Vec<_>>()
        };
        let own = vec![of_first];
        assert_eq!(streams(&mut first), own);
        first.hand_on_to(&second, "cpu_tasks").unwrap();
        assert_eq!(streams(&mut first), [of_first, of_second]);
        first.hand_on_to_none();
        assert_eq!(streams(&mut first), own);
        assert_eq!(first.health().unwrap().programs, 1);
    }

    #[test]
    fn elements_are_what_they_were_set_to() {
        let mut object = load(&Kernel::read().unwrap());
        assert_eq!(object.element::<[u64; 2]>("clocks", 0).unwrap(), [0; 2]);
        object.set_element("clocks", 0, [1_u64, 2]).unwrap();
        assert_eq!(object.element::<[u64; 2]>("clocks", 0).unwrap(), [1, 2]);
        assert!(object.set_element("clocks", 1, [0_u64; 2]).is_err());
        assert!(object.set_element("none", 0, [0_u64; 2]).is_err());
    }

    #[test]
    fn maps_are_read_by_their_own_sizes_alone() {
        type Key = [u64; 2];
        type Folded = [u64; 9];
        let object = load(&Kernel::read().unwrap());
        let record = crate::loader::layout(ebpf_probes::CPU, "cpu_task_record").unwrap().0;
        assert_eq!(object.parts.sizes["exited"], (size_of::<Key>(), record));
        assert!(object.read_all::<Key, u64>("exited").is_err(), "too small a value");
        assert!(object.take_all::<u64, Folded>("exited").is_err(), "too small a key");
        assert!(object.read_all::<u32, Folded>("folded").is_err(), "not a hash");
        assert!(object.delete::<u64>("exited", &[1]).is_err());
        assert!(object.delete::<Key>("exited", &[[1, 2]]).is_ok());
    }

    #[test]
    fn what_the_verifier_says_is_told() {
        let kernel = Kernel::read().unwrap();
        // the first argument of that one is no task
        let error = load(&kernel).attach("cpu_free", "sched_switch", &kernel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VerifierRejected);
        assert!(error.to_string().contains("cpu_free"), "{error}");
        assert!(error.verifier_log().unwrap().lines().count() > 3, "{:?}", error.verifier_log());
    }

    #[test]
    fn programs_maps_and_hooks_that_are_not_there_are_named() {
        let kernel = Kernel::read().unwrap();
        let mut object = load(&kernel);
        let error = object.attach("none", "sched_switch", &kernel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidObject);
        assert!(error.to_string().contains("no program none"), "{error}");
        let error = object.attach_classic("cpu_free", "sched", "sched_switch").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidObject);
        let error = object.attach("cpu_free", "no_such_hook", &kernel).unwrap_err();
        assert!(error.to_string().contains("no_such_hook"), "{error}");
        let loader = Loader::new("cpu", Requirements::default(), ebpf_probes::CPU);
        let error = loader.entries("no_such_map", 1).load(&kernel).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidObject);
        assert!(error.to_string().contains("no map no_such_map"), "{error}");
    }
}
