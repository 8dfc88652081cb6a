//! Ctrl-C and SIGTERM as a question that long commands ask between two steps.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigHandler, Signal, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the signals no longer end this process, but are told by [`asked`].
pub(crate) fn listen() -> anyhow::Result<()> {
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { signal(number, SigHandler::Handler(note)) }.context("listen for signals")?;
    }
    Ok(())
}

/// Whether the user wants an end.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Fails if the user wants an end, so that `?` unwinds to where things are removed.
pub(crate) fn check() -> anyhow::Result<()> {
    if asked() {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps, but not longer than until the user wants an end.
pub(crate) fn sleep_until(deadline: Instant) {
    const STEP: Duration = Duration::from_millis(50);
    while !asked() && Instant::now() < deadline {
        thread::sleep(STEP.min(deadline.saturating_duration_since(Instant::now())));
    }
}

extern "C" fn note(_: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
}
