//! What the sockets of a container sent and received.

/// Bytes and packets of one slot, one copy per CPU, indexed by [`Direction`](crate::Direction).
///
/// Lengths start at the IP header. A `packet` is what the cgroup hook sees, which with segmentation
/// offload is up to 64 KiB; `segments` are the packets that go over a wire.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct NetStats {
    /// Bytes from the IP header on.
    pub bytes: [u64; 2],
    /// Socket buffers.
    pub packets: [u64; 2],
    /// Packets on a wire.
    pub segments: [u64; 2],
}

const _: () = assert!(size_of::<NetStats>() == 48);

impl NetStats {
    /// No traffic.
    pub const ZERO: Self = Self { bytes: [0; 2], packets: [0; 2], segments: [0; 2] };
}

crate::counters!(NetStats);
