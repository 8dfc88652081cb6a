//! The interfaces of a pod's network namespace, from /proc/PID/net/dev.

use std::path::Path;

use crate::metrics::netns;

/// The most interfaces that are shown of a pod: one that may make them could make any number.
pub(super) const MAX: usize = 8;

/// Beginnings of the names that cAdvisor leaves out.
const IGNORED: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];

/// One interface and its counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) received: Counters,
    pub(super) transmitted: Counters,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) dropped: u64,
}

/// The interfaces that the first process of `cgroup` sees; none if there is no process.
pub(super) fn of_cgroup(cgroup: &Path) -> Vec<Interface> {
    netns::devices(cgroup).map(|text| parse(&text)).unwrap_or_default()
}

/// Reads the lines after the two of the heading: a name, eight numbers of what was received, and
/// eight of what was sent.
fn parse(text: &[u8]) -> Vec<Interface> {
    let lines = text.split(|byte| *byte == b'\n').skip(2);
    // The kernel lets a name be any bytes. What is no text has no label.
    let interfaces = lines.filter_map(|line| interface(str::from_utf8(line).ok()?));
    interfaces.take(MAX).collect()
}

fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.rsplit_once(':')?;
    let name = name.trim_ascii_start();
    let lower = name.to_ascii_lowercase();
    if IGNORED.iter().any(|prefix| lower.starts_with(prefix)) {
        return None;
    }
    let numbers: Vec<u64> =
        numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
    let counters = |from: usize| {
        let [bytes, packets, errors, dropped] = *numbers.get(from..)?.first_chunk()?;
        Some(Counters { bytes, packets, errors, dropped })
    };
    Some(Interface { received: counters(0)?, transmitted: counters(8)?, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Inter-|   Receive                                                |  Transmit\n \
                        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n";

    #[test]
    fn what_was_received_and_what_was_sent_are_told_apart() {
        let text = format!(
            "{HEAD}    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
        );

        let received = Counters { bytes: 1, packets: 2, errors: 3, dropped: 4 };
        let transmitted = Counters { bytes: 9, packets: 10, errors: 11, dropped: 12 };
        let expected = Interface { name: "eth0".to_owned(), received, transmitted };
        assert_eq!(parse(text.as_bytes()), [expected]);
    }

    #[test]
    fn names_that_a_pod_chose_do_no_harm() {
        let mut text = HEAD.as_bytes().to_vec();
        text.extend(b"\xff\xfe: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\nhalf: 1 2\n");
        for number in 0..100 {
            let line = format!("d{number}: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n");
            text.extend(line.as_bytes());
        }

        let found = parse(&text);

        assert_eq!((found.len(), &*found[0].name), (MAX, "d0"));
    }

    #[test]
    fn nobody_sees_no_interface() {
        assert!(of_cgroup(Path::new("/nonexistent")).is_empty());
        assert!(parse(b"").is_empty());
    }
}
