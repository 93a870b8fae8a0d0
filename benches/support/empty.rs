//! Programs that do nothing: what it costs to be attached.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aya::{Btf, Ebpf, EbpfLoader, programs::BtfTracePoint};

pub(crate) const CLANG: &str = "clang-19";

/// `benches/bpf/empty.bpf.c`, compiled.
pub(crate) struct Empty {
    btf: Btf,
    object: Vec<u8>,
}

impl Empty {
    pub(crate) fn compile() -> Result<Self> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/bpf/empty.bpf.c");
        let output = Command::new(CLANG)
            .args(["-O2", "-g", "-target", "bpf", "-c", source, "-o", "-"])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Self { btf: Btf::from_sys_fs()?, object: output.stdout })
    }

    /// Attaches programs to tracepoints.
    pub(crate) fn attach(&self, programs: &[(&str, &str)]) -> Result<Ebpf> {
        let mut object = EbpfLoader::new().btf(Some(&self.btf)).load(&self.object)?;
        for (name, tracepoint) in programs {
            let program: &mut BtfTracePoint =
                object.program_mut(name).context("no program")?.try_into()?;
            program.load(tracepoint, &self.btf)?;
            program.attach()?;
        }
        Ok(object)
    }
}
