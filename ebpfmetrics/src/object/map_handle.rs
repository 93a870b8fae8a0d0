use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use super::error::invalid;
use crate::error::Result;

/// A map in the kernel, which several objects can use. The map exists as long as a handle
/// or an object refers to it.
#[derive(Clone)]
pub struct MapHandle(Arc<Inner>);

struct Inner {
    name: String,
    fd: OwnedFd,
    shape: Shape,
}

/// What the verifier and the system calls assume about a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// `enum bpf_map_type`
    pub(super) kind: u32,
    pub(super) key_size: usize,
    pub(super) value_size: usize,
}

impl Shape {
    pub(super) fn declared(map: &aya_obj::Map) -> Self {
        Self {
            kind: map.map_type(),
            key_size: map.key_size() as usize,
            value_size: map.value_size() as usize,
        }
    }
}

impl MapHandle {
    pub(super) fn new(name: &str, fd: OwnedFd, shape: Shape) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), fd, shape }))
    }

    /// The name of the map in the object that created it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(super) fn shape(&self) -> Shape {
        self.0.shape
    }

    /// Checks that an object may use this map for one that it declares.
    pub(super) fn check(&self, object: &str, name: &str, declared: Shape) -> Result<()> {
        let Shape { kind, key_size, value_size } = self.shape();
        if self.shape() == declared {
            return Ok(());
        }
        let text = format!(
            "cannot reuse map {} for {name}: it has type {kind}, keys of {key_size} and values \
             of {value_size} bytes, declared are type {}, {} and {} bytes",
            self.name(),
            declared.kind,
            declared.key_size,
            declared.value_size
        );
        Err(invalid(object, text))
    }
}

impl AsFd for MapHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl fmt::Debug for MapHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapHandle").field("name", &self.name()).finish_non_exhaustive()
    }
}
