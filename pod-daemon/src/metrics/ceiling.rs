//! How many series pods have, and how many they may have.

use super::family::{Domain, Family, Source::Node};

pub(super) const DOMAIN: Domain = Domain {
    title: "The ceiling",
    text: "Series that have a label `pod` are never more than `--max-series` (1,500,000 unless it is \
           set, which is more than 1,000 pods of one container and one volume can come to; 0 is any \
           number). A pod has series of its own if the most that it can come to, as above and with \
           all signals and reasons, is left below the ceiling when it is first seen: by a scrape, or at its end. \
           It keeps them for as long as it lives and is held, and gives them up only when a daemon \
           starts that has a lower ceiling. For whom there is no room, the oldest pods that are held go \
           first, and are added to the totals of their namespaces before their time \
           (`podscope_held_pods_folded_early_total`). If that is not enough, the newcomer is folded \
           into `__other__`, for as long as it lives and whatever room there is later: it adds to \
           series of the same names whose `namespace`, `pod`, `container`, `volume`, and other labels \
           that are not from a list below, are `__other__`. So a sum over all pods misses none of them.\n\n\
           Counters and histograms of `__other__` do not drop when a pod ends: what it came to \
           stays there, and is in no total of its namespace; the daemon that is killed tells the \
           next one. Times in seconds are rounded down to 2^-20 s for each of its pods, so that sums do not \
           depend on their order. Gauges are the sums over its living pods, so `_info` and states are how \
           many there are. Points in time, exit codes, and what the kernel counts for a network \
           namespace are not in `__other__`, since a sum of them says nothing or would drop. \
           /metrics/cadvisor has no ceiling.",
    families: &[
        Family::gauge(
            "podscope_series_ceiling",
            "The most series that pods may have (`--max-series`); absent where there is no limit.",
            Node(|reading, sheet| {
                if reading.others.ceiling > 0 {
                    sheet.count(&[], reading.others.ceiling as u64);
                }
            }),
        ),
        Family::gauge(
            "podscope_series_reserved",
            "What counts against it: the most that the living pods with series of their own can come \
             to, the series of those that are held, and the most that `__other__` can have.",
            Node(|reading, sheet| sheet.count(&[], reading.others.reserved as u64)),
        ),
        Family::gauge(
            "podscope_series",
            "Series on this page that have a label `pod`, as Prometheus counts them: a histogram is \
             one for each bound, the sum and the count.",
            Node(|reading, sheet| sheet.count(&[], reading.series.get() as u64)),
        ),
        Family::counter(
            "podscope_pods_folded_total",
            "Pods that were folded into `__other__`, whether they live or not; those that are gone are \
             among `podscope_completed_pods_total{namespace=\"__other__\"}`.",
            Node(|reading, sheet| sheet.count(&[], reading.others.folded)),
        ),
    ],
};
