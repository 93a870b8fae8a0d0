use std::{error::Error as StdError, ops::Deref};

use crate::kernel::btf::Btf;

/// Applies the CO-RE relocations of an object.
///
/// aya parses the kernel's BTF completely for each object. Passing it only the types that
/// the object names, about 400 of 126,000, avoids most of the work.
pub(super) fn relocate(
    object: &mut aya_obj::Object,
    kernel: &Btf<impl Deref<Target = [u8]>>,
) -> Result<(), Box<dyn StdError + Send + Sync>> {
    if !object.has_btf_relocations() {
        return Ok(());
    }
    let own = object.btf.as_ref().map(aya::Btf::to_bytes).unwrap_or_default();
    let own = Btf::parse(own).ok_or("its BTF is truncated or in an unknown format")?;
    let subset = kernel.only(&own.names());
    let subset = aya::Btf::parse(&subset, aya::Endianness::default())?;
    Ok(object.relocate_btf(&subset)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    fn object() -> aya_obj::Object {
        aya_obj::Object::parse(ebpf_probes::CPU).unwrap()
    }

    fn instructions(object: &aya_obj::Object) -> Vec<Vec<[i64; 5]>> {
        let numbers = |i: &aya_obj::generated::bpf_insn| {
            [i.code.into(), i.dst_reg().into(), i.src_reg().into(), i.off.into(), i.imm.into()]
        };
        let functions = object.functions.values();
        functions.map(|function| function.instructions.iter().map(numbers).collect()).collect()
    }

    #[test]
    fn a_subset_of_the_types_relocates_like_the_complete_btf() {
        let before = instructions(&object());
        let (mut by_subset, mut by_all) = (object(), object());
        relocate(&mut by_subset, Kernel::read().unwrap().btf()).unwrap();
        by_all.relocate_btf(&aya::Btf::from_sys_fs().unwrap()).unwrap();
        assert_ne!(before, instructions(&by_subset), "the object has no relocation");
        assert!(instructions(&by_subset) == instructions(&by_all));
    }
}
