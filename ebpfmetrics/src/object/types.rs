//! Types in the BTF of an object.

use crate::kernel::btf::Btf;

/// Names and values of an enum.
pub(crate) fn enumerators(object: &[u8], name: &str) -> Option<Vec<(String, u32)>> {
    btf(object)?.enumerators(name)
}

fn btf(object: &[u8]) -> Option<Btf<Vec<u8>>> {
    Btf::parse(aya_obj::Object::parse(object).ok()?.btf?.to_bytes())
}
