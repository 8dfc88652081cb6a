//! Steps that go by io_uring: one request on a ring of its own, with no library in between.

use std::{
    ffi::c_void,
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::bail;

use super::create;

/// `struct io_uring_params`: what is asked for, and where the kernel has put what.
#[repr(C)]
#[derive(Default)]
#[allow(dead_code, reason = "the kernel has the others")]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    /// Flags, CPU, idle time, features, another ring's descriptor, and three that are reserved.
    others: [u32; 8],
    sq: [u32; 10],
    cq: [u32; 10],
}

/// The head of `struct io_uring_sqe`, which has 64 bytes.
#[repr(C)]
#[derive(Default)]
#[allow(dead_code, reason = "the kernel reads them")]
struct Request {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    length: u32,
    rest: [u32; 9],
}

/// Positions of fields in `sq` and `cq`, in words.
const TAIL: usize = 1;
const ARRAY: usize = 6;
const CQES: usize = 5;

/// Positions of the rings in the descriptor.
const SQ_RING: i64 = 0;
const CQ_RING: i64 = 0x800_0000;
const SQES: i64 = 0x1000_0000;

/// More than any of them takes.
const LENGTH: usize = 4096;

/// Does the step, if it is one of these.
pub(crate) fn step(words: &[&str]) -> anyhow::Result<bool> {
    const FSYNC: u8 = 3;
    const READ: u8 = 22;
    const WRITE: u8 = 23;
    match *words {
        ["uring-write", path, size] => transfer(&create(path)?, WRITE, size.parse()?)?,
        ["uring-read", path, size] => transfer(&File::open(path)?, READ, size.parse()?)?,
        ["uring-fsync", path] => transfer(&File::open(path)?, FSYNC, 0)?,
        // A ring that a thread of the kernel looks after, which is one of this process. It stays.
        ["uring-thread"] => {
            const SQPOLL: u32 = 2;
            let mut params = Params { others: [SQPOLL, 0, 0, 0, 0, 0, 0, 0], ..Params::default() };
            let _stays = params.set_up()?.into_raw_fd();
        }
        ["has-uring"] => println!("uring: {}", Params::default().set_up().is_ok()),
        _ => return Ok(false),
    }
    Ok(true)
}

fn transfer(file: &File, opcode: u8, size: u32) -> anyhow::Result<()> {
    let mut buffer = vec![b'x'; size as usize];
    // A sync takes neither an address nor a length.
    let address = if size == 0 { 0 } else { buffer.as_mut_ptr().expose_provenance() as u64 };
    let request =
        Request { opcode, fd: file.as_raw_fd(), address, length: size, ..Request::default() };
    let done = submit(request)?;
    if done != i32::try_from(size)? {
        bail!("the ring says {done}");
    }
    Ok(())
}

impl Params {
    fn set_up(&mut self) -> io::Result<OwnedFd> {
        // SAFETY: the kernel fills in the parameters, which have its layout; the descriptor is new.
        unsafe {
            let ring = libc::syscall(libc::SYS_io_uring_setup, 1, ptr::from_mut(self));
            let ring = i32::try_from(ring).ok().filter(|ring| *ring >= 0);
            Ok(OwnedFd::from_raw_fd(ring.ok_or_else(io::Error::last_os_error)?))
        }
    }
}

/// Submits one request and waits for its result.
fn submit(request: Request) -> io::Result<i32> {
    const GETEVENTS: u32 = 1;
    let mut params = Params::default();
    let ring = params.set_up()?;
    let (sq, cq) = (map(&ring, SQ_RING)?, map(&ring, CQ_RING)?);
    let requests = map(&ring, SQES)?.cast::<Request>();
    // SAFETY: the kernel has said where in the mappings these are, and the buffer that the request names
    // lives until it is done.
    unsafe {
        requests.write(request);
        sq.add(params.sq[ARRAY] as usize).cast::<u32>().write(0);
        let tail = &*sq.add(params.sq[TAIL] as usize).cast::<AtomicU32>();
        tail.store(1, Ordering::Release);
        let null = ptr::null::<c_void>();
        if libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 1, 1, GETEVENTS, null, 0) != 1
        {
            return Err(io::Error::last_os_error());
        }
        let tail = &*cq.add(params.cq[TAIL] as usize).cast::<AtomicU32>();
        while tail.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        // The result stands behind the request's own mark.
        Ok(cq.add(params.cq[CQES] as usize + 8).cast::<i32>().read())
    }
}

/// The mappings stay for as long as the program runs.
fn map(ring: &OwnedFd, at: i64) -> io::Result<*mut u8> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let memory = unsafe {
        libc::mmap(ptr::null_mut(), LENGTH, access, libc::MAP_SHARED, ring.as_raw_fd(), at)
    };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory.cast()) }
}
