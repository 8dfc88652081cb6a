//! How a cgroup is set up, and its block devices one by one: what few readers ask for.

use std::path::Path;

use super::{Files, Io, Stats, accounted};
use crate::cgroup::{Cgroup, file::Reader};

/// All that there is to know about a cgroup from its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// What is accounted, but for [`Stats::resident`].
    pub stats: Stats,
    /// Its limits and weights.
    pub settings: Settings,
    /// [`Stats::io`] by device, named as in `8:0`.
    pub devices: Vec<(String, Io)>,
    /// Processes in it and in the cgroups below it.
    pub processes: Option<u64>,
}

/// Limits and weights. 0 stands for `max`; what is `None` lacks its controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `cpu.weight`.
    pub cpu_weight: Option<u64>,
    /// What of [`Settings::cpu_period_us`] the cgroup may run, summed over the CPUs.
    pub cpu_quota_us: Option<u64>,
    /// The period of `cpu.max`.
    pub cpu_period_us: Option<u64>,
    /// `memory.max`.
    pub memory_max: Option<u64>,
    /// `memory.min`.
    pub memory_min: Option<u64>,
    /// `memory.swap.max`.
    pub memory_swap_max: Option<u64>,
    /// `pids.max`.
    pub pids_max: Option<u64>,
}

/// Reads everything about `cgroup`; `None` if it does not exist.
#[must_use]
pub fn details(cgroup: &Path, reader: &mut Reader) -> Option<Details> {
    let cgroup = Cgroup::open(cgroup.to_path_buf()).ok()?;
    let mut files = Files::of(&cgroup, reader);
    Some(Details {
        stats: accounted(&mut files),
        settings: settings(&mut files),
        devices: files.text("io.stat").map(devices).unwrap_or_default(),
        processes: files.processes(),
    })
}

fn settings(files: &mut Files<'_>) -> Settings {
    let (cpu_quota_us, cpu_period_us) =
        match files.text("cpu.max").and_then(|text| text.trim_ascii().split_once(' ')) {
            Some((quota, period)) => (limit(quota), limit(period)),
            None => (None, None),
        };
    let mut one = |file: &str| files.text(file).and_then(limit);
    Settings {
        cpu_weight: one("cpu.weight"),
        cpu_quota_us,
        cpu_period_us,
        memory_max: one("memory.max"),
        memory_min: one("memory.min"),
        memory_swap_max: one("memory.swap.max"),
        pids_max: one("pids.max"),
    }
}

fn limit(text: &str) -> Option<u64> {
    match text.trim_ascii() {
        "max" => Some(0),
        number => number.parse().ok(),
    }
}

/// Reads lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`. A device that the
/// cgroup has not used may have no figures, and some kernels forget the end of such a line.
fn devices(text: &str) -> Vec<(String, Io)> {
    let mut devices: Vec<(String, Io)> = Vec::new();
    let mut current = "";
    for word in text.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else {
            current = word;
            continue;
        };
        let Ok(value) = value.parse() else { continue };
        if !matches!(key, "rbytes" | "wbytes" | "rios" | "wios") {
            continue;
        }
        if devices.last().is_none_or(|(device, _)| device != current) {
            devices.push((current.to_owned(), Io::default()));
        }
        let Some((_, io)) = devices.last_mut() else { continue };
        match key {
            "rbytes" => io.read_bytes = value,
            "wbytes" => io.written_bytes = value,
            "rios" => io.reads = value,
            _ => io.writes = value,
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn cgroup(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    #[test]
    fn devices_are_told_apart() {
        let directory = cgroup(&[(
            "io.stat",
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 7:0 rbytes=5 wbytes=0 rios=1 wios=0\n",
        )]);

        let devices = details(directory.path(), &mut Reader::new()).unwrap().devices;

        let io = |read_bytes, written_bytes, reads, writes| Io {
            read_bytes,
            written_bytes,
            reads,
            writes,
        };
        let expected = [("8:0".to_owned(), io(10, 20, 1, 2)), ("7:0".to_owned(), io(5, 0, 1, 0))];
        assert_eq!(devices, expected);
    }

    #[test]
    fn no_limit_is_none_of_a_controller_that_is_absent() {
        let directory = cgroup(&[
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "79\n"),
            ("memory.max", "max\n"),
            ("memory.min", "0\n"),
            ("cgroup.procs", "1\n2\n"),
        ]);

        let Details { settings, processes, stats, .. } =
            details(directory.path(), &mut Reader::new()).unwrap();

        assert_eq!((settings.cpu_quota_us, settings.cpu_period_us), (Some(50_000), Some(100_000)));
        assert_eq!(settings.cpu_weight, Some(79));
        assert_eq!((settings.memory_max, settings.memory_min), (Some(0), Some(0)));
        assert_eq!((settings.memory_swap_max, settings.pids_max), (None, None));
        assert_eq!((processes, stats), (Some(2), Stats::default()));
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_details() {
        assert_eq!(details(Path::new("/nonexistent/cgroup"), &mut Reader::new()), None);
    }
}
