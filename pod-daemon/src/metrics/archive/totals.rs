//! Sums over pods that are gone and held no longer.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::row::{self, Kept, Row};
use crate::metrics::{family::Family, other::OTHER};

/// The most namespaces that have sums of their own: a node where each job has a namespace would come to
/// any number.
pub(in crate::metrics) const MOST_NAMESPACES: usize = 100;

/// Sums by namespace.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(from = "BTreeMap<String, StoredTotal>", into = "BTreeMap<String, StoredTotal>")]
pub(in crate::metrics) struct Sums(BTreeMap<String, Total>);

/// Sums of one namespace.
#[derive(Clone, Debug, Default, PartialEq)]
struct Total {
    pods: u64,
    /// When the last of them died; not known of what an earlier version stored.
    last: Option<Timestamp>,
    /// By name of the family, and then by labels.
    sums: BTreeMap<String, BTreeMap<Labels, Kept>>,
}

/// Names and values of labels, in the order of exposition.
type Labels = Vec<(String, String)>;

/// A [`Total`] on disk.
#[derive(Deserialize, Serialize)]
#[serde(default)]
#[derive(Default)]
struct StoredTotal {
    pods: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Timestamp>,
    sums: BTreeMap<String, Vec<(Labels, Kept)>>,
    /// What daemons of the first layout stored, by the name that it has now and the labels.
    #[serde(flatten, skip_serializing)]
    earlier: BTreeMap<String, u64>,
}

/// What daemons of the first layout stored: the name there, the name now, and a label.
type Earlier = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const EARLIER: [Earlier; 7] = [
    ("restarts", "podscope_container_restarts_total", &[]),
    ("execs", "podscope_exec_total", &[]),
    ("exits", "podscope_process_exits_total", &[]),
    ("received_bytes", "podscope_network_bytes_total", &[("direction", "receive")]),
    ("transmitted_bytes", "podscope_network_bytes_total", &[("direction", "transmit")]),
    ("read_bytes", "podscope_file_read_bytes_total", &[]),
    ("written_bytes", "podscope_file_written_bytes_total", &[]),
];

impl Sums {
    /// Adds what is held of a pod that has died at that time. If there are too many namespaces now, the
    /// one whose last pod has died first becomes part of [`OTHER`].
    pub(super) fn add(&mut self, namespace: &str, rows: &[Row], died: Timestamp) {
        self.add_with(namespace, rows, Kept::clone);
        if let Some(total) = self.0.get_mut(namespace) {
            total.last = total.last.max(Some(died));
        }
        self.bound();
    }

    /// Makes one of the namespaces beyond the most that may be, the oldest first.
    fn bound(&mut self) {
        let own = |namespace: &&String| *namespace != OTHER;
        let more = self.0.keys().filter(own).count().saturating_sub(MOST_NAMESPACES);
        for _ in 0..more {
            let own = self.0.iter().filter(|(namespace, _)| own(namespace));
            let Some((oldest, _)) = own.min_by_key(|(_, total)| total.last) else { return };
            let oldest = oldest.clone();
            let total = self.0.remove(&oldest).unwrap_or_default();
            self.0.entry(OTHER.to_owned()).or_default().absorb(total);
        }
    }

    /// Adds what is held of a pod that had no series of its own.
    pub(super) fn add_other(&mut self, rows: &[Row]) {
        self.add_with(OTHER, rows, |value| value.clone().in_steps());
    }

    fn add_with(&mut self, namespace: &str, rows: &[Row], of: fn(&Kept) -> Kept) {
        let total = self.0.entry(namespace.to_owned()).or_default();
        total.pods += 1;
        for row in rows.iter().filter(|row| row::is_summed(row.family())) {
            let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
            total.add(row.family().name, row.summed().map(owned).collect(), &of(&row.value));
        }
    }

    /// Pods by namespace.
    pub(in crate::metrics) fn pods(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(namespace, total)| (&**namespace, total.pods))
    }

    /// Sums of a family with the values of its labels, as pods have them; those that sums have not are
    /// [`OTHER`].
    pub(in crate::metrics) fn of_pods(
        &self,
        family: &'static Family,
    ) -> impl Iterator<Item = (Vec<&str>, &Kept)> {
        self.sums(family).map(|(values, sum)| {
            let summed: Vec<_> = row::summed_labels(family).map(|label| label.name).collect();
            let value = |name| summed.iter().position(|summed| *summed == name);
            let labels = family.labels.iter().map(|label| {
                // Behind the namespace.
                value(label.name).map_or(OTHER, |index| values[index + 1])
            });
            (labels.collect(), sum)
        })
    }

    /// Sums of a family, with the namespace and the values of the labels that its sums have.
    pub(in crate::metrics) fn sums(
        &self,
        family: &'static Family,
    ) -> impl Iterator<Item = (Vec<&str>, &Kept)> {
        self.0.iter().flat_map(|(namespace, total)| {
            let sums = total.sums.get(family.name).into_iter().flatten();
            sums.map(|(labels, sum)| {
                let value = |name: &str| labels.iter().find(|(label, _)| label == name);
                let values = row::summed_labels(family)
                    .map(|label| value(label.name).map_or("", |(_, value)| &**value));
                (std::iter::once(&**namespace).chain(values).collect(), sum)
            })
        })
    }
}

impl Total {
    /// Adds what another namespace has come to.
    fn absorb(&mut self, other: Self) {
        self.pods += other.pods;
        for (name, sums) in other.sums {
            for (labels, value) in sums {
                self.add(&name, labels, &value);
            }
        }
    }

    fn add(&mut self, name: &str, labels: Labels, value: &Kept) {
        let sums = match self.sums.get_mut(name) {
            Some(sums) => sums,
            None => self.sums.entry(name.to_owned()).or_default(),
        };
        match sums.get_mut(&labels) {
            Some(sum) => sum.add(value),
            None => drop(sums.insert(labels, value.clone())),
        }
    }

    fn restored(stored: StoredTotal) -> Self {
        let mut total = Self { pods: stored.pods, last: stored.last, ..Self::default() };
        for (name, sums) in stored.sums {
            let family = row::family(&name);
            for (labels, value) in sums {
                total.add(&name, fitted(family, labels), &value);
            }
        }
        for (earlier, name, labels) in EARLIER {
            if let Some(count) = stored.earlier.get(earlier) {
                let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
                let family = row::family(name);
                let labels = fitted(family, labels.iter().map(own).collect());
                total.add(name, labels, &Kept::Count(*count));
            }
        }
        total
    }
}

/// Labels as the family has them now: two sums that it does not distinguish any more are one.
fn fitted(family: Option<&'static Family>, labels: Labels) -> Labels {
    let Some(family) = family else { return labels };
    let value = |name: &str| labels.iter().find(|(label, _)| label == name);
    row::summed_labels(family)
        .map(|label| {
            let value = value(label.name).map(|(_, value)| value.clone());
            (label.name.to_owned(), value.unwrap_or_default())
        })
        .collect()
}

impl From<BTreeMap<String, StoredTotal>> for Sums {
    fn from(stored: BTreeMap<String, StoredTotal>) -> Self {
        let restore = |(namespace, stored)| (namespace, Total::restored(stored));
        let mut sums = Self(stored.into_iter().map(restore).collect());
        sums.bound();
        sums
    }
}

impl From<Sums> for BTreeMap<String, StoredTotal> {
    fn from(totals: Sums) -> Self {
        let store = |(namespace, total): (String, Total)| {
            let sums = total.sums.into_iter();
            let sums = sums.map(|(name, sums)| (name, sums.into_iter().collect())).collect();
            let Total { pods, last, .. } = total;
            (namespace, StoredTotal { pods, last, sums, ..StoredTotal::default() })
        };
        totals.0.into_iter().map(store).collect()
    }
}
