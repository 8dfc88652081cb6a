//! A pod that has every metric, for tests.

use jiff::Timestamp;

use super::{
    interface::{Counters, Interface},
    machine::Machine,
    reading::{Cgroup, Reading},
};
use crate::{
    cgroup::stats::{Details, Io, Settings},
    metrics,
};

/// A node with a pod of one container.
pub(super) fn reading() -> Reading {
    let machine = Machine {
        cpus: 4,
        memory_bytes: 1 << 30,
        boot_id: "boot".to_owned(),
        kernel: "6.18.0".to_owned(),
        system: "Debian \"13\"".to_owned(),
    };
    let mut infra = cgroup("", "/podscope/u/_infra", "podscope.dev/pause:1", "u");
    let counters = Counters { bytes: 300, packets: 3, errors: 1, dropped: 2 };
    infra.interfaces = ["eth0", "a\"b"]
        .map(|name| Interface { name: name.to_owned(), received: counters, transmitted: counters })
        .to_vec();
    let pod = cgroup("", "/podscope/u", "", "");
    let container = cgroup("app", "/podscope/u/app", "oci:/web:1", "c1");
    Reading::new(machine, vec![vec![pod, infra, container]])
}

fn cgroup(container: &str, id: &str, image: &str, name: &str) -> Cgroup {
    let io = Io { read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
    let settings = Settings {
        cpu_weight: Some(1),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(100_000),
        memory_max: Some(1 << 20),
        memory_min: Some(0),
        memory_swap_max: Some(0),
        pids_max: Some(0),
    };
    Cgroup {
        labels: [container, id, image, name, "default", "web"].map(str::to_owned),
        details: Details {
            stats: metrics::sample::cgroup(),
            settings,
            devices: vec![("4095:1".to_owned(), io), ("4095:2".to_owned(), io)],
            processes: Some(2),
        },
        is_container: !container.is_empty(),
        started: Timestamp::UNIX_EPOCH,
        seen: Timestamp::UNIX_EPOCH,
        interfaces: Vec::new(),
    }
}
