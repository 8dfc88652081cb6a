//! The ways into the kernel that a machine has, and the numbers of the system calls there.

/// A calling convention of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abi {
    /// `AUDIT_ARCH_*`, by which the kernel tells a filter how it was called.
    pub(super) audit: u32,
    /// Numbers from here on belong to another ABI under the same `audit`.
    pub(super) end: u32,
    /// What an OCI profile calls it.
    pub(super) name: &'static str,
    lookup: fn(&str) -> Option<i32>,
}

impl Abi {
    /// The number of a system call, if this ABI has it.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        (self.lookup)(name).and_then(|number| u32::try_from(number).ok())
    }
}

/// 64-bit programs on x86-64. Numbers with bit 30 are those of x32.
#[cfg(any(target_arch = "x86_64", test))]
pub(super) const X86_64: Abi = Abi {
    audit: 0xc000_003e,
    end: 0x4000_0000,
    name: "SCMP_ARCH_X86_64",
    lookup: |name| Some(name.parse::<syscalls::x86_64::Sysno>().ok()?.id()),
};

/// 32-bit programs on x86-64, and `int 0x80` in 64-bit ones.
#[cfg(any(target_arch = "x86_64", test))]
pub(super) const X86: Abi = Abi {
    audit: 0x4000_0003,
    end: u32::MAX,
    name: "SCMP_ARCH_X86",
    lookup: |name| Some(name.parse::<syscalls::x86::Sysno>().ok()?.id()),
};

/// 64-bit programs on aarch64. 32-bit ones have no ABI here, so they are refused.
#[cfg(any(target_arch = "aarch64", test))]
pub(super) const AARCH64: Abi = Abi {
    audit: 0xc000_00b7,
    end: u32::MAX,
    name: "SCMP_ARCH_AARCH64",
    lookup: |name| {
        // The table names this one by its old name.
        let name = if name == "newfstatat" { "fstatat" } else { name };
        Some(name.parse::<syscalls::aarch64::Sysno>().ok()?.id())
    },
};

/// The ABIs of this machine, its own first.
#[cfg(target_arch = "x86_64")]
pub(super) const OURS: &[Abi] = &[X86_64, X86];

/// The ABIs of this machine.
#[cfg(target_arch = "aarch64")]
pub(super) const OURS: &[Abi] = &[AARCH64];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(X86_64.number("clone3"), Some(435));
        assert_eq!(X86_64.number("openat"), u32::try_from(libc::SYS_openat).ok());
        assert_eq!(X86.number("socketcall"), Some(102));
        assert_eq!(X86_64.number("socketcall"), None);
        assert_eq!(AARCH64.number("newfstatat"), Some(79));
        assert_eq!(AARCH64.number("open"), None);
    }
}
