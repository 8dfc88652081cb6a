//! What the kernel counts for a pod's network namespace, from /proc/PID/net of its infra program.

use std::{collections::HashMap, fs, path::Path};

use rustix::fs::CWD;

use super::{
    family::{Domain, Family, Label, Source::Pod},
    reconcile::Traffic,
};
use crate::cgroup::{file::Reader, pids};

/// Numbers of one network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Netns {
    listen_overflows: u64,
    listen_drops: u64,
    /// In the order of [`ZERO_WINDOWS`].
    zero_windows: [u64; 3],
    udp_receive_errors: u64,
    udp_receive_buffer_errors: u64,
    udp_send_buffer_errors: u64,
}

/// What the node's own interfaces passed, as the kernel writes it, by name. One reading tells of all pods
/// with which of them packets were exchanged.
#[derive(Default)]
pub(super) struct Outside(HashMap<String, String>);

/// What one look at a network namespace has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pid: u32,
    /// What its other end on the node had passed before.
    outside: Option<String>,
    /// What its devices passed, as the kernel writes it.
    dev: Vec<u8>,
    /// The same as numbers, if they can be read.
    pub(super) traffic: Option<Traffic>,
    pub(super) netns: Netns,
    /// How many looks before this one found the same there.
    unchanged: u32,
}

/// After so many looks at an idle namespace everything is read anew.
const LOOKS: u32 = 16;

/// What became of a receive window of size zero.
const ZERO_WINDOWS: [&str; 3] = ["advertised", "reopened", "wanted"];

pub(super) const DOMAIN: Domain = Domain {
    title: "Network namespace",
    text: "What the kernel counts for the network namespace that the containers of a pod share. \
           Absent while the pod has none of its own: with `hostNetwork`, and when its infra program \
           does not run. While no packet passes there, they are read anew once in a while (in the \
           16th scrape at the latest); so is what passes on its loopback while no thread of its \
           containers runs. They begin anew if the pod gets another sandbox: \
           totals have what its last one came to, and `__other__` has none of them.",
    families: &[
        Family::counter(
            "podscope_pod_listen_overflows_total",
            "Connections that met a listener whose queue was full.",
            Pod(|pod, sheet| count(pod, |netns| sheet.count(&[], netns.listen_overflows))),
        )
        .summed_at_end(),
        Family::counter(
            "podscope_pod_listen_drops_total",
            "Connections that a listener could not take, for this or another reason.",
            Pod(|pod, sheet| count(pod, |netns| sheet.count(&[], netns.listen_drops))),
        )
        .summed_at_end(),
        Family::counter(
            "podscope_pod_tcp_zero_windows_total",
            "How often a program of the pod was so slow to read from a connection that its peer was \
             told to wait (`advertised`), how often the peer could go on (`reopened`), and how often \
             it should have waited, but had been promised more (`wanted`).",
            Pod(|pod, sheet| {
                count(pod, |netns| {
                    for (kind, count) in ZERO_WINDOWS.iter().zip(netns.zero_windows) {
                        sheet.count(&[kind], count);
                    }
                });
            }),
        )
        .by(&[Label::each("kind", &ZERO_WINDOWS)])
        .summed_at_end(),
        Family::counter(
            "podscope_pod_udp_receive_errors_total",
            "Datagrams over IPv4 that did not get to a program, for whatever reason.",
            Pod(|pod, sheet| count(pod, |netns| sheet.count(&[], netns.udp_receive_errors))),
        )
        .summed_at_end(),
        Family::counter(
            "podscope_pod_udp_receive_buffer_errors_total",
            "Those of them for which a socket had no room.",
            Pod(|pod, sheet| count(pod, |netns| sheet.count(&[], netns.udp_receive_buffer_errors))),
        )
        .summed_at_end(),
        Family::counter(
            "podscope_pod_udp_send_buffer_errors_total",
            "Datagrams over IPv4 for which there was no room to send them.",
            Pod(|pod, sheet| count(pod, |netns| sheet.count(&[], netns.udp_send_buffer_errors))),
        )
        .summed_at_end(),
    ],
};

fn count(pod: &super::reading::Pod, add: impl FnOnce(&Netns)) {
    if let Some(netns) = &pod.netns {
        add(netns);
    }
}

impl Netns {
    /// From the namespace's own `netstat` and `snmp`.
    pub(super) fn parse(netstat: &[u8], snmp: &[u8]) -> Self {
        let tcp = Table::of(netstat, "TcpExt:");
        let udp = Table::of(snmp, "Udp:");
        let zero_windows = ["TCPToZeroWindowAdv", "TCPFromZeroWindowAdv", "TCPWantZeroWindowAdv"];
        Self {
            listen_overflows: tcp.value("ListenOverflows"),
            listen_drops: tcp.value("ListenDrops"),
            zero_windows: zero_windows.map(|name| tcp.value(name)),
            udp_receive_errors: udp.value("InErrors"),
            udp_receive_buffer_errors: udp.value("RcvbufErrors"),
            udp_send_buffer_errors: udp.value("SndbufErrors"),
        }
    }

    #[cfg(test)]
    pub(super) fn sample() -> Self {
        Self { listen_overflows: 1, listen_drops: 2, ..Self::default() }
    }
}

impl Outside {
    pub(super) fn read() -> Self {
        let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
        let owned = |(name, numbers): (&str, &str)| (name.to_owned(), numbers.to_owned());
        Self(interfaces(&text).map(owned).collect())
    }

    pub(super) fn of(&self, interface: &str) -> Option<&str> {
        self.0.get(interface).map(String::as_str)
    }
}

impl Look {
    /// Looks at the namespace of the first process of `cgroup`, given what the last look has found;
    /// `None` if there is no process. If the pod `is_idle`, nothing passes within it, and what passes to
    /// others the node's end of its interface has seen, `outside`: if it has not, the last look will do.
    pub(super) fn take(
        cgroup: &Path,
        reader: &mut Reader,
        outside: Option<&str>,
        is_idle: bool,
        last: Option<Self>,
    ) -> Option<Self> {
        let will_do = |last: &Self| {
            let is_same = outside.is_some() && last.outside.as_deref() == outside;
            is_idle && is_same && !is_due(last.unchanged + 1, last.pid)
        };
        let last = match last {
            Some(last) if will_do(&last) => {
                return Some(Self { unchanged: last.unchanged + 1, ..last });
            }
            last => last,
        };
        with_files(cgroup, reader, |pid, file| {
            // First: what is counted meanwhile makes a difference the next time.
            let dev = file("dev");
            let last = last.filter(|last| last.pid == pid && last.dev == dev && !dev.is_empty());
            let unchanged = last.as_ref().map_or(0, |last| last.unchanged + 1);
            let traffic = (!dev.is_empty()).then(|| Traffic::parse(&dev));
            let netns = match last {
                Some(last) if !is_due(unchanged, pid) => last.netns,
                _ => Netns::parse(&file("netstat"), &file("snmp")),
            };
            Self { pid, outside: outside.map(str::to_owned), dev, traffic, netns, unchanged }
        })
    }
}

/// Whether everything is to be read. Almost nothing is counted where no packet passes, and what is, is
/// that soon after one. To read it costs as much as all else that is read of a pod, so an idle one's is
/// read seldom, and not of all pods at once.
fn is_due(unchanged: u32, pid: u32) -> bool {
    unchanged < 2 || unchanged.wrapping_add(pid).is_multiple_of(LOOKS)
}

/// The lines of /proc/PID/net/dev: a name, eight numbers of what was received, and eight of what was sent.
pub(super) fn interfaces(dev: &str) -> impl Iterator<Item = (&str, &str)> {
    // Those of the heading have no colon.
    let lines = dev.lines().filter_map(|line| line.rsplit_once(':'));
    lines.map(|(name, numbers)| (name.trim(), numbers))
}

/// The file /proc/PID/net/dev, as the first process of `cgroup` sees it; `None` if there is no process.
pub(super) fn devices(cgroup: &Path) -> Option<Vec<u8>> {
    with_files(cgroup, &mut Reader::new(), |_, file| file("dev"))
}

/// Lets `read` have files of /proc/PID/net, as the first process of `cgroup` sees them; one that is not
/// there is empty. `None` if there is no process.
fn with_files<T>(
    cgroup: &Path,
    reader: &mut Reader,
    read: impl FnOnce(u32, &mut dyn FnMut(&str) -> Vec<u8>) -> T,
) -> Option<T> {
    let procs = cgroup.join("cgroup.procs");
    let first = |reader: &mut Reader| -> Option<u32> {
        pids(reader.text(CWD, &procs)?).next()?.as_raw().try_into().ok()
    };
    let pid = first(reader)?;
    let found = read(pid, &mut |name| {
        let bytes = reader.bytes(CWD, format!("/proc/{pid}/net/{name}"));
        bytes.map(<[u8]>::to_vec).unwrap_or_default()
    });
    // Whose pid it was when the files were opened is not known before it is still the same.
    (first(reader) == Some(pid)).then_some(found)
}

/// Two lines that begin with the same word: names, and their values.
#[derive(Default)]
struct Table<'a> {
    names: &'a str,
    values: &'a str,
}

impl<'a> Table<'a> {
    fn of(text: &'a [u8], word: &str) -> Self {
        let text = str::from_utf8(text).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(word));
        match (lines.next(), lines.next()) {
            (Some(names), Some(values)) => Self { names, values },
            _ => Self::default(),
        }
    }

    /// 0 if there is no such name: the kernel leaves none out that it counts.
    fn value(&self, name: &str) -> u64 {
        let names = self.names.split_ascii_whitespace();
        let mut pairs = names.zip(self.values.split_ascii_whitespace());
        let value = pairs.find(|(found, _)| *found == name);
        value.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_below_its_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPWantZeroWindowAdv\n\
                       TcpExt: 9 3 4 5\nIpExt: InNoRoutes\nIpExt: 7\n";
        let snmp = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams InErrors RcvbufErrors\nUdp: 8 2 1\n\
                    UdpLite: InErrors\nUdpLite: 6\n";

        let netns = Netns::parse(netstat.as_bytes(), snmp.as_bytes());

        let expected = Netns {
            listen_overflows: 3,
            listen_drops: 4,
            zero_windows: [0, 0, 5],
            udp_receive_errors: 2,
            udp_receive_buffer_errors: 1,
            udp_send_buffer_errors: 0,
        };
        assert_eq!(netns, expected);
    }

    fn take(
        cgroup: &Path,
        outside: Option<&str>,
        is_idle: bool,
        last: Option<Look>,
    ) -> Option<Look> {
        Look::take(cgroup, &mut Reader::new(), outside, is_idle, last)
    }

    /// The look at this process, as the first of a cgroup, after so many at which nothing had changed.
    fn looked(cgroup: &Path, unchanged: u32) -> Look {
        fs::write(cgroup.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        let look = take(cgroup, Some(" 1 2"), true, None).unwrap();
        assert!(!look.dev.is_empty());
        Look { unchanged, ..look }
    }

    #[test]
    fn an_idle_namespace_is_left_alone_while_nothing_passes_to_it() {
        let cgroup = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        // The next look is not one that reads everything.
        let unchanged = (2..).find(|looks| !is_due(looks + 1, pid)).unwrap();
        let last = looked(cgroup.path(), unchanged);
        // Whoever looks sees that nobody is there.
        fs::write(cgroup.path().join("cgroup.procs"), "").unwrap();
        let take = |outside, is_idle, last: &Look| {
            take(cgroup.path(), outside, is_idle, Some(last.clone()))
        };

        let spared = Look { unchanged: unchanged + 1, ..last.clone() };
        assert_eq!(take(Some(" 1 2"), true, &last), Some(spared));
        assert_eq!(take(Some(" 1 3"), true, &last), None, "a packet passed");
        assert_eq!(take(Some(" 1 2"), false, &last), None, "it may talk to itself");
        assert_eq!(take(None, true, &last), None, "its interface is gone");
    }

    #[test]
    fn an_idle_namespace_is_looked_at_now_and_then() {
        let cgroup = tempfile::tempdir().unwrap();
        let mut last = looked(cgroup.path(), 0);
        fs::write(cgroup.path().join("cgroup.procs"), "").unwrap();
        let due = (2..2 + LOOKS).find(|looks| is_due(*looks, last.pid)).unwrap();
        last.unchanged = due - 1;
        assert_eq!(take(cgroup.path(), Some(" 1 2"), true, Some(last)), None);
    }

    #[test]
    fn the_nodes_interfaces_are_known_by_name() {
        let outside = Outside::read();
        assert!(outside.of("lo").is_some_and(|numbers| numbers.split_whitespace().count() == 16));
        assert_eq!(outside.of("none"), None);
    }

    #[test]
    fn nobody_has_no_numbers() {
        assert!(take(Path::new("/nonexistent"), None, true, None).is_none());
        assert_eq!(Netns::parse(b"", b"\xff"), Netns::default());
    }
}
