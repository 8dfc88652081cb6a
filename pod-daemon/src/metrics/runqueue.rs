//! Waiting for a CPU.

use pod_ebpf::runqueue::{HOLDERS, Holder};

use super::family::{Domain, Family, Label, Source::Container, labels};

const BY: [&str; HOLDERS] = labels!(Holder::ALL, HOLDERS);

pub(super) const DOMAIN: Domain = Domain {
    title: "Waiting for a CPU",
    text: "From the moment that a thread can run, since it was woken up or had to give way, until \
           it does. Only with `--probe-runqueue=on`. The sum is what the kernel adds up for the \
           same threads in `/proc/PID/schedstat`.",
    families: &[
        Family::histogram(
            "podscope_runqueue_latency_seconds",
            "How long threads waited for a CPU.",
            Container(|c, sheet| sheet.latency(&[], &c.runqueue.latency)),
        )
        .counted_by(&["runqueue"]),
        Family::counter(
            "podscope_runqueue_wait_seconds_total",
            "The same time by who had the CPU: nobody could, since the CPU limit of the container \
             or its pod was used up (`own_throttle`); a thread of the same pod, maybe of the same \
             container; of another pod; of no pod (`host`); nobody, while the CPU came out of \
             idling (`idle`). For a thread that is moved while it waits, that is who had the CPU that \
             it ran on before. `unknown` is what is longer ago than the last 32 times that a CPU \
             went from one pod to another, and what a new thread waits before it is moved.",
            Container(|c, sheet| {
                for (holder, nanoseconds) in Holder::ALL.into_iter().zip(c.runqueue.wait_ns) {
                    sheet.value(&[holder.label()], nanoseconds as f64 / 1e9);
                }
            }),
        )
        .by(&[Label::each("by", &BY)])
        .counted_by(&["runqueue"]),
    ],
};
