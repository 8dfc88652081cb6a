//! Packets that the kernel dropped.

use std::collections::BTreeMap;

use super::{
    family::{
        Domain, Family, Label,
        Source::{Container, Pod},
    },
    sheet::Sheet,
};

const REASON: Label = Label::free(
    "reason",
    "what the running kernel calls it (`enum skb_drop_reason`), in lower case; `other` is a \
     subsystem's own",
);

const PROBES: &[&str] = &["packet_drop"];

pub(super) const DOMAIN: Domain = Domain {
    title: "Dropped packets",
    text: "Packets of IPv4 and IPv6 that the kernel gave up, wherever that was, by the reason that \
           it names itself (Linux 5.17 and later): `socket_rcvbuff` is a program that does not read \
           fast enough, `no_socket` a port at which nobody listens, `netfilter_drop` a firewall. \
           `not_specified` need not be a loss: so the kernel frees what it has done with in places \
           where nobody has named a reason, such as the last packet of a connection in TIME_WAIT. A \
           packet may be up to 64 KiB, with segmentation offload. A reason has a series from its \
           first packet on.",
    families: &[
        Family::counter(
            "podscope_pod_dropped_packets_total",
            "Packets of the pod's sockets, and others that were dropped in its network namespace. \
             With `hostNetwork`, of its sockets alone.",
            Pod(|pod, sheet| {
                let mut sums = BTreeMap::new();
                for container in &pod.containers {
                    let drops = &container.drops;
                    for (reason, count) in drops.of_sockets.iter().chain(&drops.of_network) {
                        *sums.entry(*reason).or_default() += count;
                    }
                }
                by_reason(sheet, &sums);
            }),
        )
        .by(&[REASON])
        .counted_by(PROBES),
        Family::counter(
            "podscope_network_dropped_packets_total",
            "Those of them of which it is known that a socket of the container has sent them or was \
             to receive them. Before Linux 6.11 only UDP tells the latter.",
            Container(|c, sheet| by_reason(sheet, &c.drops.of_sockets)),
        )
        .by(&[REASON])
        .counted_by(PROBES),
    ],
};

fn by_reason(sheet: &mut Sheet<'_>, counts: &BTreeMap<&'static str, u64>) {
    for (reason, count) in counts {
        sheet.count(&[reason], *count);
    }
}
