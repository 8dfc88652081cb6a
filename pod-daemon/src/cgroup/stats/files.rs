//! The files of one cgroup, and how to read them.
//!
//! A scrape reads a dozen files for each of hundreds of cgroups, so no path is resolved, and one
//! buffer serves all of them.

use nix::unistd::Pid;
use rustix::{
    fs::{CWD, fstat},
    param::page_size,
};

use super::{Cpu, Io, Memory, Pids, Pressure, Throttling};
use crate::cgroup::{Cgroup, file::Reader, pids, processes};

/// A cgroup, and what reads its files.
pub(super) struct Files<'a> {
    cgroup: &'a Cgroup,
    reader: &'a mut Reader,
}

impl<'a> Files<'a> {
    pub(super) fn of(cgroup: &'a Cgroup, reader: &'a mut Reader) -> Self {
        Self { cgroup, reader }
    }

    /// CPU time, which is always there, and throttling.
    pub(super) fn cpu(&mut self) -> (Option<Cpu>, Option<Throttling>) {
        self.text("cpu.stat").map(cpu).unwrap_or_default()
    }

    pub(super) fn memory_current(&mut self) -> Option<u64> {
        self.number("memory.current")
    }

    pub(super) fn memory(&mut self) -> Option<Memory> {
        let mut memory = Memory { current: self.memory_current()?, ..Memory::default() };
        memory.peak = self.number("memory.peak");
        memory.swap = self.number("memory.swap.current");
        for (key, value) in self.text("memory.stat").map(pairs).into_iter().flatten() {
            match key {
                "anon" => memory.anonymous = value,
                "file" => memory.file = value,
                "file_mapped" => memory.mapped_file = value,
                "kernel" => memory.kernel = Some(value),
                "inactive_file" => memory.working_set = Some(memory.current.saturating_sub(value)),
                "pgfault" => memory.faults = value,
                "pgmajfault" => memory.major_faults = value,
                // One figure for both before Linux 5.9.
                "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file" => {
                    memory.refaults += value;
                }
                _ => {}
            }
        }
        for (key, value) in self.text("memory.events").map(pairs).into_iter().flatten() {
            match key {
                "low" => memory.events.low = value,
                "high" => memory.events.high = value,
                "max" => memory.events.max = value,
                "oom" => memory.events.oom = value,
                "oom_kill" => memory.events.oom_kill = value,
                _ => {}
            }
        }
        Some(memory)
    }

    /// Resident memory of the processes of this cgroup and of those below.
    pub(super) fn resident(&mut self) -> Option<u64> {
        let pids: Vec<Pid> = if self.is_leaf() {
            pids(self.text("cgroup.procs")?).collect()
        } else {
            processes(self.cgroup.path())
        };
        let pages: u64 = pids.into_iter().filter_map(|pid| self.resident_pages(pid)).sum();
        Some(pages * page_size() as u64)
    }

    /// Resident pages of a process; none if it has ended since.
    fn resident_pages(&mut self, pid: Pid) -> Option<u64> {
        let statm = self.reader.text(CWD, format!("/proc/{pid}/statm"))?;
        statm.split(' ').nth(1)?.parse().ok()
    }

    /// Number of processes of this cgroup and of those below.
    pub(super) fn processes(&mut self) -> Option<u64> {
        let count = if self.is_leaf() {
            self.text("cgroup.procs")?.lines().count()
        } else {
            processes(self.cgroup.path()).len()
        };
        u64::try_from(count).ok()
    }

    /// Whether there is no cgroup in this one.
    fn is_leaf(&self) -> bool {
        // Two names for the directory itself and one for each directory in it: hardly a container
        // makes cgroups of its own, and listing a cgroup costs as much as all else that is read. One that
        // was removed has none left.
        fstat(self.cgroup).is_ok_and(|stat| stat.st_nlink <= 2)
    }

    pub(super) fn pids(&mut self) -> Option<Pids> {
        let current = self.number("pids.current")?;
        let peak = self.number("pids.peak");
        let mut events = self.text("pids.events").map(pairs).into_iter().flatten();
        let refused = events.find(|(key, _)| *key == "max").map_or(0, |(_, value)| value);
        Some(Pids { current, peak, refused })
    }

    pub(super) fn io(&mut self) -> Option<Io> {
        self.text("io.stat").map(io)
    }

    pub(super) fn pressure(&mut self, name: &str) -> Option<Pressure> {
        self.text(name).and_then(pressure)
    }

    pub(super) fn text(&mut self, name: &str) -> Option<&str> {
        self.reader.text(self.cgroup, name)
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        self.text(name)?.trim_ascii().parse().ok()
    }
}

fn cpu(text: &str) -> (Option<Cpu>, Option<Throttling>) {
    let mut cpu = None::<Cpu>;
    let mut throttling = None::<Throttling>;
    for (key, value) in pairs(text) {
        match key {
            "usage_usec" => cpu.get_or_insert_default().usage_us = value,
            "user_usec" => cpu.get_or_insert_default().user_us = value,
            "system_usec" => cpu.get_or_insert_default().system_us = value,
            "nr_periods" => throttling.get_or_insert_default().periods = value,
            "nr_throttled" => throttling.get_or_insert_default().throttled_periods = value,
            "throttled_usec" => throttling.get_or_insert_default().throttled_us = value,
            _ => {}
        }
    }
    (cpu, throttling)
}

/// Sums lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io(text: &str) -> Io {
    let mut io = Io::default();
    for field in text.split_ascii_whitespace() {
        let Some((key, value)) = field.split_once('=') else { continue };
        let sum = match key {
            "rbytes" => &mut io.read_bytes,
            "wbytes" => &mut io.written_bytes,
            "rios" => &mut io.reads,
            "wios" => &mut io.writes,
            _ => continue,
        };
        *sum += value.parse().unwrap_or(0);
    }
    io
}

/// Finds the totals in lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=4711`.
fn pressure(text: &str) -> Option<Pressure> {
    let total = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        line.rsplit_once("total=")?.1.parse().ok()
    };
    Some(Pressure { some_us: total("some ")?, full_us: total("full ") })
}

/// The lines of a file of `key value` lines.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cgroup::stats::{MemoryEvents, Stats, read};

    fn cgroup(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn open(directory: &tempfile::TempDir) -> Cgroup {
        Cgroup::open(directory.path().to_path_buf()).unwrap()
    }

    #[test]
    fn a_cgroup_without_controllers_has_cpu_time_and_pressure() {
        let directory = cgroup(&[
            ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnice_usec 0\n"),
            ("cpu.pressure", "some avg10=0.00 avg60=1.50 avg300=0.10 total=4711\n"),
            ("io.pressure", "some avg10=0.00 total=7\nfull avg10=0.00 total=5\n"),
        ]);

        let stats = read(&open(&directory));

        assert_eq!(
            stats,
            Stats {
                cpu: Some(Cpu { usage_us: 30, user_us: 20, system_us: 10 }),
                cpu_pressure: Some(Pressure { some_us: 4711, full_us: None }),
                io_pressure: Some(Pressure { some_us: 7, full_us: Some(5) }),
                ..Stats::default()
            }
        );
    }

    #[test]
    fn every_controller_is_read() {
        let directory = cgroup(&[
            ("cpu.stat", "usage_usec 3\nnr_periods 9\nnr_throttled 4\nthrottled_usec 77\n"),
            ("memory.current", "8192\n"),
            ("memory.peak", "16384\n"),
            ("memory.swap.current", "1\n"),
            (
                "memory.stat",
                "anon 4096\nfile 2048\nkernel 100\ninactive_file 1024\nworkingset_refault_anon 2\n\
                 workingset_refault_file 3\npgfault 11\npgmajfault 1\n",
            ),
            ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
            ("pids.current", "2\n"),
            ("pids.events", "max 12\n"),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 \n7:0 rbytes=5 wbytes=0 rios=1 wios=0\n",
            ),
        ]);

        let stats = read(&open(&directory));

        let throttling = Throttling { periods: 9, throttled_periods: 4, throttled_us: 77 };
        assert_eq!(stats.throttling, Some(throttling));
        let memory = stats.memory.unwrap();
        assert_eq!(memory.working_set.unwrap(), 8192 - 1024);
        assert_eq!((memory.peak, memory.swap, memory.kernel), (Some(16384), Some(1), Some(100)));
        assert_eq!((memory.faults, memory.major_faults, memory.refaults), (11, 1, 5));
        let events = MemoryEvents { low: 1, high: 2, max: 3, oom: 4, oom_kill: 5 };
        assert_eq!(memory.events, events);
        assert_eq!(stats.pids, Some(Pids { current: 2, peak: None, refused: 12 }));
        let io = Io { read_bytes: 15, written_bytes: 20, reads: 2, writes: 2 };
        assert_eq!(stats.io, Some(io));
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_read_whole() {
        let devices: String = (0..200)
            .map(|minor| format!("8:{minor} rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"))
            .collect();
        assert!(devices.len() > 8192);
        let directory = cgroup(&[("io.stat", &devices)]);

        let io = read(&open(&directory)).io;

        assert_eq!(io, Some(Io { read_bytes: 200, written_bytes: 400, reads: 600, writes: 800 }));
    }

    #[test]
    fn without_the_memory_controller_processes_are_summed_wherever_they_are() {
        let me = format!("{}\n", std::process::id());
        let directory = cgroup(&[("cgroup.procs", &me)]);
        let one = read(&open(&directory)).resident.unwrap();
        assert!(one > 100_000, "{one}");

        fs::create_dir(directory.path().join("nested")).unwrap();
        fs::write(directory.path().join("nested/cgroup.procs"), &me).unwrap();
        let both = read(&open(&directory)).resident.unwrap();
        assert!(both > one + one / 2, "{both}");
    }

    #[test]
    fn a_cgroup_that_is_gone_has_nothing() {
        let directory = cgroup(&[("cpu.stat", "usage_usec 3\n")]);
        let cgroup = open(&directory);
        drop(directory);
        assert_eq!(read(&cgroup), Stats::default());
    }
}
