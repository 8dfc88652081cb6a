//! Bytes and packets.

use pod_ebpf::Direction;

use super::{
    family::{
        Domain, Family, Label,
        Source::{Container, Node, Pod},
    },
    sheet::Sheet,
};

pub(super) const DIRECTION: Label =
    Label::each("direction", &[Direction::ALL[0].label(), Direction::ALL[1].label()]);

const PROBES: &[&str] = &["network_receive", "network_transmit"];

pub(super) const NETWORK: Domain = Domain {
    title: "Network",
    text: "Counted at the container's own sockets: containers of one pod share its network \
           namespace and are told apart all the same, and connections between them on localhost \
           count as well. Lengths include the IP header, and not that of the link.",
    families: &[
        Family::counter(
            "podscope_network_bytes_total",
            "Bytes received and sent, from the IP header on.",
            Container(|c, sheet| by_direction(sheet, |direction| c.net.bytes[direction])),
        )
        .by(&[DIRECTION])
        .counted_by(PROBES),
        Family::counter(
            "podscope_network_packets_total",
            "Packets as the sockets see them: with segmentation offload, up to 64 KiB each.",
            Container(|c, sheet| by_direction(sheet, |direction| c.net.packets[direction])),
        )
        .by(&[DIRECTION])
        .counted_by(PROBES),
        Family::counter(
            "podscope_network_segments_total",
            "Packets as a wire sees them.",
            Container(|c, sheet| by_direction(sheet, |direction| c.net.segments[direction])),
        )
        .by(&[DIRECTION])
        .counted_by(PROBES),
        Family::gauge(
            "podscope_pod_connections_limit",
            "Connections that a pod may begin and have at a time (`--pod-connections`); absent \
             where there is no limit.",
            Node(|reading, sheet| {
                if reading.node.connection_limit > 0 {
                    sheet.count(&[], reading.node.connection_limit.into());
                }
            }),
        ),
        Family::counter(
            "podscope_pod_connections_refused_total",
            "First packets of connections that were dropped, since the pod had as many as it may; \
             whoever tries again counts again. Read every few seconds.",
            Pod(|pod, sheet| {
                if !pod.about.host_network {
                    sheet.count(&[], pod.refused_connections);
                }
            }),
        ),
    ],
};

/// Adds one series per direction.
fn by_direction(sheet: &mut Sheet<'_>, count: impl Fn(usize) -> u64) {
    for (index, direction) in Direction::ALL.into_iter().enumerate() {
        sheet.count(&[direction.label()], count(index));
    }
}
