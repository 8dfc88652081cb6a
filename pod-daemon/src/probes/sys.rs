//! The `bpf` system calls that aya does not offer: links of cgroups that can be pinned and moved to
//! another program; looks at a map that take no memory of their own, and that find many values at once.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Commands of `bpf(2)`.
const MAP_LOOKUP_ELEM: i32 = 1;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const RAW_TRACEPOINT_OPEN: i32 = 17;
const MAP_LOOKUP_BATCH: i32 = 24;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;

/// What a program is attached to a cgroup for: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    Ingress = 0,
    Egress = 1,
    SockOps = 3,
    Device = 6,
}

/// The members of `union bpf_attr` that `BPF_OBJ_PIN` and `BPF_OBJ_GET` use.
#[repr(C)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// Those of `BPF_LINK_CREATE`: program, cgroup, attach type, flags; and of `BPF_LINK_UPDATE`: link,
/// program, flags, old program.
type Link = [u32; 4];

/// Makes `object` outlive this process, as `path` on the bpf filesystem.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object {
        path: path.as_ptr().expose_provenance() as u64,
        descriptor: number(object),
        flags: 0,
    };
    // SAFETY: the path is null-terminated and outlives the call.
    unsafe { bpf(OBJ_PIN, &attributes) }.map(drop)
}

/// Opens what is pinned at `path`.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes =
        Object { path: path.as_ptr().expose_provenance() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the path is null-terminated and outlives the call, which returns a new descriptor.
    unsafe { bpf(OBJ_GET, &attributes).map(|descriptor| OwnedFd::from_raw_fd(descriptor)) }
}

/// Attaches a program to a cgroup, beside those that are there. Links are always multi-attach.
pub(super) fn attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let attributes: Link = [number(program), number(cgroup), attach_type as u32, 0];
    // SAFETY: no pointers are passed; the call returns a new descriptor.
    unsafe { bpf(LINK_CREATE, &attributes).map(|descriptor| OwnedFd::from_raw_fd(descriptor)) }
}

/// The members of `union bpf_attr` that `BPF_RAW_TRACEPOINT_OPEN` uses. A typed program knows its own
/// tracepoint, and gives no name.
#[repr(C)]
struct Tracepoint {
    name: u64,
    program: u32,
    unused: u32,
}

/// Attaches a typed tracepoint's program for as long as the returned link is open.
pub(super) fn attach_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = Tracepoint { name: 0, program: number(program), unused: 0 };
    // SAFETY: no pointers are passed; the call returns a new descriptor.
    unsafe {
        bpf(RAW_TRACEPOINT_OPEN, &attributes).map(|descriptor| OwnedFd::from_raw_fd(descriptor))
    }
}

/// What the kernel says of a program's runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProgramInfo {
    pub(super) runs: u64,
    pub(super) run_time_ns: u64,
    pub(super) missed: u64,
}

/// The members of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` uses.
#[repr(C)]
struct InfoRequest {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// Bytes of `struct bpf_prog_info`, up to the last field that is read; older kernels fill in less.
const INFO_BYTES: u32 = 216;

/// Asks how often a program ran.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = [0_u64; INFO_BYTES as usize / 8];
    let request = InfoRequest {
        descriptor: number(program),
        length: INFO_BYTES,
        info: info.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most that many bytes there, and reads pointers and lengths from
    // it, which are zero.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &request)? };
    let [.., run_time_ns, runs, missed] = info;
    Ok(ProgramInfo { runs, run_time_ns, missed })
}

/// Makes a link run another program from now on, without a moment in between.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes: Link = [number(link), number(program), 0, 0];
    // SAFETY: no pointers are passed.
    unsafe { bpf(LINK_UPDATE, &attributes) }.map(drop)
}

/// The members of `union bpf_attr` that `BPF_MAP_LOOKUP_ELEM` uses.
#[repr(C)]
struct Element {
    map: u32,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads what each CPU has at `index` of an array.
///
/// # Safety
/// Values of the map must be as long as `T`, a multiple of 8 bytes, and any bytes a `T`; `values` must
/// have room for as many as there may be CPUs.
pub(super) unsafe fn look_up<T>(
    map: BorrowedFd<'_>,
    index: u32,
    values: &mut [T],
) -> io::Result<()> {
    let attributes = Element {
        map: number(map),
        unused: 0,
        key: std::ptr::from_ref(&index).expose_provenance() as u64,
        value: values.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the key outlives the call, and by the caller's contract the kernel writes no more than
    // there is room for.
    unsafe { bpf(MAP_LOOKUP_ELEM, &attributes) }.map(drop)
}

/// The members of `union bpf_attr` that `BPF_MAP_CREATE` uses for an array.
#[cfg(test)]
#[repr(C)]
struct NewMap {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

/// Makes an array of that kind of `enum bpf_map_type`, which goes with its descriptor.
#[cfg(test)]
pub(super) fn make_array(kind: u32, value_bytes: u32, entries: u32) -> io::Result<OwnedFd> {
    let attributes = NewMap { kind, key_bytes: 4, value_bytes, entries };
    // SAFETY: no pointers are passed; the call returns a new descriptor.
    unsafe { bpf(0, &attributes).map(|descriptor| OwnedFd::from_raw_fd(descriptor)) }
}

/// The members of `union bpf_attr` that `BPF_MAP_LOOKUP_BATCH` uses.
#[repr(C)]
struct Batch {
    before: u64,
    last: u64,
    keys: u64,
    values: u64,
    /// How many there is room for, and then how many there were.
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads the `count` values from `first` on of an array, or as many as it has there; of an array per
/// CPU, what each of `cpus` has at the first, then at the next.
///
/// # Safety
/// Values of the map must be as long as `T`, and any bytes a `T`. `cpus` must be as many as there may
/// be, and `T` a multiple of 8 bytes; or it is 1, and the map no array per CPU.
pub(super) unsafe fn look_up_batch<T>(
    map: BorrowedFd<'_>,
    first: u32,
    count: u32,
    cpus: usize,
    values: &mut Vec<T>,
) -> io::Result<()> {
    values.clear();
    values.reserve(count as usize * cpus);
    let mut keys = vec![0_u32; count as usize];
    // Before the first index is one that no array has: what follows that is the first.
    let (before, mut last) = (first.wrapping_sub(1), 0_u32);
    let mut attributes = Batch {
        before: std::ptr::from_ref(&before).expose_provenance() as u64,
        last: std::ptr::from_mut(&mut last).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count,
        map: number(map),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: everything outlives the call, and by the caller's contract the kernel writes no more than
    // there is room for.
    match unsafe { bpf(MAP_LOOKUP_BATCH, &raw mut attributes) } {
        // The array ends there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        read => drop(read?),
    }
    // What follows an index beyond the end is the first.
    let found = if keys.first() == Some(&first) { attributes.count.min(count) } else { 0 };
    // SAFETY: there is room for that many, and the kernel has written them.
    unsafe { values.set_len(found as usize * cpus) };
    Ok(())
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

/// # Safety
/// `attributes` must point at what `command` takes.
unsafe fn bpf<T>(command: i32, attributes: *const T) -> io::Result<i32> {
    // SAFETY: by the caller's contract; the kernel reads no more than the size given and takes the
    // rest for zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
