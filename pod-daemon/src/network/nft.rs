//! Talking to nftables, by its program.

use std::{
    io::{self, Write as _},
    process::{Command, Output, Stdio},
    thread,
};

/// Gives rules to nftables.
pub(super) fn nft(rules: &str) -> io::Result<()> {
    run(&["-f", "-"], rules).map(drop)
}

/// What nftables answers to a command, as JSON.
pub(super) fn nft_json(command: &[&str]) -> io::Result<Vec<u8>> {
    run(&[&["-j"], command].concat(), "")
}

fn run(arguments: &[&str], input: &str) -> io::Result<Vec<u8>> {
    let output = without_descriptors(|| {
        let mut child = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("nft: {}", message.lines().next().unwrap_or_default())))
}

/// Runs a program on a thread that has none of the daemon's descriptors but the first three. A program
/// gets a copy of each and closes it again, and with many pods those are thousands.
fn without_descriptors(work: impl FnOnce() -> io::Result<Output> + Send) -> io::Result<Output> {
    let work = || {
        let first = libc::STDERR_FILENO.unsigned_abs() + 1;
        // SAFETY: only this thread loses its descriptors, and it has brought none with it. Linux 5.9.
        let result = unsafe {
            libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_UNSHARE)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        work()
    };
    thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_panic| Err(io::Error::other("the thread that runs a program panicked")))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_program_is_given_no_descriptor_of_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let kept = File::create(folder.path().join("kept")).unwrap();
        // Not even one that would outlive the exec.
        rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
        let list = || Command::new("ls").arg("/proc/self/fd").output();
        let listed = without_descriptors(list).unwrap();
        // The fourth is that of the folder itself.
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "0\n1\n2\n3\n");
        assert!(fs::exists(folder.path().join("kept")).unwrap());
        kept.sync_all().expect("the other threads keep theirs");
    }
}
