use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya_obj::{EbpfSectionKind, generated::bpf_map_type};
use bytemuck::NoUninit;

use super::{
    bpf,
    error::{failed, invalid, rejected, unusable},
    map_handle::{MapHandle, Shape},
    object::{Object, ObjectMap},
    programs::Program,
    relocate::relocate,
};
use crate::{
    error::{Error, ErrorKind, Result},
    kernel::Kernel,
};

/// Loads a BPF object: sets its constants, creates its maps or reuses existing ones, and
/// relocates its programs for the running kernel.
///
/// ```no_run
/// # use ebpfmetrics::{Kernel, Result, kit::{Object, ObjectLoader}};
/// # fn load(kernel: &Kernel, bytes: &'static [u8]) -> Result<Object> {
/// let mut object = ObjectLoader::new("net", bytes)
///     .override_global("count_loopback", 0_u8)
///     .map_max_entries("counts", 16_384)
///     .load(kernel)?;
/// object.attach("net_queue", "net_dev_queue", kernel)?;
/// # Ok(object)
/// # }
/// ```
#[derive(Clone)]
pub struct ObjectLoader {
    name: &'static str,
    bytes: &'static [u8],
    globals: Vec<Global>,
    max_entries: Vec<(&'static str, u32)>,
    autocreate: Vec<(&'static str, bool)>,
    reused: Vec<Reused>,
}

#[derive(Clone)]
struct Global {
    name: &'static str,
    value: Vec<u8>,
    required: bool,
}

#[derive(Clone)]
struct Reused {
    /// The name in this object.
    map: String,
    handle: MapHandle,
    required: bool,
}

impl ObjectLoader {
    /// A loader for an object file made by clang. `bytes` has to be aligned to 8 bytes, as
    /// in a `#[repr(align(8))]` struct around `include_bytes!`. `name` is used in error
    /// texts.
    pub fn new(name: &'static str, bytes: &'static [u8]) -> Self {
        Self {
            name,
            bytes,
            globals: Vec::new(),
            max_entries: Vec::new(),
            autocreate: Vec::new(),
            reused: Vec::new(),
        }
    }

    /// Sets a global variable. A `const volatile` variable is a constant for the verifier.
    /// The value must have the size of the variable (`u8` for a C `bool`). Loading fails if
    /// the object has no such variable.
    pub fn override_global(mut self, name: &'static str, value: impl NoUninit) -> Self {
        let value = bytemuck::bytes_of(&value).to_vec();
        self.globals.push(Global { name, value, required: true });
        self
    }

    /// Like [`override_global`](Self::override_global), but does nothing if the object has
    /// no such variable.
    pub fn override_global_if_present(mut self, name: &'static str, value: impl NoUninit) -> Self {
        let value = bytemuck::bytes_of(&value).to_vec();
        self.globals.push(Global { name, value, required: false });
        self
    }

    /// The same for values of several types.
    pub(crate) fn override_global_bytes(mut self, name: &'static str, value: &[u8]) -> Self {
        self.globals.push(Global { name, value: value.to_vec(), required: true });
        self
    }

    /// Sets the `max_entries` of a map. The kernel allocates memory for all entries when
    /// the map is created, unless it has `BPF_F_NO_PREALLOC`.
    pub fn map_max_entries(mut self, map: &'static str, max_entries: u32) -> Self {
        self.max_entries.push((map, max_entries));
        self
    }

    /// Whether to create a map, which is the default. `false` is for a map whose users the
    /// verifier removes because of a `const volatile` variable. A reused map is used in any
    /// case.
    pub fn set_autocreate(mut self, map: &'static str, autocreate: bool) -> Self {
        self.autocreate.push((map, autocreate));
        self
    }

    /// Uses an existing map instead of creating one. Type, key size and value size must be
    /// those of the declaration.
    pub fn reuse_map(mut self, map: &'static str, handle: &MapHandle) -> Self {
        let handle = handle.clone();
        self.reused.push(Reused { map: map.to_owned(), handle, required: true });
        self
    }

    /// Uses existing maps for the maps of the same names. Maps that this object does not
    /// declare are ignored.
    pub fn reuse_maps(mut self, handles: &[MapHandle]) -> Self {
        let reused = |handle: &MapHandle| Reused {
            map: handle.name().to_owned(),
            handle: handle.clone(),
            required: false,
        };
        self.reused.extend(handles.iter().map(reused));
        self
    }

    /// Creates the maps and relocates the programs. Programs are not loaded yet, so a
    /// program that this kernel cannot run does no harm until it is used.
    ///
    /// # Errors
    /// [`InvalidObject`](ErrorKind::InvalidObject) if the object is damaged, has no such
    /// variable or map, or declares a reused map differently;
    /// [`PermissionDenied`](ErrorKind::PermissionDenied),
    /// [`ResourceLimit`](ErrorKind::ResourceLimit) and [`System`](ErrorKind::System) if a
    /// system call fails.
    pub fn load(&self, kernel: &Kernel) -> Result<Object> {
        match self.try_load(kernel) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied && raise_memlock_limit() => {
                self.try_load(kernel)
            }
            result => result,
        }
    }

    /// Does the same as `EbpfLoader` of aya, which cannot leave out maps and parses the
    /// kernel's BTF completely for each object.
    fn try_load(&self, kernel: &Kernel) -> Result<Object> {
        let mut object = aya_obj::Object::parse(self.bytes)
            .map_err(|error| unusable(self.name, "parsing", error))?;
        let globals: HashMap<_, _> = self
            .globals
            .iter()
            .map(|global| (global.name, (global.value.as_slice(), global.required)))
            .collect();
        object
            .patch_map_data(globals)
            .map_err(|error| unusable(self.name, "setting its globals", error))?;

        let btf = self.load_btf(&mut object)?;
        relocate(&mut object, kernel.btf()).map_err(|error| {
            let text = format!("relocating it for this kernel failed: {error}");
            invalid(self.name, text).with_source(error)
        })?;
        let declared: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
        let maps = self.maps(&declared, btf.as_ref().map(AsFd::as_fd))?;
        self.relocate_programs(&mut object, &declared, &maps)?;
        let programs = Program::all(object);
        Ok(Object { name: self.name, btf, programs, maps })
    }

    fn load_btf(&self, object: &mut aya_obj::Object) -> Result<Option<OwnedFd>> {
        let Some(features) = aya::features().btf() else { return Ok(None) };
        let btf = object
            .fixup_and_sanitize_btf(features)
            .map_err(|error| unusable(self.name, "adapting its BTF to this kernel", error))?;
        let Some(btf) = btf else { return Ok(None) };
        let fd = bpf::program::load_btf(&btf.to_bytes());
        fd.map(Some).map_err(|error| rejected(self.name, "its types", error))
    }

    /// Creates the declared maps, or takes those to be reused.
    fn maps(
        &self,
        declared: &[(String, aya_obj::Map)],
        btf: Option<BorrowedFd<'_>>,
    ) -> Result<BTreeMap<String, ObjectMap>> {
        self.check_names(declared)?;
        let mut maps = BTreeMap::new();
        for (name, map) in declared {
            let shape = Shape::declared(map);
            if let Some(Reused { handle, .. }) = self.reused.iter().find(|it| it.map == *name) {
                handle.check(self.name, name, shape)?;
                maps.insert(name.clone(), ObjectMap { handle: handle.clone(), reused: true });
                continue;
            }
            if self.autocreate.iter().rev().find(|(map, _)| map == name).is_some_and(|it| !it.1) {
                continue;
            }
            let handle = MapHandle::new(name, self.create(name, map, btf)?, shape);
            self.fill(&handle, map)?;
            maps.insert(name.clone(), ObjectMap { handle, reused: false });
        }
        Ok(maps)
    }

    /// Options for maps that do not exist are errors: the caller misspelled the name.
    fn check_names(&self, declared: &[(String, aya_obj::Map)]) -> Result<()> {
        let resized = self.max_entries.iter().map(|(map, _)| *map);
        let created = self.autocreate.iter().map(|(map, _)| *map);
        let reused = self.reused.iter().filter(|it| it.required).map(|it| it.map.as_str());
        let mut names = resized.chain(created).chain(reused);
        match names.find(|name| !declared.iter().any(|(map, _)| map == name)) {
            Some(name) => Err(invalid(self.name, format_args!("it has no map {name}"))),
            None => Ok(()),
        }
    }

    fn create(
        &self,
        name: &str,
        map: &aya_obj::Map,
        btf: Option<BorrowedFd<'_>>,
    ) -> Result<OwnedFd> {
        let max_entries = self.max_entries.iter().rev().find(|(map, _)| *map == name);
        let types = match map {
            aya_obj::Map::Btf(typed) if accepts_types(map.map_type()) => {
                btf.map(|btf| (btf, typed.def.btf_key_type_id, typed.def.btf_value_type_id))
            }
            _ => None,
        };
        let definition = bpf::map::Definition {
            name,
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: max_entries.map_or(map.max_entries(), |(_, max_entries)| *max_entries),
            flags: map.map_flags(),
            extra: map.map_extra(),
            types,
        };
        bpf::map::create(&definition).map_err(|error| self.failed("BPF_MAP_CREATE", name, error))
    }

    /// Writes the variables into a map of global variables, and freezes constants.
    fn fill(&self, handle: &MapHandle, map: &aya_obj::Map) -> Result<()> {
        if !map.data().is_empty() {
            bpf::map::update(handle.as_fd(), Some(&0_u32), map.data())
                .map_err(|error| self.failed("BPF_MAP_UPDATE_ELEM", handle.name(), error))?;
        }
        if map.section_kind() == EbpfSectionKind::Rodata {
            bpf::map::freeze(handle.as_fd())
                .map_err(|error| self.failed("BPF_MAP_FREEZE", handle.name(), error))?;
        }
        Ok(())
    }

    fn failed(&self, call: &str, map: &str, error: std::io::Error) -> Error {
        failed(self.name, call, format_args!("map {map}"), error)
    }

    /// Puts the descriptors of the maps and the called functions into the programs.
    fn relocate_programs(
        &self,
        object: &mut aya_obj::Object,
        declared: &[(String, aya_obj::Map)],
        maps: &BTreeMap<String, ObjectMap>,
    ) -> Result<()> {
        // The kernel requires a valid descriptor also in code that the verifier removes
        // because its map was not created. Any map will do.
        let any = maps.values().next();
        let descriptors = declared.iter().filter_map(|(name, map)| {
            let fd = maps.get(name).or(any)?.handle.as_fd().as_raw_fd();
            Some((name.as_str(), fd, map))
        });
        let text_sections = object.functions.keys().map(|(section, _)| *section).collect();
        object
            .relocate_maps(descriptors, &text_sections)
            .and_then(|()| object.relocate_calls(&text_sections))
            .map_err(|error| unusable(self.name, "linking", error))?;
        object.sanitize_functions(aya::features());
        Ok(())
    }
}

/// Whether the kernel accepts BTF types for keys and values of this type of map.
fn accepts_types(kind: u32) -> bool {
    use bpf_map_type::*;
    let without = [
        BPF_MAP_TYPE_PERF_EVENT_ARRAY,
        BPF_MAP_TYPE_CGROUP_ARRAY,
        BPF_MAP_TYPE_STACK_TRACE,
        BPF_MAP_TYPE_ARRAY_OF_MAPS,
        BPF_MAP_TYPE_HASH_OF_MAPS,
        BPF_MAP_TYPE_DEVMAP,
        BPF_MAP_TYPE_DEVMAP_HASH,
        BPF_MAP_TYPE_CPUMAP,
        BPF_MAP_TYPE_XSKMAP,
        BPF_MAP_TYPE_SOCKMAP,
        BPF_MAP_TYPE_SOCKHASH,
        BPF_MAP_TYPE_QUEUE,
        BPF_MAP_TYPE_STACK,
        BPF_MAP_TYPE_RINGBUF,
    ];
    !without.iter().any(|other| *other as u32 == kind)
}

/// Kernels before 5.11 charge BPF memory to this limit; later kernels ignore it. Like
/// libbpf, raises it only after the kernel has refused something. Returns whether it did.
pub(super) fn raise_memlock_limit() -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Memlock);
    limit.current.is_some()
        && setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_ok()
}
