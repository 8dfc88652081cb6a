//! What holds a process in: capabilities, filters, and what it sees of the kernel.

use serde::{Deserialize, Serialize};

use super::{Capabilities, capabilities::DEFAULT, seccomp::Profile};

/// What a process may do. Commands in a container are held by what holds the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The bounding set, and what root has.
    pub capabilities: Capabilities,
    /// Whether the bits of a program's file can give more than that.
    pub no_new_privileges: bool,
    /// Which system calls.
    pub seccomp: Profile,
    /// Name of a loaded AppArmor profile; `None` leaves the daemon's.
    pub apparmor: Option<String>,
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            capabilities: DEFAULT,
            no_new_privileges: true,
            seccomp: Profile::RuntimeDefault,
            apparmor: None,
        }
    }
}

impl Confinement {
    /// No capabilities, and the calls that need none.
    #[must_use]
    pub fn tightest() -> Self {
        Self { capabilities: Capabilities::NONE, ..Self::default() }
    }
}

/// What a container sees of the kernel and the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// Nothing that tells about the node or changes it.
    #[default]
    Masked,
    /// All of `/proc`, as nested containers need it.
    Proc,
    /// The node's devices, and `/proc`, `/sys` and the container's cgroup to write to.
    Node,
}
