//! `__other__`: what the pods have come to that have no series of their own.
//!
//! Pods come and go, and the sum must not drop: not when a pod that was read is held, nor when what is
//! held is added to what is stored. Whole numbers are the same in whatever order they are added, and
//! fractions are rounded down to a step so small, and so much a power of two, that they are, too.

use std::collections::HashMap;

use super::{
    DOMAINS,
    archive::Kept,
    base::Base,
    family::{Family, Kind, Part, Source},
    of_domains,
    reading::Reading,
    sheet::{Series, Shape, Sheet, Sink},
};

/// Stands for every namespace, pod, container and volume; no name in a manifest can be that.
pub(super) const OTHER: &str = "__other__";

/// What a pod's share of the probes' time is called: the ledger knows the sum.
const COST: &str = "podscope_bpf_pod_seconds_total";

/// Sums by name of the family.
#[derive(Default)]
pub(super) struct Other(HashMap<String, Vec<Sum>>);

struct Sum {
    /// Values of the family's own labels.
    labels: Vec<String>,
    value: Kept,
}

impl Other {
    /// Adds up what was read of the living, what is held of the dead, and what is stored.
    pub(super) fn of(reading: &Reading) -> Self {
        let mut other = Self::default();
        let others = &reading.others;
        if others.folded == 0 {
            return other;
        }
        let families = of_domains(&DOMAINS).filter(|family| family.is_summable());
        for family in families.filter(|family| !matches!(family.source, Source::Node(_))) {
            let shape = family.shape();
            let part: Part<'_> = &mut |base, write| write(&mut Sheet::new(shape, base, &mut other));
            for pod in reading.pods.iter().filter(|pod| pod.is_other) {
                family.source.each_of(pod, part);
            }
            // What says what a pod was is not added up of those that are gone.
            if family.kind == Kind::Gauge {
                continue;
            }
            others.held.iter().for_each(|pod| pod.write(family, part));
            for (labels, value) in others.ended.of_pods(family) {
                other.add(family.name, &labels, value);
            }
        }
        other.add(COST, &[], &Kept::Number(reading.attributed.other));
        other
    }

    /// Writes the sums of one family.
    pub(super) fn write(&self, family: &Family, part: Part<'_>) {
        let base = &[OTHER; 3][..family.shape().implied.len()];
        for sum in self.0.get(family.name).into_iter().flatten() {
            part(Base::Values(base), &|sheet| {
                sum.value.with(family.kind, |value| {
                    let labels: Vec<&str> = sum.labels.iter().map(String::as_str).collect();
                    sheet.add(&labels, value);
                });
            });
        }
    }

    fn add(&mut self, family: &str, labels: &[&str], value: &Kept) {
        let sums = match self.0.get_mut(family) {
            Some(sums) => sums,
            None => self.0.entry(family.to_owned()).or_default(),
        };
        match sums.iter_mut().find(|sum| sum.labels == labels) {
            Some(sum) => sum.value.add(value),
            None => sums.push(Sum {
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
                value: value.clone(),
            }),
        }
    }
}

impl Sink for Other {
    fn begin(&mut self, _shape: &Shape<'_>) {}

    fn series(&mut self, shape: &Shape<'_>, series: &Series<'_>) {
        let labels = shape.labels.iter().zip(series.own);
        let labels: Vec<&str> = labels
            .map(|(label, value)| if label.is_open(shape.kind) { OTHER } else { value })
            .collect();
        let value = Kept::of(series.value);
        let value = if shape.kind == Kind::Counter { value.in_steps() } else { value };
        self.add(shape.name, &labels, &value);
    }

    fn end(&mut self, _shape: &Shape<'_>) {}
}
