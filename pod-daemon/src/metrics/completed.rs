//! Totals of pods that are no more, so that the sum over a namespace never drops.

use pod_ebpf::Direction;

use super::{
    family::{Domain, Family, Label, Source::Node},
    net::DIRECTION,
    reading::Reading,
    sheet::Sheet,
};
use crate::node::Completed;

const NAMESPACE: Label = Label::free("namespace", "namespace of the pods");

pub(super) const DOMAIN: Domain = Domain {
    title: "Deleted pods",
    text: "The series of a pod go when the pod is deleted, and its final counts are added here, so \
           that `sum(podscope_exec_total) + (sum(podscope_completed_exec_total) or vector(0))` \
           never drops.",
    families: &[
        Family::counter(
            "podscope_completed_pods_total",
            "Pods that were deleted.",
            Node(|reading, sheet| each(reading, sheet, |completed| completed.pods)),
        )
        .by(&[NAMESPACE]),
        Family::counter(
            "podscope_completed_restarts_total",
            "Container restarts in deleted pods.",
            Node(|reading, sheet| each(reading, sheet, |completed| completed.restarts)),
        )
        .by(&[NAMESPACE]),
        Family::counter(
            "podscope_completed_exec_total",
            "Programs that were started in deleted pods.",
            Node(|reading, sheet| each(reading, sheet, |completed| completed.execs)),
        )
        .by(&[NAMESPACE]),
        Family::counter(
            "podscope_completed_process_exits_total",
            "Processes that ended in deleted pods, by themselves or by a signal.",
            Node(|reading, sheet| each(reading, sheet, |completed| completed.exits)),
        )
        .by(&[NAMESPACE]),
        Family::counter(
            "podscope_completed_file_read_bytes_total",
            "Bytes that deleted pods read from regular files.",
            Node(|reading, sheet| each(reading, sheet, |completed| completed.read_bytes)),
        )
        .by(&[NAMESPACE]),
        Family::counter(
            "podscope_completed_file_written_bytes_total",
            "Bytes that deleted pods wrote to regular files.",
            Node(|reading, sheet| each(reading, sheet, |completed| completed.written_bytes)),
        )
        .by(&[NAMESPACE]),
        Family::counter(
            "podscope_completed_network_bytes_total",
            "Bytes that deleted pods received and sent.",
            Node(|reading, sheet| {
                for (namespace, completed) in &reading.completed {
                    let bytes = [completed.received_bytes, completed.transmitted_bytes];
                    for (direction, bytes) in Direction::ALL.into_iter().zip(bytes) {
                        sheet.count(&[namespace, direction.label()], bytes);
                    }
                }
            }),
        )
        .by(&[NAMESPACE, DIRECTION]),
    ],
};

fn each(reading: &Reading, sheet: &mut Sheet<'_>, count: impl Fn(&Completed) -> u64) {
    for (namespace, completed) in &reading.completed {
        sheet.count(&[namespace], count(completed));
    }
}
