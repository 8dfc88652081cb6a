//! Steps that say beforehand what the page cache has of a file, by `mincore`.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    num::NonZero,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    ptr::NonNull,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap},
};

const PAGE: usize = 4096;

/// Does the step, if it is one of these.
pub(crate) fn step(words: &[&str]) -> anyhow::Result<bool> {
    match *words {
        ["drop-cache", path] => drop_cache(path)?,
        // At once, with what the kernel reads ahead.
        ["cached-reads", path, size] => cached_reads(path, size.parse()?, Reads::InTurn)?,
        ["cached-reads-apart", path, size] => cached_reads(path, size.parse()?, Reads::Apart)?,
        ["read-direct", path] => read_direct(path)?,
        ["touch-pages", path] => touch_pages(path)?,
        ["read-ahead", path] => read_ahead(path)?,
        _ => return Ok(false),
    }
    Ok(true)
}

#[derive(Clone, Copy, PartialEq)]
enum Reads {
    /// By `read`, one after the other.
    InTurn,
    /// By `pread`, of every other piece, where the kernel is told not to read ahead.
    Apart,
}

/// A file's pages, none of which are touched.
struct Pages {
    start: NonNull<std::ffi::c_void>,
    len: NonZero<usize>,
}

impl Pages {
    fn of(file: &File) -> anyhow::Result<Self> {
        let len = usize::try_from(file.metadata()?.len())?;
        let len = NonZero::new(len).context("a file with bytes")?;
        // SAFETY: a new mapping, of a file that nobody truncates.
        let start = unsafe {
            mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file.as_fd(), 0)?
        };
        Ok(Self { start, len })
    }

    /// Which pages the page cache has.
    fn cached(&self) -> io::Result<Vec<bool>> {
        let mut cached = vec![0_u8; self.len.get().div_ceil(PAGE)];
        // SAFETY: the mapping is there, and the vector has a byte for each of its pages.
        let result =
            unsafe { libc::mincore(self.start.as_ptr(), self.len.get(), cached.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(cached.into_iter().map(|page| page & 1 == 1).collect())
    }

    /// How many it does not have.
    fn missing(&self) -> io::Result<usize> {
        Ok(self.cached()?.into_iter().filter(|is_there| !is_there).count())
    }
}

/// Has the page cache forget a file.
fn drop_cache(path: &str) -> anyhow::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let cached = Pages::of(&file)?.cached()?;
    ensure!(!cached.contains(&true), "the page cache still has some of {path}");
    Ok(())
}

/// Reads a file in pieces, and says of how many bytes the page cache had the pages before.
fn cached_reads(path: &str, size: usize, reads: Reads) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let pages = Pages::of(&file)?;
    let len = pages.len.get();
    let step = if reads == Reads::Apart {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
        2 * size
    } else {
        size
    };
    let mut buffer = vec![0; size];
    let (mut hit, mut missed) = (0, 0);
    for at in (0..len).step_by(step) {
        let cached = pages.cached()?;
        let end = len.min(at + size);
        let there = (at / PAGE..end.div_ceil(PAGE)).filter(|page| cached[*page]).count() * PAGE;
        hit += there.min(end - at);
        missed += (end - at) - there.min(end - at);
        let done = match reads {
            Reads::InTurn => io::Read::read(&mut &file, &mut buffer)?,
            Reads::Apart => file.read_at(&mut buffer, at as u64)?,
        };
        ensure!(done == end - at, "{done} bytes at {at}");
        // What is read ahead is in the page cache at once, and to `mincore` when it has its bytes.
        thread::sleep(Duration::from_millis(3));
    }
    println!("hit={hit} miss={missed}");
    Ok(())
}

/// Reads the first page of a file past the page cache.
fn read_direct(path: &str) -> anyhow::Result<()> {
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut room = vec![0_u8; 2 * PAGE];
    let start = room.as_ptr().align_offset(PAGE);
    let done = file.read_at(&mut room[start..start + PAGE], 0)?;
    ensure!(done == PAGE, "{done} bytes");
    Ok(())
}

/// Has the kernel read a whole file ahead.
fn read_ahead(path: &str) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let pages = Pages::of(&file)?;
    let missing = pages.missing()?;
    use_a_pipe()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
    // Nobody waits for the disk, which may take its time; and the kernel may read less than the whole.
    let (mut left, mut looks) = (missing, 0);
    while left > 0 && (left == missing || looks < 50) {
        thread::sleep(Duration::from_millis(100));
        let now = pages.missing()?;
        looks = if now == left { looks + 1 } else { 0 };
        left = now;
    }
    println!("ahead={}", (missing - left) * PAGE);
    Ok(())
}

/// Writes and reads what is no file: what comes into the page cache later has nothing to do with it.
fn use_a_pipe() -> io::Result<()> {
    let (mut reader, mut writer) = io::pipe()?;
    writer.write_all(b"x")?;
    reader.read_exact(&mut [0])
}

/// Reads a byte of each page of a mapped file, and says how many bytes had to come in.
fn touch_pages(path: &str) -> anyhow::Result<()> {
    let pages = Pages::of(&File::open(path)?)?;
    // SAFETY: the mapping is there.
    unsafe { madvise(pages.start, pages.len.get(), MmapAdvise::MADV_RANDOM)? };
    let missing = pages.missing()?;
    use_a_pipe()?;
    for at in (0..pages.len.get()).step_by(PAGE) {
        // SAFETY: within the mapping.
        unsafe { pages.start.cast::<u8>().add(at).read_volatile() };
    }
    println!("faulted={}", missing * PAGE);
    Ok(())
}
