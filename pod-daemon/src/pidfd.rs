//! Waiting for a process's end without a thread.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
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

/// Sends a signal to the very process that the descriptor stands for.
pub(crate) fn signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and no siginfo is passed.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
