//! The floor under every start: what the kernel alone takes for a contained `/bin/true`.
//!
//! One clone3 with a container's namespaces, an overlay of the root file system with /proc, /sys
//! and /dev, pivot_root, exec, wait. No cgroup, no network interface, no security: no engine that
//! does its work can be faster.

use std::{
    convert::Infallible,
    env,
    ffi::CString,
    fs,
    io::{self, Write as _},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::wait::{WaitStatus, waitpid},
    unistd::{Pid, chdir, execve, pivot_root},
};

/// Name of the hidden command that ends in [`main`].
pub(crate) const COMMAND: &str = "bench-floor";

const NAMESPACES: libc::c_int = libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// Takes `n` samples, in a process of their own: this one may have threads and much memory to copy.
pub(crate) fn measure(rootfs: &Path, n: usize) -> anyhow::Result<Vec<Duration>> {
    let mut child = Command::new(env::current_exe().context("find xtask's program")?);
    child.arg(COMMAND).arg(n.to_string()).arg(rootfs);
    child.stderr(io::stderr());
    let output = child.output().context("start the floor's process")?;
    ensure!(output.status.success(), "the floor's process failed: {}", output.status);

    let output = String::from_utf8(output.stdout).context("read the floor's samples")?;
    let nanos = output.lines().map(|line| line.parse().map(Duration::from_nanos));
    nanos.collect::<Result<_, _>>().context("read the floor's samples")
}

/// What [`measure`] runs: prints one sample a line, in nanoseconds.
pub(crate) fn main(n: usize, rootfs: &Path) -> anyhow::Result<()> {
    for _ in 0..n {
        writeln!(io::stdout(), "{}", run_once(rootfs)?.as_nanos())?;
    }
    Ok(())
}

/// Runs `/bin/true` once. The calling process must have no other thread.
pub(crate) fn run_once(rootfs: &Path) -> anyhow::Result<Duration> {
    let scratch = tempfile::tempdir().context("make directories for the overlay")?;
    let root = scratch.path();
    for directory in ["upper", "work", "merged"] {
        fs::create_dir(root.join(directory)).context("make directories for the overlay")?;
    }
    let overlay = ["lowerdir=", ",upperdir=", ",workdir="];
    let rootfs = rootfs.canonicalize().context("find the root file system")?;
    let paths = [rootfs, root.join("upper"), root.join("work")];
    let overlay: String =
        overlay.iter().zip(&paths).map(|(key, path)| format!("{key}{}", path.display())).collect();

    let start = Instant::now();
    let pid = clone_into(NAMESPACES).context("clone")?;
    if pid.as_raw() == 0 {
        let Err(errno) = exec_true(&root.join("merged"), &overlay);
        // SAFETY: ends the process without running what belongs to the parent it is a copy of.
        unsafe { libc::_exit(errno as i32) };
    }
    let status = waitpid(pid, None).context("wait")?;
    let elapsed = start.elapsed();

    match status {
        WaitStatus::Exited(_, 0) => Ok(elapsed),
        WaitStatus::Exited(_, code) => {
            Err(Errno::from_raw(code)).context("run /bin/true in the root file system")
        }
        other => Err(anyhow::anyhow!("/bin/true ended with {other:?}")),
    }
}

/// Forks into new namespaces; the child gets 0.
fn clone_into(namespaces: libc::c_int) -> nix::Result<Pid> {
    // SAFETY: all zeroes is a `clone_args` that asks for nothing.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces.unsigned_abs().into();
    args.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    // SAFETY: without CLONE_VM this is a fork, and the caller has no other thread whose locks the
    // child would inherit.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    let pid = Errno::result(pid)?;
    Ok(Pid::from_raw(pid.try_into().expect("a pid fits pid_t")))
}

/// The child's part: everything between clone and exec.
fn exec_true(merged: &Path, overlay: &str) -> nix::Result<Infallible> {
    let none = None::<&str>;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("overlay"), merged, Some("overlay"), MsFlags::empty(), Some(overlay))?;
    chdir(merged)?;
    mount(Some("proc"), "proc", Some("proc"), flags, none)?;
    mount(Some("sysfs"), "sys", Some("sysfs"), flags | MsFlags::MS_RDONLY, none)?;
    mount(Some("tmpfs"), "dev", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))?;
    // Stacks the old root on the new one, so that it needs no directory.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;

    let program = CString::from(c"/bin/true");
    execve(&program, &[&program], &[] as &[CString])
}
