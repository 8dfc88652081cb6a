//! The pause before a container is started again, as kubelet's.

use std::time::Duration;

/// The longest pause, as a multiple of the first: 10 s become 5 min.
const CAP: u32 = 30;

/// A run this long, as a multiple of the longest pause, makes the next crash a first one again:
/// 5 min become 10 min.
const FORGET: u32 = 2;

/// Pauses that double: none before the first restart, then `base`, up to thirty times `base`.
#[derive(Debug)]
pub(super) struct Backoff {
    base: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(base: Duration) -> Self {
        Self { base, next: Duration::ZERO }
    }

    /// As it was when its next pause was `next`.
    pub(super) fn resume(base: Duration, next: Duration) -> Self {
        Self { base, next: next.min(base * CAP) }
    }

    /// The longest pause.
    pub(super) fn longest(&self) -> Duration {
        self.base * CAP
    }

    /// The pause after the next run.
    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// The pause after a run of length `ran`.
    pub(super) fn pause(&mut self, ran: Duration) -> Duration {
        let cap = self.longest();
        if ran > cap * FORGET {
            self.next = Duration::ZERO;
        }
        let pause = self.next;
        self.next = if pause.is_zero() { self.base } else { (pause * 2).min(cap) };
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let mut backoff = Backoff::new(Duration::from_secs(10));
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause(Duration::ZERO).as_secs()).collect();
        assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let mut backoff = Backoff::new(Duration::from_secs(10));
        backoff.pause(Duration::ZERO);
        backoff.pause(Duration::ZERO);
        assert_eq!(backoff.pause(Duration::from_secs(601)), Duration::ZERO);
    }
}
