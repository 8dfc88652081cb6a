//! The harness of the kernel tests: a daemon of one's own, its API, its metrics, and what the node
//! looked like before it.
//!
//! Everything here panics when it fails, with what it was about: the callers are tests. Nothing
//! here knows how the daemon is made; it is started, asked and killed as a user would.
#![allow(clippy::print_stdout, reason = "what the harness says belongs to the test's output")]

pub mod daemon;
pub mod http;
pub mod manifest;
pub mod metrics;
pub mod netns;
pub mod policy;
pub mod program;
pub mod state;

use std::{
    env,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

pub use self::{daemon::Daemon, metrics::Metrics};

/// Whether this is a test VM: a machine of our own, slow, with every controller.
#[must_use]
pub fn in_vm() -> bool {
    env::var_os("PODSCOPE_IN_VM").is_some()
}

/// A time limit, longer where instructions are emulated.
#[must_use]
pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(if in_vm() { count * 5 } else { count })
}

/// A program of Podscope.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let folder = env::var_os("PODSCOPE_BIN_DIR")
        .expect("PODSCOPE_BIN_DIR names the folder of the programs; `cargo xtask test` sets it");
    PathBuf::from(folder).join(name)
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within `limit`.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        // Before the question: an answer that takes long is still an answer.
        let last = Instant::now() >= deadline;
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(!last, "in {} s, never: {what}", limit.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Asks again and again, and says whether it came to be true within `limit`.
pub fn within(limit: Duration, mut ask: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let last = Instant::now() >= deadline;
        if ask() {
            return true;
        }
        if last {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Says aloud that the test of this thread is skipped.
pub fn skip(reason: &str) {
    let thread = thread::current();
    println!("SKIP {}: {reason}", thread.name().unwrap_or("?"));
}

/// Whether a pod's status names this limit as one that hindered it.
#[must_use]
pub fn met_limit(pod: &Value, reason: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut limits = conditions.filter(|one| one["type"] == "podscope.dev/LimitMet");
    limits.any(|one| one["status"] == "True" && one["reason"] == reason)
}
