//! The entries of a tar, one after the other: v7, ustar, GNU and PAX.
//!
//! The `tar` crate decodes the header; the sequence is read here, because that crate splits PAX
//! records at newlines, which binary attributes such as `security.capability` may contain, and
//! holds long names of any size in memory. Where formats disagree this follows Go's archive/tar,
//! which made most of the layers there are.

use std::{
    fs::File,
    io::{self, BufReader, Read},
};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::{
    fields::{Kind, decimal, long_name, numeric, pax_records, timestamp},
    sparse::{self, Map},
};

const BLOCK: u64 = 512;

/// For one long name, one set of PAX records, or one sparse map; as in Go.
pub(super) const MAX_RECORDS: u64 = 1024 * 1024;

/// One entry; names are bytes as they stand in the tar, not yet checked.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// Bytes stored in the tar; to be read from [`Entries`] before the next entry.
    pub(super) stored: u64,
    /// Where these bytes start in the tar.
    pub(super) position: u64,
    pub(super) sparse: Option<Map>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The tar cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes could not be read or decompressed, or there are too many.
    #[error("failed to read the tar")]
    Read(#[source] io::Error),
    /// The bytes are not a tar.
    #[error("the tar is malformed near byte {position}: {problem}")]
    Malformed {
        /// How far it was read.
        position: u64,
        /// What is wrong there.
        problem: &'static str,
    },
}

/// Reads entries and, between two calls of [`Entries::next`], the data of the current one.
pub(super) struct Entries<R> {
    input: R,
    skip: fn(&mut R, u64) -> io::Result<()>,
    position: u64,
    data_left: u64,
    padding: u64,
}

/// What precedes an entry and modifies it.
#[derive(Default, PartialEq)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl<R: Read> Entries<R> {
    /// Reads every byte of `input`, also of data that nobody asks for.
    pub(super) fn new(input: R) -> Self {
        let skip = |input: &mut R, length| {
            let skipped = io::copy(&mut input.take(length), &mut io::sink())?;
            if skipped == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        };
        Self { input, skip, position: 0, data_left: 0, padding: 0 }
    }
}

impl Entries<BufReader<File>> {
    /// Seeks over data that nobody asks for.
    pub(super) fn seeking(file: File) -> Self {
        let skip = |input: &mut BufReader<File>, length| {
            input.seek_relative(i64::try_from(length).map_err(io::Error::other)?)
        };
        let input = BufReader::with_capacity(4096, file);
        Self { input, skip, position: 0, data_left: 0, padding: 0 }
    }
}

impl<R: Read> Entries<R> {
    /// The next entry, or `None` at the end of the tar.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.header()? else {
                return if extension == Extension::default() {
                    Ok(None)
                } else {
                    Err(self.malformed("it ends after a header that belongs to another"))
                };
            };
            let stored = numeric(&header.as_old().size).ok_or_else(|| self.malformed("size"))?;
            match header.entry_type() {
                EntryType::XGlobalHeader if extension == Extension::default() => {
                    self.data(stored)?;
                }
                EntryType::XHeader if extension.records.is_none() => {
                    let text = self.records(stored)?;
                    let records = pax_records(&text).ok_or_else(|| self.malformed("records"))?;
                    extension.records = Some(records);
                }
                EntryType::GNULongName if extension.name.is_none() => {
                    extension.name = Some(long_name(self.records(stored)?));
                }
                EntryType::GNULongLink if extension.link.is_none() => {
                    extension.link = Some(long_name(self.records(stored)?));
                }
                EntryType::XGlobalHeader
                | EntryType::XHeader
                | EntryType::GNULongName
                | EntryType::GNULongLink => {
                    return Err(self.malformed("two headers describe the same entry"));
                }
                _ => return self.entry(&header, stored, extension).map(Some),
            }
        }
    }

    /// The reader, to read what follows the last entry.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// A header block with a correct checksum, or `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let left = self.data_left + self.padding;
        (self.skip)(&mut self.input, left).map_err(|source| self.failed(source))?;
        self.position += left;
        self.data(0)?;

        let mut header = Header::new_old();
        let mut filled = 0;
        while filled < header.as_bytes().len() {
            match self.input.read(&mut header.as_mut_bytes()[filled..]) {
                // Some writers leave out the two zero blocks.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.malformed("it ends within a header")),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Read(source)),
            }
        }
        self.position += BLOCK;
        if header.as_bytes().iter().all(|&byte| byte == 0) {
            return Ok(None);
        }

        let bytes = header.as_bytes();
        let blank = [b' '; 8];
        let sum: u32 =
            bytes[..148].iter().chain(&blank).chain(&bytes[156..]).map(|&b| u32::from(b)).sum();
        if numeric(&header.as_old().cksum) != Some(u64::from(sum)) {
            return Err(self.malformed("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn entry(&mut self, header: &Header, size: u64, extension: Extension) -> Result<Entry, Error> {
        let old = header.as_old();
        let records = extension.records.unwrap_or_default();
        // An empty value undoes the record, and of several the last one counts.
        let record = |key: &str| {
            let found = records.iter().rfind(|(k, _)| k == key.as_bytes());
            found.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
        };
        let number = |key: &str, field: &[u8]| record(key).map_or_else(|| numeric(field), decimal);
        let name = extension.name.or_else(|| {
            let name = record("GNU.sparse.name").or_else(|| record("path"));
            name.map(<[u8]>::to_vec)
        });
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extension.link.or_else(|| record("linkpath").map(<[u8]>::to_vec));
        let link = link
            .unwrap_or_else(|| header.link_name_bytes().map_or_else(Vec::new, |l| l.into_owned()));

        let kind = Kind::of(header.entry_type(), &name);
        // Only files have data; some writers give a size to the others all the same.
        let stored = match kind {
            Kind::File | Kind::Unknown(_) => {
                let stored =
                    if record("size").is_some() { number("size", b"") } else { Some(size) };
                stored.ok_or_else(|| self.malformed("size"))?
            }
            _ => 0,
        };

        let mtime = match record("mtime") {
            Some(text) => timestamp(text),
            None => Some((numeric(&old.mtime).and_then(|s| s.try_into().ok()).unwrap_or(0), 0)),
        };
        let mode = numeric(&old.mode).and_then(|mode| u32::try_from(mode).ok());
        let mut entry = Entry {
            kind,
            name,
            link,
            stored,
            position: 0,
            sparse: None,
            mode: mode.ok_or_else(|| self.malformed("mode"))? & 0o7777,
            uid: number("uid", &old.uid).ok_or_else(|| self.malformed("uid"))?,
            gid: number("gid", &old.gid).ok_or_else(|| self.malformed("gid"))?,
            mtime: mtime.ok_or_else(|| self.malformed("mtime"))?,
            xattrs: records
                .iter()
                .filter_map(|(key, value)| {
                    Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value.clone()))
                })
                .collect(),
        };
        if kind == Kind::File {
            self.sparse(header, &records, &mut entry)?;
        } else {
            self.data(stored)?;
        }
        entry.position = self.position;
        Ok(entry)
    }

    /// Reads the map of a sparse file, and starts the file's data in any case.
    fn sparse(
        &mut self,
        header: &Header,
        records: &[(Vec<u8>, Vec<u8>)],
        entry: &mut Entry,
    ) -> Result<(), Error> {
        if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or_else(|| self.malformed("sparse without GNU header"))?;
            let mut segments = Vec::new();
            Map::push_gnu(&mut segments, &gnu.sparse).map_err(|problem| self.malformed(problem))?;
            let mut more = gnu.is_extended();
            while more {
                let mut block = GnuExtSparseHeader::new();
                self.read_exactly(block.as_mut_bytes())?;
                Map::push_gnu(&mut segments, block.sparse())
                    .map_err(|problem| self.malformed(problem))?;
                if segments.len() as u64 > MAX_RECORDS / 16 {
                    return Err(self.malformed("the map of a sparse file is too long"));
                }
                more = block.is_extended();
            }
            let size = gnu.real_size().map_err(Error::Read)?;
            let map = Map::new(segments, size, entry.stored);
            entry.sparse = Some(map.map_err(|problem| self.malformed(problem))?);
            return self.data(entry.stored);
        }

        self.data(entry.stored)?;
        let pax = sparse::from_pax(records, entry.stored);
        match pax.map_err(|problem| self.malformed(problem))? {
            sparse::Pax::None => {}
            sparse::Pax::Map(map) => entry.sparse = Some(map),
            sparse::Pax::InData(size) => {
                let segments = sparse::map_in_data(self).map_err(|source| self.failed(source))?;
                entry.stored = self.data_left;
                let map = Map::new(segments, size, self.data_left);
                entry.sparse = Some(map.map_err(|problem| self.malformed(problem))?);
            }
        }
        Ok(())
    }

    /// Says that `length` bytes of data follow.
    fn data(&mut self, length: u64) -> Result<(), Error> {
        let padded = length.checked_next_multiple_of(BLOCK);
        let padded = padded.filter(|&padded| self.position.checked_add(padded).is_some());
        self.padding = padded.ok_or_else(|| self.malformed("size"))? - length;
        self.data_left = length;
        Ok(())
    }

    /// All the data of a header that describes the next entry.
    fn records(&mut self, length: u64) -> Result<Vec<u8>, Error> {
        if length > MAX_RECORDS {
            return Err(self.malformed("a long name or extended header is over 1 MiB"));
        }
        self.data(length)?;
        let mut data = Vec::new();
        self.by_ref().take(length).read_to_end(&mut data).map_err(|source| self.failed(source))?;
        if data.len() as u64 == length {
            Ok(data)
        } else {
            Err(self.malformed("it ends too early"))
        }
    }

    fn read_exactly(&mut self, block: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(block).map_err(|source| self.failed(source))?;
        self.position += block.len() as u64;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            self.malformed("it ends within an entry")
        } else {
            Error::Read(source)
        }
    }

    fn malformed(&self, problem: &'static str) -> Error {
        Error::Malformed { position: self.position, problem }
    }
}

impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let length = self.input.read(&mut buffer[..wanted])?;
        self.data_left -= length as u64;
        self.position += length as u64;
        Ok(length)
    }
}
