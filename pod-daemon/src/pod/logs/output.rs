//! The pipes of a pod's containers, and the task that empties them.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    unistd::Pid,
};
use rustix::pipe::{SpliceFlags, splice, tee};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    entries::{Unfinished, cut},
    file::{self, Limits, Log},
};
use crate::{
    pidfd,
    sandbox::{FIRST_KEPT, pipe as make_pipe},
};

/// Names of the streams in the log.
const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// Descriptors per container: pipe and journal of both streams.
const PER_CONTAINER: usize = 2 * STREAMS.len();

/// What one pipe holds at most, unless somebody has made it larger.
const PIPE_BYTES: usize = 64 * 1024;

/// Bytes of a cursor: length of the log, bytes in the journal, stream.
const CURSOR_BYTES: usize = 24;

/// The output of all containers of a pod.
#[derive(Debug)]
pub(in crate::pod) struct Outputs {
    cursors: File,
    containers: Vec<Arc<Output>>,
}

/// The output of one container, for all of its runs.
#[derive(Debug)]
pub(in crate::pod) struct Output {
    streams: [Stream; 2],
    cursor: Cursor,
    /// To look into a journal without emptying it.
    scratch: Mutex<Scratch>,
}

#[derive(Debug)]
struct Stream {
    /// Both ends in one descriptor.
    pipe: OwnedFd,
    journal: OwnedFd,
}

#[derive(Debug)]
struct Scratch {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// Where a container's [`CURSOR_BYTES`] are.
#[derive(Debug)]
struct Cursor {
    file: File,
    offset: u64,
}

/// What was about to be written to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Intent {
    /// Length of the log before.
    log: u64,
    /// Bytes in the journal before; 0 if nothing was about to be written.
    journal: u64,
    stream: u64,
}

impl Outputs {
    /// New pipes for this many containers.
    pub(in crate::pod) fn new(containers: usize) -> io::Result<Self> {
        let cursors = memfd_create(c"cursors", MFdFlags::MFD_CLOEXEC)?;
        let stream = || io::Result::Ok(Stream { pipe: new_pipe()?, journal: new_pipe()? });
        let streams = (0..containers).map(|_| Ok([stream()?, stream()?]));
        Self::of(cursors.into(), streams.collect::<io::Result<_>>()?)
    }

    /// Those that the infra program `infra` holds.
    pub(in crate::pod) fn adopt(infra: Pid, containers: usize) -> io::Result<Self> {
        let folder = PathBuf::from(format!("/proc/{infra}/fd"));
        let at = |index: usize| open(&folder.join((FIRST_KEPT + index).to_string()), libc::O_RDWR);
        let cursors = at(0)?;
        let stream = |first: usize| {
            io::Result::Ok(Stream { pipe: at(first)?.into(), journal: at(first + 1)?.into() })
        };
        let streams = (0..containers).map(|container| {
            let first = 1 + container * PER_CONTAINER;
            Ok([stream(first)?, stream(first + 2)?])
        });
        Self::of(cursors, streams.collect::<io::Result<_>>()?)
    }

    fn of(cursors: File, streams: Vec<[Stream; 2]>) -> io::Result<Self> {
        let containers = streams.into_iter().enumerate().map(|(index, streams)| {
            let cursor =
                Cursor { file: cursors.try_clone()?, offset: (index * CURSOR_BYTES) as u64 };
            let (reader, writer) = make_pipe()?;
            let scratch = Mutex::new(Scratch { reader, writer });
            Ok(Arc::new(Output { streams, cursor, scratch }))
        });
        let containers = containers.collect::<io::Result<_>>()?;
        Ok(Self { cursors, containers })
    }

    /// What the infra program is to hold open, in this order.
    pub(in crate::pod) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let streams = self.containers.iter().flat_map(|output| &output.streams);
        std::iter::once(self.cursors.as_fd())
            .chain(streams.flat_map(|stream| [stream.pipe.as_fd(), stream.journal.as_fd()]))
            .collect()
    }

    pub(in crate::pod) fn container(&self, index: usize) -> Arc<Output> {
        Arc::clone(&self.containers[index])
    }
}

impl Output {
    /// Ends to write to, for standard output and error of a process.
    pub(in crate::pod) fn writers(&self) -> io::Result<[OwnedFd; 2]> {
        let [output, error] = &self.streams;
        let writer =
            |stream: &Stream| open(&of_own(&stream.pipe), libc::O_WRONLY).map(OwnedFd::from);
        Ok([writer(output)?, writer(error)?])
    }

    /// Copies to the log of run number `run` until told that nothing more will be written and all of
    /// it is in the log. Must be called within the runtime.
    pub(in crate::pod) fn copy(
        self: Arc<Self>,
        directory: &Path,
        run: u32,
        limits: Limits,
    ) -> io::Result<Copy> {
        let mut log = Log::open(directory, run, limits)?;
        self.settle(&mut log)?;
        let reader = |stream: &Stream| {
            let file = open(&of_own(&stream.pipe), libc::O_RDONLY | libc::O_NONBLOCK)?;
            pidfd::watch(file.into())
        };
        let readers = [reader(&self.streams[0])?, reader(&self.streams[1])?];
        let (last, mut is_last) = oneshot::channel::<()>();
        let directory = directory.to_path_buf();
        let task = tokio::spawn(async move {
            file::remove_old_runs(&directory, run);
            // A dropped sender is no end: the daemon stops, and the next one goes on.
            loop {
                let [output, error] = &readers;
                let (stream, ready) = tokio::select! {
                    ready = output.readable() => (0, ready),
                    ready = error.readable() => (1, ready),
                    ended = &mut is_last => {
                        if ended.is_ok() {
                            self.finish(&mut log);
                        }
                        return;
                    }
                };
                match ready {
                    Ok(mut ready) => {
                        if !self.step(stream, &mut log, Unfinished::Wait) {
                            ready.clear_ready();
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "a container's output is not read any more");
                        return;
                    }
                }
                tokio::task::consume_budget().await;
            }
        });
        Ok(Copy { task, last })
    }

    /// Takes back what an earlier daemon has written to the log and not yet taken out of the journal.
    fn settle(&self, log: &mut Log) -> io::Result<()> {
        let intent = self.cursor.read()?;
        let stream = usize::try_from(intent.stream).ok().and_then(|at| self.streams.get(at));
        if let Some(stream) = stream
            && intent.journal > 0
            && rustix::io::ioctl_fionread(&stream.journal)? == intent.journal
        {
            log.truncate(intent.log)?;
        }
        self.cursor.write(Intent { log: 0, journal: 0, stream: 0 })
    }

    /// Copies everything that there is. The container's processes are dead.
    fn finish(&self, log: &mut Log) {
        for stream in 0..STREAMS.len() {
            while self.step(stream, log, Unfinished::Wait) {}
            self.step(stream, log, Unfinished::Last);
        }
    }

    /// Moves what a pipe holds on to the journal and the log; whether it held anything.
    fn step(&self, index: usize, log: &mut Log, unfinished: Unfinished) -> bool {
        let result = self.try_step(index, log, unfinished);
        result.unwrap_or_else(|error| {
            tracing::error!(%error, stream = STREAMS[index], "log entries are lost");
            true
        })
    }

    fn try_step(&self, index: usize, log: &mut Log, unfinished: Unfinished) -> io::Result<bool> {
        let Stream { pipe, journal } = &self.streams[index];
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = match splice(pipe, None, journal, None, PIPE_BYTES, flags) {
            Ok(moved) => moved,
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let input = self.peek(journal)?;
        // A pipe has room for a number of pieces, however small.
        let full = moved == 0 && rustix::io::ioctl_fionread(pipe)? > 0;
        let unfinished = if full { Unfinished::Part } else { unfinished };
        let mut entries = Vec::new();
        let consumed = cut(&input, STREAMS[index], unfinished, &mut entries);
        if consumed > 0 {
            let intent =
                Intent { log: log.length(), journal: input.len() as u64, stream: index as u64 };
            self.cursor.write(intent)?;
            let written = log.append(&entries);
            // Whatever became of it: a full disk must not stop the container.
            take(journal, consumed)?;
            self.cursor.write(Intent { journal: 0, ..intent })?;
            written?;
            log.rotate()?;
        }
        Ok(moved > 0 || full)
    }

    /// A copy of what a journal holds.
    fn peek(&self, journal: &OwnedFd) -> io::Result<Vec<u8>> {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        match tee(journal, &scratch.writer, PIPE_BYTES, SpliceFlags::NONBLOCK) {
            Ok(length) => {
                let mut content = vec![0; length];
                read_exact(&scratch.reader, &mut content)?;
                Ok(content)
            }
            Err(rustix::io::Errno::AGAIN) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A task that copies one run's output.
#[derive(Debug)]
pub(in crate::pod) struct Copy {
    task: JoinHandle<()>,
    last: oneshot::Sender<()>,
}

impl Copy {
    /// Waits until everything that was written is in the log. The container's processes must be dead.
    pub(in crate::pod) async fn finish(self) {
        // The task may have given up already.
        self.last.send(()).ok();
        self.task.await.ok();
    }
}

impl Cursor {
    fn write(&self, intent: Intent) -> io::Result<()> {
        let mut bytes = [0; CURSOR_BYTES];
        for (field, value) in
            bytes.as_chunks_mut().0.iter_mut().zip([intent.log, intent.journal, intent.stream])
        {
            *field = value.to_le_bytes();
        }
        self.file.write_all_at(&bytes, self.offset)
    }

    fn read(&self) -> io::Result<Intent> {
        let mut bytes = [0; CURSOR_BYTES];
        // What was never written is not there.
        self.file.read_at(&mut bytes, self.offset)?;
        let mut fields = bytes.as_chunks().0.iter().map(|field| u64::from_le_bytes(*field));
        let mut next = || fields.next().unwrap_or(0);
        Ok(Intent { log: next(), journal: next(), stream: next() })
    }
}

/// A pipe as one descriptor for both ends: it never breaks, and never ends.
fn new_pipe() -> io::Result<OwnedFd> {
    let (reader, _writer) = make_pipe()?;
    open(&of_own(&reader), libc::O_RDWR | libc::O_NONBLOCK).map(OwnedFd::from)
}

/// A path that leads to what a descriptor of this process is open on.
fn of_own(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    let access = flags & libc::O_ACCMODE;
    File::options()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(flags & !libc::O_ACCMODE)
        .open(path)
}

/// Removes this many bytes from a pipe that holds them.
fn take(pipe: &OwnedFd, length: usize) -> io::Result<()> {
    read_exact(pipe, &mut vec![0; length])
}

fn read_exact(pipe: &OwnedFd, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::read(pipe, &mut buffer[done..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => done += length,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, time::Duration};

    use super::*;

    const LIMITS: Limits = Limits { file_bytes: 1 << 20, files: 5 };

    /// A container's pipes, and the same as a later daemon opens them.
    fn twice() -> (Outputs, Arc<Output>) {
        let outputs = Outputs::new(1).unwrap();
        let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
        let Output { streams, .. } = &*outputs.containers[0];
        let again = streams
            .each_ref()
            .map(|stream| Stream { pipe: copy(&stream.pipe), journal: copy(&stream.journal) });
        let again = Outputs::of(outputs.cursors.try_clone().unwrap(), vec![again]).unwrap();
        (outputs, again.container(0))
    }

    fn messages(directory: &Path) -> Vec<String> {
        files(directory)
            .iter()
            .flat_map(|path| {
                let text = fs::read_to_string(path).unwrap();
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .map(|line| line.splitn(3, ' ').nth(2).unwrap().to_owned())
            .collect()
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        file::files(directory, 0)
    }

    #[tokio::test]
    async fn both_streams_reach_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (outputs, _) = twice();
        let output = outputs.container(0);
        let [mut out, mut err] = output.writers().unwrap().map(File::from);
        let copy = output.copy(dir.path(), 0, LIMITS).unwrap();
        for line in 0..1000 {
            writeln!(out, "out {line}").unwrap();
            writeln!(err, "err {line}").unwrap();
            if line % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        write!(out, "last words").unwrap();
        copy.finish().await;
        let messages = messages(dir.path());
        for stream in ["out", "err"] {
            let own: Vec<_> = messages.iter().filter(|text| text.contains(stream)).collect();
            let expected: Vec<_> = (0..1000).map(|line| format!("F {stream} {line}")).collect();
            assert_eq!(own, expected.iter().collect::<Vec<_>>());
        }
        assert_eq!(messages.iter().filter(|text| *text == "F last words").count(), 1);
    }

    /// Each of the moments at which a daemon can be killed, one after the other.
    #[test]
    fn no_line_is_lost_or_doubled_whenever_the_daemon_dies() {
        for moment in 0..6 {
            let dir = tempfile::tempdir().unwrap();
            let (outputs, again) = twice();
            let output = outputs.container(0);
            let [mut out, _err] = output.writers().unwrap().map(File::from);
            write!(out, "one\ntwo\nthr").unwrap();
            // As `try_step`, up to this moment.
            let mut log = Log::open(dir.path(), 0, LIMITS).unwrap();
            let Stream { pipe, journal } = &output.streams[0];
            let steps: [&mut dyn FnMut(); 5] = [
                &mut || {
                    splice(pipe, None, journal, None, PIPE_BYTES, SpliceFlags::NONBLOCK).unwrap();
                },
                &mut || {
                    output.cursor.write(Intent { log: 0, journal: 11, stream: 0 }).unwrap();
                },
                &mut || log.append(b"T stdout F one\nT stdout F two\n").unwrap(),
                &mut || take(journal, 8).unwrap(),
                &mut || output.cursor.write(Intent { log: 0, journal: 0, stream: 0 }).unwrap(),
            ];
            for step in steps.into_iter().take(moment) {
                step();
            }
            // A write that was cut short, too.
            if moment == 2 {
                log.append(b"T stdout F on").unwrap();
            }
            writeln!(out, "ee").unwrap();
            let mut log = Log::open(dir.path(), 0, LIMITS).unwrap();
            again.settle(&mut log).unwrap();
            again.finish(&mut log);
            let expected = ["F one", "F two", "F three"];
            assert_eq!(messages(dir.path()), expected, "killed after step {moment}");
        }
    }

    #[test]
    fn many_small_pieces_do_not_block_the_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let (outputs, _) = twice();
        let output = outputs.container(0);
        let [mut out, _err] = output.writers().unwrap().map(File::from);
        let mut log = Log::open(dir.path(), 0, LIMITS).unwrap();
        for _ in 0..100 {
            write!(out, ".").unwrap();
            output.step(0, &mut log, Unfinished::Wait);
        }
        output.finish(&mut log);
        let text: String =
            messages(dir.path()).iter().map(|message| message[2..].to_owned()).collect();
        assert_eq!(text, ".".repeat(100));
    }
}
