//! What the kernel counts for a pod's network namespace, from /proc/PID/net of its infra program.

use std::{fs, path::Path};

use super::family::{Domain, Family, Label, Source::Pod};

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

/// What became of a receive window of size zero.
const ZERO_WINDOWS: [&str; 3] = ["advertised", "reopened", "wanted"];

pub(super) const DOMAIN: Domain = Domain {
    title: "Network namespace",
    text: "What the kernel counts for the network namespace that the containers of a pod share. \
           Absent while the pod has none of its own: with `hostNetwork`, and when its infra program \
           does not run. They begin anew if the pod gets another sandbox: \
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

/// Files of /proc/PID/net, as the first process of `cgroup` sees them; `None` if there is no process.
pub(super) fn files<const N: usize>(cgroup: &Path, names: [&str; N]) -> Option<[Vec<u8>; N]> {
    let procs = cgroup.join("cgroup.procs");
    let read = || fs::read_to_string(&procs).unwrap_or_default();
    let before = read();
    let pid = before.lines().next()?;
    let files = names.map(|name| fs::read(format!("/proc/{pid}/net/{name}")).unwrap_or_default());
    // Whose pid it was when the files were opened is not known before it is still the same.
    (read().lines().next() == Some(pid)).then_some(files)
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

    #[test]
    fn nobody_has_no_numbers() {
        assert_eq!(files(Path::new("/nonexistent"), ["netstat", "snmp"]), None);
        assert_eq!(Netns::parse(b"", b"\xff"), Netns::default());
    }
}
