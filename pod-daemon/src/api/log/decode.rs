//! CRI log lines back into what the container wrote.

use jiff::Timestamp;

/// What is kept of a line whose end has not come yet; a longer one is sent in pieces.
const MAX_PENDING: usize = 256 << 10;

/// Turns records like `2026-01-01T00:00:00.1Z stdout F text` into lines.
///
/// Parts of a long line are joined even if the other stream's records come between them.
pub(in crate::api) struct Decoder {
    timestamps: bool,
    since: Option<Timestamp>,
    /// Bytes of a record whose end was not read yet.
    record: Vec<u8>,
    pending: [Pending; 2],
}

/// A stream's line so far.
#[derive(Default)]
struct Pending {
    text: Vec<u8>,
    /// Whether the beginning of the line was sent already.
    begun: bool,
}

impl Decoder {
    pub(in crate::api) fn new(timestamps: bool, since: Option<Timestamp>) -> Self {
        Self { timestamps, since, record: Vec::new(), pending: Default::default() }
    }

    /// Decodes what comes next in the files, at whichever place it is cut.
    pub(in crate::api) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.record.is_empty() {
                self.record(line, out);
            } else {
                let mut record = std::mem::take(&mut self.record);
                record.extend_from_slice(line);
                self.record(&record, out);
            }
            bytes = rest;
        }
        self.record.extend_from_slice(bytes);
    }

    /// Sends what is left of lines that have no end.
    pub(in crate::api) fn finish(&mut self, out: &mut Vec<u8>) {
        for pending in &mut self.pending {
            out.append(&mut pending.text);
        }
    }

    fn record(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let mut words = record.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream @ (b"stdout" | b"stderr")), Some(tag)) =
            (words.next(), words.next(), words.next())
        else {
            // Not a record: better shown as it is than not at all.
            out.extend_from_slice(record);
            out.push(b'\n');
            return;
        };
        if let Some(since) = self.since {
            let time = str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            if time.is_some_and(|time| time < since) {
                return;
            }
            // Records come in the order of their times: from here on all of them count.
            self.since = None;
        }
        let pending = &mut self.pending[usize::from(stream == b"stderr")];
        if self.timestamps && pending.text.is_empty() && !pending.begun {
            pending.text.extend_from_slice(time);
            pending.text.push(b' ');
        }
        pending.text.extend_from_slice(words.next().unwrap_or_default());
        let partial = tag.split(|byte| *byte == b':').next() == Some(b"P");
        if partial && pending.text.len() < MAX_PENDING {
            return;
        }
        pending.begun = partial;
        out.append(&mut pending.text);
        if !partial {
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-01T00:00:00Z stdout F one
2026-01-01T00:00:01.5Z stdout P tw
2026-01-01T00:00:02Z stderr F error: x
2026-01-01T00:00:02Z stdout F o
2026-01-01T00:00:03Z stdout F \n\
2026-01-01T00:00:04Z stdout F
2026-01-01T00:00:05Z stdout P end";

    fn check(timestamps: bool, since: Option<&str>, expected: &str) {
        for step in 1..80 {
            let since = since.map(|since| since.parse().unwrap());
            let mut decoder = Decoder::new(timestamps, since);
            let mut out = Vec::new();
            for chunk in format!("{LOG}\n").as_bytes().chunks(step) {
                decoder.push(chunk, &mut out);
            }
            decoder.finish(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "in steps of {step}");
        }
    }

    #[test]
    fn lines_are_what_the_container_wrote() {
        check(false, None, "one\nerror: x\ntwo\n\n\nend");
    }

    #[test]
    fn a_joined_line_has_the_time_of_its_beginning() {
        check(
            true,
            Some("2026-01-01T00:00:01Z"),
            "2026-01-01T00:00:02Z error: x\n2026-01-01T00:00:01.5Z two\n2026-01-01T00:00:03Z \n\
             2026-01-01T00:00:04Z \n2026-01-01T00:00:05Z end",
        );
    }

    #[test]
    fn old_lines_are_left_out() {
        check(false, Some("2026-01-01T00:00:02Z"), "error: x\no\n\n\nend");
        check(false, Some("2027-01-01T00:00:00Z"), "");
    }

    #[test]
    fn an_endless_line_is_not_kept_in_memory() {
        let mut decoder = Decoder::new(true, None);
        let mut out = Vec::new();
        let part = format!("T stdout P {}\n", "x".repeat(100_000));
        for _ in 0..10 {
            decoder.push(part.as_bytes(), &mut out);
            assert!(decoder.pending[0].text.len() <= MAX_PENDING + part.len());
        }
        decoder.push(b"T stdout F end\n", &mut out);
        assert_eq!(out.len(), "T ".len() + 1_000_000 + "end\n".len());
    }

    #[test]
    fn what_is_no_record_is_shown_as_it_is() {
        let mut out = Vec::new();
        Decoder::new(false, None).push(b"\nnonsense here\n", &mut out);
        assert_eq!(out, b"\nnonsense here\n");
    }
}
