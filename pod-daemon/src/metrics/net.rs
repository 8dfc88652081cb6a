//! Bytes, packets and TCP connections.

use pod_ebpf::{
    Direction,
    net::{CONNECT_RESULTS, ConnectResult, LATENCY_BUCKETS, TcpStats},
};

use super::{
    family::{
        Domain, Family, Label,
        Source::{Container, Node, Pod},
    },
    sheet::Sheet,
};

pub(super) const DIRECTION: Label =
    Label::each("direction", &[Direction::ALL[0].label(), Direction::ALL[1].label()]);

const RESULTS: [&str; CONNECT_RESULTS] = {
    let mut results = [""; CONNECT_RESULTS];
    let mut index = 0;
    while index < CONNECT_RESULTS {
        results[index] = ConnectResult::ALL[index].label();
        index += 1;
    }
    results
};

const PROBES: &[&str] = &["network_receive", "network_transmit"];

/// Every second bound of the kernel's buckets is exposed: 1 µs, 4 µs, ... 16.8 s.
pub(super) const BOUNDS: usize = LATENCY_BUCKETS / 2;

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

pub(super) const TCP: Domain = Domain {
    title: "TCP",
    text: "Connections of the container's own sockets. A connection that is still being made has \
           no result yet and is not counted.",
    families: &[
        Family::counter(
            "podscope_tcp_accepts_total",
            "Incoming connections whose handshake is complete.",
            Container(|c, sheet| sheet.count(&[], c.tcp.accepts)),
        )
        .counted_by(&["tcp"]),
        Family::counter(
            "podscope_tcp_connects_total",
            "Outgoing connections, by how the attempt ended.",
            Container(|c, sheet| {
                for (result, count) in ConnectResult::ALL.into_iter().zip(c.tcp.connects) {
                    sheet.count(&[result.label()], count);
                }
            }),
        )
        .by(&[Label::each("result", &RESULTS)])
        .counted_by(&["tcp"]),
        Family::histogram(
            "podscope_tcp_connect_duration_seconds",
            "Time from the SYN to the established connection, of outgoing connections. Bounds \
             grow by a factor of 4, and so much is the most that a quantile can be off.",
            Container(|c, sheet| connect_duration(sheet, &c.tcp)),
        )
        .counted_by(&["tcp"]),
    ],
};

/// Adds one series per direction.
fn by_direction(sheet: &mut Sheet<'_>, count: impl Fn(usize) -> u64) {
    for (index, direction) in Direction::ALL.into_iter().enumerate() {
        sheet.count(&[direction.label()], count(index));
    }
}

fn connect_duration(sheet: &mut Sheet<'_>, tcp: &TcpStats) {
    let mut cumulative = [0; LATENCY_BUCKETS];
    let mut count = 0;
    for (sum, bucket) in cumulative.iter_mut().zip(tcp.connect_latency) {
        count += bucket;
        *sum = count;
    }
    let bounds = (0..BOUNDS).map(|index| (bound_seconds(2 * index), cumulative[2 * index]));
    sheet.histogram(bounds, count, tcp.connect_latency_ns as f64 / 1e9);
}

/// The upper bound of a bucket of the contract: 2^bucket microseconds.
fn bound_seconds(bucket: usize) -> f64 {
    (1_u64 << bucket) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use pod_ebpf::net::latency_bucket;

    use super::*;

    #[test]
    fn no_latency_is_above_the_bound_of_its_bucket() {
        for nanoseconds in [1, 999, 1_000, 1_001, 4_000, 4_001, 3_000_000_000] {
            let bucket = latency_bucket(nanoseconds);
            let seconds = nanoseconds as f64 / 1e9;
            assert!(seconds <= bound_seconds(bucket));
            assert!(bucket == 0 || seconds > bound_seconds(bucket - 1));
        }
    }
}
