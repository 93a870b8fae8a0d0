//! The part of a kernel's BTF that an object is relocated against.

use std::{collections::HashSet, ops::Deref};

use super::{Btf, HEADER, types::Need};

impl<B: Deref<Target = [u8]>> Btf<B> {
    /// The names of the types, without flavours: `task_struct___new` is relocated against
    /// `task_struct`.
    pub(crate) fn names(&self) -> HashSet<&[u8]> {
        let types = self.named.iter().filter_map(|&id| self.get(id));
        types.map(|this| without_flavour(self.name(this.name()))).collect()
    }

    /// BTF with only the types of these names, in the same order, with new ids.
    ///
    /// Relocating an object whose types have no other names gives the same result as with
    /// the complete BTF. The types are complete with everything embedded in them; types
    /// behind pointers keep their kind and name. Only `bpf_core_type_id_kernel` would need
    /// the original ids.
    pub(crate) fn only(&self, names: &HashSet<&[u8]>) -> Vec<u8> {
        let needs = self.needs(names);
        let ids: Vec<u32> =
            (1..needs.len() as u32).filter(|&id| needs[id as usize] > Need::Nothing).collect();
        // a type that is not kept becomes void
        let new_id = |id| ids.binary_search(&id).map_or(0, |index| index as u32 + 1);

        let (mut types, mut strings) = (Vec::new(), vec![0]);
        for &id in &ids {
            let Some(this) = self.get(id) else { continue };
            let this = this.cut(needs[id as usize]);
            let start = types.len();
            types.extend_from_slice(this.bytes);
            let new = &mut types[start..];
            put(new, 4, this.info());
            for at in this.names() {
                let name = self.name(this.u32(at));
                put(new, at, if name.is_empty() { 0 } else { strings.len() as u32 });
                if !name.is_empty() {
                    strings.extend_from_slice(name);
                    strings.push(0);
                }
            }
            for (at, _) in this.references(Need::Whole) {
                put(new, at, new_id(this.u32(at)));
            }
        }
        let mut btf = Vec::with_capacity(HEADER + types.len() + strings.len());
        for word in [0x0001_eb9f, HEADER, 0, types.len(), types.len(), strings.len()] {
            btf.extend_from_slice(&(word as u32).to_ne_bytes());
        }
        btf.extend_from_slice(&types);
        btf.extend_from_slice(&strings);
        btf
    }

    /// How much is needed of every type, by id.
    fn needs(&self, names: &HashSet<&[u8]>) -> Vec<Need> {
        let mut needs = vec![Need::Nothing; self.places.len()];
        let mut open = Vec::new();
        let raise = |needs: &mut [Need], open: &mut Vec<_>, id: u32, need| {
            if let Some(known) = needs.get_mut(id as usize).filter(|known| **known < need) {
                *known = need;
                open.push(id);
            }
        };
        // Comparing the first two bytes excludes most types. Hashing only the rest takes a
        // quarter of the time.
        let mut beginnings = vec![false; 1 << 16];
        for name in names {
            beginnings[beginning(name)] = true;
        }
        for &id in &self.named {
            let Some(this) = self.get(id) else { continue };
            let rest = self.strings().get(this.name() as usize..).unwrap_or_default();
            if beginnings[beginning(rest)]
                && names.contains(without_flavour(self.name(this.name())))
            {
                raise(&mut needs, &mut open, id, Need::Whole);
            }
        }
        while let Some(id) = open.pop() {
            let Some(this) = self.get(id) else { continue };
            let need = needs[id as usize];
            let this = this.cut(need);
            for (at, need) in this.references(need) {
                raise(&mut needs, &mut open, this.u32(at), need);
            }
        }
        needs
    }
}

pub(super) fn without_flavour(name: &[u8]) -> &[u8] {
    name.windows(3).position(|three| three == b"___").map_or(name, |end| &name[..end])
}

/// The first two bytes of a name, or fewer if it is shorter.
fn beginning(name: &[u8]) -> usize {
    match name {
        [] | [0, ..] => 0,
        [one] | [one, 0, ..] => *one as usize,
        [one, two, ..] => usize::from(*one) | usize::from(*two) << 8,
    }
}

fn put(bytes: &mut [u8], at: usize, word: u32) {
    bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
}
