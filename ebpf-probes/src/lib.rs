//! The eBPF objects of `ebpfmetrics`, as bytes.
//!
//! One constant per file in `objects/`, named after its source:
//! the object of `cpu.bpf.c` is [`CPU`]. The bytes are an ELF object with BTF, to be
//! relocated against the running kernel by a CO-RE loader such as aya.
//!
//! ```
//! assert_eq!(&ebpf_probes::CPU[..4], b"\x7fELF");
//! ```

/// ELF parsers read the headers in place, which takes 8-byte alignment.
#[repr(C, align(8))]
struct Aligned<T>(T);

/// The headers that the sources of the objects include, and those of probes in other
/// crates: `probe.h` first of all.
///
/// A directory on the machine that builds, for a build script or a tool of the
/// probe's author; it says nothing at run time.
///
/// ```
/// assert!(std::path::Path::new(ebpf_probes::INCLUDE).join("probe.h").exists());
/// ```
pub const INCLUDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/include");

include!(concat!(env!("OUT_DIR"), "/objects.rs"));
