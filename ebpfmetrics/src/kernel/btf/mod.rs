//! BTF, read in place: the hooks of a kernel, the offsets of its per-CPU variables, and the
//! types that an object is relocated against.

use std::ops::{Deref, Range};

use self::types::*;

mod subset;
#[cfg(test)]
mod tests;
mod types;

const HEADER: usize = 24;
const PER_CPU: &[u8] = b".data..percpu";
/// Prefixes of the names of tracepoint function types and of iterators.
const TRACEPOINT: &[u8] = b"btf_trace_";
const ITERATOR: &[u8] = b"bpf_iter_";

/// A hook of the kernel: a tracepoint or an iterator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// Its type id in the kernel's BTF.
    pub(crate) id: u32,
}

/// BTF whose types have all been found complete, with the offset of each.
pub(crate) struct Btf<B> {
    bytes: B,
    types: Range<usize>,
    strings: Range<usize>,
    /// Offsets of the types, by id. There is no type 0.
    places: Vec<u32>,
    /// Types that CO-RE relocations can find by name.
    named: Vec<u32>,
    tracepoints: Vec<u32>,
    iterators: Vec<u32>,
    per_cpu: Option<u32>,
}
impl<B: Deref<Target = [u8]>> Btf<B> {
    /// `None` if it is truncated or contains a kind of type unknown to this code, whose
    /// length is unknown too.
    pub(crate) fn parse(bytes: B) -> Option<Self> {
        // struct btf_header: .., hdr_len @4, type_off @8, type_len, str_off, str_len
        let header = u32_at(&bytes, 4)? as usize;
        if header < HEADER || u32_at(&bytes, 0)? & 0xffff != 0xeb9f {
            return None;
        }
        let section = |at| {
            let start = header.checked_add(u32_at(&bytes, at)? as usize)?;
            let section = start..start.checked_add(u32_at(&bytes, at + 4)? as usize)?;
            bytes.get(section.clone()).map(|_| section)
        };
        let (types, strings) = (section(8)?, section(16)?);

        let mut places = Vec::with_capacity(types.len() / 24); // a type takes 25 bytes on average
        let (mut named, mut tracepoints, mut iterators) = (Vec::new(), Vec::new(), Vec::new());
        let mut per_cpu = None;
        let all_names = &bytes[strings.clone()];
        let mut rest = &bytes[types.clone()];
        places.push(0);
        while !rest.is_empty() {
            let id = places.len() as u32;
            let this = Type::first(rest)?;
            let name = this.name();
            match this.kind {
                _ if name == 0 => {}
                KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_FORWARD | KIND_FLOAT
                | KIND_ENUM64 => named.push(id),
                KIND_TYPEDEF => {
                    named.push(id);
                    if begins(all_names, name, TRACEPOINT) {
                        tracepoints.push(id);
                    }
                }
                KIND_FUNCTION if begins(all_names, name, ITERATOR) => iterators.push(id),
                KIND_DATASEC if is(all_names, name, PER_CPU) => per_cpu = Some(id),
                _ => {}
            }
            places.push((types.len() - rest.len()) as u32);
            rest = &rest[this.bytes.len()..];
        }
        Some(Self { bytes, types, strings, places, named, tracepoints, iterators, per_cpu })
    }

    fn get(&self, id: u32) -> Option<Type<'_>> {
        let place = *self.places.get(id as usize).filter(|_| id > 0)?;
        Type::first(self.bytes[self.types.clone()].get(place as usize..)?)
    }

    fn strings(&self) -> &[u8] {
        &self.bytes[self.strings.clone()]
    }

    /// The string at an offset; empty if there is none.
    fn name(&self, offset: u32) -> &[u8] {
        let rest = self.strings().get(offset as usize..).unwrap_or_default();
        &rest[..rest.iter().position(|&byte| byte == 0).unwrap_or(0)]
    }

    fn hook(&self, hooks: &[u32], start: &[u8], name: &str) -> Option<Hook> {
        let is_it = |id: &u32| {
            self.get(*id).is_some_and(|hook| {
                is(self.strings(), hook.name() + start.len() as u32, name.as_bytes())
            })
        };
        hooks.iter().copied().find(is_it).map(|id| Hook { id })
    }

    pub(crate) fn tracepoint(&self, name: &str) -> Option<Hook> {
        self.hook(&self.tracepoints, TRACEPOINT, name)
    }

    pub(crate) fn iterator(&self, name: &str) -> Option<Hook> {
        self.hook(&self.iterators, ITERATOR, name)
    }

    /// Number of arguments that a tracepoint passes to programs. The first parameter of its
    /// function is internal to the tracepoint and does not count.
    pub(crate) fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        let typedef = self.get(self.tracepoint(name)?.id)?;
        let pointer = self.get(typedef.u32(8))?;
        let prototype = self.get(pointer.u32(8))?;
        let (KIND_POINTER, KIND_FUNCTION_PROTOTYPE) = (pointer.kind, prototype.kind) else {
            return None;
        };
        prototype.members.checked_sub(1)
    }

    /// Offsets of variables in the kernel's per-CPU area, in the order of the names.
    /// `None` for a variable that the BTF does not list (5.10 lists none).
    pub(crate) fn per_cpu_offsets<const N: usize>(&self, names: [&str; N]) -> [Option<u64>; N] {
        let mut offsets = [None; N];
        let Some(section) = self.per_cpu.and_then(|id| self.get(id)) else { return offsets };
        for at in (TYPE..section.bytes.len()).step_by(12) {
            let Some(variable) = self.get(section.u32(at)) else { continue };
            let is_it = |name: &&str| is(self.strings(), variable.name(), name.as_bytes());
            if let Some(index) = names.iter().position(is_it) {
                offsets[index] = Some(section.u32(at + 4).into());
            }
        }
        offsets
    }

    /// Size of a struct, and its members with their offsets in bytes, in declaration order.
    pub(crate) fn layout(&self, name: &str) -> Option<(usize, Vec<(String, usize)>)> {
        let mut types = self.named.iter().filter_map(|&id| self.get(id));
        let is_it = |this: &Type<'_>| {
            this.kind == KIND_STRUCT && is(self.strings(), this.name(), name.as_bytes())
        };
        let this = types.find(is_it)?;
        let member = |at: usize| {
            let name = String::from_utf8_lossy(self.name(this.u32(at))).into_owned();
            (name, (this.u32(at + 8) & 0xff_ffff) as usize / 8)
        };
        let members = (TYPE..this.bytes.len()).step_by(12).map(member);
        Some((this.u32(8) as usize, members.collect()))
    }

    /// Names and values of an enum, in declaration order.
    pub(crate) fn enumerators(&self, name: &str) -> Option<Vec<(String, u32)>> {
        let mut types = self.named.iter().filter_map(|&id| self.get(id));
        let is_it = |this: &Type<'_>| {
            this.kind == KIND_ENUM && is(self.strings(), this.name(), name.as_bytes())
        };
        let this = types.find(is_it)?;
        let one = |at: usize| {
            (String::from_utf8_lossy(self.name(this.u32(at))).into_owned(), this.u32(at + 4))
        };
        Some((TYPE..this.bytes.len()).step_by(8).map(one).collect())
    }
}

fn begins(strings: &[u8], name: u32, beginning: &[u8]) -> bool {
    strings.get(name as usize..).is_some_and(|rest| rest.starts_with(beginning))
}

fn is(strings: &[u8], name: u32, whole: &[u8]) -> bool {
    let rest = strings.get(name as usize..).and_then(|rest| rest.strip_prefix(whole));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}
