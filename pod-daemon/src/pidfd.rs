//! Waiting for a process's end without a thread.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::sandbox;

/// A child of the daemon, to be waited for.
pub(crate) struct Pidfd {
    inner: AsyncFd<OwnedFd>,
}

impl Pidfd {
    /// Watches a copy of `pidfd`. Must be called within the runtime.
    pub(crate) fn new(pidfd: &OwnedFd) -> io::Result<Self> {
        let copy = pidfd.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced.
        let inner = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)?;
        Ok(Self { inner })
    }

    /// Waits for the end and reaps: exit code (128 plus the signal) and signal.
    pub(crate) async fn wait(&self) -> io::Result<(i32, Option<i32>)> {
        let _ready = self.inner.readable().await?;
        // It has ended, so this does not block.
        sandbox::wait(self.inner.get_ref())
    }
}
