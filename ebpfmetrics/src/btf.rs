//! What aya-obj 0.3 does not tell of the kernel's BTF: where a per-CPU variable
//! lies. One pass over the types, nothing is kept.

const HEADER: usize = 24;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const PER_CPU: &[u8] = b".data..percpu";

/// Offsets of variables in the kernel's per-CPU area, in the order of `names`;
/// `None` for those that the BTF does not list (5.10 lists none).
pub(crate) fn per_cpu_offsets<const N: usize>(btf: &[u8], names: [&str; N]) -> [Option<u64>; N] {
    let mut offsets = [None; N];
    // Absent or cut short: as if nothing was listed.
    let _ = Btf::new(btf).map(|btf| btf.find(names, &mut offsets));
    offsets
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

    fn find<const N: usize>(&self, names: [&str; N], offsets: &mut [Option<u64>; N]) -> Option<()> {
        let mut variables = [None; N];
        let mut at = 0;
        let mut id = 1;
        while at < self.types.len() {
            let name = u32_at(self.types, at)?;
            let info = u32_at(self.types, at + 4)?;
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let body = at + 12;
            if kind == KIND_VAR {
                let name = self.name(name)?;
                if let Some(i) = names.iter().position(|wanted| wanted.as_bytes() == name) {
                    variables[i] = Some(id);
                }
            } else if kind == KIND_DATASEC && self.name(name)? == PER_CPU {
                // the section stands behind its variables
                for member in 0..members {
                    let variable = u32_at(self.types, body + member * 12)?;
                    let offset = u32_at(self.types, body + member * 12 + 4)?;
                    if let Some(i) = variables.iter().position(|&known| known == Some(variable)) {
                        offsets[i] = Some(u64::from(offset));
                    }
                }
            }
            at = body + body_length(kind, members)?;
            id += 1;
        }
        Some(())
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
        2 | 7..=12 | 16 | 18 => 0,
        1 | KIND_VAR | 17 => 4, // int, variable, declaration tag
        3 => 12,                // array
        4 | 5 | KIND_DATASEC | 19 => 12 * members, // struct, union, section, 64-bit enum
        6 | 13 => 8 * members,  // enum, function prototype
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

    /// A variable `b` and a per-CPU section that puts it at 0x40.
    fn sample() -> Vec<u8> {
        let strings = b"\0a\0b\0.data..percpu\0";
        let types: [u32; 4 + 4 + 3 + 6] = [
            1,
            1 << 24,
            4,
            32, // int a
            3,
            KIND_VAR << 24,
            1,
            0, // int b
            5,
            KIND_DATASEC << 24 | 2,
            128, // section of two
            7,
            0x20,
            4, // some other variable
            2,
            0x40,
            4, // b
        ];
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
    fn finds_a_per_cpu_variable() {
        assert_eq!(per_cpu_offsets(&sample(), ["b", "a", "none"]), [Some(0x40), None, None]);
    }

    #[test]
    fn garbage_and_cut_btf_list_nothing() {
        let whole = sample();
        for length in 0..whole.len() {
            let _ = per_cpu_offsets(&whole[..length], ["b"]);
        }
        assert_eq!(per_cpu_offsets(&[0xff; 64], ["b"]), [None]);
        assert_eq!(per_cpu_offsets(&[], ["b"]), [None]);
    }
}
