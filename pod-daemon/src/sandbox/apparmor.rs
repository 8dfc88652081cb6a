//! The AppArmor profile that containers have where the kernel has AppArmor.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    process::{Command, Stdio},
    sync::{Arc, LazyLock},
    thread,
};

use nix::errno::Errno;

use super::Failure;

/// The name of the profile of containers whose manifest names none.
pub const DEFAULT: &str = "podscope-default";

const POLICY: &str = include_str!("podscope-default.apparmor");

/// What compiles profiles and gives them to the kernel, whose format depends on its version.
const PARSER: &str = "apparmor_parser";

/// Containers cannot have the default profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to load it into.
    #[error("AppArmor is not enabled on this node; boot a kernel with AppArmor")]
    Off,
    /// There is nothing to load it with.
    #[error("{PARSER} is not installed on this node; install the package `apparmor`")]
    NoParser,
    /// The parser or the kernel does not like it.
    #[error("{PARSER} does not load the profile {DEFAULT}: {0}")]
    Refused(String),
    /// The parser could not be run.
    #[error("failed to run {PARSER}")]
    Run(#[from] io::Error),
}

/// The default profile, which is loaded at the start of a daemon, beside everything else.
#[derive(Clone, Debug)]
pub(super) struct DefaultProfile(Arc<LazyLock<Result<(), Error>>>);

impl DefaultProfile {
    /// Begins to load it.
    pub(super) fn prepare() -> Self {
        let profile = Self(Arc::new(LazyLock::new(load)));
        let prepared = profile.clone();
        let prepare = move || match prepared.outcome() {
            Ok(()) | Err(Error::Off) => {}
            Err(error) => tracing::warn!(%error, "containers run without an AppArmor profile"),
        };
        // Without a thread the first container does it.
        thread::Builder::new().name("apparmor".to_owned()).spawn(prepare).ok();
        profile
    }

    /// Waits for the end of loading.
    pub(super) fn outcome(&self) -> Result<(), &Error> {
        self.0.as_ref().as_ref().copied()
    }

    /// Sets the profile of whatever the calling thread's children execute, which inherit that. Must come
    /// before the thread enters a container's namespaces, whose `/proc` may lead anywhere; and it is not
    /// for the child to do, whose every write counts as the container's.
    ///
    /// The default profile is in no file, so `aa-remove-unknown` removes it: then it is loaded again.
    pub(super) fn set_on_exec(&self, profile: Option<&str>) -> Result<(), Failure> {
        let Some(profile) = profile else { return Ok(()) };
        match set_on_exec(profile) {
            Err(Errno::ENOENT) if profile == DEFAULT && load().is_ok() => set_on_exec(profile),
            result => result,
        }
        .map_err(|errno| {
            Failure::new("set the AppArmor profile (it must be loaded on this node)", errno)
        })
    }
}

/// Whether this kernel has AppArmor, and it is on.
#[must_use]
pub fn is_enabled() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'))
}

fn set_on_exec(profile: &str) -> Result<(), Errno> {
    let open = |path| File::options().write(true).open(path);
    // Before Linux 5.8 there is only the file that all security modules share.
    open("/proc/thread-self/attr/apparmor/exec")
        .or_else(|_absent| open("/proc/thread-self/attr/exec"))
        // One write, which is a command.
        .and_then(|mut file| file.write_all(format!("exec {profile}").as_bytes()))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

/// Loads the profile, in the place of one that an older daemon loaded. Containers that run under that
/// one are under this one from then on.
fn load() -> Result<(), Error> {
    if !is_enabled() {
        return Err(Error::Off);
    }
    let parser = Command::new(PARSER)
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut parser = match parser {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoParser),
        parser => parser?,
    };
    // One that leaves early says why.
    let written = parser.stdin.take().map(|mut stdin| stdin.write_all(POLICY.as_bytes()));
    let output = parser.wait_with_output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Refused(message.trim().replace('\n', "; ")));
    }
    written.transpose()?;
    Ok(())
}
