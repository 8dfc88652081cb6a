//! Which limit a container came nearest to, and which limits would suit it better.

use serde::{Deserialize, Serialize};

use super::Usage;
use crate::manifest::demand::{Unit, display};

/// The limit that a container came nearest to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Nearest {
    /// `cpu`, `memory`, `pids`, `io-read` or `io-write`.
    pub resource: String,
    /// What was used of what may be: 1 is the limit.
    pub share: f64,
    /// The same for people.
    pub text: String,
}

/// A value that would suit a container better than what it has.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// The field, as in `limits.memory`.
    pub field: String,
    /// What stands there; nothing if there is no limit.
    pub now: Option<String>,
    /// What should.
    pub better: String,
    /// Why.
    pub why: String,
}

/// Room above what was needed: a fifth.
const ROOM: f64 = 1.2;

/// Held back in this share of the periods is held back for good.
const MUCH: f64 = 0.1;

/// As long must a container have lived before what it did not use counts.
const LONG_SECONDS: f64 = 60.0;

/// Waiting for memory for less than this share of its life is as good as never.
const SELDOM: f64 = 0.01;

/// Less than this share of a limit is little.
const LITTLE: f64 = 0.5;

impl Usage {
    /// CPUs in use, over its whole life.
    fn cpus(&self) -> Option<f64> {
        self.cpu_seconds.filter(|_| self.life_seconds > 0.0).map(|cpu| cpu / self.life_seconds)
    }

    /// The least that its peak needed: without the files that are in the memory by now, which the kernel
    /// takes back when somebody needs the room. They may have come later.
    fn memory_needed(&self) -> Option<u64> {
        Some(self.memory_peak.or(self.memory_bytes)?.saturating_sub(self.memory_cache.unwrap_or(0)))
    }

    /// Whether what filled its memory was files: they still do, or it never had to wait for room.
    fn was_full_of_files(&self) -> bool {
        let Some(limit) = self.memory_limit else { return false };
        let needed = self.memory_needed().unwrap_or(0);
        let is_full = self.memory_peak.is_some_and(|peak| peak as f64 >= limit as f64 * 0.99);
        let [_, waited, _] = self.pressure_seconds;
        let has_waited = waited.is_none_or(|waited| waited >= self.life_seconds * SELDOM);
        needed as f64 * ROOM <= limit as f64 || is_full && !has_waited
    }

    /// In which share of the periods of its CPU limit it was held back.
    #[must_use]
    pub fn throttled_share(&self) -> f64 {
        share(self.cpu_throttled_periods as f64, self.cpu_periods as f64)
    }

    /// The limit that it came nearest to; none without limits, or where nothing is measured.
    #[must_use]
    pub fn nearest(&self) -> Option<Nearest> {
        let bytes = |bytes: u64| display(bytes, Unit::Bytes);
        let mut all = Vec::new();
        let mut add = |resource: &str, share: f64, text: String| {
            all.push(Nearest { resource: resource.to_owned(), share, text });
        };
        if let Some(limit) = self.cpu_limit.filter(|_| self.cpu_seconds.is_some()) {
            let (cpus, throttled) = (self.cpus().unwrap_or(0.0), self.throttled_share());
            // Who is held back much has met the limit, however little it needs on average.
            let met = if throttled >= MUCH { 1.0 } else { 0.0 };
            add(
                "cpu",
                share(cpus, limit).max(met).max(throttled),
                format!(
                    "{:.2} of {limit} CPUs on average, held back in {:.0} % of the periods",
                    cpus,
                    throttled * 100.0
                ),
            );
        }
        if let (Some(needed), Some(limit)) = (self.memory_needed(), self.memory_limit) {
            let what = if self.memory_peak.is_some() { "at most" } else { "now" };
            let files = match self.memory_cache {
                None | Some(0) => String::new(),
                Some(files) => format!(" without {} of files", bytes(files)),
            };
            let text = format!("{what} {}{files} of {}", bytes(needed), bytes(limit));
            add("memory", share(needed as f64, limit as f64), text);
        }
        if let (Some(peak), Some(limit)) = (self.pids_peak.or(self.pids), self.pids_limit) {
            let refused = match self.pids_refused {
                0 => String::new(),
                count => format!(", and {count} forks were refused"),
            };
            let text = format!("{peak} of {limit} processes and threads{refused}");
            let met = if self.pids_refused > 0 { 1.0 } else { 0.0 };
            add("pids", share(peak as f64, limit as f64).max(met), text);
        }
        let io = [("io-read", self.io_read_bytes), ("io-write", self.io_written_bytes)];
        for ((resource, moved), limit) in io.into_iter().zip(self.io_limits) {
            if let (Some(moved), Some(limit)) = (moved, limit)
                && self.life_seconds > 0.0
            {
                let rate = moved as f64 / self.life_seconds;
                let text =
                    format!("{} of {} per second on average", bytes(whole(rate)), bytes(limit));
                add(resource, share(rate, limit as f64), text);
            }
        }
        all.into_iter().max_by(|a, b| a.share.total_cmp(&b.share))
    }

    /// Limits that would suit it better; `ooms` is how often memory ran out.
    #[must_use]
    pub fn advice(&self, ooms: u64) -> Vec<Advice> {
        [self.memory_advice(ooms), self.cpu_advice(), self.pids_advice()]
            .into_iter()
            .flatten()
            .collect()
    }

    fn memory_advice(&self, ooms: u64) -> Option<Advice> {
        let bytes = |bytes: u64| display(bytes, Unit::Bytes);
        let advice = |better: u64, why: String| Advice {
            field: "limits.memory".to_owned(),
            now: self.memory_limit.map(bytes),
            better: bytes(better),
            why,
        };
        if let Some(limit) = self.memory_limit.filter(|_| ooms > 0) {
            // Nobody knows what it would have taken.
            let better = round_bytes(limit as f64 * 1.5);
            return Some(advice(
                better,
                format!(
                    "it died at {} {ooms} time(s): what it needs is more, and not known; half as \
                     much again is a step",
                    bytes(limit)
                ),
            ));
        }
        let peak = self.memory_peak?;
        // A limit below the request is refused. A request that was not given is the limit, and follows it.
        let request = self.memory_request.filter(|request| Some(*request) != self.memory_limit);
        let better = round_bytes(peak as f64 * ROOM).max(request.unwrap_or(0));
        let why =
            |end: &str| format!("its peak was {}, and a fifth more is room{end}", bytes(peak));
        let Some(limit) = self.memory_limit else {
            return Some(advice(better, why(": without a limit it may take all there is")));
        };
        if peak as f64 * ROOM > limit as f64 {
            return (!self.was_full_of_files()).then(|| advice(better, why("")));
        }
        let is_large = (better as f64) < limit as f64 * LITTLE;
        (self.life_seconds >= LONG_SECONDS && is_large)
            .then(|| advice(better, why(": the rest is kept from others")))
    }

    fn cpu_advice(&self) -> Option<Advice> {
        let cpus = self.cpus()?;
        let show = |cpus: f64| display(round_millis(cpus), Unit::Millicores);
        let exact = |cpus: f64| display(millis(cpus), Unit::Millicores);
        let throttled = self.throttled_share();
        if let Some(limit) = self.cpu_limit.filter(|_| throttled >= MUCH) {
            // What was held back would have run, and more than twice as much is a leap.
            let wanted = self.cpu_seconds? + self.cpu_throttled_seconds;
            let better =
                (wanted / self.life_seconds).max(limit * (1.0 + throttled)).min(limit * 2.0);
            return Some(Advice {
                field: "limits.cpu".to_owned(),
                now: Some(exact(limit)),
                better: show(better),
                why: format!(
                    "it was held back in {:.0} % of the periods, {:.1} s in all",
                    throttled * 100.0,
                    self.cpu_throttled_seconds
                ),
            });
        }
        let request = self.cpu_request.unwrap_or(0.0);
        // A request above the limit is refused.
        let better = (cpus * ROOM).min(self.cpu_limit.unwrap_or(f64::INFINITY));
        let is_little =
            round_millis(better) as f64 / 1000.0 <= request && better > request * LITTLE;
        if self.life_seconds < LONG_SECONDS
            || is_little
            || round_millis(better) == round_millis(request)
            || self.cpu_limit.is_some_and(|limit| round_millis(better) > millis(limit))
        {
            return None;
        }
        Some(Advice {
            field: "requests.cpu".to_owned(),
            now: self.cpu_request.map(exact),
            better: show(better),
            why: format!("it used {cpus:.3} CPUs on average, and a fifth more is room"),
        })
    }

    fn pids_advice(&self) -> Option<Advice> {
        let limit = self.pids_limit?;
        let peak = self.pids_peak.or(self.pids)?;
        let advice = |better: u64, why: String| Advice {
            field: "limits.podscope.dev/pids".to_owned(),
            now: Some(limit.to_string()),
            better: better.next_multiple_of(8).to_string(),
            why,
        };
        if self.pids_refused > 0 {
            let why = format!(
                "{} forks were refused at {limit}; twice as many is a step",
                self.pids_refused
            );
            return Some(advice(limit.saturating_mul(2), why));
        }
        let is_near = share(peak as f64, limit as f64) > 1.0 / ROOM;
        is_near.then(|| {
            advice(
                peak + peak / 2,
                format!("it had {peak} of {limit}, and half as many again is room"),
            )
        })
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "amounts are neither negative nor that large, and floats saturate"
)]
fn whole(amount: f64) -> u64 {
    amount.ceil() as u64
}

/// Thousandths of a CPU, in steps of ten.
fn round_millis(cpus: f64) -> u64 {
    millis(cpus).next_multiple_of(10)
}

/// Thousandths of a CPU.
fn millis(cpus: f64) -> u64 {
    whole(cpus * 1000.0 - 1e-6)
}

/// Bytes in steps that people write: of 1 MiB below 64 MiB, of 16 MiB below 1 GiB, then of 64 MiB.
fn round_bytes(bytes: f64) -> u64 {
    let bytes = whole(bytes);
    let step = match bytes >> 20 {
        0..64 => 1 << 20,
        64..1024 => 16 << 20,
        _ => 64 << 20,
    };
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Usage = Usage {
        life_seconds: 100.0,
        cpu_seconds: None,
        cpu_limit: None,
        cpu_request: None,
        cpu_periods: 0,
        cpu_throttled_periods: 0,
        cpu_throttled_seconds: 0.0,
        memory_bytes: None,
        memory_peak: None,
        memory_cache: None,
        memory_request: None,
        memory_limit: None,
        pids: None,
        pids_peak: None,
        pids_limit: None,
        pids_refused: 0,
        io_read_bytes: None,
        io_written_bytes: None,
        io_limits: [None; 2],
        pressure_seconds: [None; 3],
    };

    fn memory(peak: u64, limit: Option<u64>) -> Usage {
        let limit = limit.map(|mebibytes| mebibytes << 20);
        Usage { memory_peak: Some(peak << 20), memory_limit: limit, ..LIFE }
    }

    fn one(usage: &Usage, ooms: u64) -> (String, String) {
        let mut all = usage.advice(ooms);
        assert_eq!(all.len(), 1, "{all:?}");
        let advice = all.remove(0);
        (advice.field, advice.better)
    }

    fn words((field, better): &(String, String)) -> (&str, &str) {
        (field, better)
    }

    #[test]
    fn memory_gets_a_fifth_of_room() {
        assert_eq!(words(&one(&memory(50, None), 0)), ("limits.memory", "60Mi"));
        assert_eq!(words(&one(&memory(60, Some(64)), 0)), ("limits.memory", "80Mi"));
        assert_eq!(words(&one(&memory(20, Some(512)), 0)), ("limits.memory", "24Mi"));
        assert!(memory(40, Some(64)).advice(0).is_empty());
        // The peak is that of the limit, so it tells nothing.
        assert_eq!(words(&one(&memory(16, Some(16)), 1)), ("limits.memory", "24Mi"));
    }

    #[test]
    fn files_that_can_be_taken_back_are_not_needed() {
        let cached = Usage { memory_cache: Some(452 << 20), ..memory(512, Some(512)) };
        assert!(cached.advice(0).is_empty(), "{:?}", cached.advice(0));
        let nearest = cached.nearest().unwrap();
        assert_eq!(nearest.text, "at most 60Mi without 452Mi of files of 512Mi");
        assert!((nearest.share - 60.0 / 512.0).abs() < 1e-9);
        // They may have come after what needed the rest.
        let unlimited = Usage { memory_limit: None, ..cached };
        assert_eq!(words(&one(&unlimited, 0)), ("limits.memory", "624Mi"));
        // What filled it is gone; nobody had to wait for memory, and nobody died.
        let pressure_seconds = [None, Some(0.1), None];
        let full = Usage { pressure_seconds, ..memory(512, Some(512)) };
        assert!(full.advice(0).is_empty(), "{:?}", full.advice(0));
        let short = Usage { pressure_seconds: [None, Some(20.0), None], ..full };
        assert_eq!(words(&one(&short, 0)), ("limits.memory", "624Mi"));
    }

    #[test]
    fn what_is_proposed_is_not_refused() {
        let asked = Usage { memory_request: Some(256 << 20), ..memory(20, Some(1024)) };
        assert_eq!(words(&one(&asked, 0)), ("limits.memory", "256Mi"));
        let asked = Usage { memory_limit: Some(512 << 20), ..asked };
        assert!(asked.advice(0).is_empty(), "{:?}", asked.advice(0));
        let unlimited = Usage { memory_limit: None, ..asked };
        assert_eq!(words(&one(&unlimited, 0)), ("limits.memory", "256Mi"));
        // As it is when nobody asks for anything.
        let limited = Usage { memory_request: Some(512 << 20), ..memory(20, Some(512)) };
        assert_eq!(words(&one(&limited, 0)), ("limits.memory", "24Mi"));

        let busy = Usage { cpu_seconds: Some(45.0), cpu_limit: Some(0.5), ..LIFE };
        assert_eq!(words(&one(&busy, 0)), ("requests.cpu", "500m"));
        let asked = Usage { cpu_request: Some(0.5), ..busy };
        assert!(asked.advice(0).is_empty(), "{:?}", asked.advice(0));
        let odd = Usage { cpu_seconds: Some(12.0), cpu_limit: Some(0.125), ..LIFE };
        assert!(odd.advice(0).is_empty(), "{:?}", odd.advice(0));
    }

    #[test]
    fn what_stands_there_is_shown_as_it_is() {
        let idle = Usage { cpu_seconds: Some(1.0), cpu_request: Some(0.125), ..LIFE };
        assert_eq!(idle.advice(0)[0].now.as_deref(), Some("125m"));
    }

    #[test]
    fn who_is_held_back_gets_a_larger_limit() {
        let usage = Usage {
            cpu_seconds: Some(50.0),
            cpu_limit: Some(0.5),
            cpu_request: Some(0.5),
            cpu_periods: 1000,
            cpu_throttled_periods: 900,
            cpu_throttled_seconds: 40.0,
            ..LIFE
        };
        assert_eq!(words(&one(&usage, 0)), ("limits.cpu", "950m"));
        let nearest = usage.nearest().unwrap();
        assert_eq!((&*nearest.resource, nearest.share), ("cpu", 1.0));
        assert_eq!(nearest.text, "0.50 of 0.5 CPUs on average, held back in 90 % of the periods");
    }

    #[test]
    fn what_is_used_is_asked_for() {
        let usage = Usage { cpu_seconds: Some(20.0), ..LIFE };
        assert_eq!(words(&one(&usage, 0)), ("requests.cpu", "240m"));
        let usage = Usage { cpu_request: Some(0.25), ..usage };
        assert!(usage.advice(0).is_empty(), "{:?}", usage.advice(0));
        let brief = Usage { life_seconds: 5.0, cpu_request: None, ..usage };
        assert!(brief.advice(0).is_empty());
    }

    #[test]
    fn refused_forks_ask_for_more() {
        let usage = Usage { pids_peak: Some(20), pids_limit: Some(20), pids_refused: 3, ..LIFE };
        assert_eq!(words(&one(&usage, 0)), ("limits.podscope.dev/pids", "40"));
    }

    #[test]
    fn the_nearest_limit_is_that_with_the_largest_share() {
        let usage = Usage {
            pids_peak: Some(5),
            pids_limit: Some(20),
            io_written_bytes: Some(90 << 20),
            io_limits: [None, Some(1 << 20)],
            ..memory(50, Some(64))
        };
        let nearest = usage.nearest().unwrap();
        assert_eq!((&*nearest.resource, nearest.share), ("io-write", 0.9));
        assert_eq!(LIFE.nearest(), None);
    }
}
