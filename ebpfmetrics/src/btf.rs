//! What aya-obj 0.3 does not tell of the kernel's BTF: where a per-CPU variable
//! lies, and how many arguments a tracepoint has. One pass over the types.

use std::collections::HashMap;

const HEADER: usize = 24;
const KIND_POINTER: u32 = 2;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNCTION_PROTOTYPE: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const PER_CPU: &[u8] = b".data..percpu";
/// The kernel names the type of a tracepoint's function so.
const TRACEPOINT: &[u8] = b"btf_trace_";

/// What one pass found.
#[derive(Debug)]
pub(crate) struct Found<const N: usize> {
    /// Offsets of variables in the kernel's per-CPU area, in the order of the
    /// names; `None` for those that the BTF does not list (5.10 lists none).
    pub(crate) per_cpu_offsets: [Option<u64>; N],
    /// The arguments of every tracepoint.
    pub(crate) tracepoint_arguments: HashMap<String, usize>,
}

/// Looks for per-CPU variables by their names, and for all tracepoints. Absent or
/// cut short: as if nothing more was listed.
pub(crate) fn find<const N: usize>(btf: &[u8], names: [&str; N]) -> Found<N> {
    let mut found = Found { per_cpu_offsets: [None; N], tracepoint_arguments: HashMap::new() };
    let _ = Btf::new(btf).map(|btf| btf.find(names, &mut found));
    found
}

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        // struct btf_header: .., hdr_len @4, type_off @8, type_len, str_off, str_len
        let header = u32_at(bytes, 4)? as usize;
        if header < HEADER || u32_at(bytes, 0)? & 0xffff != 0xeb9f {
            return None;
        }
        let section = |at| {
            let start = header.checked_add(u32_at(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(u32_at(bytes, at + 4)? as usize)?)
        };
        Some(Self { types: section(8)?, strings: section(16)? })
    }

    fn find<const N: usize>(&self, names: [&str; N], found: &mut Found<N>) -> Option<()> {
        let mut variables = [None; N];
        let mut tracepoints = Vec::new();
        let mut places = vec![0]; // of types, by id; there is no type 0
        let mut at = 0;
        while at < self.types.len() {
            let name = u32_at(self.types, at)?;
            let (kind, members) = self.kind(at)?;
            let body = at + 12;
            if kind == KIND_VAR {
                let name = self.name(name)?;
                if let Some(i) = names.iter().position(|wanted| wanted.as_bytes() == name) {
                    variables[i] = Some(places.len() as u32);
                }
            } else if kind == KIND_DATASEC && self.name(name)? == PER_CPU {
                // the section stands behind its variables
                for member in 0..members {
                    let variable = u32_at(self.types, body + member * 12)?;
                    let offset = u32_at(self.types, body + member * 12 + 4)?;
                    if let Some(i) = variables.iter().position(|&known| known == Some(variable)) {
                        found.per_cpu_offsets[i] = Some(u64::from(offset));
                    }
                }
            } else if kind == KIND_TYPEDEF
                && let Some(name) = self.name(name)?.strip_prefix(TRACEPOINT)
            {
                tracepoints.push((name, u32_at(self.types, at + 8)?));
            }
            places.push(at);
            at = body + body_length(kind, members)?;
        }
        for (name, pointer) in tracepoints {
            if let Some(count) = self.arguments(&places, pointer) {
                found
                    .tracepoint_arguments
                    .insert(String::from_utf8_lossy(name).into_owned(), count);
            }
        }
        Some(())
    }

    /// Of a pointer to a function whose first argument is not the tracepoint's own.
    fn arguments(&self, places: &[usize], pointer: u32) -> Option<usize> {
        let pointer = *places.get(pointer as usize)?;
        let prototype = *places.get(u32_at(self.types, pointer + 8)? as usize)?;
        let (KIND_POINTER, (KIND_FUNCTION_PROTOTYPE, arguments)) =
            (self.kind(pointer)?.0, self.kind(prototype)?)
        else {
            return None;
        };
        arguments.checked_sub(1)
    }

    fn kind(&self, at: usize) -> Option<(u32, usize)> {
        let info = u32_at(self.types, at + 4)?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    fn name(&self, offset: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(offset as usize..)?;
        Some(&rest[..rest.iter().position(|&byte| byte == 0)?])
    }
}

/// What follows `struct btf_type`; `None` for a kind that did not exist when
/// this was written, whose length nobody knows.
fn body_length(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        KIND_POINTER | 7..=12 | 16 | 18 => 0,
        1 | KIND_VAR | 17 => 4, // int, variable, declaration tag
        3 => 12,                // array
        4 | 5 | KIND_DATASEC | 19 => 12 * members, // struct, union, section, 64-bit enum
        6 | KIND_FUNCTION_PROTOTYPE => 8 * members, // enum, function prototype
        _ => return None,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A variable `b`, a per-CPU section that puts it at 0x40, and a tracepoint
    /// `t` of two arguments.
    fn sample() -> Vec<u8> {
        let strings = b"\0a\0b\0.data..percpu\0btf_trace_t\0";
        let types: Vec<u32> = [
            &[1, 1 << 24, 4, 32][..],                   // 1: int a
            &[3, KIND_VAR << 24, 1, 0],                 // 2: int b
            &[5, KIND_DATASEC << 24 | 2, 128],          // section of two
            &[7, 0x20, 4],                              //   some other variable
            &[2, 0x40, 4],                              //   b
            &[0, KIND_POINTER << 24, 5],                // 4: pointer
            &[0, KIND_FUNCTION_PROTOTYPE << 24 | 3, 0], // 5: function
            &[0, 4, 0, 1, 0, 1],                        //   its arguments
            &[19, KIND_TYPEDEF << 24, 4],               // 6: btf_trace_t
        ]
        .concat();
        let types: &[u8] = bytemuck::cast_slice(&types);
        let mut btf = Vec::new();
        for word in [0x0001_eb9f, 24, 0, types.len(), types.len(), strings.len()] {
            btf.extend_from_slice(&(word as u32).to_ne_bytes());
        }
        btf.extend_from_slice(types);
        btf.extend_from_slice(strings);
        btf
    }

    #[test]
    fn finds_variables_and_tracepoints() {
        let found = find(&sample(), ["b", "a", "none"]);
        assert_eq!(found.per_cpu_offsets, [Some(0x40), None, None]);
        assert_eq!(found.tracepoint_arguments, HashMap::from([("t".to_owned(), 2)]));
    }

    #[test]
    fn garbage_and_cut_btf_list_nothing() {
        let whole = sample();
        for length in 0..whole.len() {
            let _ = find(&whole[..length], ["b"]);
        }
        assert_eq!(find(&[0xff; 64], ["b"]).per_cpu_offsets, [None]);
        assert_eq!(find(&[], ["b"]).per_cpu_offsets, [None]);
    }
}
