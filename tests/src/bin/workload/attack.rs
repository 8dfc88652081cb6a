//! Steps that try what a container must not be able to do, and say what came of it.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::unix::{
        fs::{MetadataExt as _, symlink},
        net::{SocketAddr, UnixStream},
    },
    path::Path,
};

use anyhow::Context as _;

/// Does the step, if it is one of these.
pub(crate) fn step(words: &[&str]) -> anyhow::Result<bool> {
    match *words {
        ["syscall", abi, ref numbers @ ..] => syscall(abi, numbers)?,
        ["owner", path] => {
            let metadata = fs::symlink_metadata(path)?;
            let (user, group, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
            println!("owner {path}: {user}:{group} {mode:o}");
        }
        ["chown", path, user] => {
            let done = std::os::unix::fs::chown(path, Some(user.parse()?), None);
            say("chown", path, done);
        }
        ["open", path] => say("open", path, File::options().write(true).open(path).map(drop)),
        ["enter", path] => say("enter", path, std::env::set_current_dir(path)),
        ["flood", blocks] => {
            use std::io::Write as _;
            let block = vec![b'x'; 1 << 16];
            for _ in 0..blocks.parse::<u32>()? {
                io::stdout().write_all(&block)?;
            }
        }
        ["nest", name] => nest(name)?,
        ["mkdir", path] => say("mkdir", path, fs::create_dir(path)),
        ["link", target, path] => say("link", path, symlink(target, path)),
        ["exchange", one, other] => exchange(one, other)?,
        ["abstract", name] => {
            use std::os::linux::net::SocketAddrExt as _;
            let address = SocketAddr::from_abstract_name(name.as_bytes())?;
            say("abstract", name, UnixStream::connect_addr(&address).map(drop));
        }
        ["unix", path] => say("unix", path, UnixStream::connect(path).map(drop)),
        ["type-ahead", path] => type_ahead(path)?,
        ["mount", kind, target] => {
            let (kind, target_path) = (CString::new(kind)?, CString::new(target)?);
            let none = std::ptr::null();
            // SAFETY: all strings are null-terminated.
            let result =
                unsafe { libc::mount(none, target_path.as_ptr(), kind.as_ptr(), 0, none.cast()) };
            say("mount", target, check(result.into()));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Moves all processes into a cgroup below the container's own, which then gives its controllers away, as
/// systemd and container engines in a container do; says which those are.
fn nest(name: &str) -> io::Result<()> {
    let own = Path::new("/sys/fs/cgroup");
    let below = own.join(name);
    fs::create_dir(&below)?;
    for process in fs::read_to_string(own.join("cgroup.procs"))?.lines() {
        fs::write(below.join("cgroup.procs"), process)?;
    }
    let controllers = fs::read_to_string(own.join("cgroup.controllers"))?;
    let delegated = own.join("cgroup.subtree_control");
    for controller in controllers.split_whitespace() {
        fs::write(&delegated, format!("+{controller}"))?;
    }
    println!("nested with {}", fs::read_to_string(delegated)?.trim());
    Ok(())
}

fn say(step: &str, what: &str, result: io::Result<()>) {
    match result {
        Ok(()) => println!("{step} {what}: ok"),
        Err(error) => println!("{step} {what}: {}", super::name_of(&error)),
    }
}

fn check(result: i64) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One system call by its number, with these arguments, through one of the ways into the kernel.
/// It is made in a child, which a call may well end.
fn syscall(abi: &str, numbers: &[&str]) -> anyhow::Result<()> {
    let mut values = [0_i64; 7];
    for (value, text) in values.iter_mut().zip(numbers) {
        *value = text.parse().context("read a number")?;
    }
    let [number, first, second, third, ..] = values;
    let name = format!("syscall {abi} {}", numbers.join(" "));
    let child = super::fork(|| {
        let result = match abi {
            "32" => int_80(number, first, second, third),
            "x32" => direct(number | 0x4000_0000, first, second, third),
            _ => direct(number, first, second, third),
        };
        let result = if result < 0 {
            // Errors are small negative numbers in every ABI.
            Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(0)))
        } else {
            Ok(())
        };
        match result {
            Ok(()) => println!("{name}: ok"),
            Err(error) => println!("{name}: {}", super::name_of(&error)),
        }
    })?;
    super::wait_for(child);
    Ok(())
}

fn direct(number: i64, first: i64, second: i64, third: i64) -> i64 {
    // SAFETY: the tests choose calls that do no harm, and a child makes them.
    let result = unsafe { libc::syscall(number, first, second, third, 0, 0, 0) };
    if result == -1 {
        -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        result
    }
}

/// The way into the kernel of 32-bit programs, open to 64-bit ones.
#[cfg(target_arch = "x86_64")]
fn int_80(number: i64, first: i64, second: i64, third: i64) -> i64 {
    let result: i64;
    // SAFETY: as above. The compiler keeps rbx for itself, so it is exchanged for the call.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) first => _,
            inlateout("rax") number => result,
            in("rcx") second,
            in("rdx") third,
            in("rsi") 0_i64,
            in("rdi") 0_i64,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    // The call sets all 64 bits of its result from 32.
    result
}

#[cfg(not(target_arch = "x86_64"))]
fn int_80(_number: i64, _first: i64, _second: i64, _third: i64) -> i64 {
    -i64::from(libc::ENOSYS)
}

/// Exchanges two names for ever, as fast as it can.
fn exchange(one: &str, other: &str) -> anyhow::Result<()> {
    let (one, other) = (CString::new(one)?, CString::new(other)?);
    println!("exchanging");
    loop {
        // SAFETY: both strings are null-terminated.
        unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                one.as_ptr(),
                libc::AT_FDCWD,
                other.as_ptr(),
                libc::RENAME_EXCHANGE,
            )
        };
    }
}

/// Puts a character into the input of whoever else has this terminal.
fn type_ahead(path: &str) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    match File::options().read(true).write(true).open(path) {
        Ok(terminal) => {
            let letter = b'x';
            // SAFETY: the descriptor is open and the kernel reads one byte.
            let result =
                unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSTI, &raw const letter) };
            say("type-ahead", path, check(result.into()));
        }
        Err(error) => println!("type-ahead {path}: {}", super::name_of(&error)),
    }
    Ok(())
}
