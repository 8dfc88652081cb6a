//! What the sockets of a container sent and received.

use crate::Direction;

/// Number of [`Family`]s.
pub const FAMILIES: usize = 2;

/// Number of [`Scope`]s.
pub const SCOPES: usize = 4;

/// Number of cells of [`NetStats::traffic`].
pub const CELLS: usize = 2 * FAMILIES * SCOPES;

/// Which internet protocol a packet is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Family {
    /// IPv4.
    Ipv4 = 0,
    /// IPv6.
    Ipv6 = 1,
}

impl Family {
    /// Every family, in the order of their numbers.
    pub const ALL: [Self; FAMILIES] = [Self::Ipv4, Self::Ipv6];

    /// The value of the `family` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Scope {
    /// Somebody in the same network namespace: the packet goes over its interface `lo`.
    Loopback = 0,
    /// Another pod of this node.
    Pod = 1,
    /// The node, by one of its own addresses.
    Node = 2,
    /// Anybody else.
    External = 3,
}

impl Scope {
    /// Every scope, in the order of their numbers.
    pub const ALL: [Self; SCOPES] = [Self::Loopback, Self::Pod, Self::Node, Self::External];

    /// The value of the `scope` label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::External => "external",
        }
    }
}

/// An address as the probes look it up: of IPv6, or of IPv4 in the form that maps it to IPv6
/// (`::ffff:a.b.c.d`); in network byte order.
pub type Address = [u32; 4];

/// The third word of an IPv4 address that is mapped to IPv6.
pub const MAPPED: u32 = 0xffff_u32.to_be();

/// Addresses of the node's own that there is room for.
pub const MAX_ADDRESSES: u32 = 1024;

/// Packets of one direction, family and scope.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Traffic {
    /// Bytes from the IP header on.
    pub bytes: u64,
    /// Socket buffers: what the cgroup hook sees, which with segmentation offload is up to 64 KiB.
    pub packets: u64,
    /// How many more packets than that go over a wire.
    pub more_segments: u64,
}

impl Traffic {
    /// Nothing.
    pub const ZERO: Self = Self { bytes: 0, packets: 0, more_segments: 0 };

    /// Packets on a wire.
    #[must_use]
    pub const fn segments(&self) -> u64 {
        self.packets + self.more_segments
    }
}

/// UDP of one direction.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UdpTraffic {
    /// Bytes from the IP header on.
    pub bytes: u64,
    /// Datagrams, each of them also where the kernel handles several as one.
    pub datagrams: u64,
}

/// The traffic of one slot, one copy per CPU.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NetStats {
    /// All of it, by [`cell`].
    pub traffic: [Traffic; CELLS],
    /// What of that is UDP, by [`Direction`].
    pub udp: [UdpTraffic; 2],
}

const _: () = assert!(size_of::<NetStats>() == 24 * CELLS + 32);

/// Where in [`NetStats::traffic`] packets of a direction, a family and a scope are counted.
#[must_use]
#[inline(always)]
pub const fn cell(direction: Direction, family: Family, scope: Scope) -> usize {
    (direction as usize * FAMILIES + family as usize) * SCOPES + scope as usize
}

impl NetStats {
    /// No traffic.
    pub const ZERO: Self =
        Self { traffic: [Traffic::ZERO; CELLS], udp: [UdpTraffic { bytes: 0, datagrams: 0 }; 2] };

    /// Packets of a direction, a family and a scope.
    #[must_use]
    pub const fn traffic(&self, direction: Direction, family: Family, scope: Scope) -> &Traffic {
        &self.traffic[cell(direction, family, scope)]
    }

    /// Bytes of a direction, whoever is at the other end.
    #[must_use]
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.of_direction(direction).iter().map(|traffic| traffic.bytes).sum()
    }

    /// Packets of a direction, whoever is at the other end.
    #[must_use]
    pub fn packets(&self, direction: Direction) -> u64 {
        self.of_direction(direction).iter().map(|traffic| traffic.packets).sum()
    }

    fn of_direction(&self, direction: Direction) -> &[Traffic] {
        let (half, first) = (CELLS / 2, direction as usize * CELLS / 2);
        &self.traffic[first..first + half]
    }
}

crate::counters!(NetStats);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_one_direction_family_and_scope() {
        let mut seen = [false; CELLS];
        for direction in Direction::ALL {
            for family in Family::ALL {
                for scope in Scope::ALL {
                    let cell = cell(direction, family, scope);
                    assert!(!core::mem::replace(&mut seen[cell], true));
                    assert_eq!(cell * 2 / CELLS, direction as usize, "halves are directions");
                }
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }
}
