//! Bytes and packets.

use pod_ebpf::{
    Direction,
    net::{FAMILIES, Family as Protocol, NetStats, SCOPES, Scope, Traffic},
};

use super::{
    family::{
        Domain, Family, Label,
        Source::{Container, Node, Pod},
        labels,
    },
    sheet::Sheet,
};

pub(super) const DIRECTION: Label =
    Label::each("direction", &[Direction::ALL[0].label(), Direction::ALL[1].label()]);

const FAMILY_LABELS: [&str; FAMILIES] = [Protocol::Ipv4.label(), Protocol::Ipv6.label()];

const SCOPE_LABELS: [&str; SCOPES] = labels!(Scope::ALL, SCOPES);

const FAMILY: Label = Label::each("family", &FAMILY_LABELS);
const SCOPE: Label = Label::each("scope", &SCOPE_LABELS);

pub(super) const PROBES: &[&str] = &["network_receive", "network_transmit"];

pub(super) const NETWORK: Domain = Domain {
    title: "Network",
    text: "Counted at the container's own sockets: containers of one pod share its network \
           namespace and are told apart all the same, and connections between them on localhost \
           count as well. Lengths include the IP header, and not that of the link. `family` is the \
           packet's. `scope` says who is at the other end: `loopback`, what goes over the pod's own \
           `lo`; `pod`, another address of the pods' network; `node`, one of the node's own \
           addresses; `external`, everybody else. `ipv4` and `external` have series from the start; \
           others appear with their first packet, so use `sum by (...)`.",
    families: &[
        Family::counter(
            "podscope_network_bytes_total",
            "Bytes received and sent, from the IP header on.",
            Container(|c, sheet| traffic(sheet, &c.net, |traffic| traffic.bytes)),
        )
        .by(&[DIRECTION, FAMILY, SCOPE])
        .counted_by(PROBES),
        Family::counter(
            "podscope_network_packets_total",
            "Packets as the sockets see them: with segmentation offload, up to 64 KiB each.",
            Container(|c, sheet| traffic(sheet, &c.net, |traffic| traffic.packets)),
        )
        .by(&[DIRECTION, FAMILY, SCOPE])
        .counted_by(PROBES),
        Family::counter(
            "podscope_network_segments_total",
            "Packets as a wire sees them, but for IP fragments: what is sent or received in several is \
             one.",
            Container(|c, sheet| traffic(sheet, &c.net, Traffic::segments)),
        )
        .by(&[DIRECTION, FAMILY, SCOPE])
        .counted_by(PROBES),
        Family::counter(
            "podscope_udp_bytes_total",
            "Bytes received and sent by UDP, from the IP header on; they are part of \
             `podscope_network_bytes_total`.",
            Container(|c, sheet| {
                for (direction, udp) in Direction::ALL.into_iter().zip(c.net.udp) {
                    sheet.count(&[direction.label()], udp.bytes);
                }
            }),
        )
        .by(&[DIRECTION])
        .counted_by(PROBES),
        Family::counter(
            "podscope_udp_datagrams_total",
            "UDP datagrams received and sent, each of them also where the kernel handles several \
             as one.",
            Container(|c, sheet| {
                for (direction, udp) in Direction::ALL.into_iter().zip(c.net.udp) {
                    sheet.count(&[direction.label()], udp.datagrams);
                }
            }),
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

/// Adds the series of what there was, and one per direction in any case.
fn traffic(sheet: &mut Sheet<'_>, net: &NetStats, count: impl Fn(&Traffic) -> u64) {
    for direction in Direction::ALL {
        for family in Protocol::ALL {
            for scope in Scope::ALL {
                let traffic = net.traffic(direction, family, scope);
                let always = (family, scope) == (Protocol::Ipv4, Scope::External);
                if always || traffic.packets > 0 {
                    let labels = [direction.label(), family.label(), scope.label()];
                    sheet.count(&labels, count(traffic));
                }
            }
        }
    }
}
