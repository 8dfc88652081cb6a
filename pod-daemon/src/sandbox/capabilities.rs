//! Linux capabilities, and the set that containers have by default.

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

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
    /// One bit per capability, by its number.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
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
}
