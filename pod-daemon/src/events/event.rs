//! One event, and how it reads from what the probes wrote.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event as NodeEvent;
use nix::errno::Errno;
use pod_ebpf::event::{Kind, TEXT_BYTES};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::Whose;
use crate::probes::Record;

/// Something that has happened in a pod.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container, unless it is about the whole pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What it was.
    #[serde(flatten)]
    pub what: What,
}

/// What has happened. Process ids are the node's.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "docs/events.md has what the fields are")]
pub enum What {
    /// A process has executed a program.
    Exec {
        pid: u32,
        parent: u32,
        parent_name: String,
        uid: u32,
        argv: Vec<String>,
        #[serde(default, skip_serializing_if = "is_false")]
        truncated: bool,
    },
    /// A process has ended.
    Exit {
        pid: u32,
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<u32>,
        seconds: f64,
    },
    /// The kernel chose a process to kill for want of memory.
    Oom { pid: u32, name: String },
    /// A connection attempt has failed.
    ConnectFailure { address: String, port: u32, error: String, seconds: f64 },
    /// A connection is established (while the pod is traced).
    Connect { address: String, port: u32, seconds: f64 },
    /// A connection from elsewhere is established (while the pod is traced).
    Accept { address: String, port: u32 },
    /// A file was opened, or could not be (while the pod is traced).
    Open {
        pid: u32,
        name: String,
        path: String,
        flags: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// The pod has met a limit.
    Limit { reason: String, message: String, count: i32 },
    /// What Kubernetes' events tell.
    Lifecycle {
        #[serde(rename = "type")]
        kind: String,
        reason: String,
        message: String,
        count: i32,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl What {
    /// The value of the field `kind`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Exit { .. } => "exit",
            Self::Oom { .. } => "oom",
            Self::ConnectFailure { .. } => "connect_failure",
            Self::Connect { .. } => "connect",
            Self::Accept { .. } => "accept",
            Self::Open { .. } => "open",
            Self::Limit { .. } => "limit",
            Self::Lifecycle { .. } => "lifecycle",
        }
    }

    /// Whether the other one tells that the same has happened once more, and how often that makes.
    pub(super) fn is_repeated_by(&self, other: &Self) -> bool {
        use What::{Lifecycle, Limit};
        match (self, other) {
            (Limit { reason, message, .. }, Limit { reason: again, message: text, .. })
            | (Lifecycle { reason, message, .. }, Lifecycle { reason: again, message: text, .. }) => {
                (reason, message) == (again, text)
            }
            _ => false,
        }
    }
}

/// What `CLOCK_BOOTTIME` is counted from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boot(Timestamp);

impl Boot {
    /// As the clocks are now: the other one may be set at any time.
    pub(super) fn now() -> Self {
        let since = clock_gettime(ClockId::Boottime);
        let since = SignedDuration::new(since.tv_sec, i32::try_from(since.tv_nsec).unwrap_or(0));
        Self(Timestamp::now().checked_sub(since).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    fn at(self, nanoseconds: u64) -> Timestamp {
        let since = SignedDuration::from_nanos(i64::try_from(nanoseconds).unwrap_or(i64::MAX));
        self.0.checked_add(since).unwrap_or(self.0)
    }
}

/// When the node was booted, as far as its clock knows.
pub(crate) fn booted() -> Timestamp {
    Boot::now().at(0)
}

impl Event {
    /// What a record of the probes says about the container that it is of.
    pub(super) fn read(record: &Record, whose: &Whose, boot: Boot) -> Option<Self> {
        let Record { event, text } = record;
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u32 == event.kind)?;
        let name = until_zero(&event.name);
        let seconds = event.duration as f64 / 1e9;
        let (address, port) = (address(event.family, event.address), event.port);
        let what = match kind {
            Kind::Exec => What::Exec {
                pid: event.pid,
                parent: event.parent,
                parent_name: name,
                uid: event.uid,
                argv: arguments(text),
                truncated: event.total > TEXT_BYTES,
            },
            Kind::Exit => {
                let status = u32::try_from(event.number).unwrap_or_default();
                let signal = Some(status & 0x7f).filter(|signal| *signal != 0);
                let code = signal.is_none().then_some((status >> 8) & 0xff);
                What::Exit { pid: event.pid, name, code, signal, seconds }
            }
            Kind::Oom => What::Oom { pid: event.pid, name },
            Kind::ConnectFailure => {
                let error = match i32::try_from(event.number) {
                    // Nobody has said no: the program has given up.
                    Ok(0) | Err(_) => "ECANCELED".to_owned(),
                    Ok(errno) => error_name(errno),
                };
                What::ConnectFailure { address, port, error, seconds }
            }
            Kind::Connect => What::Connect { address, port, seconds },
            Kind::Accept => What::Accept { address, port },
            Kind::Open => What::Open {
                pid: event.pid,
                name,
                path: String::from_utf8_lossy(text).into_owned(),
                flags: open_flags(event.flags),
                error: i32::try_from(-event.number).ok().filter(|errno| *errno > 0).map(error_name),
            },
        };
        Some(Self {
            time: boot.at(event.time),
            namespace: whose.namespace.clone(),
            pod: whose.pod.clone(),
            container: Some(whose.container.clone()),
            what,
        })
    }

    /// What an event of the node says, and the uid of the pod that it is about.
    pub(super) fn of_node(event: &NodeEvent) -> Option<(String, Self)> {
        let about = &event.involved_object;
        let container = about.field_path.as_deref().and_then(|path| {
            path.strip_prefix("spec.containers{")?.strip_suffix('}').map(str::to_owned)
        });
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (reason, message) = (text(&event.reason), text(&event.message));
        let count = event.count.unwrap_or(1);
        let what = if reason.ends_with("Limit") || reason == "OOMKilled" || reason == "Evicted" {
            What::Limit { reason, message, count }
        } else {
            What::Lifecycle { kind: text(&event.type_), reason, message, count }
        };
        let event = Self {
            time: event.last_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0),
            namespace: text(&about.namespace),
            pod: text(&about.name),
            container,
            what,
        };
        Some((about.uid.clone()?, event))
    }
}

fn until_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Arguments with a zero behind each. The last of what was cut may have none.
fn arguments(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// An address as the kernel has it: in network byte order.
fn address(family: u32, words: [u32; 4]) -> String {
    const AF_INET6: u32 = 10;
    let mut bytes = [0_u8; 16];
    for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *place = word.to_ne_bytes();
    }
    let address: IpAddr = if family == AF_INET6 {
        Ipv6Addr::from(bytes).to_canonical()
    } else {
        let [a, b, c, d, ..] = bytes;
        Ipv4Addr::new(a, b, c, d).into()
    };
    address.to_string()
}

fn error_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("errno {errno}"),
        errno => format!("{errno:?}"),
    }
}

/// The flags of `open`, as a programmer writes them.
fn open_flags(flags: u32) -> String {
    const NAMES: [(i32, &str); 13] = [
        (libc::O_CREAT, "O_CREAT"),
        (libc::O_EXCL, "O_EXCL"),
        (libc::O_NOCTTY, "O_NOCTTY"),
        (libc::O_TRUNC, "O_TRUNC"),
        (libc::O_APPEND, "O_APPEND"),
        (libc::O_NONBLOCK, "O_NONBLOCK"),
        (libc::O_SYNC, "O_SYNC"),
        (libc::O_DSYNC, "O_DSYNC"),
        (libc::O_DIRECT, "O_DIRECT"),
        (libc::O_TMPFILE, "O_TMPFILE"),
        (libc::O_DIRECTORY, "O_DIRECTORY"),
        (libc::O_NOFOLLOW, "O_NOFOLLOW"),
        (libc::O_PATH, "O_PATH"),
    ];
    let flags = flags.cast_signed();
    let mut text = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => "O_RDONLY",
        libc::O_WRONLY => "O_WRONLY",
        _ => "O_RDWR",
    }
    .to_owned();
    let mut named = 0;
    for (flag, name) in NAMES {
        // Some flags are made of others.
        if flags & flag == flag && flag & !named != 0 {
            text.push('|');
            text.push_str(name);
            named |= flag;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use pod_ebpf::event::Event as Raw;

    use super::*;

    fn whose() -> Whose {
        Whose {
            namespace: "default".to_owned(),
            pod: "web".to_owned(),
            uid: "u".to_owned(),
            container: "app".to_owned(),
        }
    }

    fn read(change: impl FnOnce(&mut Raw), kind: Kind, text: &[u8]) -> serde_json::Value {
        let mut event = Raw::new(kind, 1, 1_500_000_000);
        change(&mut event);
        let record = Record { event, text: text.to_vec() };
        let event = Event::read(&record, &whose(), Boot(Timestamp::UNIX_EPOCH)).unwrap();
        let value = serde_json::to_value(&event).unwrap();
        let again: Event = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(again, event);
        value
    }

    #[test]
    fn an_exec_is_a_flat_object() {
        let change = |event: &mut Raw| {
            event.pid = 7;
            event.parent = 3;
            event.name[..2].copy_from_slice(b"sh");
            event.total = 14;
        };
        assert_eq!(
            read(change, Kind::Exec, b"/bin/ls\0\0a b\0"),
            serde_json::json!({
                "time": "1970-01-01T00:00:01.5Z", "kind": "exec", "namespace": "default",
                "pod": "web", "container": "app", "pid": 7, "parent": 3, "parentName": "sh",
                "uid": 0, "argv": ["/bin/ls", "", "a b"],
            })
        );
        let long = read(|event| event.total = 513, Kind::Exec, &[b'x'; TEXT_BYTES as usize]);
        assert_eq!(long["truncated"], true);
        assert_eq!(read(|_| {}, Kind::Exec, b"")["argv"], serde_json::json!([]));
    }

    #[test]
    fn an_exit_has_a_code_or_a_signal() {
        let exit = read(|event| event.number = 7 << 8, Kind::Exit, b"");
        assert_eq!((&exit["code"], exit.get("signal")), (&7.into(), None));
        let exit = read(|event| event.number = 9, Kind::Exit, b"");
        assert_eq!((exit.get("code"), &exit["signal"]), (None, &9.into()));
    }

    #[test]
    fn addresses_are_those_of_the_network() {
        let failed = read(
            |event| {
                event.family = 2;
                event.address[0] = u32::from_ne_bytes([10, 1, 2, 3]);
                event.port = 80;
                event.number = 111;
            },
            Kind::ConnectFailure,
            b"",
        );
        assert_eq!((&failed["address"], &failed["port"]), (&"10.1.2.3".into(), &80.into()));
        assert_eq!(failed["error"], "ECONNREFUSED");
        let mapped = [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([1, 2, 3, 4])];
        assert_eq!(address(10, mapped), "1.2.3.4");
        assert_eq!(address(10, [0, 0, 0, 1_u32.to_be()]), "::1");
    }

    #[test]
    fn an_open_has_its_flags_and_its_error() {
        let open = read(
            |event| {
                event.flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC).cast_unsigned();
                event.number = -2;
            },
            Kind::Open,
            b"/etc/x",
        );
        assert_eq!((&open["path"], &open["error"]), (&"/etc/x".into(), &"ENOENT".into()));
        assert_eq!(open["flags"], "O_WRONLY|O_CREAT");
        assert!(read(|event| event.number = 3, Kind::Open, b"x").get("error").is_none());
    }
}
