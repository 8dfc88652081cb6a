//! Amounts of what pods use: what `resources` of a container or pod says, as numbers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::quantity::{Error, bytes, millicores};

/// The resource that limits how many processes a container may have.
pub const PIDS: &str = "podscope.dev/pids";

/// What a container or pod writes beside its disk volumes' owners: its root, logs and `emptyDir`s.
pub(super) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// Sizes of huge pages that some Linux has, the smallest first.
pub const HUGE_PAGES: [HugePages; 4] = [
    HugePages { resource: "hugepages-64Ki", bytes: 64 << 10 },
    HugePages { resource: "hugepages-2Mi", bytes: 2 << 20 },
    HugePages { resource: "hugepages-32Mi", bytes: 32 << 20 },
    HugePages { resource: "hugepages-1Gi", bytes: 1 << 30 },
];

/// Limits of block devices, in the order of [`Amounts::io`]: bytes and operations per second.
pub const IO: [&str; 4] = [
    "podscope.dev/io-read-bps",
    "podscope.dev/io-write-bps",
    "podscope.dev/io-read-iops",
    "podscope.dev/io-write-iops",
];

/// Every resource that a manifest may name.
pub(super) const NAMES: &[&str] = &[
    "cpu",
    "memory",
    EPHEMERAL_STORAGE,
    PIDS,
    HUGE_PAGES[0].resource,
    HUGE_PAGES[1].resource,
    HUGE_PAGES[2].resource,
    HUGE_PAGES[3].resource,
    IO[0],
    IO[1],
    IO[2],
    IO[3],
];

/// A size of huge pages.
#[derive(Clone, Copy, Debug)]
pub struct HugePages {
    /// Its name as a resource.
    pub resource: &'static str,
    /// Bytes of one page.
    pub bytes: u64,
}

/// What a container or pod may use, or asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu_millicores: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// Bytes on disk.
    pub ephemeral_bytes: Option<u64>,
    /// Bytes of huge pages, in the order of [`HUGE_PAGES`].
    pub huge_pages: [Option<u64>; HUGE_PAGES.len()],
    /// Limits of block devices, in the order of [`IO`].
    pub io: [Option<u64>; IO.len()],
}

impl Amounts {
    /// Reads what a manifest says.
    pub fn read(quantities: Option<&BTreeMap<String, Quantity>>) -> Result<Self, Error> {
        let number = |resource: &str, parse: fn(&Quantity) -> Result<u64, Error>| {
            quantities.and_then(|quantities| quantities.get(resource)).map(parse).transpose()
        };
        let mut amounts = Self {
            cpu_millicores: number("cpu", millicores)?,
            memory_bytes: number("memory", bytes)?,
            pids: number(PIDS, bytes)?,
            ephemeral_bytes: number(EPHEMERAL_STORAGE, bytes)?,
            ..Self::default()
        };
        for (amount, size) in amounts.huge_pages.iter_mut().zip(HUGE_PAGES) {
            *amount = number(size.resource, bytes)?;
        }
        for (amount, name) in amounts.io.iter_mut().zip(IO) {
            *amount = number(name, bytes)?;
        }
        Ok(amounts)
    }

    /// Combines both amount by amount.
    #[must_use]
    pub fn zip(self, other: Self, with: impl Fn(Option<u64>, Option<u64>) -> Option<u64>) -> Self {
        let mut zipped = Self {
            cpu_millicores: with(self.cpu_millicores, other.cpu_millicores),
            memory_bytes: with(self.memory_bytes, other.memory_bytes),
            pids: with(self.pids, other.pids),
            ephemeral_bytes: with(self.ephemeral_bytes, other.ephemeral_bytes),
            ..self
        };
        for (amount, other) in zipped.huge_pages.iter_mut().zip(other.huge_pages) {
            *amount = with(*amount, other);
        }
        for (amount, other) in zipped.io.iter_mut().zip(other.io) {
            *amount = with(*amount, other);
        }
        zipped
    }

    /// What this one says, or else what `other` says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.zip(other, Option::or)
    }

    /// The sum of both, where what only one of them has counts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        })
    }

    /// The sum of both, where what only one of them has is unlimited.
    #[must_use]
    pub fn plus_limits(self, other: Self) -> Self {
        self.zip(other, |a, b| Some(a?.saturating_add(b?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_is_read_in_its_unit() {
        let quantities: BTreeMap<String, Quantity> =
            NAMES.iter().map(|name| ((*name).to_owned(), Quantity("2".to_owned()))).collect();
        let amounts = Amounts::read(Some(&quantities)).unwrap();
        assert_eq!(amounts.cpu_millicores, Some(2000));
        let rest = Amounts { cpu_millicores: Some(2), ..amounts };
        let two = Some(2);
        let expected = Amounts {
            cpu_millicores: two,
            memory_bytes: two,
            pids: two,
            ephemeral_bytes: two,
            huge_pages: [two; 4],
            io: [two; 4],
        };
        assert_eq!(rest, expected);
    }

    #[test]
    fn a_sum_of_limits_with_an_unlimited_part_is_unlimited() {
        let limited = Amounts { memory_bytes: Some(2), pids: Some(3), ..Amounts::default() };
        let other = Amounts { memory_bytes: Some(5), ..Amounts::default() };
        assert_eq!(limited.plus_limits(other).memory_bytes, Some(7));
        assert_eq!(limited.plus_limits(other).pids, None);
        assert_eq!(limited.plus(other).pids, Some(3));
    }
}
