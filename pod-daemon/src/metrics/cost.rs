//! Whose doing the run time of the probes is.
//!
//! The kernel accounts a program's run time as a whole. How often a container set it off is known
//! from what was counted for it, and so its share is: as many runs, at the mean cost of the
//! program's runs since the scrape before, or the last one known. It is added up from scrape to
//! scrape, since a mean over all time would let a counter fall.

use std::{collections::HashMap, mem};

use pod_ebpf::{Direction, file::Operation};

use super::{
    family::{Domain, Family, Source},
    reading::{Container, Pod, Reading},
};
use crate::probes::ProgramCost;

pub(super) const DOMAIN: Domain = Domain {
    title: "Whose doing the cost is",
    text: "The time of `podscope_bpf_program_seconds_total`, by who set the programs off, since \
           this daemon started: all of the three together grow as that does. What is `__other__`'s stays \
           with it when its pods are deleted. A pod's is the number \
           of its execs, forks, exits, packets, connections, file operations and waits for a CPU, \
           each at the mean cost of the program that counts it between two scrapes, or the last one \
           known. Where that is more than samples have seen so far, what is not attributed does not \
           grow until they have. What no count \
           tells of is not attributed: above all, calls that are looked at and left alone, such as \
           those of the host, and in `syscall` mode all system calls but those that move bytes.",
    families: &[
        Family::counter(
            "podscope_bpf_pod_seconds_total",
            "Run time of the eBPF programs that is a pod's doing.",
            Source::Pod(|pod, sheet| {
                if let Some(seconds) = pod.probe_seconds {
                    sheet.value(&[], seconds);
                }
            }),
        )
        .never_summed(),
        Family::counter(
            "podscope_bpf_deleted_pod_seconds_total",
            "The same of pods that were deleted.",
            Source::Node(|reading, sheet| sheet.value(&[], reading.attributed.deleted)),
        ),
        Family::counter(
            "podscope_bpf_unattributed_seconds_total",
            "Run time of the eBPF programs that is no pod's doing, as far as is known.",
            Source::Node(|reading, sheet| sheet.value(&[], reading.attributed.rest)),
        ),
    ],
};

/// Run time that is no living pod's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributed {
    pub(super) deleted: f64,
    /// Of pods that have no series of their own, living or not.
    pub(super) other: f64,
    pub(super) rest: f64,
}

/// Programs that run for the same reason, and how often a container has given it.
struct Hook {
    programs: &'static [&'static str],
    runs: fn(&Container) -> u64,
}

const HOOKS: &[Hook] = &[
    Hook { programs: &["exec"], runs: |c| c.process.execs },
    Hook { programs: &["event_exec"], runs: |c| c.process.execs },
    Hook {
        programs: &["f_execve", "f_execveat", "f_execve32", "f_execveat32"],
        runs: |c| c.process.execs + c.process.exec_failures.iter().sum::<u64>(),
    },
    Hook { programs: &["fork"], runs: |c| c.process.forks + c.process.threads },
    Hook { programs: &["exit"], runs: ends },
    Hook { programs: &["event_exit"], runs: ends },
    Hook { programs: &["net_ingress"], runs: |c| c.net.packets(Direction::Receive) },
    Hook { programs: &["net_egress"], runs: |c| c.net.packets(Direction::Transmit) },
    Hook { programs: &["tcp"], runs: |c| c.tcp.connects.iter().sum::<u64>() + c.tcp.accepts },
    Hook { programs: &["b_connect"], runs: |c| c.tcp.connects.iter().sum() },
    Hook { programs: &["f_connect"], runs: |c| c.tcp.connects.iter().sum() },
    Hook {
        programs: &["file_read", "f_readv", "f_preadv", "f_preadv2"],
        runs: |c| operations(c, &[Operation::Read]),
    },
    Hook {
        programs: &["b_read", "b_readv", "b_preadv", "b_preadv2"],
        runs: |c| operations(c, &[Operation::Read]),
    },
    Hook {
        programs: &["file_write", "f_writev", "f_pwritev", "f_pwritev2", "f_sendfile", "f_splice"],
        runs: |c| operations(c, &[Operation::Write]),
    },
    Hook {
        programs: &["b_write", "b_writev", "b_pwritev", "b_pwritev2", "b_sendfile", "b_splice"],
        runs: |c| operations(c, &[Operation::Write]),
    },
    Hook {
        programs: &["f_fsync", "f_fdatasync", "f_open", "f_unlink", "f_rename"],
        runs: |c| operations(c, NAMES_AND_SYNCS),
    },
    Hook {
        programs: &["b_fsync", "b_fdatasync", "b_open", "b_unlink", "b_rename"],
        runs: |c| operations(c, NAMES_AND_SYNCS),
    },
    Hook { programs: &["file_syscall"], runs: |c| operations(c, CALLS) },
    Hook { programs: &["file_enter"], runs: |c| operations(c, CALLS) },
    Hook { programs: &["packet_drop", "packet_drop_to"], runs: drops },
    Hook { programs: &["runqueue"], runs: |c| c.runqueue.latency.count() },
];

const NAMES_AND_SYNCS: &[Operation] =
    &[Operation::Sync, Operation::Open, Operation::Unlink, Operation::Rename];

/// All but those that are part of another.
const CALLS: &[Operation] = &[
    Operation::Read,
    Operation::Write,
    Operation::Sync,
    Operation::Open,
    Operation::Unlink,
    Operation::Rename,
];

/// Ends of tasks. That of a thread is not counted, but has a beginning that is.
fn ends(container: &Container) -> u64 {
    let process = &container.process;
    process.exits.iter().chain(&process.signals).sum::<u64>() + process.threads
}

fn drops(container: &Container) -> u64 {
    let drops = &container.drops;
    drops.of_sockets.values().chain(drops.of_network.values()).sum()
}

fn operations(container: &Container, which: &[Operation]) -> u64 {
    let volumes = container.files.iter();
    volumes.map(|(_, files)| which.iter().map(|which| files.count(*which)).sum::<u64>()).sum()
}

/// Something of each reason; by default, how often a container has given it.
type Counts<T = u64> = [T; HOOKS.len()];

/// What was attributed up to the last scrape.
#[derive(Default)]
pub(super) struct Ledger {
    /// Runs and seconds of each program, then.
    programs: HashMap<String, (u64, f64)>,
    /// Seconds that a run for each reason took last.
    prices: Counts<f64>,
    /// By the pod's uid.
    accounts: HashMap<String, Account>,
    attributed: Attributed,
    /// Seconds that the programs ran and that are not attributed; below zero where samples have seen
    /// less than was counted.
    open: f64,
    is_open: bool,
}

/// What was attributed to one pod.
#[derive(Default)]
struct Account {
    seconds: f64,
    /// How often each of its containers had given each reason.
    counts: Vec<Counts>,
}

impl Ledger {
    /// Attributes what has come since the last scrape, and enters the sums into `reading`.
    pub(super) fn enter(&mut self, reading: &mut Reading) {
        let spent = self.spent(&reading.costs);
        for (price, hook) in self.prices.iter_mut().zip(HOOKS) {
            *price = spent.price(hook.programs).unwrap_or(*price);
        }
        let began = reading.own.start_seconds;
        let mut attributed = 0.0;
        let mut last = mem::take(&mut self.accounts);
        for pod in &mut reading.pods {
            let known = last.remove_entry(&pod.about.uid);
            let (uid, mut account) =
                known.unwrap_or_else(|| (pod.about.uid.clone(), Account::default()));
            let counts = pod.containers.iter().map(counts).collect();
            let before = mem::replace(&mut account.counts, counts);
            let mut more = 0.0;
            for (index, current) in account.counts.iter().enumerate() {
                let before = before.get(index).copied();
                let before = before.unwrap_or_else(|| first(pod, began, *current));
                let runs = since(*current, before).into_iter().zip(self.prices);
                more += runs.map(|(runs, price)| runs as f64 * price).sum::<f64>();
            }
            attributed += more;
            if pod.is_other {
                self.attributed.other += more;
            } else {
                account.seconds += more;
                pod.probe_seconds = Some(account.seconds);
            }
            self.accounts.insert(uid, account);
        }
        // Their pods are gone.
        self.attributed.deleted += last.values().map(|account| account.seconds).sum::<f64>();
        self.open += spent.all - attributed;
        self.attributed.rest += self.open.max(0.0);
        self.open = self.open.min(0.0);
        reading.attributed = self.attributed;
    }

    /// What the programs have done since the last scrape; nothing before the first one, since what
    /// an earlier daemon has attributed is not known.
    fn spent(&mut self, costs: &[ProgramCost]) -> Spent {
        let mut spent = Spent::default();
        for cost in costs {
            let current = (cost.runs, cost.seconds);
            let before = self.programs.insert(cost.program.clone(), current);
            let before = before.unwrap_or(if self.is_open { (0, 0.0) } else { current });
            let (runs, seconds) = (cost.runs.saturating_sub(before.0), cost.seconds - before.1);
            spent.all += seconds;
            spent.programs.insert(cost.program.clone(), (runs, seconds));
        }
        self.is_open = true;
        spent
    }
}

/// What the programs have done since the last scrape.
#[derive(Default)]
struct Spent {
    all: f64,
    programs: HashMap<String, (u64, f64)>,
}

impl Spent {
    /// The mean cost of a run of these programs, if there was any.
    fn price(&self, programs: &[&str]) -> Option<f64> {
        let mut sum = (0, 0.0);
        for (runs, seconds) in programs.iter().filter_map(|program| self.programs.get(*program)) {
            sum = (sum.0 + runs, sum.1 + seconds);
        }
        (sum.0 > 0).then(|| sum.1 / sum.0 as f64)
    }
}

/// How often a container has given each reason.
fn counts(container: &Container) -> Counts {
    std::array::from_fn(|hook| (HOOKS[hook].runs)(container))
}

/// What a container that is seen for the first time had counted before: nothing, unless it is older
/// than this daemon.
fn first(pod: &Pod, began: f64, current: Counts) -> Counts {
    let observed = pod.about.observed_from.as_duration().as_secs_f64();
    if observed < began { current } else { Counts::default() }
}

fn since(current: Counts, before: Counts) -> Counts {
    std::array::from_fn(|hook| current[hook].saturating_sub(before[hook]))
}

#[cfg(test)]
mod tests {
    use super::{super::sample, *};

    fn cost(program: &str, runs: u64, seconds: f64) -> ProgramCost {
        ProgramCost { program: program.to_owned(), runs, seconds, missed: 0 }
    }

    /// A reading of one pod with one container that has forked and executed so often.
    fn reading(forks: u64, execs: u64, costs: Vec<ProgramCost>) -> Reading {
        let mut reading = sample::reading(1);
        reading.costs = costs;
        reading.pods[0].containers.truncate(1);
        let process = &mut reading.pods[0].containers[0].process;
        (process.forks, process.threads, process.execs) = (forks, 0, execs);
        reading
    }

    #[test]
    fn a_pods_runs_cost_the_mean_and_nothing_is_lost() {
        let mut ledger = Ledger::default();
        let mut first = reading(0, 0, vec![cost("fork", 100, 1.0), cost("exec", 0, 0.0)]);
        ledger.enter(&mut first);
        assert_eq!((first.pods[0].probe_seconds, first.attributed.rest), (Some(0.0), 0.0));

        let mut second = reading(10, 0, vec![cost("fork", 140, 3.0), cost("exec", 0, 0.0)]);
        ledger.enter(&mut second);
        assert_eq!((second.pods[0].probe_seconds, second.attributed.rest), (Some(0.5), 1.5));

        // More than the samples have seen, and then none: the last price is the best guess.
        let mut third = reading(14, 8, vec![cost("fork", 142, 4.0), cost("exec", 4, 2.0)]);
        ledger.enter(&mut third);
        assert_eq!((third.pods[0].probe_seconds, third.attributed.rest), (Some(6.5), 1.5));
        let mut fourth = reading(14, 9, vec![cost("fork", 142, 4.0), cost("exec", 4, 2.0)]);
        ledger.enter(&mut fourth);
        assert_eq!((fourth.pods[0].probe_seconds, fourth.attributed.rest), (Some(7.0), 1.5));

        // Once they have seen as much, the rest is told again.
        let mut fifth = reading(0, 0, vec![cost("fork", 142, 4.0), cost("exec", 20, 6.0)]);
        fifth.pods.clear();
        ledger.enter(&mut fifth);
        assert_eq!((fifth.attributed.deleted, fifth.attributed.rest), (7.0, 2.0));
    }
}
