//! Exemplars: a process of which a number tells, and the trace that it is part of.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use pod_ebpf::{
    latency::{Latency, bucket},
    slowest::Observation,
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    patience::Patience,
    reading::Pod,
    trace::{Living, TICK, Trace},
};

/// As much as clocks are apart by chance, in nanoseconds.
const STEP: u64 = 100_000_000;

/// Somebody of whom a number tells: a process, by its number on the node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) pid: u32,
    pub(super) trace: Option<Trace>,
    /// Of one in a histogram: what it was.
    pub(super) observed: Option<Observed>,
}

/// Something that took its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) nanoseconds: u64,
    /// When it was over, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(super) at: u64,
    /// The same as milliseconds of Unix time.
    pub(super) time_ms: i64,
}

impl Exemplar {
    /// One of those that were counted; none if `pid` is 0.
    pub(super) fn counted(pid: u32) -> Option<Self> {
        (pid > 0).then_some(Self { pid, trace: None, observed: None })
    }

    /// The slowest of what is in a histogram, as `find` knows it; it is not asked if nothing is there.
    pub(super) fn slowest(
        latency: &Latency,
        find: impl FnOnce() -> Option<Observation>,
    ) -> Option<Self> {
        if latency.count() == 0 {
            return None;
        }
        // The histogram was read before: it may not have counted what was found.
        let is_counted = |found: &Observation| latency.buckets[bucket(found.nanoseconds)] > 0;
        find().filter(is_counted).map(Self::timed)
    }

    /// One of those that were timed.
    pub(super) fn timed(Observation { pid, nanoseconds, at }: Observation) -> Self {
        Self { pid, trace: None, observed: Some(Observed { nanoseconds, at, time_ms: 0 }) }
    }

    /// How much of the number is its doing.
    pub(super) fn value(&self) -> f64 {
        self.observed.map_or(1.0, |observed| observed.nanoseconds as f64 / 1e9)
    }

    /// When it was, as seconds of Unix time and milliseconds; none if that is not known.
    pub(super) fn time(&self) -> Option<(i64, i64)> {
        let time = self.observed?.time_ms;
        Some((time.div_euclid(1000), time.rem_euclid(1000)))
    }

    /// Calls `label` with the name and the value of each label: at most 73 characters together, of the 128
    /// that OpenMetrics allows. None has a character that would have to be escaped.
    pub(super) fn each_label(&self, mut label: impl FnMut(&str, &str)) {
        label("pid", &self.pid.to_string());
        if let Some(trace) = &self.trace {
            label("trace_id", trace.trace_id());
            label("span_id", trace.span_id());
        }
    }

    /// How long it took; 0 if it only happened.
    pub(super) fn nanoseconds(&self) -> u64 {
        self.observed.map_or(0, |observed| observed.nanoseconds)
    }
}

/// Finds out what the probes do not know of exemplars: their traces, and what time it was.
#[derive(Default)]
pub(super) struct Completion {
    processes: Patience<u32>,
    state: Mutex<State>,
}

/// Which process did something when.
type Doing = (u32, u64);

#[derive(Default)]
struct State {
    /// Of the exemplars that were shown last: each process is looked at once for each, while it is
    /// likely to be there, and what it was then stays.
    traces: HashMap<Doing, Option<Trace>>,
    /// From `CLOCK_MONOTONIC` to Unix time.
    offset: Option<i128>,
}

impl Completion {
    /// Completes the exemplars of pods that have been read.
    pub(super) fn complete(&self, pods: &mut [Pod]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = [ClockId::Monotonic, ClockId::Realtime, ClockId::Boottime].map(nanoseconds);
        let [monotonic, realtime, since_boot] = now;
        let offset = state.offset(realtime - monotonic);
        let asleep = u64::try_from(since_boot - monotonic).unwrap_or(0);
        let mut unknown = BTreeSet::new();
        for exemplar in pods.iter_mut().flat_map(Pod::exemplars) {
            let Some(observed) = &mut exemplar.observed else { continue };
            let time = (i128::from(observed.at) + offset) / 1_000_000;
            observed.time_ms = i64::try_from(time).unwrap_or(0);
            if !state.traces.contains_key(&(exemplar.pid, observed.at)) {
                unknown.insert(exemplar.pid);
            }
        }
        let found = self.processes.ask(&unknown, |pid| Some(Living::look_at(*pid)));
        let mut traces = HashMap::new();
        for container in pods.iter_mut().flat_map(|pod| &mut pod.containers) {
            let inherited = container.about.traceparent.as_deref();
            let inherited = inherited.and_then(|text| Trace::parse(text.as_bytes()));
            for exemplar in container.exemplars() {
                let Some(observed) = exemplar.observed else {
                    exemplar.trace = inherited;
                    continue;
                };
                let doing = (exemplar.pid, observed.at);
                exemplar.trace = match (state.traces.get(&doing), found.get(&exemplar.pid)) {
                    (Some(known), _) => *known,
                    (None, Some(living)) => {
                        trace(living.as_ref(), observed.at + asleep).unwrap_or(inherited)
                    }
                    // It has not answered in time, and may another time.
                    (None, None) => continue,
                };
                traces.insert(doing, exemplar.trace);
            }
        }
        state.traces = traces;
    }
}

/// The trace of a process that did something `at` that time, if that is who has its number now.
fn trace(living: Option<&Living>, at: u64) -> Option<Option<Trace>> {
    living.filter(|living| living.start <= at + TICK).map(|living| living.trace)
}

impl State {
    /// What the clocks are apart. Prometheus takes an exemplar for another one if its time is another,
    /// so that of one must not tremble.
    fn offset(&mut self, measured: i128) -> i128 {
        let kept = self.offset.unwrap_or(measured);
        let has_stepped = measured.abs_diff(kept) > u128::from(STEP);
        *self.offset.insert(if has_stepped { measured } else { kept })
    }
}

fn nanoseconds(clock: ClockId) -> i128 {
    let time = clock_gettime(clock);
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::{reading::About, sample, trace::tests::EXAMPLE};

    /// A pod whose slowest connect was that of this process, at this time of `CLOCK_MONOTONIC`.
    fn connecting(pid: u32, at: i128, traceparent: Option<&str>) -> Pod {
        let mut pod = sample::pod(0);
        pod.containers.truncate(1);
        let mut about = (*pod.about).clone();
        about.containers[0].traceparent = traceparent.map(str::to_owned);
        let container = &mut pod.containers[0];
        container.about = About::each(&Arc::new(about)).next().unwrap();
        let at = u64::try_from(at).unwrap();
        container.slowest_connect = Some(Exemplar::timed(Observation { pid, nanoseconds: 1, at }));
        pod
    }

    fn completed(completion: &Completion, mut pod: Pod) -> Exemplar {
        completion.complete(std::slice::from_mut(&mut pod));
        pod.containers[0].slowest_connect.unwrap()
    }

    /// Not the number of a process.
    const NOBODY: u32 = 1 << 23;

    #[test]
    fn who_is_gone_was_part_of_its_containers_trace() {
        let completion = Completion::default();
        let inherited = Trace::parse(EXAMPLE.as_bytes());
        let exemplar = completed(&completion, connecting(NOBODY, 1, Some(EXAMPLE)));
        assert!(exemplar.trace.is_some() && exemplar.trace == inherited);
        for none in [None, Some("none")] {
            let exemplar = completed(&completion, connecting(NOBODY, 2, none));
            assert_eq!(exemplar.trace, None);
        }
    }

    #[test]
    fn who_is_there_speaks_for_itself_if_it_was_there_then() {
        let completion = Completion::default();
        let own = std::process::id();
        let now = nanoseconds(ClockId::Monotonic);
        // The test has no such variable.
        let exemplar = completed(&completion, connecting(own, now, Some(EXAMPLE)));
        assert_eq!(exemplar.trace, None);
        // That was somebody else, before.
        let exemplar = completed(&completion, connecting(own, 1, Some(EXAMPLE)));
        assert!(exemplar.trace.is_some());
    }

    #[test]
    fn what_was_known_stays_for_as_long_as_it_is_shown() {
        let completion = Completion::default();
        let first = completed(&completion, connecting(NOBODY, 1, Some(EXAMPLE)));
        let again = completed(&completion, connecting(NOBODY, 1, None));
        assert_eq!(again, first);
        completed(&completion, connecting(NOBODY, 2, None));
        assert_eq!(completed(&completion, connecting(NOBODY, 1, None)).trace, None);
        let state = completion.state.lock().unwrap();
        // And those of the sample's own exemplars.
        assert!(state.traces.len() <= 3, "{:?}", state.traces);
    }

    #[test]
    fn a_time_does_not_tremble_and_follows_the_clock() {
        let mut state = State::default();
        let second = 1_000_000_000;
        assert_eq!(state.offset(7 * second), 7 * second);
        assert_eq!(state.offset(7 * second + 5_000_000), 7 * second);
        assert_eq!(state.offset(7 * second - 5_000_000), 7 * second);
        assert_eq!(state.offset(9 * second), 9 * second);
        assert_eq!(state.offset(-second), -second);
    }

    #[test]
    fn times_are_those_of_the_wall_clock() {
        let now = jiff::Timestamp::now().as_millisecond();
        let at = nanoseconds(ClockId::Monotonic);
        let exemplar = completed(&Completion::default(), connecting(NOBODY, at, None));
        let time = exemplar.observed.unwrap().time_ms;
        assert!((time - now).abs() < 1000, "{time} {now}");
        assert_eq!(exemplar.time(), Some((time / 1000, time % 1000)));
    }
}
