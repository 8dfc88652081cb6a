//! A pod's network namespace: what the kernel counts there, and what a test does in it.

use std::{
    fs::{self, File},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::Pid,
};

use crate::Daemon;

/// The process that holds the pod's namespaces.
#[track_caller]
#[must_use]
pub fn infra(daemon: &Daemon, pod: &str) -> Pid {
    daemon.pid_of(&daemon.pod(pod), "_infra")
}

/// A number of the network namespace of a process, from a table below `/proc/PID/net` that the kernel
/// keeps: the protocol begins a line of names and one of values.
///
/// # Panics
/// When there is none.
#[track_caller]
#[must_use]
pub fn kernel_count(pid: Pid, (table, protocol, name): (&str, &str, &str)) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).expect("read the table");
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = lines.next().zip(lines.next()).expect("find the protocol");
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = pairs.find(|(found, _)| *found == name).expect("find the number");
    value.parse().expect("read the number")
}

/// Does something in the network namespace of a process, and among the host's files.
///
/// # Panics
/// When it does.
#[track_caller]
pub fn inside<T: Send + 'static>(pid: Pid, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("open the namespace");
    let thread = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        work()
    });
    thread.join().expect("what is done there succeeds")
}
