//! Filters of system calls: which profile a process has, and the program that the kernel runs.
//!
//! A profile becomes a policy, and a policy a classic BPF program. Compiling costs more than loading,
//! so the programs are kept: once per profile, set of capabilities and architecture.

mod abi;
mod default;
mod oci;
mod policy;
mod program;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::Capabilities;

/// Programs that are kept. Profiles of the node are few; whoever has more compiles anew.
const KEPT: usize = 64;

/// Which system calls a process may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Profile {
    /// Those that ordinary programs need, and what the capabilities are for.
    #[default]
    RuntimeDefault,
    /// All.
    Unconfined,
    /// What a file of the node's administrator says, in the format of the OCI runtime
    /// specification. The text itself: commands in a container get what the container got.
    Localhost(Arc<str>),
}

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no profile.
    #[error("the seccomp profile is not valid: {0}")]
    Parse(#[source] serde_json::Error),
    /// Podscope cannot do what it says.
    #[error("the seccomp profile {0}")]
    Unsupported(String),
}

/// A program for the kernel.
#[derive(Debug)]
pub(super) struct Filter {
    instructions: Vec<libc::sock_filter>,
}

impl Filter {
    /// As the kernel takes it. The filter must outlive the call.
    pub(super) fn program(&self) -> libc::sock_fprog {
        libc::sock_fprog {
            // The compiler has checked that there are at most 4096.
            len: u16::try_from(self.instructions.len()).unwrap_or(u16::MAX),
            filter: self.instructions.as_ptr().cast_mut(),
        }
    }
}

/// Programs that were compiled before.
#[derive(Debug, Default)]
pub(super) struct Filters {
    compiled: Mutex<HashMap<(Profile, u64), Arc<Filter>>>,
}

impl Filters {
    /// The filter of `profile` for a process with these capabilities; `None` if there is none.
    pub(super) fn of(
        &self,
        profile: &Profile,
        capabilities: Capabilities,
    ) -> Result<Option<Arc<Filter>>, Error> {
        let key = match profile {
            Profile::Unconfined => return Ok(None),
            // What an administrator's profile allows does not depend on them.
            Profile::Localhost(_) => (profile.clone(), 0),
            Profile::RuntimeDefault => (profile.clone(), capabilities.bits()),
        };
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = compiled.get(&key) {
            return Ok(Some(Arc::clone(filter)));
        }
        let filter = Arc::new(compile(profile, capabilities)?);
        if compiled.len() >= KEPT {
            compiled.clear();
        }
        compiled.insert(key, Arc::clone(&filter));
        Ok(Some(filter))
    }
}

/// Reads and compiles the text of a `Localhost` profile: a door for the fuzz target.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn check(text: &str) -> Result<(), Error> {
    program::compile(&oci::parse(text)?).map(drop)
}

fn compile(profile: &Profile, capabilities: Capabilities) -> Result<Filter, Error> {
    let policy = match profile {
        Profile::Localhost(text) => oci::parse(text)?,
        Profile::RuntimeDefault | Profile::Unconfined => default::policy(capabilities),
    };
    Ok(Filter { instructions: program::compile(&policy)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_compiled_once_per_profile_and_capabilities() {
        let filters = Filters::default();
        let of = |profile: &Profile, capabilities| {
            filters.of(profile, capabilities).unwrap().map(|filter| Arc::as_ptr(&filter))
        };
        let usual = super::super::DEFAULT_CAPABILITIES;
        let first = of(&Profile::RuntimeDefault, usual);
        assert_eq!(of(&Profile::RuntimeDefault, usual), first);
        assert_ne!(of(&Profile::RuntimeDefault, Capabilities::NONE), first);
        assert_eq!(of(&Profile::Unconfined, usual), None);
        let own = Profile::Localhost(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#.into());
        assert_eq!(of(&own, usual), of(&own, Capabilities::NONE));
    }
}
