//! The files of a log: read where they were left, whatever rotation calls them meanwhile.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

const CHUNK: usize = 64 << 10;

/// Enough for a line's time, stream and tag.
const HEADER: usize = 64;

/// Device and inode: what a file is, as opposed to what it is called.
type Id = (u64, u64);

/// A file of a log and how far it was read.
pub(in crate::api) struct LogFile {
    file: Arc<File>,
    id: Id,
    path: PathBuf,
    position: u64,
}

impl LogFile {
    /// Opens the file, unless it is gone.
    pub(in crate::api) fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let id = id(&file.metadata().ok()?);
        Some(Self { file: Arc::new(file), id, path: path.to_owned(), position: 0 })
    }

    pub(super) fn id(&self) -> Id {
        self.id
    }

    /// Whether the file at `path` is of the same run of the container: `<run>.log` and whatever
    /// rotation appends to that.
    pub(super) fn is_of_run(&self, path: &Path) -> bool {
        run(&self.path) == run(path)
    }

    /// The next bytes; none at what is the end for now.
    pub(super) async fn read(&mut self) -> io::Result<Vec<u8>> {
        // An idle log is looked at often and has nothing: find that out without a thread.
        if self.file.metadata()?.len() <= self.position {
            return Ok(Vec::new());
        }
        let (file, position) = (Arc::clone(&self.file), self.position);
        let chunk = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK];
            let length = file.read_at(&mut chunk, position)?;
            chunk.truncate(length);
            io::Result::Ok(chunk)
        })
        .await
        .map_err(io::Error::from)??;
        self.position += u64::try_from(chunk.len()).map_err(io::Error::other)?;
        Ok(chunk)
    }
}

/// The identities of the files that exist.
pub(super) fn ids(paths: &[PathBuf]) -> impl Iterator<Item = Id> {
    paths.iter().filter_map(|path| fs::metadata(path).ok()).map(|metadata| id(&metadata))
}

fn id(metadata: &fs::Metadata) -> Id {
    (metadata.dev(), metadata.ino())
}

fn run(path: &Path) -> Option<&[u8]> {
    let name = path.file_name().map(OsStr::as_encoded_bytes)?;
    name.split(|byte| *byte == b'.').next()
}

/// Leaves out all but the last `lines` whole lines.
pub(in crate::api) fn skip_to_tail(
    mut files: VecDeque<LogFile>,
    lines: u64,
) -> io::Result<VecDeque<LogFile>> {
    let mut whole = 0;
    // Where the oldest record found so far begins.
    let mut start = None;
    'files: for (index, log) in files.iter().enumerate().rev() {
        let mut records = Backwards::new(&log.file)?;
        while let Some((position, partial)) = records.next()? {
            whole += u64::from(!partial);
            if whole > lines {
                break 'files;
            }
            start = Some((index, position));
        }
    }
    match start {
        Some((index, position)) => {
            files.drain(..index);
            if let Some(first) = files.front_mut() {
                first.position = position;
            }
        }
        None => {
            // Not even the last line: what counts is what comes from now on.
            files.drain(..files.len().saturating_sub(1));
            if let Some(last) = files.front_mut() {
                last.position = last.file.metadata()?.len();
            }
        }
    }
    Ok(files)
}

/// The records of a file, last one first.
struct Backwards<'a> {
    file: &'a File,
    /// Bytes of the file from `base` on.
    block: Vec<u8>,
    base: u64,
    /// Bytes of the block that were not looked at yet.
    left: usize,
}

impl<'a> Backwards<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        let mut records = Self { file, block: Vec::new(), base: file.metadata()?.len(), left: 0 };
        records.load()?;
        // The newline at the very end begins no record.
        if records.block.last() == Some(&b'\n') {
            records.left -= 1;
        }
        Ok(records)
    }

    /// Loads the block before this one.
    fn load(&mut self) -> io::Result<()> {
        let length = usize::try_from(self.base).map_or(CHUNK, |base| base.min(CHUNK));
        self.base -= u64::try_from(length).map_err(io::Error::other)?;
        self.block.resize(length, 0);
        self.file.read_exact_at(&mut self.block, self.base)?;
        self.left = length;
        Ok(())
    }

    /// Where the record begins, and whether it is a part of a longer line.
    fn next(&mut self) -> io::Result<Option<(u64, bool)>> {
        loop {
            let newline = self.block[..self.left].iter().rposition(|byte| *byte == b'\n');
            let start = match newline {
                Some(newline) => {
                    self.left = newline;
                    self.base + u64::try_from(newline).map_err(io::Error::other)? + 1
                }
                None if self.base > 0 => {
                    self.load()?;
                    continue;
                }
                None if self.left > 0 => {
                    self.left = 0;
                    0
                }
                None => return Ok(None),
            };
            return Ok(Some((start, self.is_partial(start)?)));
        }
    }

    fn is_partial(&self, start: u64) -> io::Result<bool> {
        let mut header = [0; HEADER];
        let length = self.file.read_at(&mut header, start)?;
        let mut words = header[..length].split(|byte| *byte == b' ');
        Ok(words.nth(2).is_some_and(|tag| tag.first() == Some(&b'P')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_begins_at_a_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(CHUNK * 2 + 17);
        let old = format!("T stdout F a\nT stderr F {long}\n");
        let new = format!("T stdout P b\nT stdout F c\nT stdout P {long}\nT stdout F d\n");
        let paths = [dir.path().join("0.log.1"), dir.path().join("0.log")];
        fs::write(&paths[0], &old).unwrap();
        fs::write(&paths[1], &new).unwrap();
        let whole = format!("{old}{new}");
        let at = |text: &str| whole.find(text).unwrap();
        for (lines, expected) in [
            (0, whole.len()),
            (1, at("T stdout P xx")),
            (2, at("T stdout P b")),
            (3, at("T stderr F x")),
            (4, 0),
            (5, 0),
        ] {
            let files = paths.iter().filter_map(|path| LogFile::open(path)).collect();
            let files = skip_to_tail(files, lines).unwrap();
            let mut rest = 0;
            for log in &files {
                rest += log.file.metadata().unwrap().len() - log.position;
            }
            assert_eq!(whole.len() - usize::try_from(rest).unwrap(), expected, "{lines}");
        }
    }

    #[test]
    fn an_empty_log_has_an_empty_tail() {
        let dir = tempfile::tempdir().unwrap();
        assert!(skip_to_tail(VecDeque::new(), 3).unwrap().is_empty());
        let path = dir.path().join("0.log");
        fs::write(&path, "").unwrap();
        let files = LogFile::open(&path).into_iter().collect();
        assert_eq!(skip_to_tail(files, 3).unwrap().front().unwrap().position, 0);
    }
}
