//! Sparse files in a tar: where the stored bytes belong in the file. GNU's old header, and the
//! three forms in PAX records (0.0, 0.1 and 1.0).

use std::io::{self, Read};

use tar::GnuSparseHeader;

use super::{entries::MAX_RECORDS, fields::decimal};

/// A run of stored bytes and its place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Where the bytes of a sparse file go; what lies between is a hole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// Ascending and not overlapping.
    pub(super) segments: Vec<Segment>,
    /// The file's size with all its holes.
    pub(super) real_size: u64,
}

/// What PAX records say about sparseness.
pub(super) enum Pax {
    /// Nothing: an ordinary file.
    None,
    /// The map is in the records.
    Map(Map),
    /// The map, for a file of this size, precedes the data (version 1.0).
    InData(u64),
}

impl Map {
    /// Checks that the segments are in order and account for all `stored` bytes.
    pub(super) fn new(
        segments: Vec<Segment>,
        real_size: u64,
        stored: u64,
    ) -> Result<Self, &'static str> {
        let mut end = 0_u64;
        let mut total = 0_u64;
        for segment in &segments {
            if segment.offset < end {
                return Err("the parts of a sparse file overlap");
            }
            end = segment.offset.checked_add(segment.length).ok_or("a sparse file is too large")?;
            // Cannot overflow: the segments do not overlap, so their sum is at most `end`.
            total += segment.length;
        }
        if end > real_size {
            return Err("a sparse file has parts beyond its end");
        }
        if total != stored {
            return Err("the parts of a sparse file are not what is stored");
        }
        Ok(Self { segments, real_size })
    }

    /// Appends the used slots of an old GNU header.
    pub(super) fn push_gnu(
        segments: &mut Vec<Segment>,
        slots: &[GnuSparseHeader],
    ) -> Result<(), &'static str> {
        for slot in slots.iter().filter(|slot| !slot.is_empty()) {
            let bad = "a number of a sparse file cannot be read";
            let (Ok(offset), Ok(length)) = (slot.offset(), slot.length()) else { return Err(bad) };
            segments.push(Segment { offset, length });
        }
        Ok(())
    }
}

/// Looks for sparseness in `records`, of a file with `stored` bytes in the tar.
pub(super) fn from_pax(records: &[(Vec<u8>, Vec<u8>)], stored: u64) -> Result<Pax, &'static str> {
    let last = |name: &str| {
        let key = format!("GNU.sparse.{name}").into_bytes();
        records.iter().rfind(|(k, _)| *k == key).map(|(_, value)| value.as_slice())
    };
    let size = || {
        let size = last("realsize").or_else(|| last("size")).and_then(decimal);
        size.ok_or("a sparse file does not tell its size")
    };
    match (last("major"), last("minor")) {
        (Some(b"1"), Some(b"0")) => return Ok(Pax::InData(size()?)),
        (None, None) | (Some(b"0"), Some(b"0" | b"1")) => {}
        _ => return Err("a sparse file is of a version that is not known"),
    }
    if let Some(map) = last("map") {
        let numbers = map.split(|&b| b == b',').map(decimal).collect::<Option<Vec<_>>>();
        let segments = pairs(&numbers.ok_or("the map of a sparse file cannot be read")?)?;
        return Map::new(segments, size()?, stored).map(Pax::Map);
    }
    // Version 0.0 repeats two keys, in order.
    let listed: Option<Vec<u64>> = records
        .iter()
        .filter(|(key, _)| matches!(&key[..], b"GNU.sparse.offset" | b"GNU.sparse.numbytes"))
        .map(|(_, value)| decimal(value))
        .collect();
    match listed {
        Some(numbers) if numbers.is_empty() => Ok(Pax::None),
        Some(numbers) => Map::new(pairs(&numbers)?, size()?, stored).map(Pax::Map),
        None => Err("the map of a sparse file cannot be read"),
    }
}

/// Version 1.0: how many pairs there are and then the pairs, a number to a line, padded to a block.
pub(super) fn map_in_data(data: &mut impl Read) -> io::Result<Vec<Segment>> {
    let invalid = |problem| io::Error::new(io::ErrorKind::InvalidData, problem);
    let unreadable = || invalid("the map of a sparse file cannot be read");
    let mut numbers: Vec<u64> = Vec::new();
    let mut number = None;
    for _ in 0..MAX_RECORDS / 512 {
        let mut block = [0; 512];
        data.read_exact(&mut block)?;
        for byte in block {
            if byte != b'\n' {
                let longer = number.unwrap_or(0_u64).checked_mul(10).zip(decimal(&[byte]));
                number = longer.and_then(|(number, digit)| number.checked_add(digit));
                number.ok_or_else(unreadable)?;
                continue;
            }
            numbers.push(number.take().ok_or_else(unreadable)?);
            // What follows the last number pads the block.
            if (numbers.len() as u64 - 1) / 2 == numbers[0] && numbers.len() % 2 == 1 {
                return pairs(&numbers[1..]).map_err(invalid);
            }
        }
    }
    Err(invalid("the map of a sparse file is too long"))
}

/// Offset and length in turns.
fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, &'static str> {
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err("the map of a sparse file has an odd number of numbers");
    };
    Ok(pairs.iter().map(|&[offset, length]| Segment { offset, length }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_must_be_in_order_and_complete() {
        let map = |numbers: &[u64], size, stored| Map::new(pairs(numbers).unwrap(), size, stored);
        assert!(map(&[0, 10, 20, 5], 30, 15).is_ok());
        assert!(map(&[], 1 << 60, 0).is_ok());
        map(&[20, 5, 0, 10], 30, 15).unwrap_err();
        map(&[0, 10, 5, 10], 30, 20).unwrap_err();
        map(&[0, 10], 9, 10).unwrap_err();
        map(&[0, 10], 30, 11).unwrap_err();
        map(&[u64::MAX, 1], u64::MAX, 1).unwrap_err();
    }
}
