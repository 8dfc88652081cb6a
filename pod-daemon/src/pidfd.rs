//! Waiting for descriptors without a thread: for a process's end, and for what is in a pipe.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::sandbox;

/// A process, to be waited for.
pub(crate) struct Pidfd {
    inner: AsyncFd<OwnedFd>,
}

impl Pidfd {
    /// Watches a copy of `pidfd`. Must be called within the runtime.
    pub(crate) fn new(pidfd: &OwnedFd) -> io::Result<Self> {
        Ok(Self { inner: watch(pidfd.as_fd().try_clone_to_owned()?)? })
    }

    /// Waits for the end and reaps: exit code (128 plus the signal) and signal. `None` for a process
    /// that is not this daemon's child: somebody else learns how it ended.
    pub(crate) async fn wait(&self) -> io::Result<Option<(i32, Option<i32>)>> {
        let _ready = self.inner.readable().await?;
        // It has ended, so this does not block.
        match sandbox::wait(self.inner.get_ref()) {
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            result => result.map(Some),
        }
    }
}

/// Watches whether a descriptor is readable. Must be called within the runtime.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
        .map_err(|error| error.into_parts().1)
}
