//! Steps that use as much as there is of something, and say how far they came.

use std::{
    fs::File,
    io::{self, Write as _},
    net::UdpSocket,
    os::unix::fs::OpenOptionsExt as _,
    ptr, thread,
    time::{Duration, Instant},
};

use super::{fork, name_of};

/// Does the step, if it is one of these.
pub(crate) fn step(words: &[&str]) -> anyhow::Result<bool> {
    match *words {
        ["fork-bomb"] => fork_bomb(),
        ["hold-memory", bytes] => hold_memory(bytes.parse()?),
        ["child-holds-memory", bytes] => {
            let bytes = bytes.parse()?;
            fork(|| hold_memory(bytes))?;
        }
        ["huge-pages", count] => huge_pages(count.parse()?),
        ["write-direct", path, blocks] => write_direct(path, blocks.parse()?)?,
        ["open-files", count] => open_files(count.parse()?)?,
        ["take-ports"] => take_ports()?,
        ["flows", address, first_port, count] => {
            flows(address, first_port.parse()?, count.parse()?)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn hold_memory(bytes: usize) {
    let memory = vec![1_u8; bytes];
    println!("holding {}", std::hint::black_box(&memory).len());
    thread::sleep(Duration::from_secs(3600));
}

fn fork_bomb() {
    let mut children = 0;
    while fork(|| thread::sleep(Duration::from_secs(3600))).is_ok() {
        children += 1;
    }
    println!("stopped after {children} children");
}

/// Opens files for good, as many as it can, and says how many.
fn open_files(count: usize) -> anyhow::Result<()> {
    raise_files()?;
    let mut open = 0;
    while open < count {
        let Ok(file) = File::open("/dev/null") else { break };
        keep(file);
        open += 1;
    }
    println!("{open} files are open");
    Ok(())
}

/// Takes every port that the kernel gives away, and says how many.
fn take_ports() -> anyhow::Result<()> {
    raise_files()?;
    let mut taken = 0;
    let error = loop {
        match UdpSocket::bind("0.0.0.0:0") {
            Ok(socket) => keep(socket),
            Err(error) => break error,
        }
        taken += 1;
    };
    println!("{taken} ports are taken: {}", name_of(&error));
    Ok(())
}

/// Begins as many connections as that, one to each port: with a datagram that nobody answers.
fn flows(address: &str, first_port: u16, count: u16) -> io::Result<()> {
    for port in first_port..first_port + count {
        UdpSocket::bind(("0.0.0.0", 0))?.send_to(b"x", (address, port))?;
    }
    println!("flows: {count}");
    Ok(())
}

/// Lets this process have as many files as it may.
fn raise_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a limit of this function's own.
    let result = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Leaves a descriptor open for as long as the program runs.
pub(crate) fn keep(descriptor: impl std::os::fd::IntoRawFd) {
    let _kept: std::os::fd::RawFd = descriptor.into_raw_fd();
}

/// Maps pages of 2 MiB and writes to each.
fn huge_pages(count: usize) {
    const SIZE: usize = 2 << 20;
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
    );
    // SAFETY: a new mapping, at no address in particular.
    let start = unsafe { libc::mmap(ptr::null_mut(), count * SIZE, access, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        println!("{count} huge pages: {}", name_of(&io::Error::last_os_error()));
        return;
    }
    for page in 0..count {
        // SAFETY: within the mapping, which stays.
        unsafe { start.cast::<u8>().add(page * SIZE).write_volatile(1) };
    }
    println!("{count} huge pages: ok");
}

/// Writes blocks of 64 KiB past the page cache, and says how long that took.
fn write_direct(path: &str, blocks: u32) -> io::Result<()> {
    const BLOCK: usize = 64 << 10;
    // The device takes whole sectors, in memory and in the file.
    const ALIGNED: usize = 4096;
    let memory = vec![b'x'; BLOCK + ALIGNED];
    let begin = memory.as_ptr().align_offset(ALIGNED);
    let mut file =
        File::options().create(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let began = Instant::now();
    for _ in 0..blocks {
        file.write_all(&memory[begin..begin + BLOCK])?;
    }
    println!("written in {} ms", began.elapsed().as_millis());
    Ok(())
}
