//! A page in fewer bytes, for those who ask.

use std::{io::Write as _, mem};

use flate2::{Compression, write::GzEncoder};

use crate::metrics::Taker;

/// What the header `Content-Encoding` says of it.
pub(in crate::metrics) const GZIP: &str = "gzip";

/// Compressed bytes that are worth handing on.
const CHUNK: usize = 32 << 10;

/// Whether the header `Accept-Encoding` asks for it.
pub(in crate::metrics) fn is_accepted(accept: &str) -> bool {
    let mut of_all = false;
    for coding in accept.split(',') {
        let (name, parameter) = coding.split_once(';').unwrap_or((coding, ""));
        let quality = parameter.trim().strip_prefix("q=");
        let quality = quality.map_or(1.0, |quality| quality.trim().parse::<f64>().unwrap_or(0.0));
        match name.trim() {
            name if name.eq_ignore_ascii_case(GZIP) => return quality > 0.0,
            "*" => of_all = quality > 0.0,
            _ => {}
        }
    }
    of_all
}

/// Names repeat on every line: the first level does not look for the longest of what repeats, and
/// its pages are nearly half as long again; levels after the second save little for what they take.
const LEVEL: u32 = 2;

/// Compresses a page piece by piece.
pub(in crate::metrics) struct Gzip<'a> {
    encoder: GzEncoder<Vec<u8>>,
    send: Taker<'a>,
}

impl<'a> Gzip<'a> {
    pub(in crate::metrics) fn new(send: Taker<'a>) -> Self {
        Self { encoder: GzEncoder::new(Vec::new(), Compression::new(LEVEL)), send }
    }

    /// Takes a piece of the page; says whether anybody wants more.
    pub(in crate::metrics) fn take(&mut self, piece: &[u8]) -> bool {
        // Writing to a vector cannot fail.
        self.encoder.write_all(piece).is_ok()
            && (self.encoder.get_ref().len() < CHUNK
                || (self.send)(mem::take(self.encoder.get_mut())))
    }

    /// That was the whole page; says whether everything was wanted.
    pub(in crate::metrics) fn finish(self) -> bool {
        self.encoder.finish().is_ok_and(self.send)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn who_asks_gets_it() {
        for accept in ["gzip", "GZIP;q=0.5", "deflate, gzip;q=1.0", "*", "br;q=1.0, *;q=0.1"] {
            assert!(is_accepted(accept), "{accept}");
        }
        for accept in ["", "deflate", "gzip;q=0", "*, gzip;q=0", "gzip;q=none", "*;q=0"] {
            assert!(!is_accepted(accept), "{accept}");
        }
    }

    #[test]
    fn pieces_are_one_page_again() {
        let mut sent = Vec::new();
        let mut numbers = 0_u64;
        let mut page = Vec::new();
        let mut send = |piece: Vec<u8>| {
            sent.push(piece);
            true
        };
        let mut gzip = Gzip::new(&mut send);
        for _ in 0..200 {
            let piece: Vec<u8> = (0..1000)
                .flat_map(|_| {
                    numbers = numbers.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    format!("some_name_total{{pod=\"a\"}} {numbers}\n").into_bytes()
                })
                .collect();
            assert!(gzip.take(&piece));
            page.extend(piece);
        }
        assert!(gzip.finish());
        assert!(sent.len() > 10, "{} pieces", sent.len());
        let sent = sent.concat();
        assert!(sent.len() < page.len() / 2);
        let mut plain = Vec::new();
        GzDecoder::new(&*sent).read_to_end(&mut plain).unwrap();
        assert!(plain == page);
    }

    #[test]
    fn nobody_compresses_what_nobody_wants() {
        let mut send = |_| false;
        let mut gzip = Gzip::new(&mut send);
        let noise: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        assert!(!gzip.take(&noise));
    }
}
