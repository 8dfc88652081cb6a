//! What the programs cost.
//!
//! The kernel measures how long programs run while somebody asks it to, and reads a clock twice for
//! each run: that takes as long as many a program itself. So it is asked for a twentieth of the time,
//! at a moment that no workload can know, and the rest is taken to be like that.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aya::sys::{Stats, enable_stats};
use tokio::time::{Instant, sleep, sleep_until};

use super::{ProgramCost, pins, sys};

/// How often there is a sample.
const INTERVAL: Duration = Duration::from_secs(5);

/// How long one takes.
const WINDOW: Duration = Duration::from_millis(250);

/// When the kernel measures how long the programs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Timing {
    /// For a twentieth of the time, from which the rest is estimated.
    #[default]
    Sampled,
    /// All the time, to the nanosecond.
    Always,
}

/// Measures the programs of an object.
#[derive(Debug)]
pub(super) struct Meter {
    /// By name.
    programs: Vec<(String, OwnedFd)>,
    account: Account,
}

#[derive(Debug)]
enum Account {
    /// The kernel's own, of all the time in which anybody asked for it; this descriptor does.
    Kernel(#[expect(dead_code, reason = "the kernel measures while it is open")] OwnedFd),
    /// What each program took since this daemon began, as far as samples tell.
    Estimated(Mutex<Vec<Spent>>),
    /// The kernel does not measure.
    Unknown,
}

/// Runs of a program, and what they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    runs: u64,
    nanoseconds: u64,
}

impl Meter {
    /// Measures the programs that are pinned in `folder`.
    pub(super) fn open(folder: &Path, timing: Timing) -> io::Result<Self> {
        let mut programs = Vec::new();
        for path in pins::entries(folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            programs.push((name, sys::get(&path)?));
        }
        programs.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let account = match (enable_stats(Stats::RunTime), timing) {
            (Ok(asking), Timing::Always) => Account::Kernel(asking),
            (Ok(_), Timing::Sampled) => {
                Account::Estimated(Mutex::new(vec![Spent::default(); programs.len()]))
            }
            (Err(error), _) => {
                tracing::warn!(%error, "the cost of the probes cannot be measured");
                Account::Unknown
            }
        };
        Ok(Self { programs, account })
    }

    /// Lets an interval pass, and takes a sample in it if that is how programs are measured.
    pub(super) async fn pass(&self) {
        let begin = Instant::now();
        let mut sample = None;
        if let Account::Estimated(_) = self.account {
            sleep((INTERVAL - WINDOW).mul_f64(fastrand::f64())).await;
            sample = self.sample().await;
        }
        sleep_until(begin + INTERVAL).await;
        if let (Some((sample, took)), Account::Estimated(estimates)) = (sample, &self.account) {
            let interval = begin.elapsed();
            let mut estimates = estimates.lock().unwrap_or_else(PoisonError::into_inner);
            for (estimate, sample) in estimates.iter_mut().zip(sample) {
                estimate.add(sample, interval, took);
            }
        }
    }

    /// What each program did in a window, and how long that was.
    async fn sample(&self) -> Option<(Vec<Spent>, Duration)> {
        // Others may have asked the kernel before.
        let before = self.read();
        let asking = enable_stats(Stats::RunTime)
            .inspect_err(|error| tracing::warn!(%error, "the cost of the probes is not measured"))
            .ok()?;
        let opened = Instant::now();
        sleep(WINDOW).await;
        let took = opened.elapsed();
        drop(asking);
        let after = self.read();
        let sample = before.iter().zip(&after).map(|(before, after)| after.since(*before));
        Some((sample.collect(), took))
    }

    /// What the kernel says of each program.
    fn read(&self) -> Vec<Spent> {
        self.programs.iter().map(|(_, program)| Spent::of(&info(program))).collect()
    }

    /// What each program cost so far.
    pub(super) fn costs(&self) -> Vec<ProgramCost> {
        let estimates = match &self.account {
            Account::Estimated(estimates) => {
                Some(estimates.lock().unwrap_or_else(PoisonError::into_inner).clone())
            }
            Account::Kernel(_) | Account::Unknown => None,
        };
        let cost = |(index, (name, program)): (usize, &(String, OwnedFd))| {
            let info = info(program);
            let spent = estimates.as_ref().map_or_else(|| Spent::of(&info), |all| all[index]);
            ProgramCost {
                program: name.clone(),
                runs: spent.runs,
                seconds: Duration::from_nanos(spent.nanoseconds).as_secs_f64(),
                missed: info.missed,
            }
        };
        self.programs.iter().enumerate().map(cost).collect()
    }
}

impl Spent {
    fn of(info: &sys::ProgramInfo) -> Self {
        Self { runs: info.runs, nanoseconds: info.run_time_ns }
    }

    fn since(self, before: Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(before.runs),
            nanoseconds: self.nanoseconds.saturating_sub(before.nanoseconds),
        }
    }

    /// Adds what was sampled in a window, for all of an interval.
    fn add(&mut self, sample: Self, interval: Duration, window: Duration) {
        let scaled = |count: u64| {
            let scaled = u128::from(count) * interval.as_nanos() / window.as_nanos().max(1);
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        self.runs = self.runs.saturating_add(scaled(sample.runs));
        self.nanoseconds = self.nanoseconds.saturating_add(scaled(sample.nanoseconds));
    }
}

/// What the kernel says of a program that is loaded, which it refuses to nobody who has it open.
fn info(program: &OwnedFd) -> sys::ProgramInfo {
    sys::program_info(program.as_fd()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_stands_for_its_interval() {
        let before = Spent { runs: 100, nanoseconds: 1_000 };
        let sample = Spent { runs: 104, nanoseconds: 1_500 }.since(before);
        let mut estimate = Spent::default();
        estimate.add(sample, Duration::from_secs(5), Duration::from_millis(250));
        estimate.add(sample, Duration::from_secs(6), Duration::from_secs(3));
        assert_eq!(estimate, Spent { runs: 88, nanoseconds: 11_000 });
    }
}
