//! Linux capabilities, and the set that containers have by default.

use serde::{Deserialize, Serialize};

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capabilities(u64);

/// Names without `CAP_`, by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The set that Docker and containerd give: enough for ordinary images, nothing that reaches the
/// node.
pub const DEFAULT: Capabilities = Capabilities(
    1 << 0      // CHOWN
    | 1 << 1    // DAC_OVERRIDE
    | 1 << 3    // FOWNER
    | 1 << 4    // FSETID
    | 1 << 5    // KILL
    | 1 << 6    // SETGID
    | 1 << 7    // SETUID
    | 1 << 8    // SETPCAP
    | 1 << 10   // NET_BIND_SERVICE
    | 1 << 13   // NET_RAW
    | 1 << 18   // SYS_CHROOT
    | 1 << 27   // MKNOD
    | 1 << 29   // AUDIT_WRITE
    | 1 << 31, // SETFCAP
);

impl Capabilities {
    /// The empty set.
    pub const NONE: Self = Self(0);
    /// Every capability that has a name here.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The capability of that name, with or without `CAP_`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        NAMES.iter().position(|known| *known == name).map(|number| Self(1 << number))
    }

    /// One bit per capability, by its number.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The capabilities of either.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that the other has not.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of the other's are here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Those that the calling thread may give away.
    pub(super) fn of_this_thread() -> Self {
        rustix::thread::capabilities(None).map_or(Self::ALL, |sets| Self(sets.permitted.bits()))
    }
}

impl std::fmt::Display for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = NAMES.iter().enumerate().filter(|(number, _)| self.0 & (1 << number) != 0);
        let names: Vec<_> = names.map(|(_, name)| *name).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_fourteen_by_default() {
        assert_eq!(DEFAULT.bits().count_ones(), 14);
        assert_eq!(DEFAULT.bits(), 0xa804_25fb);
    }

    #[test]
    fn names_have_the_kernels_numbers() {
        assert_eq!(Capabilities::named("CAP_SYS_ADMIN").map(Capabilities::bits), Some(1 << 21));
        assert_eq!(
            Capabilities::named("CHECKPOINT_RESTORE").map(Capabilities::bits),
            Some(1 << 40)
        );
        assert_eq!(Capabilities::named("sys_admin"), None);
        let two = Capabilities(1).with(Capabilities(1 << 21));
        assert_eq!(two.to_string(), "CHOWN, SYS_ADMIN");
        assert!(two.contains(Capabilities(1)) && !Capabilities(1).contains(two));
        assert_eq!(two.without(Capabilities(1)).bits(), 1 << 21);
    }
}
