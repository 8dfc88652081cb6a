//! Keeps the optional probes within their budget.
//!
//! What they cost is what the kernel says of their run time. The share is that of all CPUs of the
//! node together, so one that runs on every CPU for 1 % of the time takes 1 %.

use std::{collections::HashMap, sync::PoisonError, time::Instant};

use super::{Probes, install, plan};

/// How many intervals on end are too costly before a probe goes: a burst is none.
const PATIENCE: u32 = 3;

/// What the optional probes may take, and what they took.
#[derive(Debug)]
pub(super) struct Governor {
    /// Share of all CPUs that they may take together; 0 is any.
    budget: f64,
    cpus: f64,
    /// When it was last looked, and the seconds of each program then.
    last: Option<(Instant, HashMap<&'static str, f64>)>,
    /// The shares in the last interval, by program.
    shares: Vec<(&'static str, f64)>,
    /// Intervals on end that were over the budget.
    exceeded: u32,
}

/// What the governor knows, for metrics.
#[derive(Clone, Debug, Default)]
pub struct Governed {
    /// Share of all CPUs that optional probes may take together; 0 is any.
    pub budget: f64,
    /// Optional probes.
    pub probes: Vec<GovernedProbe>,
}

/// An optional probe.
#[derive(Clone, Debug)]
pub struct GovernedProbe {
    /// Its name.
    pub probe: &'static str,
    /// The share of all CPUs that it took in the last interval, if it runs.
    pub share: Option<f64>,
    /// Whether the governor has switched it off.
    pub switched_off: bool,
}

impl Governor {
    pub(super) fn new(budget: f64, cpus: f64) -> Self {
        Self { budget, cpus, last: None, shares: Vec::new(), exceeded: 0 }
    }

    /// Takes note of the seconds that each program has run so far, and names the one that has to
    /// go, with the share that all took together: the most costly, if they were over the budget for
    /// long enough.
    fn judge(
        &mut self,
        now: Instant,
        seconds: &[(&'static str, f64)],
    ) -> Option<(&'static str, f64)> {
        let current = (now, seconds.iter().copied().collect());
        let (then, before) = self.last.replace(current)?;
        let available = now.duration_since(then).as_secs_f64() * self.cpus;
        let share = |&(program, seconds): &(&'static str, f64)| {
            let before = before.get(program).copied().unwrap_or(seconds);
            (program, (seconds - before).max(0.0) / available)
        };
        self.shares = seconds.iter().map(share).collect();
        let sum = self.shares.iter().map(|(_, share)| share).sum::<f64>();
        if self.budget == 0.0 || sum <= self.budget {
            self.exceeded = 0;
            return None;
        }
        self.exceeded += 1;
        if self.exceeded < PATIENCE {
            return None;
        }
        self.exceeded = 0;
        let costliest = self.shares.iter().max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        Some((costliest.0, sum))
    }
}

impl Probes {
    /// Looks at what the optional probes cost since the last time, and detaches the most costly if
    /// they take too much.
    pub(super) fn govern(&self) {
        let running = self.running_optional();
        if running.is_empty() {
            return;
        }
        let seconds: Vec<_> = self
            .costs()
            .into_iter()
            .filter_map(|cost| {
                let probe = running.iter().find(|probe| probe.program == cost.program)?;
                Some((probe.program, cost.seconds))
            })
            .collect();
        let mut governor = self.governor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((program, share)) = governor.judge(Instant::now(), &seconds)
            && let Some(probe) = running.iter().find(|probe| probe.program == program)
        {
            let reason = plan::over_budget(share, governor.budget);
            tracing::warn!(probe = probe.name, %reason, "probe is switched off");
            self.switch_off(probe, reason);
        }
    }

    /// Detaches a probe: the kernel does not even call it any more. The next daemon that runs the
    /// same object with the same settings leaves it so.
    fn switch_off(&self, probe: &plan::Probe, reason: String) {
        self.pins.remove_link(&self.id, probe.program);
        let mut status = self.status.write().unwrap_or_else(PoisonError::into_inner);
        for one in status.iter_mut().filter(|one| one.probe == probe.name) {
            one.mode = plan::OFF.into();
            one.reason.clone_from(&reason);
        }
        if let Err(error) = install::save(&self.record, &self.id, &status) {
            tracing::warn!(%error, "the next daemon will not know which probes are off");
        }
    }

    fn running_optional(&self) -> Vec<&'static plan::Probe> {
        plan::OPTIONAL.iter().filter(|probe| self.runs(probe.name)).collect()
    }

    /// What the governor knows.
    #[must_use]
    pub fn governed(&self) -> Governed {
        let governor = self.governor.lock().unwrap_or_else(PoisonError::into_inner);
        let status = self.status.read().unwrap_or_else(PoisonError::into_inner);
        let probe = |probe: &plan::Probe| {
            let status = status.iter().find(|status| status.probe == probe.name);
            let runs = status.is_some_and(super::ProbeStatus::is_attached);
            let share = governor.shares.iter().find(|(program, _)| *program == probe.program);
            GovernedProbe {
                probe: probe.name,
                share: share.filter(|_| runs).map(|(_, share)| *share),
                switched_off: status.is_some_and(super::ProbeStatus::is_over_budget),
            }
        };
        Governed { budget: governor.budget, probes: plan::OPTIONAL.iter().map(probe).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Verdicts after each of these seconds of the programs `a` and `b`, an interval of 1 s apart,
    /// on 2 CPUs.
    fn verdicts(budget: f64, seconds: &[[f64; 2]]) -> Vec<Option<&'static str>> {
        let mut governor = Governor::new(budget, 2.0);
        let start = Instant::now();
        let judge = |(index, [a, b]): (usize, &[f64; 2])| {
            let now = start + Duration::from_secs(index as u64);
            governor.judge(now, &[("a", *a), ("b", *b)]).map(|(program, _)| program)
        };
        seconds.iter().enumerate().map(judge).collect()
    }

    #[test]
    fn the_costliest_goes_after_some_intervals_on_end() {
        let costly = [[0.0, 9.0], [0.01, 9.02], [0.02, 9.04], [0.03, 9.06]];
        assert_eq!(verdicts(0.01, &costly), [None, None, None, Some("b")]);
    }

    #[test]
    fn a_burst_is_forgiven() {
        let burst = [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0], [0.0, 1.0], [0.0, 1.5], [0.0, 2.0]];
        assert_eq!(verdicts(0.01, &burst), [None; 6]);
    }

    #[test]
    fn without_a_budget_nothing_goes() {
        let costly = [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 4.0]];
        assert_eq!(verdicts(0.0, &costly), [None; 5]);
    }
}
