//! A part of an array that moves along with who reads it.

use super::batched::Batched;

/// The most values that are read at once: more would save next to nothing.
const MOST: u32 = 64;

/// The fewest.
const FEWEST: u32 = 8;

/// Indices in a row are no further apart: what is between them is read in vain.
const REACH: u32 = 4;

/// After so many indices that were elsewhere, one after the other, the part goes where the next one is.
const PATIENCE: u32 = 8;

/// The part. Indices in a row get larger and larger parts; others are read alone and leave it where it
/// is. So an order that is none costs hardly more than it would without.
pub(super) struct Window<T> {
    first: u32,
    values: Vec<T>,
    /// How often a value was there.
    hits: usize,
    /// How often it was elsewhere, since one was there.
    misses: u32,
    is_open: bool,
}

impl<T: Copy> Window<T> {
    /// One that reads ahead if `is_open`.
    pub(super) fn new(is_open: bool) -> Self {
        Self { first: 0, values: Vec::new(), hits: 0, misses: PATIENCE, is_open }
    }

    /// The value at `index`, if it was read already.
    pub(super) fn find(&mut self, index: u32) -> Option<T> {
        let at = index.checked_sub(self.first)?;
        let value = self.values.get(at as usize).copied()?;
        self.hits += 1;
        self.misses = 0;
        Some(value)
    }

    /// The value at `index`, which was not read yet.
    pub(super) fn fetch(&mut self, index: u32, map: &impl Batched<T>) -> Option<T> {
        if !self.is_open {
            return map.one(index);
        }
        let length = u32::try_from(self.values.len()).unwrap_or(MOST);
        let end = self.first + length;
        let follows = (end..end + REACH).contains(&index);
        if !follows && self.misses < PATIENCE {
            self.misses += 1;
            return map.one(index);
        }
        let was_worth_it = self.hits * 2 >= self.values.len();
        let count = if follows && was_worth_it { length * 2 } else { FEWEST };
        (self.first, self.hits, self.misses) = (index, 1, 0);
        if !map.many(index, count.clamp(FEWEST, MOST), &mut self.values) {
            self.is_open = false;
            self.values.clear();
            return map.one(index);
        }
        self.values.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// An array whose values are its indices, and what was read of it.
    struct Numbers {
        length: u32,
        is_batched: bool,
        reads: RefCell<Vec<(u32, u32)>>,
    }

    impl Numbers {
        fn new(length: u32, is_batched: bool) -> Self {
            Self { length, is_batched, reads: RefCell::default() }
        }

        fn read(&self, window: &mut Window<u32>, index: u32) {
            let found = window.find(index).or_else(|| window.fetch(index, self));
            assert_eq!(found, (index < self.length).then_some(index), "{index}");
        }
    }

    impl Batched<u32> for Numbers {
        fn one(&self, index: u32) -> Option<u32> {
            self.reads.borrow_mut().push((index, 1));
            (index < self.length).then_some(index)
        }

        fn many(&self, first: u32, count: u32, values: &mut Vec<u32>) -> bool {
            values.clear();
            if self.is_batched {
                self.reads.borrow_mut().push((first, count));
                values.extend(first..self.length.min(first + count));
            }
            self.is_batched
        }
    }

    #[test]
    fn indices_in_a_row_are_read_in_larger_and_larger_parts() {
        let numbers = Numbers::new(300, true);
        let mut window = Window::new(true);

        (5..300).for_each(|index| numbers.read(&mut window, index));

        let expected = [(5, 8), (13, 16), (29, 32), (61, 64), (125, 64), (189, 64), (253, 64)];
        assert_eq!(*numbers.reads.borrow(), expected);
        // Beyond the last there is nothing.
        numbers.read(&mut window, 300);
    }

    #[test]
    fn an_index_on_its_own_is_read_alone_and_leaves_the_window_where_it_is() {
        let numbers = Numbers::new(10_000, true);
        let mut window = Window::new(true);
        let far = |index: u32| 5_000 + index * 2_711 % 4_999;

        for index in 10..74 {
            numbers.read(&mut window, index);
            numbers.read(&mut window, far(index));
        }

        let (near, far): (Vec<_>, Vec<_>) =
            numbers.reads.borrow().iter().partition(|(index, _)| *index < 5_000);
        assert!(far.len() == 64 && far.iter().all(|(_, count)| *count == 1), "{far:?}");
        assert_eq!(near, [(10, 8), (18, 16), (34, 32), (66, 64)]);
    }

    #[test]
    fn indices_far_apart_are_read_alone() {
        let numbers = Numbers::new(300, true);
        let mut window = Window::new(true);

        let apart = (0..9).map(|index| 200 + 10 * index);
        [101, 109].into_iter().chain(apart).for_each(|index| numbers.read(&mut window, index));

        let reads = numbers.reads.borrow();
        // The first part was not worth its while, and the next is no larger.
        assert_eq!(reads[..2], [(101, 8), (109, 8)]);
        assert!(reads[2..10].iter().all(|(_, count)| *count == 1), "{reads:?}");
        assert_eq!(reads[10..], [(280, 8)]);
    }

    #[test]
    fn what_cannot_be_read_at_once_is_read_one_by_one() {
        for (is_batched, is_open) in [(false, true), (true, false)] {
            let numbers = Numbers::new(300, is_batched);
            let mut window = Window::new(is_open);

            (5..9).for_each(|index| numbers.read(&mut window, index));

            assert_eq!(*numbers.reads.borrow(), [(5, 1), (6, 1), (7, 1), (8, 1)]);
        }
    }
}
