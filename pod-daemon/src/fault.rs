//! Failures on request, in test builds: each step of making a pod can be made to fail, so that tests see
//! what is left behind.
//!
//! A test writes the name of a step to the file `fault` in the run directory; the step fails for as
//! long as it stands there. In release builds nothing of this is left.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::OnceLock};

/// Open for good: some steps are in mount namespaces that do not have it.
static FILE: OnceLock<File> = OnceLock::new();

/// Every step that can fail on request, in the order in which a pod is made.
pub const STEPS: [&str; 18] = [
    "pod cgroup",
    "pod limits",
    "pod probes",
    "infra cgroup",
    "container cgroup",
    "container probes",
    "address",
    "volumes",
    "ports",
    "output",
    "infra namespaces",
    "veth",
    "interface",
    "infra process",
    "scratch",
    "log",
    "mounts",
    "container process",
];

/// Where tests write the step that is to fail.
pub(crate) fn watch(run_dir: &Path) {
    if cfg!(debug_assertions) {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true);
        if let Ok(file) = file.open(run_dir.join("fault")) {
            FILE.set(file).ok();
        }
    }
}

/// Fails if a test wants `step` to fail.
pub(crate) fn at(step: &'static str) -> io::Result<()> {
    debug_assert!(STEPS.contains(&step), "{step} is not listed");
    let is_wanted = || {
        let mut wanted = [0; 64];
        let length = FILE.get()?.read_at(&mut wanted, 0).ok()?;
        (wanted[..length] == *step.as_bytes()).then_some(())
    };
    if cfg!(debug_assertions) && is_wanted().is_some() {
        return Err(io::Error::other(format!("a test made the step `{step}` fail")));
    }
    Ok(())
}
