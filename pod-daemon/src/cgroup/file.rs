//! Files that the kernel makes while they are read, as those of cgroups and of /proc: small, many, and
//! read at every scrape, so each costs three system calls and no memory of its own.

use rustix::{
    buffer::spare_capacity,
    fd::AsFd,
    fs::{Mode, OFlags, openat},
    io::read,
    param::page_size,
    path::Arg,
};

/// Holds all of such files but few.
const BUFFER: usize = 8192;

/// No line is longer.
const LINE: usize = 512;

/// Reads such files, one after the other, into one buffer.
#[derive(Debug)]
pub struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    /// One that has read nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { buffer: Vec::with_capacity(BUFFER) }
    }

    /// The bytes of the file at `path` in `directory`; `None` if it is not there or does not let itself
    /// be read.
    pub fn bytes(&mut self, directory: impl AsFd, path: impl Arg) -> Option<&[u8]> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(directory, path, flags, Mode::empty()).ok()?;
        self.buffer.clear();
        loop {
            self.buffer.reserve(BUFFER / 2);
            let room = self.buffer.capacity() - self.buffer.len();
            let count = read(&file, spare_capacity(&mut self.buffer)).ok()?;
            // The kernel hands out a list by pages, each filled with as many whole lines as have room: a
            // page with room for one more was the last. All else comes as a whole, if the buffer takes it.
            if count < room && count + LINE < page_size() {
                return Some(&self.buffer);
            }
        }
    }

    /// Such a file as text.
    pub fn text(&mut self, directory: impl AsFd, path: impl Arg) -> Option<&str> {
        self.bytes(directory, path).and_then(|bytes| str::from_utf8(bytes).ok())
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}
