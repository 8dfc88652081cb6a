//! Reading fields of kernel structures at offsets that the daemon resolved from BTF.

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel};
use pod_ebpf::offsets::{ABSENT, Offsets};

#[unsafe(no_mangle)]
static OFFSETS: Global<Offsets> = Global::new(Offsets::NONE);

/// One offset. A volatile read of one word: loading the whole struct would copy it to the stack.
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::load_offset(core::mem::offset_of!(pod_ebpf::offsets::Offsets, $field))
    };
}
pub(crate) use offset;

/// Whether the kernel has a field. A constant to the verifier, which drops the other way.
macro_rules! has {
    ($field:ident) => {
        $crate::kernel::is_there($crate::kernel::offset!($field))
    };
}
pub(crate) use has;

#[doc(hidden)]
#[inline(always)]
pub(crate) fn is_there(offset: u64) -> bool {
    offset != u64::from(ABSENT)
}

#[doc(hidden)]
#[inline(always)]
pub(crate) fn load_offset(at: usize) -> u64 {
    // SAFETY: `at` is the offset of a `u32` field of the global.
    u64::from(unsafe { (&raw const OFFSETS).cast::<u8>().add(at).cast::<u32>().read_volatile() })
}

/// Reads a `T` at `base + offset`; `None` if the address faults.
#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: u64) -> Option<T> {
    let address = base + offset;
    #[expect(clippy::cast_possible_truncation, reason = "kernel addresses have 64 bits here")]
    let pointer = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(pointer).ok() }
}

/// Reads a field through a pointer whose type the verifier knows, without a helper call. The
/// kernel turns a fault into zero.
///
/// # Safety
/// `base` is a typed argument of the program, or a pointer that this function read from one, and
/// `offset` is that of a field of type `T` in it.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(base: *const u8, offset: u64) -> T {
    #[expect(clippy::cast_possible_truncation, reason = "offsets in a structure are small")]
    let offset = offset as usize;
    // SAFETY: by this function's contract. Volatile, since a wider or repeated load would be
    // refused by the verifier.
    unsafe { base.add(offset).cast::<T>().read_volatile() }
}
