//! Dropped packets: whose they are when no socket tells, and what the kernel calls its reasons.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::LazyLock,
};

use aya::maps::HashMap;
use pod_ebpf::drops::{DropStats, OTHER};

use super::{
    Data, Error,
    btf::{self, Btf},
    open,
};

/// The kernel's type of the reasons, and what the names of its values begin with.
const REASON: &str = "skb_drop_reason";
const PREFIX: &str = "SKB_DROP_REASON_";

/// Reasons that are none: the kernel has not been told one.
const UNKNOWN: [&str; 2] = ["SKB_NOT_DROPPED_YET", "SKB_DROP_REASON_NOT_SPECIFIED"];

/// What was not dropped, but has got to where it was to go.
const CONSUMED: &str = "SKB_CONSUMED";

/// What reasons are called by their number; the empty name is that of what is none.
static NAMES: LazyLock<BTreeMap<u32, String>> = LazyLock::new(|| {
    let reasons = Btf::from_kernel().and_then(|kernel| kernel.enumerators(REASON));
    let reasons = reasons.inspect_err(|error| tracing::warn!(%error, "reasons have no names"));
    names(&reasons.unwrap_or_default())
});

/// The kernel's number of a reason, such as `SOCKET_RCVBUFF`; one that none has if it has no such reason.
pub(super) fn reason(kernel: &Btf, name: &str) -> Result<u32, btf::Error> {
    let reasons = kernel.enumerators(REASON)?;
    let found = reasons.iter().find(|(_, known)| known.strip_prefix(PREFIX) == Some(name));
    Ok(found.map_or(u32::MAX, |(number, _)| *number))
}

/// Packets of a slot's container that were dropped, by what the kernel calls the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Of its own sockets.
    pub of_sockets: BTreeMap<&'static str, u64>,
    /// Of no container's, in the pod's network namespace: of those that are counted here.
    pub of_network: BTreeMap<&'static str, u64>,
}

impl Drops {
    pub(super) fn of(stats: &DropStats) -> Self {
        Self { of_sockets: by_name(&stats.of_sockets), of_network: by_name(&stats.of_network) }
    }
}

fn by_name(counts: &[u64]) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (index, count) in (0..).zip(counts).filter(|(_, count)| **count > 0) {
        let name = NAMES.get(&index).map_or("other", String::as_str);
        if !name.is_empty() {
            *sums.entry(name).or_default() += count;
        }
    }
    sums
}

fn names(reasons: &[(u32, String)]) -> BTreeMap<u32, String> {
    let name = |kernels: &str| match kernels {
        CONSUMED => String::new(),
        unknown if UNKNOWN.contains(&unknown) => "not_specified".to_owned(),
        named => named.strip_prefix(PREFIX).unwrap_or(named).to_lowercase(),
    };
    let told = reasons.iter().filter(|(number, _)| *number < OTHER);
    told.map(|(number, kernels)| (*number, name(kernels))).collect()
}

/// The map of the pods' network namespaces.
pub(super) struct Networks {
    map: HashMap<Data, u32, u32>,
    /// Those of an earlier daemon that no pod has claimed yet.
    unclaimed: HashSet<u32>,
}

impl Networks {
    /// Opens the map, which may hold what an earlier daemon has told.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let map: HashMap<Data, u32, u32> = open(folder, "NETWORKS", aya::maps::Map::HashMap)?;
        let unclaimed = map.keys().filter_map(Result::ok).collect();
        Ok(Self { map, unclaimed })
    }

    /// Counts for `slot` what is dropped in the namespace with this inode.
    pub(super) fn insert(&mut self, inode: u32, slot: u32) -> Result<(), Error> {
        self.unclaimed.remove(&inode);
        self.map
            .insert(&inode, &slot, 0)
            .map_err(|source| Error::Map { action: "insert a pod's network", source })
    }

    pub(super) fn remove(&mut self, inode: u32) {
        self.map.remove(&inode).ok();
    }

    /// Removes what no pod has claimed.
    pub(super) fn forget_unclaimed(&mut self) {
        for inode in self.unclaimed.drain() {
            self.map.remove(&inode).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use pod_ebpf::drops::REASONS;

    use super::*;

    #[test]
    fn reasons_have_the_kernels_names() {
        let reasons = [
            (0, "SKB_NOT_DROPPED_YET"),
            (1, "SKB_CONSUMED"),
            (2, "SKB_DROP_REASON_NOT_SPECIFIED"),
            (3, "SKB_DROP_REASON_NO_SOCKET"),
            (159, "SKB_DROP_REASON_OF_A_LATER_KERNEL"),
            (0xffff_0000, "SKB_DROP_REASON_SUBSYS_MASK"),
        ];
        let names = names(&reasons.map(|(value, name)| (value, name.to_owned())));

        let expected = [(0, "not_specified"), (1, ""), (2, "not_specified"), (3, "no_socket")];
        assert_eq!(names, expected.map(|(number, name)| (number, name.to_owned())).into());
    }

    #[test]
    fn this_kernels_reasons_are_counted_by_name() {
        let mut stats = DropStats::ZERO;
        stats.of_sockets = [1; REASONS as usize];
        let drops = Drops::of(&stats);

        assert_eq!(drops.of_sockets["no_socket"], 1);
        assert_eq!(drops.of_sockets["socket_rcvbuff"], 1);
        assert_eq!(drops.of_sockets["not_specified"], 2);
        assert!(drops.of_sockets["other"] > 0);
        assert!(!drops.of_sockets.contains_key(""), "consumed is not dropped");
        assert_eq!(drops.of_network, BTreeMap::new());
        let kernel = Btf::from_kernel().unwrap();
        let number = reason(&kernel, "NO_SOCKET").unwrap();
        assert_eq!(NAMES[&number], "no_socket");
        assert_eq!(reason(&kernel, "PODSCOPE").unwrap(), u32::MAX);
    }
}
