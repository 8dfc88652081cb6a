//! Interfaces of the pods.

use super::{
    Source::{self, Cgroup},
    interface::Interface,
    reading,
};
use crate::metrics::{
    family::{Domain, Family, Label},
    sheet::Sheet,
};

const INTERFACE: Label =
    Label::free("interface", "name in the pod's network namespace; at most 8 are shown");

pub(super) const DOMAIN: Domain<Source> = Domain {
    title: "Network",
    text: "The interfaces of the pod's network namespace, from its infra program's `/proc/PID/net/dev`, \
           with that program's labels: `container` is empty and `image` is not, as with containerd. \
           Lengths include the link's header. `lo` is not shown. A pod with `hostNetwork` has no \
           such series, as its interfaces are the node's. A new infra program has a new namespace, \
           where all begins at 0.",
    families: &[
        Family::counter(
            "container_network_receive_bytes_total",
            "Bytes that were received.",
            Cgroup(|c, sheet| each(sheet, c, |interface| interface.received.bytes)),
        )
        .by(&[INTERFACE]),
        Family::counter(
            "container_network_receive_packets_total",
            "Packets that were received.",
            Cgroup(|c, sheet| each(sheet, c, |interface| interface.received.packets)),
        )
        .by(&[INTERFACE]),
        Family::counter(
            "container_network_receive_packets_dropped_total",
            "Packets that were dropped instead of being received.",
            Cgroup(|c, sheet| each(sheet, c, |interface| interface.received.dropped)),
        )
        .by(&[INTERFACE]),
        Family::counter(
            "container_network_receive_errors_total",
            "Packets that could not be received.",
            Cgroup(|c, sheet| each(sheet, c, |interface| interface.received.errors)),
        )
        .by(&[INTERFACE]),
        Family::counter(
            "container_network_transmit_bytes_total",
            "Bytes that were sent.",
            Cgroup(|c, sheet| each(sheet, c, |interface| interface.transmitted.bytes)),
        )
        .by(&[INTERFACE]),
        Family::counter(
            "container_network_transmit_packets_total",
            "Packets that were sent.",
            Cgroup(|c, sheet| each(sheet, c, |interface| interface.transmitted.packets)),
        )
        .by(&[INTERFACE]),
        Family::counter(
            "container_network_transmit_packets_dropped_total",
            "Packets that were dropped instead of being sent.",
            Cgroup(|c, sheet| each(sheet, c, |interface| interface.transmitted.dropped)),
        )
        .by(&[INTERFACE]),
        Family::counter(
            "container_network_transmit_errors_total",
            "Packets that could not be sent.",
            Cgroup(|c, sheet| each(sheet, c, |interface| interface.transmitted.errors)),
        )
        .by(&[INTERFACE]),
    ],
};

fn each(sheet: &mut Sheet<'_>, cgroup: &reading::Cgroup, value: impl Fn(&Interface) -> u64) {
    for interface in &cgroup.interfaces {
        sheet.count(&[&interface.name], value(interface));
    }
}
