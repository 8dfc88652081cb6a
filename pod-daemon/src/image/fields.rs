//! Types, numbers, times and PAX records as they are written in a tar.

use tar::EntryType;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
    Unknown(u8),
}

impl Kind {
    pub(super) fn of(entry_type: EntryType, name: &[u8]) -> Self {
        match entry_type {
            // What v7 had instead of a type for directories.
            EntryType::Regular if name.ends_with(b"/") => Self::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Self::File,
            EntryType::Directory => Self::Directory,
            EntryType::Symlink => Self::Symlink,
            EntryType::Link => Self::HardLink,
            EntryType::Fifo => Self::Fifo,
            EntryType::Char | EntryType::Block => Self::Device,
            other => Self::Unknown(other.as_byte()),
        }
    }
}

/// A number of a header: octal text, or big-endian binary with the top bit set. Blank is zero.
pub(super) fn numeric(field: &[u8]) -> Option<u64> {
    match field {
        // Negative.
        [0xff, ..] => None,
        [first, rest @ ..] if first & 0x80 != 0 => {
            rest.iter().try_fold(u64::from(first & 0x7f), |number, &byte| {
                Some(number.checked_mul(256)? | u64::from(byte))
            })
        }
        _ => {
            let text = field.split(|&byte| byte == 0).find(|part| !part.is_empty());
            let text = text.unwrap_or_default().trim_ascii();
            text.iter().try_fold(0, |number: u64, &byte| {
                matches!(byte, b'0'..=b'7').then_some(())?;
                number.checked_mul(8)?.checked_add(u64::from(byte - b'0'))
            })
        }
    }
}

/// Decimal digits only, at least one.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, possibly negative; as seconds rounded down and nanoseconds.
pub(super) fn timestamp(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next() {
        for place in 0..9 {
            let digit = fraction
                .get(place)
                .map_or(Some(0), |byte| byte.is_ascii_digit().then(|| u32::from(byte - b'0')))?;
            nanoseconds = nanoseconds * 10 + digit;
        }
    }
    Some(match (negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// PAX records, `LENGTH KEY=VALUE\n` each, in order. Split by length: a value may contain anything.
pub(super) fn pax_records(mut text: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !text.is_empty() {
        let space = text.iter().position(|&byte| byte == b' ')?;
        let length = usize::try_from(decimal(&text[..space])?).ok()?;
        let (record, rest) = text.split_at_checked(length)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return None;
        }
        records.push((key.to_vec(), value.to_vec()));
        text = rest;
    }
    Some(records)
}

/// The data of a GNU long name, which ends with a zero byte.
pub(super) fn long_name(mut data: Vec<u8>) -> Vec<u8> {
    while data.last() == Some(&0) {
        data.pop();
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(numeric(b"0000644\0"), Some(0o644));
        assert_eq!(numeric(b"   644 \0"), Some(0o644));
        assert_eq!(numeric(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(numeric(b"        "), Some(0));
        assert_eq!(numeric(&[0x80, 0, 0, 0, 0, 0, 1, 2]), Some(258));
        assert_eq!(numeric(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(numeric(&[0xff; 8]), None);
        assert_eq!(numeric(b"0000648\0"), None);
        assert_eq!(numeric(b"-000644\0"), None);
    }

    #[test]
    fn times_may_be_negative_and_have_fractions() {
        assert_eq!(timestamp(b"12"), Some((12, 0)));
        assert_eq!(timestamp(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(timestamp(b"12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(timestamp(b"-12.25"), Some((-13, 750_000_000)));
        for text in [&b""[..], b"-", b".5", b"1.x", b"1e3", b"99999999999999999999"] {
            assert_eq!(timestamp(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_pax_value_may_contain_a_newline_and_a_record() {
        let records = pax_records(b"25 a=x\n18 path=/etc/evil\n8 b=\0\xff=\n").unwrap();
        assert_eq!(records[0], (b"a".to_vec(), b"x\n18 path=/etc/evil".to_vec()));
        assert_eq!(records[1], (b"b".to_vec(), b"\0\xff=".to_vec()));
        for text in
            [&b"5 a=x\n"[..], b"99 a=x\n", b"6 a=xy", b"x a=x\n", b"5 ax\n", b"2 \n", b"1\n"]
        {
            assert_eq!(pax_records(text), None, "{}", text.escape_ascii());
        }
    }
}
