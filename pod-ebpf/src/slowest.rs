//! The slowest of what was timed lately, and whose it was: one for each histogram.
//!
//! Two words, each of which is written at once, without a lock. Writers that meet may leave one word of
//! each; so the second has some digits of what belongs to the first, which tell.

/// Bits of a process id.
const PID_BITS: u32 = 22;

/// Bits of the time that its check takes the place of: 65 µs.
const CHECK_BITS: u32 = 16;

const CHECK: u64 = (1 << CHECK_BITS) - 1;

/// The longest duration that finds room: 73 minutes.
const LONGEST: u64 = (1 << (64 - PID_BITS)) - 1;

/// For how long nothing quicker takes its place, in nanoseconds: a scrape a minute sees each.
pub const KEPT: u64 = 60_000_000_000;

/// As it is kept.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Slowest {
    /// The duration in nanoseconds, and below it the process id.
    pub what: u64,
    /// When it was over, in nanoseconds of `CLOCK_MONOTONIC`, whose last bits are those of the duration.
    pub when: u64,
}

const _: () = assert!(size_of::<Slowest>() == 16);

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Process id in the initial PID namespace.
    pub pid: u32,
    /// How long it took.
    pub nanoseconds: u64,
    /// When it was over, in nanoseconds of `CLOCK_MONOTONIC`, to 65 µs.
    pub at: u64,
}

impl Slowest {
    /// Nothing was timed.
    pub const NONE: Self = Self { what: 0, when: 0 };

    /// What process `pid` was done with `now`.
    #[must_use]
    #[inline(always)]
    pub const fn new(pid: u32, nanoseconds: u64, now: u64) -> Self {
        let nanoseconds = if nanoseconds < LONGEST { nanoseconds } else { LONGEST };
        let pid = pid as u64 & ((1 << PID_BITS) - 1);
        Self { what: nanoseconds << PID_BITS | pid, when: now & !CHECK | nanoseconds & CHECK }
    }

    /// Whether what took this long and is over `now` takes its place.
    #[must_use]
    #[inline(always)]
    pub const fn yields_to(self, nanoseconds: u64, now: u64) -> bool {
        nanoseconds > self.what >> PID_BITS || now > self.when + KEPT
    }

    /// What is kept, if there is something and it is of one piece.
    #[must_use]
    pub fn observation(self) -> Option<Observation> {
        let nanoseconds = self.what >> PID_BITS;
        let pid = u32::try_from(self.what & ((1 << PID_BITS) - 1)).ok()?;
        let is_whole = self.when & CHECK == nanoseconds & CHECK;
        (pid != 0 && is_whole).then_some(Observation { pid, nanoseconds, at: self.when & !CHECK })
    }
}

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, two `u64`s, so no padding and every bit pattern is valid.
unsafe impl aya::Pod for Slowest {}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Of the largest process id that there can be.
    const PID: u32 = (1 << PID_BITS) - 1;

    #[test]
    fn what_is_kept_comes_out_again() {
        for nanoseconds in [0, 1, 238, 65_535, 65_536, SECOND, 1_800 * SECOND] {
            for pid in [1, 4711, PID] {
                let now = 5_000 * SECOND + 12_345;
                let kept = Slowest::new(pid, nanoseconds, now).observation().unwrap();
                assert_eq!((kept.pid, kept.nanoseconds), (pid, nanoseconds));
                assert!(kept.at <= now && now - kept.at < 1 << CHECK_BITS);
            }
        }
        let longer = Slowest::new(PID, u64::MAX, 0).observation().unwrap();
        assert_eq!((longer.pid, longer.nanoseconds), (PID, LONGEST));
    }

    #[test]
    fn nothing_and_nobody_are_no_observation() {
        assert_eq!(Slowest::NONE.observation(), None);
        assert_eq!(Slowest::new(0, SECOND, SECOND).observation(), None);
    }

    #[test]
    fn two_that_were_mixed_up_are_not_taken_for_one() {
        let one = Slowest::new(4711, 1_234_567, 9 * SECOND);
        let other = Slowest::new(4712, 1_234_568, 9 * SECOND);
        assert_eq!(Slowest { when: other.when, ..one }.observation(), None);
        assert_eq!(Slowest { when: 0, ..one }.observation(), None);
    }

    #[test]
    fn what_is_slower_takes_the_place_at_once_and_what_is_quicker_in_time() {
        let kept = Slowest::new(PID, 1_000, 100 * SECOND);
        assert!(Slowest::NONE.yields_to(1, 0));
        assert!(kept.yields_to(1_001, 100 * SECOND));
        assert!(!kept.yields_to(1_000, 101 * SECOND));
        assert!(!kept.yields_to(1, 159 * SECOND));
        assert!(kept.yields_to(1, 161 * SECOND));
        // Another CPU's clock may be behind.
        assert!(!kept.yields_to(1, 99 * SECOND));
    }

    #[test]
    fn what_has_no_room_is_not_replaced_for_ever() {
        let kept = Slowest::new(PID, u64::MAX, 100 * SECOND);
        assert!(!kept.yields_to(SECOND, 101 * SECOND));
        assert!(kept.yields_to(1, 161 * SECOND));
    }
}
