//! Reading and writing maps.

use std::{io, os::fd::AsFd};

use aya_obj::generated::bpf_map_type::{self, *};
use bytemuck::{NoUninit, Pod};

use super::{
    bpf::{Command, map},
    error::{failed, invalid},
    map_handle::{MapHandle, Shape},
    object::Object,
    ring::Ring,
};
use crate::{
    error::{Error, Result},
    kernel::possible_cpus,
};

const HASHES: &[bpf_map_type] = &[BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH];
const ARRAY: &[bpf_map_type] = &[BPF_MAP_TYPE_ARRAY];
const PER_CPU_ARRAY: &[bpf_map_type] = &[BPF_MAP_TYPE_PERCPU_ARRAY];

impl Object {
    /// All entries of a hash map.
    ///
    /// # Errors
    /// [`InvalidObject`](crate::ErrorKind::InvalidObject) if there is no such map, or it has
    /// another type, key size or value size; [`System`](crate::ErrorKind::System) if the
    /// kernel refuses.
    pub fn lookup_batch<K: Pod, V: Pod>(&self, map: &str) -> Result<Vec<(K, V)>> {
        let handle = self.hash::<K, V>(map)?;
        map::lookup_batch(handle.as_fd(), Command::MapLookupBatch)
            .map_err(|error| self.map_failed("BPF_MAP_LOOKUP_BATCH", map, error))
    }

    /// Removes all entries of a hash map and returns them. Entries that programs insert in
    /// the meantime are returned by this call or remain in the map.
    ///
    /// # Errors
    /// Those of [`lookup_batch`](Self::lookup_batch).
    pub fn lookup_and_delete_batch<K: Pod, V: Pod>(&self, map: &str) -> Result<Vec<(K, V)>> {
        let handle = self.hash::<K, V>(map)?;
        map::lookup_batch(handle.as_fd(), Command::MapLookupAndDeleteBatch)
            .map_err(|error| self.map_failed("BPF_MAP_LOOKUP_AND_DELETE_BATCH", map, error))
    }

    /// Inserts entries into a hash map and replaces those that exist.
    ///
    /// # Errors
    /// Those of [`lookup_batch`](Self::lookup_batch), and
    /// [`ResourceLimit`](crate::ErrorKind::ResourceLimit) if the map is full.
    pub fn update_batch<K: Pod, V: Pod>(&self, map: &str, entries: &[(K, V)]) -> Result<()> {
        let handle = self.hash::<K, V>(map)?;
        map::update_batch(handle.as_fd(), entries)
            .map_err(|error| self.map_failed("BPF_MAP_UPDATE_BATCH", map, error))
    }

    /// Deletes entries of a hash map. Keys that it does not have are ignored.
    ///
    /// # Errors
    /// Those of [`lookup_batch`](Self::lookup_batch).
    pub fn delete_batch<K: Pod>(&self, map: &str, keys: &[K]) -> Result<()> {
        let handle = self.map_of_shape(map, HASHES, Some(size_of::<K>()), None)?;
        map::delete_batch(handle.as_fd(), keys)
            .map_err(|error| self.map_failed("BPF_MAP_DELETE_BATCH", map, error))
    }

    /// The value of a key of a hash map.
    ///
    /// # Errors
    /// Those of [`lookup_batch`](Self::lookup_batch).
    pub fn lookup<K: Pod, V: Pod>(&self, map: &str, key: &K) -> Result<Option<V>> {
        let handle = self.hash::<K, V>(map)?;
        map::lookup_value(handle.as_fd(), key)
            .map_err(|error| self.map_failed("BPF_MAP_LOOKUP_ELEM", map, error))
    }

    /// Sets the value of a key of a hash map.
    ///
    /// # Errors
    /// Those of [`update_batch`](Self::update_batch).
    pub fn update<K: Pod, V: Pod>(&self, map: &str, key: &K, value: V) -> Result<()> {
        let handle = self.hash::<K, V>(map)?;
        self.update_checked(handle, map, Some(key), value)
    }

    /// Deletes a key of a hash map. Returns whether the map had it.
    ///
    /// # Errors
    /// Those of [`lookup_batch`](Self::lookup_batch).
    pub fn delete<K: Pod>(&self, map: &str, key: &K) -> Result<bool> {
        let handle = self.map_of_shape(map, HASHES, Some(size_of::<K>()), None)?;
        map::delete(handle.as_fd(), key)
            .map_err(|error| self.map_failed("BPF_MAP_DELETE_ELEM", map, error))
    }

    /// One element of an array map.
    ///
    /// # Errors
    /// Those of [`lookup_batch`](Self::lookup_batch), and
    /// [`InvalidObject`](crate::ErrorKind::InvalidObject) if there is no such element.
    pub fn array_element<V: Pod>(&self, map: &str, index: u32) -> Result<V> {
        let handle = self.map_of_shape(map, ARRAY, Some(size_of::<u32>()), Some(size_of::<V>()))?;
        map::lookup_value(handle.as_fd(), &index)
            .map_err(|error| self.map_failed("BPF_MAP_LOOKUP_ELEM", map, error))?
            .ok_or_else(|| self.no_element(map, index))
    }

    /// Elements of an array map from `first` on, at most `count`. Returns fewer at its end.
    ///
    /// # Errors
    /// Those of [`lookup_batch`](Self::lookup_batch).
    pub fn array_elements<V: Pod>(&self, map: &str, first: u32, count: usize) -> Result<Vec<V>> {
        let handle = self.map_of_shape(map, ARRAY, Some(size_of::<u32>()), Some(size_of::<V>()))?;
        map::array_elements(handle.as_fd(), first, count)
            .map_err(|error| self.map_failed("BPF_MAP_LOOKUP_BATCH", map, error))
    }

    /// Sets one element of an array map.
    ///
    /// # Errors
    /// Those of [`array_element`](Self::array_element).
    pub fn set_array_element<V: Pod>(&self, map: &str, index: u32, value: V) -> Result<()> {
        let handle = self.map_of_shape(map, ARRAY, Some(size_of::<u32>()), Some(size_of::<V>()))?;
        self.update_checked(handle, map, Some(&index), value)
    }

    /// One element of a per-CPU array, for every possible CPU.
    ///
    /// # Errors
    /// Those of [`array_element`](Self::array_element).
    pub fn per_cpu_element<V: Pod>(&self, map: &str, index: u32) -> Result<Vec<V>> {
        let size = size_of::<V>();
        let handle = self.map_of_shape(map, PER_CPU_ARRAY, Some(size_of::<u32>()), Some(size))?;
        // the kernel aligns the value of each CPU to 8 bytes
        let stride = size.next_multiple_of(8);
        let mut values = vec![0_u8; stride * possible_cpus()? as usize];
        let found = map::lookup(handle.as_fd(), &index, &mut values)
            .map_err(|error| self.map_failed("BPF_MAP_LOOKUP_ELEM", map, error))?;
        if !found {
            return Err(self.no_element(map, index));
        }
        let value = |bytes: &[u8]| bytemuck::pod_read_unaligned(&bytes[..size]);
        Ok(values.chunks_exact(stride).map(value).collect())
    }

    /// Puts a value on top of a stack map.
    ///
    /// # Errors
    /// Those of [`update_batch`](Self::update_batch).
    pub fn push<V: NoUninit>(&self, map: &str, value: V) -> Result<()> {
        let kind = &[BPF_MAP_TYPE_STACK];
        let handle = self.map_of_shape(map, kind, Some(0), Some(size_of::<V>()))?;
        self.update_checked(handle, map, None::<&u32>, value)
    }

    /// The reader of a ring buffer. A ring buffer must have only one.
    pub(crate) fn ring(&self, map: &str) -> Result<Ring> {
        let handle = self.map_of_shape(map, &[BPF_MAP_TYPE_RINGBUF], None, None)?;
        let fd = handle.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| self.map_failed("dup", map, error))?;
        Ring::open(fd).map_err(|error| self.map_failed("mmap", map, io::Error::other(error)))
    }

    fn hash<K, V>(&self, map: &str) -> Result<&MapHandle> {
        self.map_of_shape(map, HASHES, Some(size_of::<K>()), Some(size_of::<V>()))
    }

    /// A map of one of these types, and of these sizes if given. Every access to a map has
    /// to get it here: the kernel uses the sizes of the map and does not know those of the
    /// buffers.
    pub(super) fn map_of_shape(
        &self,
        name: &str,
        kinds: &[bpf_map_type],
        key_size: Option<usize>,
        value_size: Option<usize>,
    ) -> Result<&MapHandle> {
        let handle = self.handle(name)?;
        let shape = handle.shape();
        let expected = Shape {
            kind: shape.kind,
            key_size: key_size.unwrap_or(shape.key_size),
            value_size: value_size.unwrap_or(shape.value_size),
        };
        if !kinds.iter().any(|kind| *kind as u32 == shape.kind) {
            let text = format!("map {name} has type {}, expected one of {kinds:?}", shape.kind);
            return Err(invalid(self.name, text));
        }
        if shape != expected {
            let text = format!(
                "map {name} has keys of {} and values of {} bytes, expected {} and {}",
                shape.key_size, shape.value_size, expected.key_size, expected.value_size
            );
            return Err(invalid(self.name, text));
        }
        Ok(handle)
    }

    fn update_checked<K: Pod, V: NoUninit>(
        &self,
        handle: &MapHandle,
        map: &str,
        key: Option<&K>,
        value: V,
    ) -> Result<()> {
        map::update(handle.as_fd(), key, bytemuck::bytes_of(&value))
            .map_err(|error| self.map_failed("BPF_MAP_UPDATE_ELEM", map, error))
    }

    fn no_element(&self, map: &str, index: u32) -> Error {
        invalid(self.name, format_args!("map {map} has no element {index}"))
    }

    pub(super) fn map_failed(&self, call: &str, map: &str, error: io::Error) -> Error {
        failed(self.name, call, format_args!("map {map}"), error)
    }
}
