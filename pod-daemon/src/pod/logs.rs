//! Containers' output on its way from their pipes to their log files, exactly once.
//!
//! The infra program holds every pipe open, so that a writer never meets a broken one, and what it
//! writes while there is no daemon waits in the pipe.
//!
//! Per stream there are two pipes. Bytes move from the container's pipe to the *journal*, which nobody
//! else writes to, by `splice`: at every moment each byte is in one of them. From there entries are
//! written to the log, and then taken out of the journal. A *cursor* beside the pipes says how long
//! the log was and how much the journal held before. A daemon that finds the journal as full as the
//! cursor says cuts the log back and writes again; one that finds less knows that the entries were
//! written. So no line is lost or doubled, whenever a daemon is killed.

mod entries;
mod file;
mod output;

use std::path::{Path, PathBuf};

pub use self::file::Limits;
pub(super) use self::output::{Copy, Output, Outputs};
use super::Key;

/// The directory of a pod's logs, named as kubelet names it.
#[must_use]
pub fn directory(log_dir: &Path, key: &Key, uid: &str) -> PathBuf {
    log_dir.join(format!("{}_{}_{uid}", key.namespace, key.name))
}

/// The log files of run number `run` of a container, oldest first.
#[must_use]
pub fn files(directory: &Path, run: u32) -> Vec<PathBuf> {
    file::files(directory, run)
}
