//! Keeps the daemon's program from being written to by way of `/proc/PID/exe`.
//!
//! Between clone and exec a container's process is still the daemon's program, and an image may name
//! `/proc/self/exe` as its interpreter: then a process in the container goes on as that program, and
//! its `exe` leads to the file on the node (CVE-2019-5736). So the daemon runs itself from a mount of
//! that file which is read-only, attached nowhere, and no container's to change.

use std::{
    env,
    ffi::{CString, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::Path,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use rustix::fs::StatVfsMountFlags;

use super::mount;

/// Runs this program again from where it cannot be written to; returns only if it is there already,
/// or if that fails.
///
/// Call it first: it starts over.
pub fn run_sealed() -> io::Result<()> {
    let program = Path::new("/proc/self/exe");
    let file = File::open(program)?;
    let is_sealed = rustix::fs::fstatvfs(&file)?.f_flag.contains(StatVfsMountFlags::RDONLY)
        || rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| !seals.is_empty());
    if is_sealed {
        // The kernel took the name from the descriptor that it was executed by.
        rustix::thread::set_name(c"pod-daemon")?;
        return Ok(());
    }
    let sealed = read_only(&file).or_else(|_error| copy(file))?;
    let words = |words: Vec<OsString>| {
        words.into_iter().map(|word| CString::new(word.into_vec())).collect::<Result<Vec<_>, _>>()
    };
    let arguments = words(env::args_os().collect())?;
    let environment = env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    nix::unistd::fexecve(sealed, &arguments, &words(environment.collect())?)?;
    Ok(())
}

/// The same file by a read-only mount; takes Linux 5.12 and the right to mount.
fn read_only(file: &File) -> io::Result<OwnedFd> {
    let copy = mount::copy(file)?;
    mount::set_detached_read_only(copy.as_fd())?;
    Ok(copy)
}

/// A copy in memory that cannot be changed.
fn copy(mut file: File) -> io::Result<OwnedFd> {
    let memory = memfd_create(c"pod-daemon", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut memory = File::from(memory);
    io::copy(&mut file, &mut memory)?;
    let seals = SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    // A file that is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    Ok(File::open(path)?.into())
}
