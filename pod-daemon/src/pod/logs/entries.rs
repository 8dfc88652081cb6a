//! Cutting a container's output into entries of the CRI log format: `TIME STREAM F|P MESSAGE`.

use std::io::Write as _;

use jiff::Timestamp;

/// The longest message in one entry; a longer line becomes several partial ones.
const ENTRY_MAX: usize = 16 * 1024;

/// What becomes of a line whose end has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// It waits for more, as long as it fits in one entry.
    Wait,
    /// There is no room for more to wait: a partial entry.
    Part,
    /// There will be no more: an entry.
    Last,
}

/// Appends the entries that `input` makes to `output`; returns how many bytes of `input` they hold.
pub(super) fn cut(
    input: &[u8],
    stream: &str,
    unfinished: Unfinished,
    output: &mut Vec<u8>,
) -> usize {
    let mut rest = input;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end);
        write_line(line, 'F', stream, output);
        rest = &after[1..];
    }
    while rest.len() > ENTRY_MAX {
        let (part, after) = rest.split_at(ENTRY_MAX);
        write(part, 'P', stream, output);
        rest = after;
    }
    match unfinished {
        Unfinished::Wait => return input.len() - rest.len(),
        Unfinished::Part if !rest.is_empty() => write(rest, 'P', stream, output),
        Unfinished::Last if !rest.is_empty() => write(rest, 'F', stream, output),
        Unfinished::Part | Unfinished::Last => {}
    }
    input.len()
}

fn write_line(mut line: &[u8], tag: char, stream: &str, output: &mut Vec<u8>) {
    while line.len() > ENTRY_MAX {
        let (part, after) = line.split_at(ENTRY_MAX);
        write(part, 'P', stream, output);
        line = after;
    }
    write(line, tag, stream, output);
}

fn write(message: &[u8], tag: char, stream: &str, output: &mut Vec<u8>) {
    // Nine digits always, so that entries line up.
    let time = Timestamp::now();
    write!(output, "{time:.9} {stream} {tag} ").ok();
    output.extend_from_slice(message);
    output.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(input: &[u8], unfinished: Unfinished) -> (Vec<(String, usize)>, usize) {
        let mut output = Vec::new();
        let consumed = cut(input, "stdout", unfinished, &mut output);
        let entries = output
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                let text = String::from_utf8_lossy(line);
                let mut parts = text.splitn(4, ' ').skip(2);
                let tag = parts.next().unwrap().to_owned();
                (tag, parts.next().unwrap().len())
            })
            .collect();
        (entries, consumed)
    }

    fn full(length: usize) -> (String, usize) {
        ("F".to_owned(), length)
    }

    fn part(length: usize) -> (String, usize) {
        ("P".to_owned(), length)
    }

    #[test]
    fn a_line_without_an_end_waits() {
        assert_eq!(entries(b"ab\nc", Unfinished::Wait), (vec![full(2)], 3));
        assert_eq!(entries(b"c", Unfinished::Wait), (vec![], 0));
    }

    #[test]
    fn an_empty_line_is_an_entry() {
        assert_eq!(entries(b"\n", Unfinished::Wait), (vec![full(0)], 1));
    }

    #[test]
    fn last_words_are_kept() {
        assert_eq!(entries(b"last words", Unfinished::Last), (vec![full(10)], 10));
        assert_eq!(entries(b"", Unfinished::Last), (vec![], 0));
    }

    #[test]
    fn what_finds_no_room_is_a_part() {
        assert_eq!(entries(b"a\n....", Unfinished::Part), (vec![full(1), part(4)], 6));
    }

    #[test]
    fn a_long_line_is_cut() {
        let line = [vec![b'x'; ENTRY_MAX + 5], b"\n".to_vec()].concat();
        assert_eq!(entries(&line, Unfinished::Wait), (vec![part(ENTRY_MAX), full(5)], line.len()));
        let exact = [vec![b'x'; ENTRY_MAX], b"\n".to_vec()].concat();
        assert_eq!(entries(&exact, Unfinished::Wait), (vec![full(ENTRY_MAX)], exact.len()));
        let unfinished = vec![b'x'; ENTRY_MAX + 5];
        assert_eq!(entries(&unfinished, Unfinished::Wait), (vec![part(ENTRY_MAX)], ENTRY_MAX));
    }

    #[test]
    fn times_have_nine_digits() {
        let mut output = Vec::new();
        cut(b"x\n", "stderr", Unfinished::Wait, &mut output);
        let text = String::from_utf8(output).unwrap();
        let time = text.split(' ').next().unwrap();
        assert_eq!(time.len(), "2026-01-02T03:04:05.000000000Z".len(), "{time}");
    }
}
