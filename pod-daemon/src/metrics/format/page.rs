//! Where the bytes of a page go while it is written.

/// Bytes that are worth handing on.
const CHUNK: usize = 128 << 10;

/// A page that is handed on in pieces, so that it is nowhere as a whole.
pub(in crate::metrics) struct Page<'a> {
    buffer: Vec<u8>,
    /// Takes a piece, and says whether anybody wants more.
    send: &'a mut dyn FnMut(Vec<u8>) -> bool,
    is_wanted: bool,
}

impl<'a> Page<'a> {
    pub(in crate::metrics) fn new(send: &'a mut dyn FnMut(Vec<u8>) -> bool) -> Self {
        Self { buffer: Vec::with_capacity(CHUNK + CHUNK / 8), send, is_wanted: true }
    }

    /// The end of the page, to be added to.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Hands on what there is if that is enough.
    pub(super) fn hand_on(&mut self) {
        if self.buffer.len() >= CHUNK {
            self.flush();
            if self.is_wanted {
                self.buffer.reserve(CHUNK + CHUNK / 8);
            }
        }
    }

    /// Hands on the rest; says whether everything was wanted.
    pub(in crate::metrics) fn finish(mut self) -> bool {
        self.flush();
        self.is_wanted
    }

    fn flush(&mut self) {
        let piece = std::mem::take(&mut self.buffer);
        if self.is_wanted && !piece.is_empty() {
            self.is_wanted = (self.send)(piece);
        }
    }
}
