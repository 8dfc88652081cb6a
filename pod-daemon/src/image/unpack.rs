//! Unpacks one layer, of which nothing is trusted: what comes out is what its digests promise, and
//! nothing outside the given directory is touched whatever the entries say.

use std::{
    io::{self, BufRead, BufReader, Cursor, Read},
    os::fd::BorrowedFd,
};

use flate2::bufread::MultiGzDecoder;

use super::{
    digest::{Digest, Hashing, drain, is_too_long},
    entries::{self, Entries},
    settle::Grown,
    tree::Tree,
};

/// For reads of the layer and of its tar.
const BUFFER: usize = 128 * 1024;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Begins, after any byte from 0x50 to 0x5f, a frame that decoders skip; pzstd puts one first.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// What a layer may cost; more is an error that names the limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of one layer: of its tar when uncompressed, and of all its files with their holes.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 64 << 30 }
    }
}

/// What the layer is known to be.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// Digest of the uncompressed tar, from the image's config.
    pub(super) diff_id: Digest,
    /// Digest and size of the bytes as stored, from the manifest; docker's archives have none.
    pub(super) blob: Option<(Digest, u64)>,
}

/// A layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layer's tar could not be read.
    #[error(transparent)]
    Tar(#[from] entries::Error),
    /// The layer's bytes could not be read.
    #[error("failed to read the layer")]
    Read(#[source] io::Error),
    /// The content is not what the image promises.
    #[error("its {what} should be {expected} but is {found}; the image is damaged or was changed")]
    Mismatch {
        /// Size or kind of digest.
        what: &'static str,
        /// What the image promises.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The layers below could not be taken into account.
    #[error("failed to fit it to the layers below")]
    Settle(#[source] io::Error),
    /// A limit was reached.
    #[error("it has more than {limit}; a layer that large is refused")]
    Limit {
        /// The limit with its unit.
        limit: String,
    },
    /// An entry was refused.
    #[error("entry {entry} {problem}")]
    Refused {
        /// The entry's name, quoted.
        entry: String,
        /// Why.
        problem: &'static str,
    },
    /// An entry's content could not be read.
    #[error("failed to read entry {entry}")]
    Data {
        /// The entry's name, quoted.
        entry: String,
        /// Why.
        source: io::Error,
    },
    /// An entry could not be made.
    #[error("failed to {action} entry {entry}")]
    Entry {
        /// The operation.
        action: &'static str,
        /// The entry's name, quoted.
        entry: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Whether the layer's bytes are to blame, so that another copy of them may do. What is refused
    /// or does not fit on the disk would be so again.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Mismatch { .. } | Self::Tar(entries::Error::Malformed { .. }) => true,
            Self::Tar(entries::Error::Read(source))
            | Self::Read(source)
            | Self::Data { source, .. } => !is_too_long(source),
            Self::Settle(_) | Self::Limit { .. } | Self::Refused { .. } | Self::Entry { .. } => {
                false
            }
        }
    }
}

/// How a layer is compressed, as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// A reader whose first bytes were looked at.
pub(super) type Whole<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// Decompresses, or not.
pub(super) enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::Decoder<'static, R>),
}

/// Unpacks `input`, a tar that may be compressed, into the empty directory `root`.
///
/// What is left to do once the layers below are known is in [`Grown::settle`]. After an error the
/// directory's content is worthless.
pub(super) fn unpack(
    input: impl Read,
    expected: &Expected,
    root: BorrowedFd<'_>,
    limits: Limits,
) -> Result<Grown, Error> {
    let (compression, input) = Compression::detect(input).map_err(Error::Read)?;
    let (size, size_of) = match &expected.blob {
        Some((_, size)) => (*size, "its descriptor"),
        None => (u64::MAX, "any layer"),
    };
    // What is not compressed is hashed once, as the tar that it is.
    let blob = match compression {
        Compression::Plain => Hashing::counting(input, size, size_of),
        _ => Hashing::new(input, size, size_of),
    };
    let blob = BufReader::with_capacity(BUFFER, blob);
    let tar = Decoder::new(compression, blob).map_err(Error::Read)?;
    let tar = Hashing::new(tar, limits.bytes, "the limit for a layer");

    let mut entries = Entries::new(BufReader::with_capacity(BUFFER, tar));
    let made = Tree::new(root, limits);
    let mut tree =
        made.map_err(|source| Error::Entry { action: "make", entry: "/".to_owned(), source })?;
    while let Some(entry) = entries.next()? {
        tree.add(&entry, &mut entries)?;
    }

    let mut tar = entries.into_inner();
    drain(&mut tar).map_err(Error::Read)?;
    let (decoder, _, diff_id) = tar.into_inner().finish();
    let mut blob = decoder.into_inner();
    drain(&mut blob).map_err(Error::Read)?;
    let (_, size, digest) = blob.into_inner().finish();

    if let Some((expected_digest, expected_size)) = &expected.blob {
        check("size", expected_size, Some(&size))?;
        check("digest", expected_digest, digest.as_ref().or(diff_id.as_ref()))?;
    }
    check("uncompressed digest", &expected.diff_id, diff_id.as_ref())?;
    Ok(tree.grown())
}

impl Compression {
    /// Looks at the first bytes; the reader returned still begins with them.
    pub(super) fn detect<R: Read>(mut input: R) -> io::Result<(Self, Whole<R>)> {
        let mut start = Vec::new();
        input.by_ref().take(4).read_to_end(&mut start)?;
        let compression = if start.starts_with(&GZIP) {
            Self::Gzip
        } else if start == ZSTD
            || matches!(&start[..], [0x50..=0x5f, rest @ ..] if *rest == ZSTD_SKIPPABLE)
        {
            Self::Zstd
        } else {
            Self::Plain
        };
        Ok((compression, Cursor::new(start).chain(input)))
    }
}

impl<R: BufRead> Decoder<R> {
    pub(super) fn new(compression: Compression, input: R) -> io::Result<Self> {
        Ok(match compression {
            Compression::Plain => Self::Plain(input),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => Self::Zstd(zstd::Decoder::with_buffer(input)?),
        })
    }

    fn into_inner(self) -> R {
        match self {
            Self::Plain(input) => input,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

fn check<T: PartialEq + ToString>(
    what: &'static str,
    expected: &T,
    found: Option<&T>,
) -> Result<(), Error> {
    if found == Some(expected) {
        return Ok(());
    }
    let found = found.map_or_else(|| String::from("unknown"), T::to_string);
    Err(Error::Mismatch { what, expected: expected.to_string(), found })
}
