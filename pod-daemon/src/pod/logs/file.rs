//! The log files of a container: one per run, and older pieces that rotation has put aside.
//!
//! `<run>.log` is written; `<run>.log.<time>` is what it was before, as with kubelet.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

/// How long a container's log may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files of one run.
    pub files: usize,
}

/// The log of a run that is being written.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
    length: u64,
    limits: Limits,
}

/// The log files of run number `run`, oldest first.
#[must_use]
pub(super) fn files(directory: &Path, run: u32) -> Vec<PathBuf> {
    let current = format!("{run}.log");
    let prefix = format!("{current}.");
    let mut files: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
            name.starts_with(&prefix)
        })
        .collect();
    // The time is written so that names sort by it.
    files.sort();
    let current = directory.join(current);
    if current.exists() {
        files.push(current);
    }
    files
}

/// Removes the logs of the runs before the one before `run`.
pub(super) fn remove_old_runs(directory: &Path, run: u32) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.split('.').next()?.parse::<u32>().ok());
        if number.is_some_and(|number| number + 1 < run) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

impl Log {
    /// Opens the log of run number `run` at its end.
    pub(super) fn open(directory: &Path, run: u32, limits: Limits) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join(format!("{run}.log"));
        let file = open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, path, length, limits })
    }

    /// Bytes written so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Takes back what was written after `length`.
    pub(super) fn truncate(&mut self, length: u64) -> io::Result<()> {
        if length < self.length {
            self.file.set_len(length)?;
            self.length = length;
        }
        Ok(())
    }

    /// Appends entries whole, or not at all.
    pub(super) fn append(&mut self, entries: &[u8]) -> io::Result<()> {
        let before = self.length;
        match self.file.write_all(entries) {
            Ok(()) => {
                self.length += entries.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.file.set_len(before)?;
                Err(error)
            }
        }
    }

    /// Puts a file that is long enough aside, and begins a new one.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        if self.length < self.limits.file_bytes {
            return Ok(());
        }
        let mut aside = self.path.clone().into_os_string();
        aside.push(format!(".{}", Timestamp::now().strftime("%Y%m%d-%H%M%S%.9f")));
        fs::rename(&self.path, &aside)?;
        self.file = match open(&self.path) {
            Ok(file) => file,
            Err(error) => {
                // Else there would be nothing to put aside the next time.
                fs::rename(&aside, &self.path)?;
                return Err(error);
            }
        };
        self.length = 0;
        let (directory, run) = (self.path.parent(), self.path.file_stem());
        let run = run.and_then(|run| run.to_str()?.parse().ok());
        if let (Some(directory), Some(run)) = (directory, run) {
            let files = files(directory, run);
            for old in files.iter().take(files.len().saturating_sub(self.limits.files)) {
                fs::remove_file(old)?;
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_the_newest_files_and_every_line_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { file_bytes: 100, files: 3 };
        let mut log = Log::open(dir.path(), 7, limits).unwrap();
        for number in 0..100 {
            log.append(format!("line {number:03}\n").as_bytes()).unwrap();
            log.rotate().unwrap();
        }
        let files = files(dir.path(), 7);
        assert_eq!(files.len(), 3);
        let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        let numbers: Vec<u32> = text.lines().map(|line| line[5..].parse().unwrap()).collect();
        assert_eq!(numbers.last(), Some(&99));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        assert!(numbers.len() >= 24, "{numbers:?}");
    }

    #[test]
    fn what_was_written_in_vain_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { file_bytes: 100, files: 3 };
        let mut log = Log::open(dir.path(), 0, limits).unwrap();
        log.append(b"kept\n").unwrap();
        let length = log.length();
        log.append(b"twice\n").unwrap();
        drop(log);
        let mut log = Log::open(dir.path(), 0, limits).unwrap();
        log.truncate(length).unwrap();
        log.append(b"once\n").unwrap();
        let text = fs::read_to_string(dir.path().join("0.log")).unwrap();
        assert_eq!(text, "kept\nonce\n");
    }

    #[test]
    fn the_run_before_the_last_goes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0.log", "1.log", "1.log.20260101-000000.000000000", "2.log"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_old_runs(dir.path(), 2);
        assert!(files(dir.path(), 0).is_empty());
        assert_eq!(files(dir.path(), 1).len(), 2);
        assert_eq!(files(dir.path(), 2).len(), 1);
    }
}
