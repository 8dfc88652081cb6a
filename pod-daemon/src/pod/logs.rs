//! Containers' output, in the CRI log format: `TIME STREAM F|P MESSAGE`.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use tokio::{net::unix::pipe, task::JoinHandle};

use super::Key;

/// The longest message in one entry; a longer line becomes several partial ones.
const ENTRY_MAX: usize = 16 * 1024;

/// The directory of a pod's logs, named as kubelet names it.
#[must_use]
pub fn directory(log_dir: &Path, key: &Key, uid: &str) -> PathBuf {
    log_dir.join(format!("{}_{}_{uid}", key.namespace, key.name))
}

/// The log files of run number `run` of a container, oldest first.
#[must_use]
pub fn files(directory: &Path, run: u32) -> Vec<PathBuf> {
    let file = directory.join(format!("{run}.log"));
    if file.exists() { vec![file] } else { Vec::new() }
}

/// Copies both streams of run number `run` to its log file until both have ended.
pub(super) fn copy(
    directory: &Path,
    run: u32,
    output: OwnedFd,
    error: OwnedFd,
) -> io::Result<JoinHandle<()>> {
    fs::create_dir_all(directory)?;
    let file =
        File::options().create(true).append(true).open(directory.join(format!("{run}.log")))?;
    let copy = file.try_clone()?;
    let output = pipe::Receiver::from_owned_fd(output)?;
    let error = pipe::Receiver::from_owned_fd(error)?;
    Ok(tokio::spawn(async move {
        // Each entry is one append, so the two do not mix within a line.
        tokio::join!(copy_stream(output, file, "stdout"), copy_stream(error, copy, "stderr"));
    }))
}

async fn copy_stream(input: pipe::Receiver, mut file: File, stream: &'static str) {
    let mut entries = Entries { stream, pending: Vec::new() };
    loop {
        let mut buffer = Vec::new();
        let end = match input.readable().await {
            Ok(()) => take_available(&input, &mut entries, &mut buffer),
            Err(_) => true,
        };
        if end {
            entries.finish(&mut buffer);
        }
        // A write to the page cache: shorter than handing it to another thread.
        if let Err(error) = file.write_all(&buffer) {
            tracing::error!(%error, stream, "log entries are lost");
        }
        if end {
            return;
        }
    }
}

/// Takes what the pipe holds; returns whether it has ended. The buffer lives on the stack of this
/// call: hundreds of quiet streams would otherwise keep one each.
fn take_available(input: &pipe::Receiver, entries: &mut Entries, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 16 * 1024];
    match input.try_read(&mut chunk) {
        Ok(0) => true,
        Ok(length) => {
            entries.take(&chunk[..length], buffer);
            false
        }
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Cuts a stream into entries.
struct Entries {
    stream: &'static str,
    /// The beginning of a line whose end has not come.
    pending: Vec<u8>,
}

impl Entries {
    fn take(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            self.append(&input[..end], output);
            self.write('F', output);
            input = &input[end + 1..];
        }
        self.append(input, output);
    }

    /// Adds to the pending line, and writes what exceeds an entry.
    fn append(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while self.pending.len() + input.len() > ENTRY_MAX {
            let (head, tail) = input.split_at(ENTRY_MAX - self.pending.len());
            self.pending.extend_from_slice(head);
            self.write('P', output);
            input = tail;
        }
        self.pending.extend_from_slice(input);
    }

    fn finish(&mut self, output: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.write('F', output);
        }
    }

    fn write(&mut self, tag: char, output: &mut Vec<u8>) {
        // Nine digits always, so that entries line up.
        let time = Timestamp::now();
        write!(output, "{time:.9} {} {tag} ", self.stream).ok();
        output.append(&mut self.pending);
        output.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(chunks: &[&[u8]]) -> Vec<(String, usize)> {
        let mut entries = Entries { stream: "stdout", pending: Vec::new() };
        let mut output = Vec::new();
        for chunk in chunks {
            entries.take(chunk, &mut output);
        }
        entries.finish(&mut output);
        output
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                let text = String::from_utf8_lossy(line);
                let mut parts = text.splitn(4, ' ').skip(2);
                let tag = parts.next().unwrap().to_owned();
                (tag, parts.next().unwrap().len())
            })
            .collect()
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(entries(&[b"a", b"b\nc", b"\n"]), [("F".to_owned(), 2), ("F".to_owned(), 1)]);
    }

    #[test]
    fn an_empty_line_is_an_entry() {
        assert_eq!(entries(&[b"\n"]), [("F".to_owned(), 0)]);
    }

    #[test]
    fn a_line_without_an_end_is_kept() {
        assert_eq!(entries(&[b"last words"]), [("F".to_owned(), 10)]);
    }

    #[test]
    fn a_long_line_is_cut() {
        let line = [vec![b'x'; ENTRY_MAX + 5], b"\n".to_vec()].concat();
        assert_eq!(entries(&[&line]), [("P".to_owned(), ENTRY_MAX), ("F".to_owned(), 5)]);
        let exact = [vec![b'x'; ENTRY_MAX], b"\n".to_vec()].concat();
        assert_eq!(entries(&[&exact]), [("F".to_owned(), ENTRY_MAX)]);
    }

    #[test]
    fn times_have_nine_digits() {
        let mut entries = Entries { stream: "stdout", pending: b"x".to_vec() };
        let mut output = Vec::new();
        entries.write('F', &mut output);
        let text = String::from_utf8(output).unwrap();
        let time = text.split(' ').next().unwrap();
        assert_eq!(time.len(), "2026-01-02T03:04:05.000000000Z".len(), "{time}");
    }
}
