//! TCP connections.

use pod_ebpf::{
    Direction,
    tcp::{CONNECT_RESULTS, ConnectResult, ENDINGS, Ending, PHASES, Phase, SEGMENTS, Segment},
};

use super::{
    family::{Domain, Family, Label, Source::Container, labels},
    net::DIRECTION,
    sheet::Sheet,
};

const RESULTS: [&str; CONNECT_RESULTS] = labels!(ConnectResult::ALL, CONNECT_RESULTS);
const STATES: [&str; PHASES] = labels!(Phase::ALL, PHASES);
const REASONS: [&str; ENDINGS] = labels!(Ending::ALL, ENDINGS);
const SENT_AGAIN: [&str; SEGMENTS] = labels!(Segment::ALL, SEGMENTS);
const WAITED_FOR: [&str; SEGMENTS - 1] = labels!(Segment::ALL, SEGMENTS - 1);
const DIRECTIONS: [&str; 2] = labels!(Direction::ALL, 2);

pub(super) const DOMAIN: Domain = Domain {
    title: "TCP",
    text: "Connections of the container's own sockets. An attempt that still goes on has no result \
           yet and is not counted. A connection on localhost has two ends, and each is one for its \
           container. Of subflows of MPTCP each counts as a connection (before Linux 5.11, none \
           does).",
    families: &[
        Family::counter(
            "podscope_tcp_accepts_total",
            "Incoming connections whose handshake is complete.",
            Container(|c, sheet| sheet.count(&[], c.tcp.accepts)),
        )
        .counted_by(&["tcp"]),
        Family::counter(
            "podscope_tcp_connects_total",
            "Outgoing connections, by how the attempt ended. One that fails before its first packet \
             is `unreachable` for want of a route (as a packet that is lost on the way may make it, \
             too), `no_port` for want of a free port or an address, `denied` if somebody forbids it, \
             or `other`. These are seen by the probe `connect_failure`.",
            Container(|c, sheet| each(sheet, &RESULTS, &c.tcp.connects)),
        )
        .by(&[Label::each("result", &RESULTS)])
        .counted_by(&["tcp"]),
        Family::histogram(
            "podscope_tcp_connect_duration_seconds",
            "Time from the SYN to the established connection, of outgoing connections. Bounds \
             grow by a factor of 4, and so much is the most that a quantile can be off. Exemplar: the \
             slowest lately.",
            Container(|c, sheet| {
                sheet.latency_such_as(&[], &c.tcp.connect_latency, c.slowest_connect);
            }),
        )
        .counted_by(&["tcp"]),
        Family::gauge(
            "podscope_tcp_connections",
            "Connections that there are now: both sides may send (`established`), the peer has \
             closed and the container has not (`close_wait`), the container has closed (`closing`). \
             What is in TIME_WAIT has no socket and is not counted.",
            Container(|c, sheet| each(sheet, &STATES, &c.tcp.open)),
        )
        .by(&[Label::each("state", &STATES)])
        .counted_by(&["tcp"]),
        Family::counter(
            "podscope_tcp_closes_total",
            "Connections that are over: closed in order, reset by the peer, given up since nothing \
             was acknowledged any more (`timed_out`), or reset by the container (`aborted`). With \
             those that there are now, as many as were established and accepted.",
            Container(|c, sheet| each(sheet, &REASONS, &c.tcp.closes)),
        )
        .by(&[Label::each("reason", &REASONS)])
        .counted_by(&["tcp"]),
        Family::histogram(
            "podscope_tcp_rtt_seconds",
            "The kernel's smoothed round-trip time: of each connection once when it is established, \
             and once in each round trip in which the container's data was acknowledged.",
            Container(|c, sheet| sheet.latency(&[], &c.tcp.rtt)),
        )
        .counted_by(&["tcp"]),
        Family::histogram(
            "podscope_tcp_min_rtt_seconds",
            "The least round-trip time of each connection in its last five minutes, at its end.",
            Container(|c, sheet| sheet.latency(&[], &c.tcp.min_rtt)),
        )
        .counted_by(&["tcp"]),
        Family::counter(
            "podscope_tcp_retransmits_total",
            "Segments that were sent once more, as the kernel counts them in `RetransSegs`.",
            Container(|c, sheet| each(sheet, &SENT_AGAIN, &c.tcp.retransmits)),
        )
        .by(&[Label::each("segment", &SENT_AGAIN)])
        .counted_by(&["tcp", "tcp_syn_ack"]),
        Family::counter(
            "podscope_tcp_timeouts_total",
            "How often the retransmission timer went off before there was an acknowledgement, the \
             last time included, after which the connection is given up.",
            Container(|c, sheet| each(sheet, &WAITED_FOR, &c.tcp.timeouts)),
        )
        .by(&[Label::each("segment", &WAITED_FOR)])
        .counted_by(&["tcp"]),
        Family::counter(
            "podscope_tcp_resets_total",
            "Resets that the container's sockets received, of refused connects among others, and \
             sent. Those that the kernel sends where there is no socket, as for a port at which \
             nobody listens, are nobody's. When data comes for a connection that the container has \
             closed, the kernel resets both ends: that is one of each, and the connection was \
             `reset`.",
            Container(|c, sheet| each(sheet, &DIRECTIONS, &c.tcp.resets)),
        )
        .by(&[DIRECTION])
        .counted_by(&["tcp_reset_sent", "tcp_reset_received"]),
    ],
};

/// Adds one series per label.
fn each(sheet: &mut Sheet<'_>, labels: &[&str], counts: &[u64]) {
    for (label, count) in labels.iter().zip(counts) {
        sheet.count(&[label], *count);
    }
}
