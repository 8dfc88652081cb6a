//! An eBPF program such as network policies are made of, beside those of the daemon.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

/// Commands of `bpf(2)`.
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, `BPF_CGROUP_INET4_CONNECT` and `BPF_F_ALLOW_MULTI`.
const SOCK_ADDR: u32 = 18;
const INET4_CONNECT: u32 = 10;
const MULTI: u32 = 2;

/// `r0 = 0; exit`: no.
const NO: [u64; INSTRUCTIONS as usize] = [0xb7, 0x95];
const INSTRUCTIONS: u32 = 2;

/// The members of `union bpf_attr` that `BPF_PROG_LOAD` uses, up to the last that is set.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    unused: [u64; 5],
    interface: u32,
    attach_type: u32,
}

/// Forbids the processes of `cgroup` to connect over IPv4, for as long as the cgroup exists.
///
/// # Panics
/// When the kernel refuses that.
#[track_caller]
pub fn forbid_connects(cgroup: &Path) {
    let load = Load {
        kind: SOCK_ADDR,
        instructions: INSTRUCTIONS,
        code: NO.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        attach_type: INET4_CONNECT,
        ..Load::default()
    };
    // SAFETY: code and license outlive the call, which returns a new descriptor.
    let program = unsafe { OwnedFd::from_raw_fd(bpf(PROG_LOAD, &load).expect("load the program")) };
    let cgroup = File::open(cgroup).expect("open the cgroup");
    let [target, program] = [cgroup.as_raw_fd(), program.as_raw_fd()].map(i32::cast_unsigned);
    // SAFETY: no pointers are passed.
    unsafe { bpf(PROG_ATTACH, &[target, program, INET4_CONNECT, MULTI]) }.expect("attach it");
}

/// # Safety
/// `attributes` must be what `command` takes.
unsafe fn bpf<T>(command: i32, attributes: &T) -> io::Result<i32> {
    // SAFETY: by the caller's contract; the kernel reads no more than the size given.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
