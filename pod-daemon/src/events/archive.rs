//! Reports about pods that are gone.
//!
//! Kept on a file system in memory, as the secrets are: arguments of programs may say what a secret
//! says. So they outlive the daemon, and not the node.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use super::Report;

/// How many reports are kept.
const MOST: usize = 64;

/// How long a report is kept.
const AGE: SignedDuration = SignedDuration::from_hours(1);

/// Reports about the pods that went last.
#[derive(Debug)]
pub struct Archive {
    /// A file for each, named after the pod's uid.
    directory: PathBuf,
    /// The first to go first.
    reports: Mutex<VecDeque<Report>>,
}

impl Archive {
    /// Finds what an earlier daemon has left in `directory`; what cannot be read is removed.
    #[must_use]
    pub fn open(directory: PathBuf) -> Self {
        let mut reports = Vec::new();
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match read(&entry.path()) {
                Ok(report) => reports.push(report),
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "a report is removed: it cannot be read");
                    fs::remove_file(entry.path()).ok();
                }
            }
        }
        reports.sort_by_key(|report| report.made);
        Self { directory, reports: Mutex::new(reports.into()) }
    }

    fn reports(&self) -> MutexGuard<'_, VecDeque<Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a report, and forgets what is too old or too much.
    pub fn keep(&self, report: Report) {
        if let Err(error) = self.write(&report) {
            tracing::warn!(pod = report.name, %error, "a report will not outlive this daemon");
        }
        let mut reports = self.reports();
        reports.push_back(report);
        self.expire(&mut reports, Timestamp::now());
    }

    /// The last pod of that name.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<Report> {
        let mut reports = self.reports();
        self.expire(&mut reports, Timestamp::now());
        let is = |report: &&Report| report.namespace == namespace && report.name == name;
        reports.iter().rev().find(is).cloned()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.reports().clear();
        fs::remove_dir_all(&self.directory).ok();
    }

    fn expire(&self, reports: &mut VecDeque<Report>, now: Timestamp) {
        while let Some(oldest) = reports.front() {
            if reports.len() <= MOST && now.duration_since(oldest.made) < AGE {
                return;
            }
            fs::remove_file(self.file(&oldest.uid)).ok();
            reports.pop_front();
        }
    }

    fn file(&self, uid: &str) -> PathBuf {
        self.directory.join(format!("{uid}.json"))
    }

    fn write(&self, report: &Report) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        fs::write(self.file(&report.uid), serde_json::to_vec(report)?)
    }
}

fn read(path: &Path) -> io::Result<Report> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, number: usize) -> Report {
        Report {
            made: Timestamp::now(),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: format!("{name}-{number}"),
            node: String::new(),
            phase: "Failed".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            started: None,
            deleted: None,
            containers: Vec::new(),
            connections: None,
            events: Vec::new(),
        }
    }

    #[test]
    fn the_last_reports_are_kept_across_daemons() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("reports");
        let archive = Archive::open(directory.clone());
        for number in 0..100 {
            archive.keep(report("web", number));
        }
        fs::write(directory.join("half.json"), "{").unwrap();
        let archive = Archive::open(directory.clone());
        assert_eq!(archive.find("default", "web").unwrap().uid, "web-99");
        assert!(archive.find("other", "web").is_none());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), MOST);
        archive.clear();
        assert!(!directory.exists());
    }

    #[test]
    fn a_report_that_is_old_is_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let archive = Archive::open(place.path().to_path_buf());
        let made = Timestamp::now() - SignedDuration::from_mins(61);
        archive.keep(Report { made, ..report("old", 1) });
        archive.keep(report("new", 1));
        assert!(archive.find("default", "old").is_none());
        assert!(archive.find("default", "new").is_some());
    }
}
