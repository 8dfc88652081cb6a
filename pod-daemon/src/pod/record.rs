//! What a pod leaves on disk for the next daemon: how far it has come.
//!
//! `pod.json` is what was asked for; it is written before anything is made, and made durable.
//! `state.json` is what has become of it: a line is added whenever that changes, and the last one
//! counts. It need not outlive a power cut, after which nothing of what it names is there.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::Ipv4Addr,
    path::Path,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Disruption, oom};
use crate::{
    node::{Exit, State},
    probes::Claim,
    sandbox,
};

/// What was asked for.
const POD: &str = "pod.json";

/// What has become of it.
const STATE: &str = "state.json";

/// Version of what is in `state.json`. Another version's is not read: the pod starts anew.
const VERSION: u32 = 1;

/// Bytes of `state.json` at which it is written anew, with its last line alone.
const MOST_BYTES: usize = 32 << 10;

/// How far a pod has come.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    pub(super) version: u32,
    /// When its sandbox was first up.
    pub(super) started: Option<Timestamp>,
    /// Since when all that its containers do is counted.
    #[serde(default)]
    pub(super) counted_from: Option<Timestamp>,
    /// Counters of its containers, in the manifest's order, once they are made.
    pub(super) counters: Option<Vec<Claim>>,
    /// Its sandbox, if there is one.
    pub(super) sandbox: Option<SandboxRecord>,
    /// Its containers, in the manifest's order.
    pub(super) containers: Vec<ContainerRecord>,
    /// Why it ends against its will.
    #[serde(default)]
    pub(super) disruption: Option<Disruption>,
}

/// A sandbox.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SandboxRecord {
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) infra: ProcessRecord,
}

/// A process, distinguished from later ones with its pid.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ProcessRecord {
    pid: i32,
    /// In clock ticks since boot.
    start: u64,
}

/// A container.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ContainerRecord {
    pub(super) state: State,
    pub(super) last_exit: Option<Exit>,
    pub(super) restarts: u32,
    pub(super) ooms: [u64; oom::LIMITS],
    pub(super) runs: u32,
    pub(super) image_id: String,
    pub(super) container_id: String,
    /// The pause before the next restart but one, in milliseconds.
    pub(super) backoff_ms: u64,
    /// When the pause before the next start is over.
    pub(super) due: Option<Timestamp>,
    /// The run that is being started or runs.
    pub(super) run: Option<RunRecord>,
}

/// A run that has begun, or is about to.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RunRecord {
    pub(super) number: u32,
    /// What the kernel had killed before it.
    pub(super) oom: oom::Watch,
    /// Its first process, once that is known.
    pub(super) process: Option<ProcessRecord>,
}

impl ProcessRecord {
    /// `None` if the process is gone.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        Some(Self { pid: pid.as_raw(), start: sandbox::start_time(pid)? })
    }

    pub(super) fn pid(self) -> Pid {
        Pid::from_raw(self.pid)
    }

    pub(super) fn start(self) -> u64 {
        self.start
    }
}

impl Record {
    pub(super) fn new() -> Self {
        Self { version: VERSION, ..Self::default() }
    }

    /// Reads the last line that a [`Journal`] has wholly written.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let is_end = |byte: &u8| *byte == b'\n';
        let whole = text.iter().rposition(is_end).map_or(text, |end| &text[..end]);
        let text = whole.rsplit(is_end).next().unwrap_or(whole);
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(text)?;
        if version == VERSION {
            serde_json::from_slice(text)
        } else {
            let message = format!("it is of version {version}, and this daemon reads {VERSION}");
            Err(serde::de::Error::custom(message))
        }
    }

    /// The record in a pod's directory; `None` if there is none.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        match fs::read(directory.join(STATE)) {
            Ok(text) => Ok(Some(Self::parse(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Writes the `state.json` of one pod.
///
/// By adding to it: a file that takes the place of another one has to be on the disk first (as ext4
/// sees it, for the sake of power cuts), for which a restart should not wait.
#[derive(Debug, Default)]
pub(super) struct Journal {
    last: Vec<u8>,
    /// Bytes in the file; `None` if what it ends with is not known to be a whole line.
    length: Option<usize>,
}

impl Journal {
    /// Writes `record` to the pod's directory, unless that would change nothing.
    pub(super) fn write(&mut self, directory: &Path, record: &Record) -> io::Result<()> {
        let line = line(record)?;
        if line == self.last {
            return Ok(());
        }
        let path = directory.join(STATE);
        let length = self.length.take().map(|length| length + line.len());
        self.length = match length.filter(|length| *length <= MOST_BYTES) {
            Some(length) => {
                File::options().append(true).open(&path)?.write_all(&line)?;
                Some(length)
            }
            None => {
                replace(&path, record, Durability::Cache)?;
                Some(line.len())
            }
        };
        self.last = line;
        Ok(())
    }
}

/// Stores what was asked for, for good.
pub fn write_pod(directory: &Path, pod: &Pod) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    replace(&directory.join(POD), pod, Durability::Disk)?;
    // The directory itself is new.
    directory.parent().map_or(Ok(()), sync)
}

/// Stores a change of what was asked for, for good. A pod that is gone meanwhile stays gone.
pub fn rewrite_pod(directory: &Path, pod: &Pod) -> io::Result<()> {
    match replace(&directory.join(POD), pod, Durability::Disk) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Reads what was asked for.
pub fn read_pod(directory: &Path) -> io::Result<Pod> {
    read(&directory.join(POD))
}

/// What a file must outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The daemon.
    Cache,
    /// A power cut.
    Disk,
}

/// Puts `value` as JSON in the place of the file `path`, which always holds one or the other.
pub(crate) fn replace<T: Serialize>(
    path: &Path,
    value: &T,
    durability: Durability,
) -> io::Result<()> {
    let text = line(value)?;
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&text)?;
    if durability == Durability::Disk {
        file.sync_all()?;
    }
    fs::rename(&new, path)?;
    match path.parent() {
        Some(directory) if durability == Durability::Disk => sync(directory),
        _ => Ok(()),
    }
}

/// `value` as a line of JSON.
fn line<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a file of JSON.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            started: Some(Timestamp::UNIX_EPOCH),
            counted_from: Some(Timestamp::UNIX_EPOCH),
            counters: Some(vec![Claim { slot: 3, cells: vec![2048, 2049] }]),
            containers: vec![ContainerRecord {
                state: State::Running { started: Timestamp::UNIX_EPOCH },
                last_exit: None,
                restarts: 2,
                ooms: [1, 0, 0],
                runs: 3,
                image_id: "dir:/image".to_owned(),
                container_id: "podscope://1".to_owned(),
                backoff_ms: 20_000,
                due: None,
                run: Some(RunRecord {
                    number: 2,
                    oom: oom::Watch::default(),
                    process: ProcessRecord::of(nix::unistd::getpid()),
                }),
            }],
            ..Record::new()
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Record::read(dir.path()).unwrap().is_none());
        let record = record();
        Journal::default().write(dir.path(), &record).unwrap();
        let read = Record::read(dir.path()).unwrap().unwrap();
        assert_eq!(format!("{record:?}"), format!("{read:?}"));
    }

    #[test]
    fn the_last_line_counts_and_the_file_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(STATE);
        let restarts = || Record::read(dir.path()).unwrap().unwrap().containers[0].restarts;
        let (mut journal, mut record) = (Journal::default(), record());
        let mut lengths = Vec::new();
        for restart in 0..1000 {
            record.containers[0].restarts = restart;
            for _ in 0..2 {
                journal.write(dir.path(), &record).unwrap();
            }
            assert_eq!(restarts(), restart);
            lengths.push(fs::metadata(&file).unwrap().len());
        }
        assert!(lengths.iter().all(|length| *length <= MOST_BYTES as u64), "{lengths:?}");
        let anew = lengths.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert!((1..100).contains(&anew), "written anew {anew} times of 1000");

        // The daemon is killed while it adds a line; the next one leaves no half of it.
        record.containers[0].restarts = 5000;
        let added = line(&record).unwrap();
        let before = fs::read(&file).unwrap();
        for end in 1..added.len() {
            fs::write(&file, [&before, &added[..end]].concat()).unwrap();
            assert_eq!(restarts(), 999, "{end}");
        }
        Journal::default().write(dir.path(), &record).unwrap();
        assert_eq!(fs::read(&file).unwrap(), added);
    }

    #[test]
    fn a_line_that_could_not_be_added_is_not_in_the_way_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, mut record) = (Journal::default(), record());
        journal.write(dir.path(), &record).unwrap();
        fs::remove_file(dir.path().join(STATE)).unwrap();
        record.containers[0].restarts += 1;
        journal.write(dir.path(), &record).unwrap_err();
        journal.write(dir.path(), &record).unwrap();
        let read = Record::read(dir.path()).unwrap().unwrap();
        assert_eq!(format!("{record:?}"), format!("{read:?}"));
    }

    #[test]
    fn another_version_is_named() {
        let error = Record::parse(br#"{"version": 9, "more": 1}"#).unwrap_err();
        assert!(error.to_string().contains("of version 9"), "{error}");
    }

    #[test]
    fn a_record_cut_anywhere_is_refused() {
        let text = serde_json::to_vec(&record()).unwrap();
        for end in 0..text.len() {
            assert!(Record::parse(&text[..end]).is_err(), "{end}");
        }
    }
}
