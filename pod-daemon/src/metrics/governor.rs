//! What optional probes may cost.

use super::family::{Domain, Family, Label, Source::Node};

const PROBE: Label = Label::free("probe", "name of the optional probe");

pub(super) const DOMAIN: Domain = Domain {
    title: "The budget of optional probes",
    text: "Shares are of all CPUs of the node together, by the kernel's own account of the \
           programs' run time, or samples of it. If all optional probes together take more than \
           `--probe-budget` for three intervals of 5 s on end, the most costly is detached, and \
           stays so until the daemon is started with another budget, or the node reboots.",
    families: &[
        Family::gauge(
            "podscope_probe_budget_ratio",
            "Share of the CPUs that optional probes may take together; 0 is any.",
            Node(|reading, sheet| sheet.value(&[], reading.governed.budget)),
        ),
        Family::gauge(
            "podscope_probe_cpu_ratio",
            "Share of the CPUs that an optional probe took in the last interval; absent while it \
             does not run.",
            Node(|reading, sheet| {
                for probe in &reading.governed.probes {
                    if let Some(share) = probe.share {
                        sheet.value(&[probe.probe], share);
                    }
                }
            }),
        )
        .by(&[PROBE]),
        Family::gauge(
            "podscope_probe_switched_off",
            "1 for an optional probe that was switched off since it cost too much, else 0.",
            Node(|reading, sheet| {
                for probe in &reading.governed.probes {
                    sheet.count(&[probe.probe], probe.switched_off.into());
                }
            }),
        )
        .by(&[PROBE]),
    ],
};
