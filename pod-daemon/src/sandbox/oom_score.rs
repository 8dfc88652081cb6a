//! `oom_score_adj` of what is started.
//!
//! Written by the new process itself before its exec, so that whatever it forks has it, too. It is
//! kept per process and not per memory: Linux tells the processes that share memory of a change,
//! but neither a parent that waits in `CLONE_VFORK` nor of the change of such a child.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use libc::c_int;

/// Sets the scores of what is started, and counts what the kernel refuses.
#[derive(Debug)]
pub(super) struct OomScores {
    /// The node's /proc: a container's own is not there yet.
    proc: OwnedFd,
    refused: AtomicU64,
}

/// One process's score.
#[derive(Debug)]
pub(super) struct OomScore {
    proc: RawFd,
    text: CString,
    /// The kernel's answer; 0 if it took the score.
    errno: c_int,
}

impl OomScores {
    pub(super) fn open() -> io::Result<Self> {
        let proc = fs::File::open(Path::new("/proc"))?.into();
        Ok(Self { proc, refused: AtomicU64::new(0) })
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Prepares what the new process writes.
    pub(super) fn prepare(&self, score: i32) -> OomScore {
        // A number has no zero byte.
        let text = CString::new(score.to_string()).unwrap_or_default();
        OomScore { proc: self.proc.as_raw_fd(), text, errno: 0 }
    }

    /// Takes note of how it went. A process with the wrong score runs all the same: it matters only
    /// when the whole node has no memory left.
    pub(super) fn check(&self, score: Option<&OomScore>) {
        let Some(score) = score.filter(|score| score.errno != 0) else { return };
        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                score = %score.text.to_string_lossy(),
                error = %io::Error::from_raw_os_error(score.errno),
                "the kernel refuses the oom_score_adj of a pod, which keeps the daemon's (a lower one needs \
                 CAP_SYS_RESOURCE); podscope_oom_score_adj_refused_total counts this one and all that follow"
            );
        }
    }
}

impl OomScore {
    /// Sets the score of the calling process, by system calls alone.
    pub(super) fn set(&mut self) {
        let (path, text) = (c"self/oom_score_adj", self.text.as_bytes());
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        // SAFETY: system calls on this process's own memory; the file that they open is theirs.
        unsafe {
            let file = libc::syscall(libc::SYS_openat, self.proc, path.as_ptr(), flags);
            if file < 0 {
                self.errno = *libc::__errno_location();
                return;
            }
            let written = libc::syscall(libc::SYS_write, file, text.as_ptr(), text.len());
            if written < 0 {
                self.errno = *libc::__errno_location();
            }
            libc::syscall(libc::SYS_close, file);
        }
    }
}
