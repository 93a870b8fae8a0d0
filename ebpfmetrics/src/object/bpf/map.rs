//! Commands on maps. The caller guarantees that keys and values have the sizes of the map:
//! the kernel reads and writes as many bytes as the map declares.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use bytemuck::Pod;

use super::{Attr, Command, call, number, open};

/// The declaration of a map.
#[derive(Default)]
pub(in crate::object) struct Definition<'a> {
    pub(in crate::object) name: &'a str,
    pub(in crate::object) kind: u32,
    pub(in crate::object) key_size: u32,
    pub(in crate::object) value_size: u32,
    pub(in crate::object) max_entries: u32,
    pub(in crate::object) flags: u32,
    pub(in crate::object) extra: u64,
    /// BTF of the object and the type ids of key and value.
    pub(in crate::object) types: Option<(BorrowedFd<'a>, u32, u32)>,
}

#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    interface: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    btf_kernel_value_type_id: u32,
    extra: u64,
}

impl Attr for Create {}

pub(in crate::object) fn create(definition: &Definition<'_>) -> io::Result<OwnedFd> {
    let mut attr = Create {
        kind: definition.kind,
        key_size: definition.key_size,
        value_size: definition.value_size,
        max_entries: definition.max_entries,
        flags: definition.flags,
        name: super::program::object_name(definition.name),
        extra: definition.extra,
        ..Create::default()
    };
    if let Some((btf, key, value)) = &definition.types {
        attr.btf_fd = number(btf);
        attr.btf_key_type_id = *key;
        attr.btf_value_type_id = *value;
    }
    open(Command::MapCreate, &mut attr)
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Attr for Element {}

/// The value of a key, in `value`. Returns whether the map has the key.
pub(in crate::object) fn lookup<K: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &mut [u8],
) -> io::Result<bool> {
    let mut attr = Element {
        map_fd: number(&map),
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        ..Element::default()
    };
    found(call(Command::MapLookup, &mut attr))
}

/// Sets the value of a key; of a stack or queue without a key, adds the value.
pub(in crate::object) fn update<K: Pod>(
    map: BorrowedFd<'_>,
    key: Option<&K>,
    value: &[u8],
) -> io::Result<()> {
    let mut attr = Element {
        map_fd: number(&map),
        key: key.map_or(0, |key| std::ptr::from_ref(key) as u64),
        value: value.as_ptr() as u64,
        ..Element::default()
    };
    call(Command::MapUpdate, &mut attr).map(drop)
}

/// Deletes a key. Returns whether the map had it.
pub(in crate::object) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let key = std::ptr::from_ref(key) as u64;
    let mut attr = Element { map_fd: number(&map), key, ..Element::default() };
    found(call(Command::MapDelete, &mut attr))
}

fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Freeze {
    map_fd: u32,
}

impl Attr for Freeze {}

/// Makes a map read-only for user space. The verifier then treats its values as constants.
pub(in crate::object) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    call(Command::MapFreeze, &mut Freeze { map_fd: number(&map) }).map(drop)
}

/// `struct { .. } batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

impl Attr for Batch {}

/// All entries of a hash map; `command` decides whether they stay in it.
pub(in crate::object) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    command: Command,
) -> io::Result<Vec<(K, V)>> {
    // Large enough for the cursor of any map type. The cursor of a hash map is a bucket
    // number, other types use a key.
    let (mut cursor, mut next) = ([0_u8; 64], [0_u8; 64]);
    let mut first = true;
    let mut chunk = 512;
    let mut entries = Vec::new();
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    loop {
        keys.resize(chunk, K::zeroed());
        values.resize(chunk, V::zeroed());
        let mut attr = Batch {
            in_batch: if first { 0 } else { cursor.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk as u32,
            map_fd: number(&map),
            ..Batch::default()
        };
        let result = call(command, &mut attr);
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Ok(_) | Err(Some(libc::ENOENT)) => {
                let count = attr.count as usize;
                entries.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
                if result.is_err() {
                    return Ok(entries); // ENOENT: the end of the map
                }
                cursor = next;
                first = false;
            }
            // one bucket has more entries than the chunk
            Err(Some(libc::ENOSPC)) => chunk *= 2,
            Err(Some(libc::EINTR)) => {}
            Err(_) => return result.map(|_| entries),
        }
    }
}

/// At most `count` elements of an array map from `first` on; fewer at its end.
pub(in crate::object) fn array_elements<V: Pod>(
    map: BorrowedFd<'_>,
    first: u32,
    count: usize,
) -> io::Result<Vec<V>> {
    let (mut keys, mut values) = (vec![0_u32; count], vec![V::zeroed(); count]);
    // an array map continues after the key in in_batch
    let before = first.wrapping_sub(1);
    let mut next = 0_u32;
    let mut attr = Batch {
        in_batch: if first == 0 { 0 } else { std::ptr::from_ref(&before) as u64 },
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: count as u32,
        map_fd: number(&map),
        ..Batch::default()
    };
    match call(Command::MapLookupBatch, &mut attr).map_err(|error| (error.raw_os_error(), error)) {
        Ok(_) | Err((Some(libc::ENOENT), _)) => {
            values.truncate(attr.count as usize);
            Ok(values)
        }
        Err((_, error)) => Err(error),
    }
}

/// Inserts entries and replaces those that exist.
pub(in crate::object) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    entries: &[(K, V)],
) -> io::Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let mut done = 0;
    while done < keys.len() {
        let mut attr = Batch {
            keys: keys[done..].as_ptr() as u64,
            values: values[done..].as_ptr() as u64,
            count: (keys.len() - done) as u32,
            map_fd: number(&map),
            ..Batch::default()
        };
        match call(Command::MapUpdateBatch, &mut attr) {
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => done += attr.count as usize,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Deletes keys; keys that the map does not have are skipped.
pub(in crate::object) fn delete_batch<K: Pod>(
    map: BorrowedFd<'_>,
    mut keys: &[K],
) -> io::Result<()> {
    while !keys.is_empty() {
        let mut attr = Batch {
            keys: keys.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: number(&map),
            ..Batch::default()
        };
        match call(Command::MapDeleteBatch, &mut attr).map_err(|e| (e.raw_os_error(), e)) {
            Ok(_) => return Ok(()),
            // the kernel stops at a missing key: continue after it
            Err((Some(libc::ENOENT), _)) => {
                keys = &keys[(attr.count as usize + 1).min(keys.len())..]
            }
            Err((Some(libc::EINTR), _)) => {}
            Err((_, error)) => return Err(error),
        }
    }
    Ok(())
}

/// One value, read through a byte buffer of its size.
pub(in crate::object) fn lookup_value<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    let found = lookup(map, key, bytemuck::bytes_of_mut(&mut value))?;
    Ok(found.then_some(value))
}
