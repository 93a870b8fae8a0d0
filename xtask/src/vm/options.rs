//! The command line of `cargo xtask vm`.

use std::path::PathBuf;

use super::{arch::Arch, suite::SUITE, version::Version};

#[derive(clap::Args)]
pub(super) struct Options {
    /// Kernel series to run on, as `6.1`; repeat for several [default: all].
    #[arg(long, value_name = "SERIES")]
    pub(super) kernel: Vec<Version>,

    /// Run only on the oldest and the newest kernel.
    #[arg(long, conflicts_with = "kernel")]
    pub(super) oldest_newest: bool,

    /// Architecture of the machines.
    #[arg(long, value_enum, default_value = "amd64")]
    pub(super) arch: Arch,

    /// Test target to run, as `cargo test --test`; repeat for several.
    #[arg(long, value_name = "NAME")]
    pub(super) test: Vec<String>,

    /// Run only tests whose name contains this.
    #[arg(long, value_name = "NAME")]
    pub(super) filter: Option<String>,

    /// Open a shell in the machine instead of running the tests.
    #[arg(long, conflicts_with_all = ["run", "write_support", "check_support"])]
    pub(super) shell: bool,

    /// Run a shell command in the machine instead of the tests.
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["write_support", "check_support"])]
    pub(super) run: Option<String>,

    /// Program of this machine to put into the guest's PATH; repeatable.
    #[arg(long, value_name = "FILE")]
    pub(super) add: Vec<PathBuf>,

    /// Further kernel module to pack; repeatable.
    #[arg(long, value_name = "NAME")]
    pub(super) module: Vec<String>,

    /// Write the support table to docs/support.md.
    #[arg(long)]
    pub(super) write_support: bool,

    /// Fail if docs/support.md is not what the kernels gave.
    #[arg(long, conflicts_with = "write_support")]
    pub(super) check_support: bool,

    /// Seconds after which a machine that starts or ends no test counts as hung.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    pub(super) timeout: u64,

    /// Machines at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    pub(super) jobs: usize,

    /// Memory of a machine, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) memory: u32,

    /// Where Debian's packages are, up to `/debian` [default: as this machine's apt].
    #[arg(long, value_name = "URL")]
    pub(super) mirror: Option<String>,

    /// Arguments for the test programs, after `--`.
    #[arg(last = true)]
    pub(super) test_arguments: Vec<String>,

    /// Take the tests from another workspace (for work on this command itself).
    #[arg(long, hide = true)]
    pub(super) manifest_path: Option<PathBuf>,

    #[arg(long, hide = true, default_value = SUITE)]
    pub(super) package: String,
}
