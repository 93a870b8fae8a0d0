//! The command line of `cargo xtask vm`.

use std::path::PathBuf;

use super::{arch::Arch, suite::SUITE, version::Version};

#[derive(clap::Args)]
pub(super) struct Options {
    /// Run only on this kernel series, such as 6.1; can be repeated
    #[arg(long, value_name = "SERIES")]
    pub(super) kernel: Vec<Version>,

    /// Run only on the oldest and the newest kernel
    #[arg(long, conflicts_with = "kernel")]
    pub(super) oldest_newest: bool,

    /// Architecture of the machines
    #[arg(long, value_enum, default_value = "amd64")]
    pub(super) arch: Arch,

    /// Run only this test target, as with cargo test --test; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) test: Vec<String>,

    /// Run only tests whose name contains NAME
    #[arg(long, value_name = "NAME")]
    pub(super) filter: Option<String>,

    /// Open a shell in the machine instead of running the tests
    #[arg(long, conflicts_with_all = ["run", "write_support", "check_support"])]
    pub(super) shell: bool,

    /// Run a shell command in the machine instead of the tests
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["write_support", "check_support"])]
    pub(super) run: Option<String>,

    /// Copy a program of this machine into the guest's PATH; can be repeated
    #[arg(long, value_name = "FILE")]
    pub(super) add: Vec<PathBuf>,

    /// Add a kernel module; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) module: Vec<String>,

    /// Write the results to docs/support.md
    #[arg(long)]
    pub(super) write_support: bool,

    /// Fail if docs/support.md differs from the results
    #[arg(long, conflicts_with = "write_support")]
    pub(super) check_support: bool,

    /// Treat a machine as hung if no test starts or ends for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    pub(super) timeout: u64,

    /// Number of machines that run at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    pub(super) jobs: usize,

    /// Memory of each machine in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) memory: u32,

    /// Address of the Debian mirror without /debian [default: that of this machine's apt]
    #[arg(long, value_name = "URL")]
    pub(super) mirror: Option<String>,

    /// Arguments for the test programs
    #[arg(last = true)]
    pub(super) test_arguments: Vec<String>,

    /// Use the tests of another workspace, for work on this command
    #[arg(long, hide = true)]
    pub(super) manifest_path: Option<PathBuf>,

    #[arg(long, hide = true, default_value = SUITE)]
    pub(super) package: String,
}
