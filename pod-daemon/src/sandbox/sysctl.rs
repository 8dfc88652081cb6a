//! Settings of the kernel that each pod has for itself.
//!
//! Only those that belong to a namespace of the pod's; and only values that cannot be taken for
//! anything else.

use std::{
    borrow::Cow,
    io::{self, Write as _},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    mount::MountAttrFlags,
};
use serde::{Deserialize, Serialize};

use super::{Error, failed_to, mount, userns::IDS};

/// The longest value that is taken: lists of port ranges are the longest there are.
const VALUE_MAX: usize = 1024;

/// The setting whose value is ids of groups.
const PING_GROUPS: &str = "ping_group_range";

/// A setting and its value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sysctl {
    /// Below `/proc/sys`.
    path: PathBuf,
    value: String,
}

/// A setting that a pod cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is nobody's own.
    #[error(
        "is not a setting of one pod alone; those are kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.* and net.*"
    )]
    Name,
    /// It is not a plain value.
    #[error("must be letters, digits, blanks and any of . , : _ / - on one line")]
    Value,
}

impl Problem {
    /// Whether the name is right and the value is not.
    #[must_use]
    pub fn is_about_value(self) -> bool {
        self == Self::Value
    }
}

impl Sysctl {
    /// Checks a setting, in either notation: `net.ipv4.ip_forward` or `net/ipv4/ip_forward`.
    pub fn new(name: &str, value: &str) -> Result<Self, Problem> {
        // The first separator tells; in the other notation, the other character is part of names,
        // as in net/ipv4/conf/eth0.1/forwarding.
        let separator = name.find(['.', '/']).map_or('.', |at| char::from(name.as_bytes()[at]));
        let parts: Vec<String> = name
            .split(separator)
            .map(|part| if separator == '.' { part.replace('/', ".") } else { part.to_owned() })
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let plain = |character: char| {
            character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.' | '/')
        };
        let is_path = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
        if !name.chars().all(plain) || !is_path || !is_namespaced(&parts) {
            return Err(Problem::Name);
        }
        let simple = |character: char| {
            character.is_ascii_alphanumeric()
                || matches!(character, ' ' | '\t' | '.' | ',' | ':' | '_' | '/' | '-')
        };
        if value.is_empty() || value.len() > VALUE_MAX || !value.chars().all(simple) {
            return Err(Problem::Value);
        }
        Ok(Self { path: parts.iter().collect(), value: value.to_owned() })
    }

    /// Whether it belongs to the network namespace.
    #[must_use]
    pub fn is_of_the_network(&self) -> bool {
        self.path.starts_with("net")
    }

    /// Its path below `/proc/sys`.
    #[must_use]
    pub fn name(&self) -> &Path {
        &self.path
    }

    /// What a pod with a network of its own has unless it says otherwise, as with containerd: any
    /// user may listen on low ports and send pings, which then take no capability.
    #[must_use]
    pub fn of_every_pod() -> [Self; 2] {
        let of = |name: &str, value: &str| Self {
            path: Path::new("net/ipv4").join(name),
            value: value.to_owned(),
        };
        [of("ip_unprivileged_port_start", "0"), of(PING_GROUPS, "0 2147483647")]
    }

    /// With ids as the node has them.
    fn shifted(&self, base: Option<u32>) -> Cow<'_, Self> {
        let Some(base) = base.filter(|_| self.path.ends_with(PING_GROUPS)) else {
            return Cow::Borrowed(self);
        };
        let shift = |id: &str| id.parse().map_or(IDS - 1, |id: u32| id.min(IDS - 1)) + base;
        let value: Vec<_> = self.value.split_whitespace().map(|id| shift(id).to_string()).collect();
        Cow::Owned(Self { path: self.path.clone(), value: value.join(" ") })
    }

    fn write(&self, proc: impl AsFd) -> io::Result<()> {
        let path = Path::new("sys").join(&self.path);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::TRUNC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let file = rustix::fs::openat2(proc, path, flags, Mode::empty(), beneath)?;
        std::fs::File::from(file).write_all(self.value.as_bytes())
    }
}

/// Writes settings in the namespaces of the calling thread, through a `/proc` that nobody else sees.
///
/// Groups are the node's to this thread: those of a pod with ids of its own begin at `base`.
pub(super) fn apply(sysctls: &[Sysctl], base: Option<u32>) -> Result<(), Error> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let proc = mount::new("proc", &[], MountAttrFlags::empty())
        .map_err(failed_to("mount", Path::new("/proc")))?;
    for sysctl in sysctls {
        sysctl.shifted(base).write(&proc).map_err(failed_to("set the sysctl", &sysctl.path))?;
    }
    Ok(())
}

fn is_namespaced(parts: &[&str]) -> bool {
    match parts {
        ["kernel", "sem"] => true,
        ["kernel", name] => name.starts_with("shm") || name.starts_with("msg"),
        ["fs", "mqueue", _] => true,
        ["net", _, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_pods_own_can_be_set() {
        for name in [
            "net.ipv4.ip_unprivileged_port_start",
            "net/ipv4/conf/eth0.1/forwarding",
            "net.ipv4.conf.eth0/1.forwarding",
            "kernel.shmmax",
            "kernel.sem",
            "fs.mqueue.msg_max",
        ] {
            assert!(Sysctl::new(name, "1").is_ok(), "{name}");
        }
        for name in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net",
            "net.",
            "net/../kernel/core_pattern",
            "net.ipv4...kernel.core_pattern",
            "net/ipv4/../../kernel/core_pattern",
            "/net/ipv4/ip_forward",
            "fs.mqueue",
            "fs.file-max",
            "kernel.shm/../core_pattern",
            "net.ipv4.//.//.kernel.core_pattern",
            "net.ipv4.x=1",
            "net.ipv4.x\n",
            "",
        ] {
            assert_eq!(Sysctl::new(name, "1"), Err(Problem::Name), "{name}");
        }
    }

    #[test]
    fn a_value_cannot_be_two() {
        assert!(Sysctl::new("net.ipv4.ping_group_range", "0\t2147483647").is_ok());
        for value in ["1+kernel.core_pattern=|/evil", "1\nx", "1;2", "", "a=b", "1\0"] {
            assert_eq!(Sysctl::new("net.ipv4.ip_forward", value), Err(Problem::Value), "{value:?}");
        }
    }

    #[test]
    fn both_notations_name_the_same() {
        let path = |name: &str| Sysctl::new(name, "1").unwrap().path;
        assert_eq!(path("net.ipv4.ip_forward"), path("net/ipv4/ip_forward"));
        assert_eq!(
            path("net.ipv4.conf.eth0/1.forwarding"),
            path("net/ipv4/conf/eth0.1/forwarding")
        );
    }
}
