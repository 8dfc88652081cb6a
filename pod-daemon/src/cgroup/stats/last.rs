//! Reading a cgroup again and again.

use std::time::{Duration, Instant};

use super::{Files, Io, Stats, whole};
use crate::cgroup::{Cgroup, file::Reader};

/// After so many readings of a cgroup in which nothing happened everything is read anew.
const READINGS: u32 = 16;

/// The kernel adds up what its CPUs have counted of memory every two seconds (`FLUSH_TIME`), if it is
/// little: as long, and as much again, a reading may not have it all.
const SETTLED: Duration = Duration::from_secs(4);

/// What has been used in a cgroup and in those below it. All of it only grows: as long as it is the same,
/// none of those below has used anything either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    cpu_us: u64,
    io: Option<Io>,
}

impl Used {
    /// Reads it; `None` if the cgroup has been removed.
    #[must_use]
    pub fn read(cgroup: &Cgroup, reader: &mut Reader) -> Option<Self> {
        let mut files = Files::of(cgroup, reader);
        Some(Self { cpu_us: files.cpu().0?.usage_us, io: files.io() })
    }
}

/// What the last reading of a cgroup has found.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    /// What that was.
    pub stats: Stats,
    /// The first reading that found nothing to have happened since.
    since: Instant,
    /// The last one that read everything.
    whole: Instant,
    /// Readings so far.
    readings: u32,
}

impl Last {
    /// Reads `cgroup` as [`super::read`] does, but what only the cgroup's own tasks can change is taken
    /// from the last reading if they did nothing since; `turn` is a number of the cgroup's own, so
    /// that not all of them are read anew at once. Whoever knows that nothing was [used](Used) in the
    /// cgroup above since before the last reading spares this one the look.
    ///
    /// Tasks that did not get a CPU have done nothing, but may be waiting, which the pressure tells of.
    /// So two whole readings have to find the same time of both: then nobody waits, and nobody can begin
    /// to without having run. What the kernel does on its own is seen by the memory and the block devices
    /// that are used, which are read each time; that it moved memory from one kind to another and
    /// charged as much as it gave back is not, for as many readings as there are turns.
    #[must_use]
    pub fn read(
        cgroup: &Cgroup,
        reader: &mut Reader,
        last: Option<&Self>,
        turn: u32,
        now: Instant,
        above_is_idle: bool,
    ) -> Self {
        let readings = last.map_or(0, |last| last.readings.wrapping_add(1));
        let mut files = Files::of(cgroup, reader);
        let is_due = readings.wrapping_add(turn).is_multiple_of(READINGS);
        if let Some(last) = last.filter(|last| last.is_settled() && !is_due)
            && let Some(stats) = last.stats.while_idle(&mut files, above_is_idle)
        {
            return Self { stats, readings, ..*last };
        }
        let stats = whole(&mut files);
        let last = last.filter(|last| last.stats.is_idle_until(&stats));
        Self { stats, since: last.map_or(now, |last| last.since), whole: now, readings }
    }

    /// Whether nothing had happened for so long that the kernel had counted all that did.
    fn is_settled(&self) -> bool {
        self.whole.duration_since(self.since) >= SETTLED
    }
}

impl Stats {
    /// The same with what the kernel may have changed, unless the cgroup's tasks have run.
    fn while_idle(&self, files: &mut Files<'_>, above_is_idle: bool) -> Option<Self> {
        // A controller that is not there does not come.
        if self.cpu.is_none() || self.memory.is_some() && files.memory_current() != self.charged() {
            return None;
        }
        if above_is_idle {
            return Some(*self);
        }
        let (cpu, throttling) = files.cpu();
        if cpu != self.cpu {
            return None;
        }
        Some(Self { throttling, io: self.io.and_then(|_| files.io()), ..*self })
    }

    /// Whether the cgroup's tasks have neither run nor waited before `later`, and nobody has taken
    /// memory from them.
    fn is_idle_until(&self, later: &Self) -> bool {
        let pressure =
            |stats: &Self| [stats.cpu_pressure, stats.memory_pressure, stats.io_pressure];
        (self.cpu, self.charged(), pressure(self)) == (later.cpu, later.charged(), pressure(later))
    }

    /// All memory that is charged to the cgroup.
    fn charged(&self) -> Option<u64> {
        self.memory.map(|memory| memory.current)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cgroup::stats::Cpu;

    const SECOND: Duration = Duration::from_secs(1);

    /// A cgroup whose files say what they are told to.
    struct Told {
        directory: tempfile::TempDir,
        cgroup: Cgroup,
    }

    impl Told {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let cgroup = Cgroup::open(directory.path().to_path_buf()).unwrap();
            let cgroup = Self { directory, cgroup };
            cgroup.write("cpu.stat", "usage_usec 30\n");
            cgroup.write("io.pressure", "some total=7\nfull total=5\n");
            cgroup.write("memory.current", "8192\n");
            cgroup.write("memory.stat", "anon 4096\n");
            cgroup.write("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n");
            cgroup
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.directory.path().join(name), text).unwrap();
        }

        fn read(&self, last: &Last, later: Duration) -> Last {
            self.read_at(Some(last), last.whole + later)
        }

        fn read_at(&self, last: Option<&Last>, now: Instant) -> Last {
            Last::read(&self.cgroup, &mut Reader::new(), last, 0, now, false)
        }

        /// Once nothing has happened for long enough.
        fn idle(&self) -> Last {
            let first = self.read_at(None, Instant::now());
            self.read(&first, SETTLED)
        }
    }

    fn anonymous(last: &Last) -> u64 {
        last.stats.memory.unwrap().anonymous
    }

    #[test]
    fn what_only_tasks_change_is_not_read_while_they_do_nothing() {
        let cgroup = Told::new();
        let idle = cgroup.idle();
        cgroup.write("memory.stat", "anon 1\n");
        cgroup.write("io.stat", "8:0 rbytes=10 wbytes=2 rios=3 wios=4\n");

        let spared = cgroup.read(&idle, SECOND);

        assert_eq!(anonymous(&spared), 4096, "was read");
        let io = Io { read_bytes: 10, written_bytes: 2, reads: 3, writes: 4 };
        assert_eq!(spared.stats.io, Some(io), "the kernel writes when the tasks sleep");
    }

    #[test]
    fn where_nothing_was_used_above_only_the_memory_is_looked_at() {
        let cgroup = Told::new();
        let idle = cgroup.idle();
        let reader = &mut Reader::new();
        let used = Used::read(&cgroup.cgroup, reader);
        assert!(used.is_some());
        let read = |now| Last::read(&cgroup.cgroup, &mut Reader::new(), Some(&idle), 0, now, true);
        let later = idle.whole + SECOND;
        cgroup.write("cpu.stat", "usage_usec 31\n");
        assert_ne!(Used::read(&cgroup.cgroup, reader), used);
        assert_eq!(read(later).stats, idle.stats, "was read");
        cgroup.write("memory.current", "8191\n");
        assert_eq!(read(later).stats.cpu.unwrap().usage_us, 31);
        cgroup.write("cpu.stat", "usage_usec 30\n");
        cgroup.write("io.stat", "8:0 rbytes=1 wbytes=3 rios=3 wios=4\n");
        assert_ne!(Used::read(&cgroup.cgroup, reader), used);
        fs::remove_dir_all(cgroup.directory.path()).unwrap();
        assert_eq!(Used::read(&cgroup.cgroup, reader), None);
    }

    #[test]
    fn everything_is_read_when_tasks_have_run_or_memory_has_changed() {
        for (name, text) in [("cpu.stat", "usage_usec 31\n"), ("memory.current", "8191\n")] {
            let cgroup = Told::new();
            let idle = cgroup.idle();
            cgroup.write("memory.stat", "anon 1\n");
            cgroup.write(name, text);
            let anew = cgroup.read(&idle, SECOND);
            assert_eq!(anonymous(&anew), 1, "{name}");
        }
    }

    #[test]
    fn tasks_that_wait_are_read_each_time() {
        let cgroup = Told::new();
        let mut last = cgroup.idle();
        // Somebody has run, and waits since.
        cgroup.write("cpu.stat", "usage_usec 31\n");
        for waited in 8..20 {
            cgroup.write("io.pressure", &format!("some total={waited}\nfull total=5\n"));
            last = cgroup.read(&last, SECOND);
            assert_eq!(last.stats.io_pressure.unwrap().some_us, waited);
        }
        assert_eq!(last.stats.cpu, Some(Cpu { usage_us: 31, ..Cpu::default() }));
    }

    #[test]
    fn what_the_kernel_has_not_counted_yet_is_read_again() {
        let cgroup = Told::new();
        let idle = cgroup.idle();
        cgroup.write("memory.current", "4096\n");
        let taken = cgroup.read(&idle, SECOND);
        let soon = cgroup.read(&taken, SETTLED / 2);
        cgroup.write("memory.stat", "anon 1\n");

        let counted = cgroup.read(&soon, SETTLED / 2);

        assert_eq!((anonymous(&soon), anonymous(&counted)), (4096, 1));
    }

    #[test]
    fn once_in_a_while_everything_is_read() {
        let cgroup = Told::new();
        let mut last = cgroup.idle();
        cgroup.write("memory.stat", "anon 1\n");
        let readings = (1..).find(|_| {
            last = cgroup.read(&last, SECOND);
            anonymous(&last) == 1
        });
        assert_eq!(readings, Some(READINGS - 1), "the first two were those that found it idle");
    }

    #[test]
    fn a_cgroup_that_is_gone_has_nothing_any_more() {
        let cgroup = Told::new();
        let idle = cgroup.idle();
        fs::remove_dir_all(cgroup.directory.path()).unwrap();
        assert_eq!(cgroup.read(&idle, SECOND).stats, Stats::default());
    }
}
