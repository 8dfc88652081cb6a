//! Arrays whose values can be read many at a time.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use aya::{
    Pod,
    maps::{Array, Map, MapError},
};

use super::{
    super::{open, sys},
    Data, Error,
};

/// The most bytes that are read at once: of each array, a thread of a scrape has that much.
const BLOCK_BYTES: usize = 32 << 10;

/// The kernel's own `ENOTSUPP`, which has no name outside of it.
const ENOTSUPP: i32 = 524;

/// Values that can be read one by one, and many at a time.
pub(super) trait Batched<T> {
    /// The value at `index`.
    fn one(&self, index: u32) -> Option<T>;

    /// Fills `values` with up to `count` from `first` on; says whether that is possible.
    fn many(&self, first: u32, count: u32, values: &mut Vec<T>) -> bool;
}

/// An array of which all CPUs have the same.
pub(super) struct Plain<T: Pod> {
    pub(super) map: Array<Data, T>,
    blocks: Blocks,
}

/// How a map is read many values at a time.
pub(super) struct Blocks {
    pub(super) map: OwnedFd,
    /// The most values that are read at once.
    most: u32,
    /// Whether the kernel can: of arrays per CPU it can since Linux 5.13.
    is_possible: AtomicBool,
}

impl Blocks {
    /// Opens the map that is pinned in `folder`, each value of which takes `bytes`.
    pub(super) fn open(folder: &Path, name: &str, bytes: usize) -> Result<Self, Error> {
        let map = sys::get(&folder.join(name)).map_err(|error| Error::Map {
            action: "open a map of the probes",
            source: MapError::IoError(error),
        })?;
        Ok(Self::new(map, bytes))
    }

    pub(super) fn new(map: OwnedFd, bytes: usize) -> Self {
        let most = u32::try_from(BLOCK_BYTES / bytes).unwrap_or(u32::MAX);
        Self { map, most, is_possible: AtomicBool::new(most > 1) }
    }

    /// Reads up to `count` values from `first` on; says whether that is possible.
    ///
    /// # Safety
    /// As for [`sys::look_up_batch`].
    pub(super) unsafe fn read<T>(
        &self,
        first: u32,
        count: u32,
        cpus: usize,
        values: &mut Vec<T>,
    ) -> bool {
        if !self.is_possible.load(Ordering::Relaxed) {
            return false;
        }
        let count = count.min(self.most);
        // SAFETY: by the caller's contract.
        let read = unsafe { sys::look_up_batch(self.map.as_fd(), first, count, cpus, values) };
        if read.as_ref().is_err_and(is_unsupported) {
            self.is_possible.store(false, Ordering::Relaxed);
        }
        read.is_ok()
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL))
}

impl<T: Pod> Plain<T> {
    /// Opens the map that is pinned in `folder`.
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Self, Error> {
        let blocks = Blocks::open(folder, name, size_of::<T>())?;
        Ok(Self { map: open(folder, name, Map::Array)?, blocks })
    }

    /// Sets the value at `index`.
    pub(super) fn set(&mut self, index: u32, value: &T) -> Result<(), MapError> {
        self.map.set(index, value, 0)
    }
}

impl<T: Pod> Batched<T> for Plain<T> {
    fn one(&self, index: u32) -> Option<T> {
        self.map.get(&index, 0).ok()
    }

    fn many(&self, first: u32, count: u32, values: &mut Vec<T>) -> bool {
        // SAFETY: aya has found the map to be no array per CPU and its values to be as long as `T`, of
        // which any bytes are one.
        unsafe { self.blocks.read(first, count, 1, values) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::counters::window::Window;

    const ENTRIES: u32 = 300;

    /// A map whose values are their indices.
    fn numbers() -> io::Result<Plain<u64>> {
        let descriptor = sys::make_array(2, 8, ENTRIES)?;
        let blocks = Blocks::new(descriptor.try_clone()?, 8);
        let map = Map::Array(Data::from_fd(descriptor).unwrap());
        let mut numbers = Plain { map: Array::try_from(map).unwrap(), blocks };
        (0..ENTRIES).for_each(|index| numbers.set(index, &index.into()).unwrap());
        Ok(numbers)
    }

    #[test]
    fn many_values_are_those_of_their_indices() {
        let numbers = match numbers() {
            Ok(numbers) => numbers,
            Err(error) => return skip(&error),
        };
        let mut values = Vec::new();
        for (first, count, found) in
            [(0, 8, 0..8), (7, 64, 7..71), (290, 64, 290..300), (299, 8, 299..300), (300, 8, 0..0)]
        {
            assert!(numbers.many(first, count, &mut values));
            assert!(values.iter().copied().eq(found), "{first}: {values:?}");
        }
        // What is beyond the end is nowhere.
        assert!(numbers.many(ENTRIES + 1, 8, &mut values) && values.is_empty());
        assert_eq!(numbers.one(ENTRIES + 1), None);

        let mut window = Window::new(true);
        for index in 1..ENTRIES {
            let found = window.find(index).or_else(|| window.fetch(index, &numbers));
            assert_eq!(found, Some(index.into()));
        }
    }

    #[test]
    fn no_more_is_read_at_once_than_a_block_has_room_for() {
        let Ok(mut numbers) = numbers() else { return };
        let mut values = Vec::new();
        numbers.blocks.most = 5;
        assert!(numbers.many(1, 64, &mut values));
        assert_eq!(values, [1, 2, 3, 4, 5]);
        numbers.blocks = Blocks::new(numbers.blocks.map, BLOCK_BYTES);
        assert!(!numbers.many(1, 64, &mut values));
    }

    #[test]
    fn a_map_that_cannot_be_read_at_once_is_not_tried_again() {
        let unsupported = [ENOTSUPP, libc::EOPNOTSUPP, libc::EINVAL];
        assert!(unsupported.map(io::Error::from_raw_os_error).iter().all(is_unsupported));
        assert!(!is_unsupported(&io::Error::from_raw_os_error(libc::ENOMEM)));

        // What is no map answers the same.
        let file = tempfile::tempfile().unwrap();
        let blocks = Blocks::new(file.into(), 8);
        let read = |values: &mut Vec<u64>| {
            // SAFETY: nothing is read from what is no map.
            unsafe { blocks.read(1, 8, 1, values) }
        };
        assert!(!read(&mut Vec::new()));
        assert!(!blocks.is_possible.into_inner());
    }

    #[expect(clippy::print_stderr, reason = "a skip is said aloud")]
    fn skip(error: &io::Error) {
        eprintln!("SKIPPED: no map can be made: {error}");
    }
}
