//! Which limit a container met when the kernel killed it for want of memory.

use pod_ebpf::process::Victim;
use serde::{Deserialize, Serialize};

use super::ground::Ground;
use crate::{
    cgroup::OomCounts,
    manifest::demand::{Unit, display},
};

/// Where memory ran out, in the order of the counters of [`Oom`]s.
pub(super) const LIMITS: usize = 3;

/// What the kernel had counted when a run began.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Watch {
    container: OomCounts,
    pod: OomCounts,
    /// Name of the run's first process.
    program: String,
}

/// The kernel killed processes of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Oom {
    pub(super) limit: Limit,
    /// Whether the container's first process was among them.
    pub(super) main: bool,
    pub(super) message: String,
}

/// The first process of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Main {
    /// Number of the run.
    pub(super) run: u32,
    pub(super) pid: Option<i32>,
    /// What ended it, if a signal did.
    pub(super) signal: Option<i32>,
}

/// Whose memory had run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Container,
    Pod,
    Node,
}

impl Watch {
    /// The counts before a run.
    pub(super) fn begin(ground: &Ground, index: usize) -> Self {
        let (container, pod) = ground.oom_counts(index);
        Self { container, pod, program: String::new() }
    }

    /// Names what runs.
    pub(super) fn of(self, program: &str) -> Self {
        let program = program.rsplit('/').next().unwrap_or(program).to_owned();
        Self { program, ..self }
    }

    /// What the kernel has done since.
    pub(super) fn end(&self, ground: &Ground, index: usize, main: Main) -> Option<Oom> {
        let (container, pod) = ground.oom_counts(index);
        let (limits, peak) = (ground.memory_limits(index), ground.memory_peak(index));
        let victim = ground.place(index).probe.victim(main.run);
        self.judge(container, pod, limits, peak, main, victim)
    }

    fn judge(
        &self,
        container: OomCounts,
        pod: OomCounts,
        (own_limit, pod_limit): (Option<u64>, Option<u64>),
        peak: Option<u64>,
        main: Main,
        victim: Option<Victim>,
    ) -> Option<Oom> {
        // Not how many they were: the kernel may count the first one twice.
        if container.killed <= self.container.killed {
            return None;
        }
        let show = |bytes: Option<u64>| {
            bytes.map_or_else(String::new, |bytes| format!(" of {}", display(bytes, Unit::Bytes)))
        };
        // Its own limit first: where both are met, that of the pod would not have been reached
        // without this container.
        let (limit, met) = if container.own_limit > self.container.own_limit {
            (Limit::Container, format!("the container met its memory limit{}", show(own_limit)))
        } else if pod.own_limit > self.pod.own_limit {
            (Limit::Pod, format!("the pod met its memory limit{}", show(pod_limit)))
        } else {
            (Limit::Node, "the node, or a cgroup above the pod, ran out of memory".to_owned())
        };
        let peak = peak.map_or_else(String::new, |peak| {
            format!(" (the container's peak was {})", display(peak, Unit::Bytes))
        });
        let pid = main.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        let name = format!("the main process {:?}{pid}", self.program);
        let was_killed = main.signal == Some(libc::SIGKILL);
        let chosen = victim.filter(|victim| i32::try_from(victim.tgid).ok() != main.pid);
        let chosen = chosen.as_ref().map(describe);
        let victim = match (was_killed, chosen) {
            (true, Some(chosen)) => {
                format!("the kernel chose {chosen}, and killed all of it, {name} included")
            }
            (true, None) => format!("the kernel killed all of it, {name} included"),
            (false, Some(chosen)) => format!("the kernel killed {chosen}, not {name}"),
            (false, None) => {
                format!("the kernel killed some of its processes, not {name}")
            }
        };
        Some(Oom { limit, main: was_killed, message: format!("{met}{peak}; {victim}") })
    }
}

/// A process by name and pid.
fn describe(victim: &Victim) -> String {
    let name = victim.name.split(|byte| *byte == 0).next().unwrap_or_default();
    format!("{:?} (pid {})", String::from_utf8_lossy(name), victim.tgid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: OomCounts = OomCounts { own_limit: 2, killed: 5 };

    fn watch() -> Watch {
        Watch { container: BEFORE, pod: BEFORE, program: String::new() }.of("/bin/app")
    }

    fn judge(own: u64, killed: u64, pod: u64, signal: Option<i32>) -> Option<Oom> {
        judge_with(own, killed, pod, signal, None)
    }

    fn judge_with(
        own: u64,
        killed: u64,
        pod: u64,
        signal: Option<i32>,
        victim: Option<Victim>,
    ) -> Option<Oom> {
        let container = OomCounts { own_limit: own, killed };
        let pod = OomCounts { own_limit: pod, killed };
        let limits = (Some(16 << 20), Some(64 << 20));
        let main = Main { run: 3, pid: Some(77), signal };
        watch().judge(container, pod, limits, Some(15 << 20), main, victim)
    }

    #[test]
    fn the_limit_that_was_met_is_named() {
        for (own, killed, pod, limit) in [
            (2, 5, 2, None),
            // Reclaim failed, and nobody died.
            (3, 5, 3, None),
            (3, 6, 2, Some(Limit::Container)),
            (3, 6, 3, Some(Limit::Container)),
            (2, 6, 3, Some(Limit::Pod)),
            (2, 6, 2, Some(Limit::Node)),
        ] {
            let found = judge(own, killed, pod, Some(9)).map(|oom| oom.limit);
            assert_eq!(found, limit, "{own} {killed} {pod}");
        }
    }

    #[test]
    fn the_victim_is_named() {
        let oom = judge(3, 7, 2, Some(9)).unwrap();
        assert!(oom.main);
        assert_eq!(
            oom.message,
            "the container met its memory limit of 16Mi (the container's peak was 15Mi); the kernel \
             killed all of it, the main process \"app\" (pid 77) included"
        );
        let oom = judge(2, 6, 3, None).unwrap();
        assert!(!oom.main);
        assert_eq!(
            oom.message,
            "the pod met its memory limit of 64Mi (the container's peak was 15Mi); the kernel \
             killed some of its processes, not the main process \"app\" (pid 77)"
        );
    }

    #[test]
    fn whom_the_kernel_chose_is_named_if_it_is_another_one() {
        let mut name = [0; pod_ebpf::process::NAME_BYTES];
        name[..6].copy_from_slice(b"worker");
        let worker = Victim { run: 3, tgid: 80, name };
        let message = |signal, victim| judge_with(2, 6, 3, signal, Some(victim)).unwrap().message;
        let end = |message: String| message.split_once("; ").unwrap().1.to_owned();
        assert_eq!(
            end(message(None, worker)),
            "the kernel killed \"worker\" (pid 80), not the main process \"app\" (pid 77)"
        );
        assert_eq!(
            end(message(Some(9), worker)),
            "the kernel chose \"worker\" (pid 80), and killed all of it, the main process \"app\" \
             (pid 77) included"
        );
        assert_eq!(
            end(message(Some(9), Victim { tgid: 77, ..worker })),
            "the kernel killed all of it, the main process \"app\" (pid 77) included"
        );
    }
}
