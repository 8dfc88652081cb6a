//! Which trace a process is part of: what `TRACEPARENT` in its environment says, as W3C's Trace Context
//! has it. A workload may write there what it likes, so nothing but such an entry is taken.

use std::{fs::File, io::Read as _};

use nix::unistd::Pid;

use crate::{pod::TRACEPARENT, sandbox::start_time};

/// As much of an environment as is looked at.
const LIMIT: u64 = 256 << 10;

/// Hexadecimal digits of the two ids.
const TRACE_DIGITS: usize = 32;
const SPAN_DIGITS: usize = 16;

/// Where in a trace a process is, as digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    trace: [u8; TRACE_DIGITS],
    span: [u8; SPAN_DIGITS],
}

impl Trace {
    /// Reads `00-TRACE-SPAN-FLAGS`. Of later versions nobody knows what they will be.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (trace, rest) = id(text.strip_prefix(b"00-")?)?;
        let (span, rest) = id(rest.strip_prefix(b"-")?)?;
        let flags: &[u8; 2] = rest.strip_prefix(b"-")?.try_into().ok()?;
        flags.iter().all(is_digit).then_some(Self { trace, span })
    }

    pub(super) fn trace_id(&self) -> &str {
        digits(&self.trace)
    }

    pub(super) fn span_id(&self) -> &str {
        digits(&self.span)
    }
}

/// Takes an id of `N` digits, not all of which are zero.
fn id<const N: usize>(text: &[u8]) -> Option<([u8; N], &[u8])> {
    let (id, rest) = text.split_first_chunk::<N>()?;
    let is_valid = id.iter().all(is_digit) && id.iter().any(|digit| *digit != b'0');
    is_valid.then_some((*id, rest))
}

fn is_digit(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn digits(id: &[u8]) -> &str {
    // They were checked, one by one.
    str::from_utf8(id).unwrap_or_default()
}

/// A process that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Living {
    /// When it began, in nanoseconds of `CLOCK_BOOTTIME`, rounded down to [`TICK`].
    pub(super) start: u64,
    pub(super) trace: Option<Trace>,
}

/// Nanoseconds of a clock tick in `/proc`, in the ABI of every architecture that Podscope runs on.
pub(super) const TICK: u64 = 10_000_000;

impl Living {
    /// Looks at process `pid`. It may have all that its memory is mapped from wait, and this as well.
    pub(super) fn look_at(pid: u32) -> Option<Self> {
        let start = start_time(Pid::from_raw(pid.try_into().ok()?))?.checked_mul(TICK)?;
        let mut environment = Vec::new();
        let file = File::open(format!("/proc/{pid}/environ")).ok()?;
        file.take(LIMIT).read_to_end(&mut environment).ok()?;
        // Whose memory is gone has none left.
        (!environment.is_empty()).then(|| Self { start, trace: trace_of(&environment) })
    }
}

/// What an environment says, the first time that it does, as `getenv` finds it.
fn trace_of(environment: &[u8]) -> Option<Trace> {
    let value = |entry: &[u8]| {
        entry.strip_prefix(TRACEPARENT.as_bytes())?.strip_prefix(b"=").map(Trace::parse)
    };
    environment.split(|byte| *byte == 0).find_map(value)?
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::metrics) const EXAMPLE: &str =
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_parent_has_two_ids() {
        let trace = Trace::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(trace.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(trace.span_id(), "b7ad6b7169203331");
    }

    #[test]
    fn what_is_not_one_is_not_taken_for_one() {
        let (trace, span) = (&EXAMPLE[3..35], &EXAMPLE[36..52]);
        for text in [
            String::new(),
            "00".to_owned(),
            EXAMPLE[..54].to_owned(),
            format!("{EXAMPLE}0"),
            format!("{EXAMPLE}-what-else"),
            format!("{EXAMPLE}\n"),
            format!(" {EXAMPLE}"),
            format!("01{}", &EXAMPLE[2..]),
            format!("ff{}", &EXAMPLE[2..]),
            EXAMPLE.to_uppercase(),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}-{span}-0g"),
            format!("00-{trace}-{span}-0"),
            format!("00-{}-{span}-01", "\"} 1 # {".repeat(4)),
            format!("00-{}é-{span}-01", &trace[2..]),
            format!("00_{trace}_{span}_01"),
            format!("00-{span}-{trace}-01"),
        ] {
            assert_eq!(Trace::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn an_environment_says_it_once() {
        let other = "00-11111111111111111111111111111111-2222222222222222-00";
        let with = |entries: &[&str]| trace_of(entries.join("\0").as_bytes());
        let variable = |value: &str| format!("{TRACEPARENT}={value}");
        let example = Trace::parse(EXAMPLE.as_bytes());
        assert!(example.is_some());
        assert_eq!(with(&["A=1", &variable(EXAMPLE), ""]), example);
        assert_eq!(with(&[&variable(EXAMPLE), &variable(other)]), example);
        // A program would find no other, either.
        assert_eq!(with(&[&variable("none"), &variable(EXAMPLE)]), None);
        assert_eq!(with(&[&format!("X{TRACEPARENT}={EXAMPLE}"), &format!("A={EXAMPLE}")]), None);
        assert_eq!(with(&[&format!("{TRACEPARENT}S={EXAMPLE}")]), None);
        assert_eq!(trace_of(b"\xff\0\0TRACEPARENT"), None);
    }

    #[test]
    fn who_is_there_can_be_looked_at() {
        let own = Living::look_at(std::process::id()).unwrap();
        assert!(own.start > 0);
        for pid in [0, u32::MAX, 1 << 23] {
            assert!(Living::look_at(pid).is_none(), "{pid}");
        }
    }
}
