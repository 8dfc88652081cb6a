//! Podscope's own numbers against the kernel's.

use nix::sys::signal::Signal;
use pod_ebpf::{Counters as _, Direction, block::BlockOperation, net::NetStats};

use super::{
    family::{Domain, Family, Source::Pod},
    file::OPERATIONS,
    net::DIRECTION,
    netns, reading,
    resource::OPERATION,
    sheet::Sheet,
};
use crate::{cgroup::stats::Io, network::POD_INTERFACE};

/// Bytes of an Ethernet header, which the kernel counts with what a virtual Ethernet device passes on,
/// and not with what goes through `lo`.
const HEADER: u64 = 14;

pub(super) const DOMAIN: Domain = Domain {
    title: "Reconciliation",
    text: "What the kernel counted less what Podscope counted, read one right after the other. The \
           kernel's numbers are those of the devices in the pod's network namespace, `lo` and `eth0`, without \
           the link's header; Podscope's are the sum over the pod's containers. A difference that \
           grows in step with the traffic means that a probe is blind. Expected is a small positive \
           one, of packets that belong to no socket of a container: ARP (46 bytes at most, a few per \
           minute), IPv6 neighbour and router discovery (a few at the start), answers to ping, resets \
           for closed ports, acknowledgements in TIME_WAIT; and under load the packets that arrive \
           between the two readings, or are dropped before they reach a socket. Absent for pods with `hostNetwork`, \
           whose devices are the node's, and without a sandbox.\n\n\
           The cgroups' `io.stat` counts what is sent to a block device, `podscope_block_*` what a device \
           has done. Bytes differ by what is under way, so by 0 when nothing is, and for good by what \
           failed or zeroed blocks, and once more for each device below another, as with LVM and RAID; \
           operations also by requests that were merged and by empty ones that flush a cache: no \
           less than 0, and no more than `podscope_io_operations_total`. One that was merged with \
           another pod's may count for either.\n\n\
           The cgroups' `memory.events` counts whom the OOM killer chose, Podscope the processes that \
           SIGKILL ended. The difference is below 0 by those that others killed, and above it only \
           for as long as a process takes to end, and by 1 for each of \
           `podscope_container_oom_kills_total`, as a kernel that kills a whole container may count the \
           first process twice.\n\n\
           Execs, forks and ends of processes have no counterpart: the kernel adds none of them up for \
           a cgroup (`/proc/stat` has forks of the whole node, taskstats tells of each end and of no \
           sum). Tests compare them with what the programs themselves have done.",
    families: &[
        Family::gauge(
            "podscope_reconcile_difference_network_bytes",
            "Bytes, from the IP header on, that the pod's devices passed and Podscope did not count.",
            Pod(|pod, sheet| differences(pod, sheet, |traffic| traffic.bytes)),
        )
        .by(&[DIRECTION])
        .counted_by(&["network_receive", "network_transmit"]),
        Family::gauge(
            "podscope_reconcile_difference_network_packets",
            "Packets, as `podscope_network_packets_total` counts them, that the pod's devices passed and \
             Podscope did not count.",
            Pod(|pod, sheet| differences(pod, sheet, |traffic| traffic.packets)),
        )
        .by(&[DIRECTION])
        .counted_by(&["network_receive", "network_transmit"]),
        Family::gauge(
            "podscope_reconcile_difference_block_bytes",
            "Bytes that `podscope_io_bytes_total` has and `podscope_block_bytes_total` has not.",
            Pod(|pod, sheet| {
                let of_kernel = |io: Io| [io.read_bytes, io.written_bytes];
                requests(pod, sheet, of_kernel, |requests| requests.bytes);
            }),
        )
        .by(&[OPERATION])
        .counted_by(&["block"]),
        Family::gauge(
            "podscope_reconcile_difference_block_operations",
            "Requests that `podscope_io_operations_total` has and `podscope_block_operations_total` has \
             not.",
            Pod(|pod, sheet| {
                requests(pod, sheet, |io| [io.reads, io.writes], BlockOperation::count);
            }),
        )
        .by(&[OPERATION])
        .counted_by(&["block"]),
        Family::gauge(
            "podscope_reconcile_difference_oom_kills",
            "Processes that the OOM killer chose by the cgroups' account, less those that SIGKILL ended \
             by Podscope's.",
            Pod(|pod, sheet| {
                let memories = pod.containers.iter().filter_map(|container| {
                    let memory = container.cgroup.memory?;
                    let ended = container.process.signals[Signal::SIGKILL as usize];
                    Some(memory.events.oom_kill as f64 - ended as f64)
                });
                sum(memories).into_iter().for_each(|difference| sheet.value(&[], difference));
            }),
        )
        .counted_by(&["exit"]),
    ],
};

/// The sum, if there is something to add.
fn sum(differences: impl Iterator<Item = f64>) -> Option<f64> {
    differences.reduce(|sum, difference| sum + difference)
}

/// Differences in one number of the requests to block devices, where they are told apart at all.
fn requests(
    pod: &reading::Pod,
    sheet: &mut Sheet<'_>,
    of_kernel: fn(Io) -> [u64; 2],
    of: fn(&BlockOperation) -> u64,
) {
    for (index, operation) in OPERATIONS.into_iter().enumerate() {
        let differences = pod.containers.iter().filter_map(|container| {
            let own = [&container.block.reads, &container.block.writes].map(of);
            Some(of_kernel(container.cgroup.io?)[index] as f64 - own[index] as f64)
        });
        sum(differences).into_iter().for_each(|sum| sheet.value(&[operation], sum));
    }
}

/// What the devices of a network namespace passed, by direction, as [`NetStats`] has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) bytes: [u64; 2],
    pub(super) packets: [u64; 2],
}

impl Traffic {
    /// Sums the lines of /proc/PID/net/dev.
    pub(super) fn parse(dev: &[u8]) -> Self {
        let text = str::from_utf8(dev).unwrap_or_default();
        let mut traffic = Self::default();
        for (name, numbers) in netns::interfaces(text) {
            // What passes a tunnel or a bridge that the pod has made passes these, too.
            if name != "lo" && name != POD_INTERFACE {
                continue;
            }
            let header = if name == "lo" { 0 } else { HEADER };
            let mut numbers = numbers.split_ascii_whitespace().map(|number| number.parse().ok());
            for direction in Direction::ALL {
                let at = direction as usize;
                let (Some(Some(bytes)), Some(Some(packets))) = (numbers.next(), numbers.next())
                else {
                    break;
                };
                let _others = numbers.nth(5);
                traffic.packets[at] += packets;
                traffic.bytes[at] += u64::saturating_sub(bytes, header * packets);
            }
        }
        traffic
    }
}

fn differences(pod: &reading::Pod, sheet: &mut Sheet<'_>, of: fn(Traffic) -> [u64; 2]) {
    let Some(kernel) = pod.traffic else { return };
    let mut own = NetStats::ZERO;
    pod.containers.iter().for_each(|container| own.add(&container.net));
    let of_direction = |of: fn(&NetStats, Direction) -> u64| Direction::ALL.map(|d| of(&own, d));
    let own = of(Traffic {
        bytes: of_direction(NetStats::bytes),
        packets: of_direction(NetStats::packets),
    });
    for (direction, (kernel, own)) in
        Direction::ALL.into_iter().zip(of(kernel).into_iter().zip(own))
    {
        sheet.value(&[direction.label()], kernel as f64 - own as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_link_are_not_counted() {
        let text = "Inter-| Receive\n face |bytes\n\
                    lo: 1000 10 0 0 0 0 0 0 1000 10 0 0 0 0 0 0\n  \
                    eth0: 540 10 0 0 0 0 0 0 2280 20 0 0 0 0 0 0\n";
        let traffic = Traffic::parse(text.as_bytes());
        assert_eq!(traffic, Traffic { bytes: [1400, 3000], packets: [20, 30] });
    }
}
