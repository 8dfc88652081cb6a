//! `oom_score_adj` of what is started.
//!
//! Set between clone and exec, so that whatever the program forks has it, too; and by a thread of the
//! daemon while the new process waits, since that is in the container's cgroup already, where what
//! is written counts as the container's. The score is kept per process and not per memory: Linux
//! tells the processes that share memory of a change, but not for a child of `CLONE_VFORK`.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering},
    },
};

use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};

use super::Introduce;

/// Sets the scores of what is started, and counts what the kernel refuses.
#[derive(Debug)]
pub(super) struct OomScores {
    /// The node's /proc: the thread that starts a process may not see it.
    proc: Arc<OwnedFd>,
    refused: AtomicU64,
}

/// One process's score, and how far it is with that.
#[derive(Debug)]
pub(super) struct OomScore {
    proc: Arc<OwnedFd>,
    score: i32,
    /// The process, which clone stores here.
    pid: AtomicI32,
    step: AtomicU32,
}

/// The steps, in their order.
const BEGUN: u32 = 0;
const WAITING: u32 = 1;
const OVER: u32 = 2;

/// How long a process waits for its score, which takes microseconds: the daemon may have been killed
/// before the process asked to be killed with it.
const PATIENCE: libc::timespec = libc::timespec { tv_sec: 1, tv_nsec: 0 };

impl OomScores {
    pub(super) fn open() -> io::Result<Self> {
        let proc = File::open(Path::new("/proc"))?.into();
        Ok(Self { proc: Arc::new(proc), refused: AtomicU64::new(0) })
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Prepares the score of a new process.
    pub(super) fn prepare(&self, score: i32) -> Arc<OomScore> {
        let proc = Arc::clone(&self.proc);
        Arc::new(OomScore { proc, score, pid: AtomicI32::new(0), step: AtomicU32::new(BEGUN) })
    }

    /// Starts a process with this score. One with the wrong score runs all the same: it matters only
    /// when the whole node has no memory left.
    ///
    /// `introduce` is told the process before it executes its program.
    pub(super) fn around<T>(
        &self,
        score: Option<Arc<OomScore>>,
        introduce: Introduce<'_>,
        start: impl FnOnce() -> T,
    ) -> T {
        let Some(score) = score else { return start() };
        std::thread::scope(|scope| {
            let setter = std::thread::Builder::new().name("oom-score".to_owned());
            let setter = setter.spawn_scoped(scope, || score.set(introduce));
            if setter.is_err() {
                score.go_to(OVER);
            }
            let started = start();
            // It may not have come as far as to wait.
            score.go_to(OVER);
            let set = setter.and_then(|setter| setter.join().unwrap_or(Ok(())));
            if let Err(error) = set {
                self.note(score.score, &error);
            }
            started
        })
    }

    fn note(&self, score: i32, error: &io::Error) {
        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                score,
                %error,
                "the kernel refuses the oom_score_adj of a pod, which keeps the daemon's (a lower one needs \
                 CAP_SYS_RESOURCE); podscope_oom_score_adj_refused_total counts this one and all that follow"
            );
        }
    }
}

impl OomScore {
    /// Where clone is to store the pid, before the process runs.
    pub(super) fn pid(&self) -> *mut i32 {
        self.pid.as_ptr()
    }

    /// Waits until the calling process, which is new, has its score; `false` if it is in vain.
    /// Allocates nothing. If the daemon is killed meanwhile, so is the process.
    pub(super) fn wait(&self) -> bool {
        die_with_parent(libc::SIGKILL);
        if self.step.compare_exchange(BEGUN, WAITING, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.wake();
        }
        let is_over = self.sleep_during(WAITING, PATIENCE);
        die_with_parent(0);
        is_over
    }

    /// Sets the score once the process waits for that.
    fn set(&self, introduce: Introduce<'_>) -> io::Result<()> {
        while !self.sleep_during(BEGUN, PATIENCE) {}
        if self.step.load(Ordering::SeqCst) != WAITING {
            return Ok(());
        }
        let pid = self.pid.load(Ordering::SeqCst);
        introduce(Pid::from_raw(pid));
        let path = format!("{pid}/oom_score_adj");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.proc, path, flags, Mode::empty());
        let set = file
            .map_err(io::Error::from)
            .and_then(|file| File::from(file).write_all(self.score.to_string().as_bytes()));
        self.go_to(OVER);
        set
    }

    fn go_to(&self, step: u32) {
        self.step.store(step, Ordering::SeqCst);
        self.wake();
    }

    /// Sleeps until the step is another one; `false` if it still is the same after that time.
    fn sleep_during(&self, step: u32, patience: libc::timespec) -> bool {
        while self.step.load(Ordering::SeqCst) == step {
            // SAFETY: the futex and the time are borrowed; that the futex changes meanwhile is what
            // the call is for.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.step.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    step,
                    &raw const patience,
                )
            };
            // SAFETY: the pointer is this thread's own, and the child has the parent's.
            if result < 0 && unsafe { *libc::__errno_location() } == libc::ETIMEDOUT {
                return false;
            }
        }
        true
    }

    fn wake(&self) {
        // SAFETY: the futex is borrowed.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.step.as_ptr(),
                libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                i32::MAX,
            )
        };
    }
}

/// What the kernel sends to the calling process when the thread that started it dies; 0 is nothing.
fn die_with_parent(signal: libc::c_int) {
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
}
