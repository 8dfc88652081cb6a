//! Pods that are gone: held for a while, then summed, so that the sum over a namespace never drops.

use std::collections::BTreeMap;

use super::{
    family::{
        Domain, Family, Label,
        Source::{Node, Pod},
    },
    pod::seconds,
};

const NAMESPACE: Label = Label::free("namespace", "namespace of the pods");

pub(super) const DOMAIN: Domain = Domain {
    title: "Deleted pods",
    text: "When the last process of a deleted pod is dead, and before its cgroups and counters go, its \
           series are read once more. They stay, at these values, for `--hold-seconds` (5 minutes) \
           and until a scrape that began after the end of the pod has shown them, so every server \
           whose interval is shorter than that sees every pod, however short it lived. Of its gauges only those stay \
           that say what it was (`_info`, timestamps, exits, peaks); what is no more has no series. \
           Then every counter and histogram of its containers is added to a total of its namespace, without \
           the label `volume`, so that \
           `(sum(podscope_exec_total) or vector(0)) + (sum(podscope_completed_exec_total) or vector(0))` never \
           drops: neither then, nor when the daemon is killed and started again. A pod that is \
           followed by another of the same name is added at once, and so are the oldest when \
           more than 4,096 are held, or more than 100,000 of their series. Totals appear with the first pod that is added. \
           Of more than 100 namespaces, the one where pods have ended for the longest time becomes part of \
           `__other__`, so sums over all namespaces do not drop; if pods end there again, it begins anew.\n\n\
           A container that restarts goes on counting where it was. A daemon whose counters have another layout \
           than those of the one before it (`podscope_probe_object_info{origin=\"replaced\"}`) counts \
           the pods that run from 0 again; what is held or added is stored by name, and goes on.",
    families: &[
        Family::gauge(
            "podscope_pod_deleted_timestamp_seconds",
            "When the pod was read for the last time, as a Unix time; absent while it is there.",
            Pod(|pod, sheet| {
                if let Some(deleted) = pod.deleted {
                    sheet.value(&[], seconds(deleted));
                }
            }),
        )
        .kept()
        .never_summed(),
        Family::gauge(
            "podscope_held_pods",
            "Pods that are gone and whose series are not.",
            Node(|reading, sheet| sheet.count(&[], reading.held.len() as u64)),
        ),
        Family::counter(
            "podscope_held_pods_folded_early_total",
            "Pods that were held for less than their time since there were too many.",
            Node(|reading, sheet| sheet.count(&[], reading.folded_early)),
        ),
        Family::counter(
            "podscope_completed_pods_total",
            "Pods that were deleted and are held no longer.",
            Node(|reading, sheet| {
                let mut sums = BTreeMap::<_, u64>::new();
                for (namespace, pods) in reading.completed.pods().chain(reading.others.ended.pods())
                {
                    *sums.entry(namespace).or_default() += pods;
                }
                for (namespace, pods) in sums {
                    sheet.count(&[namespace], pods);
                }
            }),
        )
        .by(&[NAMESPACE]),
    ],
};
