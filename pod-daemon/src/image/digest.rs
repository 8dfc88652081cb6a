//! SHA-256 digests, and readers that hash and count what passes through them.

use std::{
    fmt::{self, Write as _},
    io::{self, Read},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, written `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Digest(String);

/// The text is not a SHA-256 digest.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a digest of the form sha256:<64 hex digits>")]
pub(super) struct Malformed(String);

/// More bytes came than were promised or are allowed.
#[derive(Debug, thiserror::Error)]
#[error("there are more bytes than the {limit} of {of}")]
struct TooLong {
    limit: u64,
    of: &'static str,
}

/// Whether a read failed because more bytes came than a reader here lets through.
pub(super) fn is_too_long(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<TooLong>())
}

/// A reader that hashes and counts what it hands on, and fails once that is more than the limit.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Option<Sha256>,
    count: u64,
    limit: u64,
    limit_of: &'static str,
}

impl Digest {
    /// The digest of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::new_with_prefix(bytes))
    }

    /// The digits alone; safe as a file name.
    pub(super) fn hex(&self) -> &str {
        &self.0
    }

    /// The digest of what was hashed.
    pub(super) fn from_hash(hash: Sha256) -> Self {
        let mut hex = String::with_capacity(64);
        for byte in hash.finalize() {
            write!(hex, "{byte:02x}").expect("writing to a string does not fail");
        }
        Self(hex)
    }
}

impl FromStr for Digest {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let is_hex = |hex: &str| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
        };
        match text.strip_prefix("sha256:") {
            Some(hex) if is_hex(hex) => Ok(Self(hex.to_owned())),
            _ => Err(Malformed(text.to_owned())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl<R: Read> Hashing<R> {
    /// Hashes and counts; `limit_of` says in errors whose limit it is.
    pub(super) fn new(inner: R, limit: u64, limit_of: &'static str) -> Self {
        Self { inner, hash: Some(Sha256::new()), count: 0, limit, limit_of }
    }

    /// Counts only, for bytes that are hashed elsewhere.
    pub(super) fn counting(inner: R, limit: u64, limit_of: &'static str) -> Self {
        Self { inner, hash: None, count: 0, limit, limit_of }
    }

    /// The reader, the number of bytes that passed and, unless it only counted, their digest.
    pub(super) fn finish(self) -> (R, u64, Option<Digest>) {
        (self.inner, self.count, self.hash.map(Digest::from_hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count += length as u64;
        if self.count > self.limit {
            return Err(io::Error::other(TooLong { limit: self.limit, of: self.limit_of }));
        }
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..length]);
        }
        Ok(length)
    }
}

/// Reads what is left and throws it away, so that everything was hashed.
pub(super) fn drain(reader: &mut impl Read) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
