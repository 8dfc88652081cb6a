//! How long things take: a histogram that the probes fill.
//!
//! Bounds are powers of two of a second, which are those of Prometheus' native histograms of schema 0:
//! a bucket here is a bucket there, so nothing is lost on the way.

/// Buckets of a [`Latency`]: `i` holds what took at most [`bound_seconds`]`(i)` and longer than the one
/// before it; the last holds all that took longer, and has no bound.
pub const BUCKETS: usize = 28;

/// The bound of bucket 0 is 2^-22 seconds, 238 ns.
const FIRST_EXPONENT: i32 = -22;

/// Durations by length. Spread over the buckets, so one cell for all CPUs and atomic adds will do.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Latency {
    /// All of them together, in nanoseconds.
    pub sum_ns: u64,
    /// How many there were of each length.
    pub buckets: [u64; BUCKETS],
}

const _: () = assert!(size_of::<Latency>() == 8 * (1 + BUCKETS));

impl Latency {
    /// Nothing was timed.
    pub const ZERO: Self = Self { sum_ns: 0, buckets: [0; BUCKETS] };

    /// How many were timed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The bucket of a duration.
#[must_use]
#[inline(always)]
pub const fn bucket(nanoseconds: u64) -> usize {
    // In units of 2^-54 s, less by three parts in a hundred million. No division: it is slow.
    let longest = 1 << 36;
    let nanoseconds = if nanoseconds < longest { nanoseconds } else { longest };
    let units = nanoseconds * 18_014_398;
    let mut rest = units.saturating_sub(1) >> (FIRST_EXPONENT + 54);
    if rest >= 1 << (BUCKETS - 1) {
        return BUCKETS - 1;
    }
    // The number of its bits. The BPF target has no instruction that counts leading zeros.
    let mut bits = 0;
    let mut step = 16;
    while step > 0 {
        if rest >> step > 0 {
            bits += step;
            rest >>= step;
        }
        step /= 2;
    }
    bits + (rest > 0) as usize
}

/// The upper bound of a bucket; infinite for the last.
#[must_use]
pub fn bound_seconds(bucket: usize) -> f64 {
    if bucket >= BUCKETS - 1 {
        return f64::INFINITY;
    }
    // A power of two is exact.
    (1_u64 << bucket) as f64 / (1_u64 << -FIRST_EXPONENT) as f64
}

crate::counters!(Latency);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_duration_is_above_the_bound_of_its_bucket_or_below_the_one_before() {
        let powers = (0..40).map(|power| 1_u64 << power);
        let decimal =
            [0, 1, 238, 239, 477, 953, 954, 1_000, 3_815, 1_000_000, 1_000_000_000, 5_000_000_000];
        for nanoseconds in powers.chain(decimal) {
            let bucket = bucket(nanoseconds);
            let seconds = nanoseconds as f64 / 1e9;
            assert!(seconds <= bound_seconds(bucket), "{nanoseconds} in {bucket}");
            assert!(
                bucket == 0 || seconds > bound_seconds(bucket - 1),
                "{nanoseconds} in {bucket}"
            );
        }
    }

    #[test]
    fn what_takes_longer_than_all_bounds_is_in_the_last_bucket() {
        assert_eq!(bucket(15_999_999_000), BUCKETS - 2);
        assert_eq!(bucket(16_000_001_000), BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(bound_seconds(BUCKETS - 2), 16.0);
    }
}
