//! Who has to leave when a pod of higher priority needs the room.

use std::cmp::Reverse;

use crate::manifest::{
    Demand,
    demand::{HostPort, Totals},
};

/// A pod that may have to leave.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: u64,
    pub(super) priority: i32,
    pub(super) demand: Demand,
}

/// The candidates without which `demand` fits, where `free` is what there is once all of them have
/// left, and `ports` are those of pods that stay. Nothing if it does not fit even then.
///
/// First all leave, then those that need not are taken back: the highest priority first, and of
/// equal ones the smallest first, so that few large ones leave rather than many small ones.
pub(super) fn victims(
    demand: &Demand,
    free: Totals,
    ports: &[HostPort],
    mut candidates: Vec<Candidate>,
) -> Option<Vec<u64>> {
    let fits = |demand: &Demand, free: Totals, ports: &[HostPort]| {
        let clash = |wanted: &HostPort| ports.iter().any(|taken| wanted.conflicts(taken));
        demand.totals.beyond(free).next().is_none() && !demand.host_ports.iter().any(clash)
    };
    if !fits(demand, free, ports) {
        return None;
    }
    let taken = candidates.iter().fold(Totals::default(), |sum, one| sum.plus(one.demand.totals));
    let lacking: Vec<usize> = demand.totals.beyond(free.less(taken)).collect();
    // In thousandths of what is wanted, by the resource that it helps most with.
    let size = |candidate: &Candidate| {
        let share = |&at: &usize| {
            u128::from(candidate.demand.totals[at]) * 1000 / u128::from(demand.totals[at].max(1))
        };
        lacking.iter().map(share).max().unwrap_or(0)
    };
    candidates.sort_by_cached_key(|candidate| {
        (Reverse(candidate.priority), size(candidate), candidate.id)
    });
    let (mut free, mut ports) = (free, ports.to_vec());
    let mut victims = Vec::new();
    for candidate in candidates {
        // There is nothing less than nothing: who is larger than what is left has to leave.
        let is_there = candidate.demand.totals.beyond(free).next().is_none();
        let left = free.less(candidate.demand.totals);
        let with: Vec<HostPort> =
            ports.iter().chain(&candidate.demand.host_ports).cloned().collect();
        if is_there && fits(demand, left, &with) {
            (free, ports) = (left, with);
        } else {
            victims.push(candidate.id);
        }
    }
    Some(victims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::demand::{CPU, MEMORY};

    fn demand(cpu: u64, memory: u64) -> Demand {
        let mut demand = Demand::default();
        demand.totals[CPU] = cpu;
        demand.totals[MEMORY] = memory;
        demand
    }

    fn chosen(free: (u64, u64), wanted: (u64, u64), pods: &[(i32, u64, u64)]) -> Option<Vec<u64>> {
        let candidates = pods.iter().zip(0..).map(|(&(priority, cpu, memory), id)| Candidate {
            id,
            priority,
            demand: demand(cpu, memory),
        });
        let candidates = candidates.collect();
        let free = demand(free.0, free.1).totals;
        let mut victims = victims(&demand(wanted.0, wanted.1), free, &[], candidates)?;
        victims.sort_unstable();
        Some(victims)
    }

    #[test]
    fn the_lowest_and_fewest_leave() {
        // What is free is counted as if all of them had left.
        for (free, wanted, pods, victims) in [
            // Nobody need leave.
            ((3000, 0), (1000, 0), &[(0, 1000, 0), (0, 1000, 0)][..], Some(vec![])),
            // The lower priority leaves.
            ((2000, 0), (1000, 0), &[(5, 1000, 0), (1, 1000, 0)], Some(vec![1])),
            // Of equal ones, one large rather than two small.
            ((2000, 0), (1000, 0), &[(0, 1000, 0), (0, 500, 0), (0, 500, 0)], Some(vec![0])),
            // Of equal and equally large ones, the younger.
            ((2000, 0), (1000, 0), &[(0, 1000, 0), (0, 1000, 0)], Some(vec![1])),
            // Who has nothing of what lacks stays, however low.
            ((1000, 10), (1000, 0), &[(3, 1000, 0), (1, 0, 10)], Some(vec![0])),
            // Two low ones leave rather than one that is higher.
            ((2000, 0), (1000, 0), &[(9, 1000, 0), (1, 500, 0), (1, 500, 0)], Some(vec![1, 2])),
            // It would not help.
            ((900, 0), (1000, 0), &[(0, 500, 0)], None),
        ] {
            assert_eq!(chosen(free, wanted, pods), victims, "{wanted:?} of {free:?} from {pods:?}");
        }
    }

    #[test]
    fn who_holds_the_port_leaves() {
        let port = |address: &str| HostPort {
            protocol: "TCP".to_owned(),
            address: address.parse().unwrap(),
            port: 80,
        };
        let with = |port: Option<HostPort>| Demand {
            host_ports: port.into_iter().collect(),
            ..Demand::default()
        };
        let candidates = [None, Some(port("10.0.0.1")), Some(port("10.0.0.2"))]
            .into_iter()
            .zip(0..)
            .map(|(port, id)| Candidate { id, priority: 0, demand: with(port) })
            .collect::<Vec<_>>();
        let wanted = with(Some(port("10.0.0.2")));
        let none = Totals::default();
        assert_eq!(victims(&wanted, none, &[], candidates.clone()), Some(vec![2]));
        assert_eq!(victims(&wanted, none, &[port("0.0.0.0")], candidates), None);
    }
}
