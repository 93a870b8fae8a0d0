//! What differs between processor architectures.

use clap::ValueEnum;

/// An architecture, under the name Debian gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    pub(super) fn name(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
        }
    }

    pub(super) fn qemu(self) -> &'static str {
        match self {
            Arch::Amd64 => "qemu-system-x86_64",
            Arch::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Machine and processor. `pauth-impdef` replaces a pointer signature that
    /// takes most of the emulator's time on arm64.
    pub(super) fn machine(self) -> [&'static str; 4] {
        match self {
            Arch::Amd64 => ["-M", "q35", "-cpu", "max"],
            Arch::Arm64 => ["-M", "virt,gic-version=3", "-cpu", "max,pauth-impdef=on"],
        }
    }

    /// First and second serial port: kernel log and test output.
    pub(super) fn ports(self) -> [&'static str; 2] {
        match self {
            Arch::Amd64 => ["ttyS0", "ttyS1"],
            Arch::Arm64 => ["ttyAMA0", "ttyS0"],
        }
    }

    /// The device behind the second port. The arm64 board has one port of its
    /// own before QEMU 9, so the other is a PCI card.
    pub(super) fn second_port(self) -> &'static str {
        match self {
            Arch::Amd64 => "isa-serial",
            Arch::Arm64 => "pci-serial",
        }
    }

    /// Where logs and kernels of this architecture go, next to the others.
    pub(super) fn label(self, series: impl std::fmt::Display) -> String {
        match self {
            Arch::Amd64 => series.to_string(),
            Arch::Arm64 => format!("{series}-arm64"),
        }
    }
}
