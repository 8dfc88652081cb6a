//! What pods use at the moment: two readings of the cgroup files and a division.

use std::{collections::HashMap, time::Duration};

use pod_ebpf::{Direction, NO_SLOT, net::NetStats};
use tokio::time::{Instant, sleep};

use super::{ContainerSnapshot, ContainerUsage, Node, PodUsage};
use crate::{
    cgroup::{Cgroup, stats},
    probes::Probes,
};

/// Time between the two readings.
const INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn usage(node: &Node, namespace: Option<&str>) -> Vec<PodUsage> {
    let cpu_of = |node: &Node| -> HashMap<u32, u64> {
        node.snapshot()
            .iter()
            .flat_map(|pod| &pod.containers)
            .filter_map(|container| Some((container.slot, cpu_us(container.cgroup.as_deref()?)?)))
            .collect()
    };
    let began = Instant::now();
    let before = cpu_of(node);
    sleep(INTERVAL).await;
    let after = cpu_of(node);
    let elapsed_us = began.elapsed().as_secs_f64() * 1e6;
    node.snapshot()
        .into_iter()
        .filter(|pod| namespace.is_none_or(|namespace| pod.namespace == namespace))
        .map(|pod| PodUsage {
            containers: pod
                .containers
                .iter()
                .map(|container| {
                    let cpu =
                        |at: &HashMap<u32, u64>| at.get(&container.slot).copied().unwrap_or(0);
                    let used_us = cpu(&after).saturating_sub(cpu(&before));
                    of_container(node.probes(), container, used_us as f64 / elapsed_us)
                })
                .collect(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        })
        .collect()
}

fn of_container(probes: &Probes, container: &ContainerSnapshot, cpu_cores: f64) -> ContainerUsage {
    // Slot 0 is everybody else's.
    let is_there = container.slot != NO_SLOT;
    let net = if is_there { probes.net(container.slot) } else { NetStats::ZERO };
    let (mut read_bytes, mut written_bytes) = (0, 0);
    for (_, cell) in &*container.volumes {
        let bytes = probes.file_bytes(*cell);
        read_bytes += bytes.read();
        written_bytes += bytes.written;
    }
    ContainerUsage {
        name: container.name.clone(),
        cpu_cores,
        memory_bytes: container.cgroup.as_deref().and_then(memory_bytes),
        execs: if is_there { probes.process(container.slot).execs } else { 0 },
        received_bytes: net.bytes(Direction::Receive),
        transmitted_bytes: net.bytes(Direction::Transmit),
        read_bytes,
        written_bytes,
    }
}

fn cpu_us(cgroup: &Cgroup) -> Option<u64> {
    stats::cpu(cgroup).map(|cpu| cpu.usage_us)
}

/// The working set; without the memory controller, the processes' resident memory.
fn memory_bytes(cgroup: &Cgroup) -> Option<u64> {
    let stats = stats::read(cgroup);
    match stats.memory {
        Some(memory) => memory.working_set.or(Some(memory.current)),
        None => stats.resident,
    }
}
