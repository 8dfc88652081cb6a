//! Runs one program that speaks libtest's language: shows what it says, and counts.

use std::{
    io::{self, PipeReader, Read as _, Write as _},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    process::wait_until,
    report::{Report, Tally},
};

/// What of a program's output its tests' results are read from.
pub(super) enum Streams {
    /// Only stdout; stderr goes to this terminal as it is.
    Stdout,
    /// Both, in the order in which they were written.
    Both,
}

/// Runs `command` for at most `limit`.
pub(super) fn libtest(
    mut command: Command,
    streams: Streams,
    runner: String,
    limit: Duration,
) -> anyhow::Result<Report> {
    let (reader, writer) = io::pipe().context("make a pipe")?;
    if matches!(streams, Streams::Both) {
        command.stderr(writer.try_clone().context("copy the pipe")?);
    }
    command.stdin(Stdio::null()).stdout(writer);

    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {runner}"))?;
    // The command holds the pipe's write end, and the reader is to see its end.
    drop(command);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || copy(reader, &sender));

    let deadline = began + limit;
    let status = wait_until(&mut child, deadline).context("wait for the tests")?;
    let mut tally = Tally::default();
    drain(&lines, &mut tally);
    let problem = match status {
        None => Some(format!("killed after {} s", limit.as_secs())),
        // Failed tests make libtest fail; their names say more.
        Some(status) if status.success() || tally.has_failures() => None,
        Some(status) => Some(format!("ended with {status}")),
    };
    Ok(tally.report(runner, began.elapsed(), problem))
}

/// Copies the pipe to stdout as it comes, and sends it on line by line.
fn copy(mut from: PipeReader, lines: &Sender<String>) {
    let mut chunk = [0; 4096];
    let mut line = Vec::new();
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        let mut stdout = io::stdout().lock();
        if stdout.write_all(&chunk[..length]).and_then(|()| stdout.flush()).is_err() {
            return;
        }
        for &byte in &chunk[..length] {
            if byte != b'\n' {
                line.push(byte);
            } else if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            } else {
                line.clear();
            }
        }
    }
    // What a program that was killed left without an end is read too.
    drop(lines.send(String::from_utf8_lossy(&line).into_owned()));
}

/// Reads until the pipe closes, or falls silent: a process that outlived its test may hold it.
fn drain(lines: &Receiver<String>, tally: &mut Tally) {
    const SILENCE: Duration = Duration::from_secs(1);
    loop {
        match lines.recv_timeout(SILENCE) {
            Ok(line) => tally.read(&line),
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return,
        }
    }
}
