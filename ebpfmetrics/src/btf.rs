//! BTF, read in place: which hooks a kernel has, where its per-CPU variables lie,
//! and the few of its types that an object is fitted to.

use std::{
    collections::HashSet,
    ops::{Deref, Range},
};

const HEADER: usize = 24;
const TYPE: usize = 12;
const KIND_INT: u32 = 1;
const KIND_POINTER: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FORWARD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNCTION: u32 = 12;
const KIND_FUNCTION_PROTOTYPE: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECLARATION_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
const MEMBERS: u32 = 0xff_ffff;
const PER_CPU: &[u8] = b".data..percpu";
/// The kernel names the type of a tracepoint's function so, and an iterator.
const TRACEPOINT: &[u8] = b"btf_trace_";
const ITERATOR: &[u8] = b"bpf_iter_";

/// A hook of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hook {
    /// Its id as a type of the kernel's.
    pub(crate) id: u32,
}

/// BTF of which every type is known to be whole and where it stands.
pub(crate) struct Btf<B> {
    bytes: B,
    types: Range<usize>,
    strings: Range<usize>,
    /// Where types stand, by id; there is no type 0.
    places: Vec<u32>,
    /// Types that others can be fitted to by their names.
    named: Vec<u32>,
    tracepoints: Vec<u32>,
    iterators: Vec<u32>,
    per_cpu: Option<u32>,
}

/// How much of a type is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    /// That it is there: behind a pointer nobody looks for members.
    Header,
    Whole,
}

impl<B: Deref<Target = [u8]>> Btf<B> {
    /// `None` if it is cut short, or has types that did not exist when this was
    /// written, whose length nobody knows.
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

    /// Empty where there is none.
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

    /// How many arguments a tracepoint hands to programs: those of its function but
    /// for the first, which is the tracepoint's own.
    pub(crate) fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        let typedef = self.get(self.tracepoint(name)?.id)?;
        let pointer = self.get(typedef.u32(8))?;
        let prototype = self.get(pointer.u32(8))?;
        let (KIND_POINTER, KIND_FUNCTION_PROTOTYPE) = (pointer.kind, prototype.kind) else {
            return None;
        };
        prototype.members.checked_sub(1)
    }

    /// Where variables lie in the kernel's per-CPU area, in the order of the names;
    /// `None` for those that the BTF does not list (5.10 lists none).
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

    /// Size and members, with their offsets, of a struct; the members in its order.
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

    /// Names and values of an enum, in its order.
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

    /// The names of the types, without flavours: `task_struct___new` is fitted to
    /// `task_struct`.
    pub(crate) fn names(&self) -> HashSet<&[u8]> {
        let types = self.named.iter().filter_map(|&id| self.get(id));
        types.map(|this| without_flavour(self.name(this.name()))).collect()
    }

    /// BTF of the types of some names alone, in the same order, under ids of its own.
    ///
    /// An object whose types have no other names is fitted to it as to the whole:
    /// the types are there with all that lies in them; of what they point to,
    /// its kind and name. Only `bpf_core_type_id_kernel` would need the ids of the
    /// whole.
    pub(crate) fn only(&self, names: &HashSet<&[u8]>) -> Vec<u8> {
        let needs = self.needs(names);
        let ids: Vec<u32> =
            (1..needs.len() as u32).filter(|&id| needs[id as usize] > Need::Nothing).collect();
        // void where there is none
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
        // Most types are none of these by how their names begin: hashing those alone
        // takes a quarter of the time.
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

/// One type.
#[derive(Clone, Copy)]
struct Type<'a> {
    kind: u32,
    members: usize,
    /// `struct btf_type` and what follows it.
    bytes: &'a [u8],
}

impl<'a> Type<'a> {
    /// That which stands first.
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let info = u32_at(bytes, 4)?;
        // so wide since 7.1, unused before
        let (kind, members) = (info >> 24 & 0x7f, (info & MEMBERS) as usize);
        let length = match kind {
            KIND_POINTER | KIND_FORWARD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST
            | KIND_RESTRICT | KIND_FUNCTION | KIND_FLOAT | KIND_TYPE_TAG => 0,
            KIND_INT | KIND_VAR | KIND_DECLARATION_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * members,
            KIND_ENUM | KIND_FUNCTION_PROTOTYPE => 8 * members,
            _ => return None,
        };
        Some(Self { kind, members, bytes: bytes.get(..TYPE + length)? })
    }

    fn u32(&self, at: usize) -> u32 {
        u32_at(self.bytes, at).unwrap_or(0)
    }

    /// Where it stands among the strings.
    fn name(&self) -> u32 {
        self.u32(0)
    }

    fn info(&self) -> u32 {
        match self.has_members() {
            true => self.u32(4) & !MEMBERS | self.members as u32,
            false => self.u32(4),
        }
    }

    fn has_members(&self) -> bool {
        matches!(self.kind, KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64)
    }

    /// Without its members, if they are not needed.
    fn cut(self, need: Need) -> Self {
        match self.has_members() && need < Need::Whole {
            true => Self { members: 0, bytes: &self.bytes[..TYPE], ..self },
            false => self,
        }
    }

    /// Where its own name and those of its members are given.
    fn names(&self) -> impl Iterator<Item = usize> {
        let length = match self.kind {
            KIND_STRUCT | KIND_UNION | KIND_ENUM64 => 12,
            KIND_ENUM | KIND_FUNCTION_PROTOTYPE => 8,
            _ => return [0].into_iter().chain((0..0).step_by(1)),
        };
        [0].into_iter().chain((TYPE..self.bytes.len()).step_by(length))
    }

    /// Where it refers to other types, and how much it needs of them if so much is
    /// needed of itself.
    fn references(&self, need: Need) -> impl Iterator<Item = (usize, Need)> {
        let none = (0..0).step_by(1);
        let (own, members, need_of_members) = match self.kind {
            KIND_POINTER => (Some((8, Need::Header)), none, need),
            KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                (Some((8, need)), none, need)
            }
            // the type of its elements, then that of its index
            KIND_ARRAY => (Some((TYPE, need)), (16..20).step_by(4), Need::Header),
            KIND_STRUCT | KIND_UNION => {
                (None, (TYPE + 4..self.bytes.len()).step_by(12), Need::Whole)
            }
            KIND_FUNCTION_PROTOTYPE => {
                (Some((8, Need::Header)), (TYPE + 4..self.bytes.len()).step_by(8), Need::Header)
            }
            _ => (None, none, need),
        };
        own.into_iter().chain(members.map(move |at| (at, need_of_members)))
    }
}

fn without_flavour(name: &[u8]) -> &[u8] {
    name.windows(3).position(|three| three == b"___").map_or(name, |end| &name[..end])
}

/// The first two bytes; of a shorter name what there is.
fn beginning(name: &[u8]) -> usize {
    match name {
        [] | [0, ..] => 0,
        [one] | [one, 0, ..] => *one as usize,
        [one, two, ..] => usize::from(*one) | usize::from(*two) << 8,
    }
}

fn begins(strings: &[u8], name: u32, beginning: &[u8]) -> bool {
    strings.get(name as usize..).is_some_and(|rest| rest.starts_with(beginning))
}

fn is(strings: &[u8], name: u32, whole: &[u8]) -> bool {
    let rest = strings.get(name as usize..).and_then(|rest| rest.strip_prefix(whole));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}

fn put(bytes: &mut [u8], at: usize, word: u32) {
    bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types with the words that follow them, and the strings that they name.
    fn btf(strings: &[u8], types: &[&[u32]]) -> Vec<u8> {
        let types = types.concat();
        let types: &[u8] = bytemuck::cast_slice(&types);
        let mut btf = Vec::new();
        for word in [0x0001_eb9f, 24, 0, types.len(), types.len(), strings.len()] {
            btf.extend_from_slice(&(word as u32).to_ne_bytes());
        }
        btf.extend_from_slice(types);
        btf.extend_from_slice(strings);
        btf
    }

    fn kind(kind: u32, members: u32) -> u32 {
        kind << 24 | members
    }

    /// A variable `b`, a per-CPU section that puts it at 0x40, the tracepoint `t` of
    /// two arguments and the iterator `i`.
    fn hooks() -> Vec<u8> {
        btf(
            b"\0a\0b\0.data..percpu\0btf_trace_t\0bpf_iter_i\0",
            &[
                &[1, kind(KIND_INT, 0), 4, 32], // 1: int a
                &[3, kind(KIND_VAR, 0), 1, 0],  // 2: int b
                &[5, kind(KIND_DATASEC, 2), 128, 7, 0x20, 4, 2, 0x40, 4],
                &[0, kind(KIND_POINTER, 0), 5],
                &[0, kind(KIND_FUNCTION_PROTOTYPE, 3), 0, 0, 4, 0, 1, 0, 1],
                &[19, kind(KIND_TYPEDEF, 0), 4],
                &[31, kind(KIND_FUNCTION, 1), 5],
            ],
        )
    }

    /// `struct task` with a `struct inner` in an array, a pointer to `struct far` and
    /// a `struct other`, that nobody needs, behind it.
    fn structures() -> Vec<u8> {
        btf(
            b"\0task\0inner\0far\0value\0other\0",
            &[
                &[20, kind(KIND_STRUCT, 0), 4],                     // 1: other
                &[12, kind(KIND_STRUCT, 1), 4, 16, 1, 0],           // 2: far
                &[16, kind(KIND_INT, 0), 4, 32],                    // 3: value
                &[0, kind(KIND_POINTER, 0), 2],                     // 4: far *
                &[6, kind(KIND_STRUCT, 1), 4, 16, 3, 0],            // 5: inner
                &[0, kind(KIND_ARRAY, 0), 0, 5, 3, 2],              // 6: inner[2]
                &[0, kind(KIND_CONST, 0), 6],                       // 7: const inner[2]
                &[1, kind(KIND_STRUCT, 2), 16, 6, 7, 0, 12, 4, 64], // 8: task
            ],
        )
    }

    fn parse(bytes: &[u8]) -> Btf<&[u8]> {
        Btf::parse(bytes).unwrap()
    }

    /// Its types by name, with what they refer to.
    fn described<B: Deref<Target = [u8]>>(btf: &Btf<B>) -> Vec<(String, u32, usize, Vec<u32>)> {
        let describe = |id| {
            let this = btf.get(id).unwrap();
            let references = this.references(Need::Whole).map(|(at, _)| this.u32(at)).collect();
            let name = String::from_utf8(btf.name(this.name()).to_vec()).unwrap();
            (name, this.kind, this.members, references)
        };
        (1..btf.places.len() as u32).map(describe).collect()
    }

    #[test]
    fn finds_variables_and_hooks() {
        let bytes = hooks();
        let btf = parse(&bytes);
        assert_eq!(btf.per_cpu_offsets(["b", "a", "none"]), [Some(0x40), None, None]);
        assert_eq!(btf.tracepoint("t"), Some(Hook { id: 6 }));
        assert_eq!(btf.tracepoint_arguments("t"), Some(2));
        assert_eq!(btf.iterator("i"), Some(Hook { id: 7 }));
        for absent in ["", "a", "btf_trace_t", "tt", "i"] {
            assert_eq!(btf.tracepoint(absent), None, "{absent}");
            assert_eq!(btf.tracepoint_arguments(absent), None, "{absent}");
        }
        assert_eq!(btf.iterator("t"), None);
    }

    #[test]
    fn keeps_what_lies_in_a_type_and_the_names_behind_its_pointers() {
        let bytes = structures();
        let few = parse(&bytes).only(&HashSet::from([&b"task"[..]]));
        let name = |name: &str| name.to_owned();
        assert_eq!(
            described(&parse(&few)),
            [
                (name("far"), KIND_STRUCT, 0, vec![]),
                (name("value"), KIND_INT, 0, vec![]),
                (name(""), KIND_POINTER, 0, vec![1]),
                (name("inner"), KIND_STRUCT, 1, vec![2]),
                (name(""), KIND_ARRAY, 0, vec![4, 2]),
                (name(""), KIND_CONST, 0, vec![5]),
                (name("task"), KIND_STRUCT, 2, vec![6, 3]),
            ]
        );
    }

    #[test]
    fn keeps_whole_what_is_named_even_behind_a_pointer() {
        let bytes = structures();
        let few = parse(&bytes).only(&HashSet::from([&b"task"[..], b"far"]));
        let few = parse(&few);
        let types = described(&few);
        let far = types.iter().find(|(name, ..)| name == "far").unwrap();
        assert_eq!((far.2, far.3.as_slice()), (1, &[1][..]), "{types:?}");
        assert_eq!(types.len(), 8);
        // all of its types again, and the same
        assert_eq!(few.only(&few.names()), few.bytes);
    }

    #[test]
    fn flavours_are_no_part_of_a_name() {
        assert_eq!(without_flavour(b"task_struct___new"), b"task_struct");
        assert_eq!(without_flavour(b"a__b"), b"a__b");
        assert_eq!(without_flavour(b""), b"");
        let bytes = btf(b"\0task___x\0", &[&[1, kind(KIND_STRUCT, 0), 0]]);
        let flavoured = parse(&bytes);
        assert_eq!(flavoured.names(), HashSet::from([&b"task"[..]]));
        let few = parse(&flavoured.only(&flavoured.names())).places.len();
        assert_eq!(few, 2);
    }

    #[test]
    fn short_names_are_found() {
        let bytes = btf(
            b"\0a\0ab\0",
            &[
                &[1, kind(KIND_STRUCT, 0), 0],
                &[3, kind(KIND_UNION, 0), 0],
                &[1, kind(KIND_INT, 0), 4, 0],
            ],
        );
        let found = |name: &[u8]| {
            let few = parse(&bytes).only(&HashSet::from([name]));
            described(&parse(&few)).into_iter().map(|(_, kind, ..)| kind).collect::<Vec<_>>()
        };
        assert_eq!(found(b"a"), [KIND_STRUCT, KIND_INT]);
        assert_eq!(found(b"ab"), [KIND_UNION]);
        assert_eq!(found(b""), []);
    }

    #[test]
    fn members_beyond_16_bits_are_counted() {
        let members = 70_000;
        let mut large = vec![1, kind(KIND_ENUM, members), 4];
        large.extend((0..members).flat_map(|value| [1, value]));
        let bytes = btf(b"\0e\0", &[&large, &[1, kind(KIND_INT, 0), 4, 0]]);
        assert_eq!(parse(&bytes).places.len(), 3);
    }

    /// Everything that can be asked.
    fn ask(bytes: &[u8]) {
        if let Some(btf) = Btf::parse(bytes) {
            let few = btf.only(&btf.names());
            btf.only(&HashSet::from([&b"task"[..]]));
            btf.per_cpu_offsets(["b"]);
            btf.tracepoint_arguments("t");
            btf.iterator("i");
            assert!(Btf::parse(few).is_some(), "{bytes:x?}");
        }
    }

    #[test]
    fn garbage_and_cut_btf_are_no_panic() {
        ask(&[0xff; 64]);
        ask(&[]);
        for whole in [hooks(), structures()] {
            for length in 0..whole.len() {
                assert!(Btf::parse(&whole[..length]).is_none(), "{length}");
            }
            // every byte wrong in turn, in several ways
            for at in 0..whole.len() {
                for wrong in [0, 1, 4, 0x13, 0x7f, 0xff] {
                    let mut broken = whole.clone();
                    broken[at] = wrong;
                    ask(&broken);
                }
            }
        }
    }

    #[test]
    fn types_of_an_unknown_kind_are_refused() {
        let bytes = btf(b"\0", &[&[0, kind(42, 0), 0]]);
        assert!(Btf::parse(&bytes[..]).is_none());
    }
}
