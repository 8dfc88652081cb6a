//! What the page cache had of what was read, and what came into it: the same as `mincore` says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pod_tests::{
    Daemon, Metrics,
    manifest::{mounts, pod},
    skip,
};
use serde_json::json;

/// A folder on a disk, so that files can leave the page cache: a VM has a disk of its own, where tests
/// follow each other. It goes however the test ends, with what tells the pod of the next to go on.
struct Disk(PathBuf);

impl Disk {
    fn of(daemon: &Daemon) -> Self {
        let of_vm = Path::new("/disk");
        let folder = if of_vm.exists() { of_vm } else { daemon.folder() };
        Self(folder.join("cache"))
    }

    /// Tells the pod to go on with its next part.
    fn tell(&self, part: usize) {
        fs::write(self.0.join("one").join(part.to_string()), "").unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Runs a pod that does these steps, with two volumes on that disk that have a file each.
fn read_on(disk: &Disk, daemon: &Daemon, steps: &str) {
    for folder in ["one", "two"] {
        fs::create_dir_all(disk.0.join(folder)).unwrap();
        fs::write(disk.0.join(folder).join("file"), vec![b'x'; LEN as usize]).unwrap();
    }
    let volume = |folder: &str| json!({"path": disk.0.join(folder)});
    let reader = pod("reader")
        .volume("one", "hostPath", volume("one"))
        .volume("two", "hostPath", volume("two"))
        .container_with("app", steps, mounts(&[("one", "/one"), ("two", "/two")]));
    daemon.run(reader);
}

const LEN: u32 = 1_048_576;
const FILE: f64 = LEN as f64;

fn read_from(metrics: &Metrics, volume: &str, result: &str) -> f64 {
    let labels = [("pod", "reader"), ("volume", volume), ("result", result)];
    metrics.find("podscope_file_cache_read_bytes_total", &labels).unwrap_or(0.0)
}

fn filled(metrics: &Metrics, volume: &str, by: &str) -> f64 {
    let labels = [("pod", "reader"), ("volume", volume), ("by", by)];
    metrics.find("podscope_file_cache_filled_bytes_total", &labels).unwrap_or(0.0)
}

/// The number after `key` in each line of a log that has one.
fn said(log: &str, key: &str) -> Vec<f64> {
    let after =
        |line: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse().ok());
    log.lines().filter_map(after).collect()
}

#[test]
fn reads_hit_and_miss_as_the_kernel_says() {
    let daemon = Daemon::start(&[]);
    let disk = Disk::of(&daemon);
    let steps = [
        "drop-cache /one/file , cached-reads-apart /one/file 4096 , print apart",
        "wait-for /one/1 , cached-reads-apart /one/file 4096 , print again",
        "wait-for /one/2 , drop-cache /one/file , cached-reads /one/file 4096 , print turn",
        "wait-for /one/3 , drop-cache /one/file , cached-reads /one/file 20000 , print large",
        "wait-for /one/4 , read-direct /one/file , print direct , pause",
    ];
    read_on(&disk, &daemon, &steps.join(" , "));
    let mut hit = 0.0;
    let mut missed = 0.0;
    for (index, done) in ["apart", "again", "turn", "large"].into_iter().enumerate() {
        daemon.wait_logged("reader", "", done);
        let metrics = daemon.metrics();
        if let Some(lost) = metrics.missed() {
            daemon.stop();
            return skip(&lost);
        }
        let log = daemon.logs("reader", "");
        let expected = [said(&log, "hit=")[index], said(&log, "miss=")[index]];
        let [before_hit, before_missed] = [hit, missed];
        [hit, missed] = ["hit", "miss"].map(|result| read_from(&metrics, "one", result));
        let came_in = filled(&metrics, "one", "read");
        println!(
            "{done}: {expected:?}, {} {}, {came_in}",
            hit - before_hit,
            missed - before_missed
        );
        assert_eq!([hit - before_hit, missed - before_missed], expected, "{done}");
        match done {
            // Without reading ahead, what was missed is what came in.
            "apart" => {
                assert_eq!(expected, [0.0, FILE / 2.0]);
                assert_eq!(filled(&metrics, "one", "read"), FILE / 2.0);
            }
            "again" => assert_eq!(expected, [FILE / 2.0, 0.0]),
            // Most of it was read ahead.
            _ => assert!(hit - before_hit > FILE / 2.0, "{done}"),
        }
        disk.tell(index + 1);
    }

    daemon.wait_logged("reader", "", "direct");
    let metrics = daemon.metrics();
    assert_eq!(read_from(&metrics, "one", "bypass"), 4096.0);
    // The whole file came in three times, the first time half of it. Linux 5.10 makes a page for what
    // was asked for behind its end.
    let came_in = filled(&metrics, "one", "read");
    assert!((2.5 * FILE..=2.5 * FILE + 4096.0).contains(&came_in), "{came_in}");
    let read =
        metrics.one("podscope_file_read_bytes_total", &[("pod", "reader"), ("volume", "one")]);
    assert_eq!(read, 3.0 * FILE + 4096.0);

    daemon.stop();
}

#[test]
fn what_is_read_ahead_by_itself_is_no_operation() {
    let daemon = Daemon::start(&[]);
    let disk = Disk::of(&daemon);
    let steps =
        "drop-cache /one/file , print ready , wait-for /one/1 , read-ahead /one/file , pause";
    read_on(&disk, &daemon, steps);
    daemon.wait_logged("reader", "", "ready");
    let before = filled(&daemon.metrics(), "other", "other");
    disk.tell(1);
    daemon.wait_logged("reader", "", "ahead=");
    let metrics = daemon.metrics();
    if let Some(lost) = metrics.missed() {
        daemon.stop();
        return skip(&lost);
    }
    let ahead = said(&daemon.logs("reader", ""), "ahead=")[0];
    assert!(ahead > 0.0, "nothing is read ahead");
    let counted = metrics.about("podscope_file_cache_filled_bytes_total");
    assert_eq!(filled(&metrics, "other", "other") - before, ahead, "{counted}");
    daemon.stop();
}

#[test]
fn page_faults_bring_in_what_was_not_there() {
    let daemon = Daemon::start(&[]);
    let disk = Disk::of(&daemon);
    let steps = "drop-cache /one/file , drop-cache /two/file , cached-reads-apart /two/file 65536 , \
                 print ready , wait-for /one/1 , touch-pages /two/file , print touched , \
                 wait-for /one/2 , touch-pages /two/file , print again , pause";
    read_on(&disk, &daemon, steps);
    daemon.wait_logged("reader", "", "ready");
    let metrics = daemon.metrics();
    let knows_volume = metrics
        .find("podscope_probe_coverage", &[("probe", "file_fault"), ("state", "attached")])
        .is_some();
    let counted_in = if knows_volume { "two" } else { "other" };
    let mut before = filled(&metrics, counted_in, "fault");
    disk.tell(1);
    for (index, (done, expected)) in
        [("touched", FILE / 2.0), ("again", 0.0)].into_iter().enumerate()
    {
        daemon.wait_logged("reader", "", done);
        let metrics = daemon.metrics();
        if let Some(lost) = metrics.missed() {
            daemon.stop();
            return skip(&lost);
        }
        assert_eq!(said(&daemon.logs("reader", ""), "faulted=")[index], expected);
        let after = filled(&metrics, counted_in, "fault");
        println!("{done}: {expected}, {}", after - before);
        assert_eq!(after - before, expected, "{done}");
        before = after;
        assert_eq!(filled(&metrics, "one", "fault"), 0.0);
        disk.tell(2);
    }
    // Pages that are mapped were not read.
    let read = daemon
        .metrics()
        .one("podscope_file_read_bytes_total", &[("pod", "reader"), ("volume", "two")]);
    assert_eq!(read, FILE / 2.0);
    daemon.stop();
}
