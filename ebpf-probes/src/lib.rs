//! The eBPF objects of `ebpfmetrics`, as bytes.
//!
//! One constant per file in `objects/`, named after its source:
//! `bpf/cpu.bpf.c` is [`CPU`]. The bytes are an ELF object with BTF, to be
//! relocated against the running kernel by a CO-RE loader such as aya.
//!
//! ```
//! assert_eq!(&ebpf_probes::CPU[..4], b"\x7fELF");
//! ```

/// ELF parsers read the headers in place, which takes 8-byte alignment.
#[repr(C, align(8))]
struct Aligned<T>(T);

include!(concat!(env!("OUT_DIR"), "/objects.rs"));
