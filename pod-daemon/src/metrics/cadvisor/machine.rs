//! The node, as cAdvisor describes it.

use std::fs;

use super::Source::{self, Node};
use crate::{
    manifest::demand::{CPU, MEMORY, Totals},
    metrics::family::{Domain, Family, Label},
};

/// The ids of a machine are confidential, says machine-id(5), and only root can read what the
/// firmware says: nothing for a page without authentication.
const IDS: [Label; 3] = [
    Label::free("boot_id", "of the kernel's present run"),
    Label::free("machine_id", "empty: it is confidential"),
    Label::free("system_uuid", "empty: only root may know it"),
];

pub(super) const DOMAIN: Domain<Source> = Domain {
    title: "The node",
    text: "",
    families: &[
        Family::gauge(
            "machine_cpu_cores",
            "Logical CPUs that are online.",
            Node(|reading, sheet| {
                let machine = &reading.machine;
                sheet.count(&[&machine.boot_id, "", ""], machine.cpus);
            }),
        )
        .by(&IDS),
        Family::gauge(
            "machine_memory_bytes",
            "Memory of the node.",
            Node(|reading, sheet| {
                let machine = &reading.machine;
                sheet.count(&[&machine.boot_id, "", ""], machine.memory_bytes);
            }),
        )
        .by(&IDS),
        Family::gauge(
            "cadvisor_version_info",
            "What the page is made by; always 1. There is no cAdvisor and no Docker, so their \
             versions are empty.",
            Node(|reading, sheet| {
                let machine = &reading.machine;
                sheet.count(&["", "", "", &machine.kernel, &machine.system], 1);
            }),
        )
        .by(&[
            Label::free("cadvisorRevision", "empty"),
            Label::free("cadvisorVersion", "empty"),
            Label::free("dockerVersion", "empty"),
            Label::free("kernelVersion", "release of the kernel"),
            Label::free("osVersion", "`PRETTY_NAME` of `/etc/os-release`"),
        ]),
    ],
};

/// What is the same for all series of a scrape.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    pub(super) cpus: u64,
    pub(super) memory_bytes: u64,
    pub(super) boot_id: String,
    pub(super) kernel: String,
    pub(super) system: String,
}

impl Machine {
    /// Reads about a node of that capacity.
    pub(super) fn read(capacity: &Totals) -> Self {
        let line = |file: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.trim_ascii().to_owned()
        };
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        Self {
            cpus: capacity[CPU] / 1000,
            memory_bytes: capacity[MEMORY],
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            system: pretty_name(&release).unwrap_or_default().to_owned(),
        }
    }
}

fn pretty_name(release: &str) -> Option<&str> {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches(|c| c == '"' || c == '\''))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_system_is_without_quotes() {
        let release = "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n";
        assert_eq!(pretty_name(release), Some("Debian GNU/Linux 13 (trixie)"));
    }
}
