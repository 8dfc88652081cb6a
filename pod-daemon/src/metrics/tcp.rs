//! TCP connections.

use pod_ebpf::tcp::{CONNECT_RESULTS, ConnectResult};

use super::family::{Domain, Family, Label, Source::Container};

const RESULTS: [&str; CONNECT_RESULTS] = {
    let mut results = [""; CONNECT_RESULTS];
    let mut index = 0;
    while index < CONNECT_RESULTS {
        results[index] = ConnectResult::ALL[index].label();
        index += 1;
    }
    results
};

pub(super) const DOMAIN: Domain = Domain {
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
            Container(|c, sheet| sheet.latency(&[], &c.tcp.connect_latency)),
        )
        .counted_by(&["tcp"]),
    ],
};
