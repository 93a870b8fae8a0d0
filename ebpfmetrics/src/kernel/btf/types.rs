//! One BTF type in its binary form.

pub(super) const TYPE: usize = 12;
pub(super) const KIND_INT: u32 = 1;
pub(super) const KIND_POINTER: u32 = 2;
pub(super) const KIND_ARRAY: u32 = 3;
pub(super) const KIND_STRUCT: u32 = 4;
pub(super) const KIND_UNION: u32 = 5;
pub(super) const KIND_ENUM: u32 = 6;
pub(super) const KIND_FORWARD: u32 = 7;
pub(super) const KIND_TYPEDEF: u32 = 8;
pub(super) const KIND_VOLATILE: u32 = 9;
pub(super) const KIND_CONST: u32 = 10;
pub(super) const KIND_RESTRICT: u32 = 11;
pub(super) const KIND_FUNCTION: u32 = 12;
pub(super) const KIND_FUNCTION_PROTOTYPE: u32 = 13;
pub(super) const KIND_VAR: u32 = 14;
pub(super) const KIND_DATASEC: u32 = 15;
pub(super) const KIND_FLOAT: u32 = 16;
pub(super) const KIND_DECLARATION_TAG: u32 = 17;
pub(super) const KIND_TYPE_TAG: u32 = 18;
pub(super) const KIND_ENUM64: u32 = 19;
pub(super) const MEMBERS: u32 = 0xff_ffff;

/// How much of a type is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    Nothing,
    /// Kind and name: members behind a pointer are never looked up.
    Header,
    Whole,
}

/// One type.
#[derive(Clone, Copy)]
pub(super) struct Type<'a> {
    pub(super) kind: u32,
    pub(super) members: usize,
    /// `struct btf_type` and what follows it.
    pub(super) bytes: &'a [u8],
}

impl<'a> Type<'a> {
    /// The first type in `bytes`.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let info = u32_at(bytes, 4)?;
        // Linux 7.1 widened both fields into bits that were unused before.
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

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32_at(self.bytes, at).unwrap_or(0)
    }

    /// Offset of its name in the string section.
    pub(super) fn name(&self) -> u32 {
        self.u32(0)
    }

    pub(super) fn info(&self) -> u32 {
        match self.has_members() {
            true => self.u32(4) & !MEMBERS | self.members as u32,
            false => self.u32(4),
        }
    }

    pub(super) fn has_members(&self) -> bool {
        matches!(self.kind, KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64)
    }

    /// Drops the members if they are not needed.
    pub(super) fn cut(self, need: Need) -> Self {
        match self.has_members() && need < Need::Whole {
            true => Self { members: 0, bytes: &self.bytes[..TYPE], ..self },
            false => self,
        }
    }

    /// Offsets in its bytes of its own name and of the names of its members.
    pub(super) fn names(&self) -> impl Iterator<Item = usize> {
        let length = match self.kind {
            KIND_STRUCT | KIND_UNION | KIND_ENUM64 => 12,
            KIND_ENUM | KIND_FUNCTION_PROTOTYPE => 8,
            _ => return [0].into_iter().chain((0..0).step_by(1)),
        };
        [0].into_iter().chain((TYPE..self.bytes.len()).step_by(length))
    }

    /// Offsets in its bytes of references to other types, and how much of each is needed
    /// if `need` of this type is.
    pub(super) fn references(&self, need: Need) -> impl Iterator<Item = (usize, Need)> {
        let none = (0..0).step_by(1);
        let (own, members, need_of_members) = match self.kind {
            KIND_POINTER => (Some((8, Need::Header)), none, need),
            KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                (Some((8, need)), none, need)
            }
            // the element type, then the index type
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

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
