//! The files that an image is stored as: in a directory, or in a tar that is never unpacked.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Seek as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;

use super::{
    config::Document,
    digest::{Digest, Hashing},
    entries::Entries,
    error::{Error, failed_to},
    fields::Kind,
    unpack::{Compression, Decoder, Expected, Limits},
};

/// Manifests, indexes and configs: twice what registries accept.
pub(super) const MAX_DOCUMENT: u64 = 8 << 20;
/// Files of an image that is stored as a tar. The largest images have some hundreds.
const MAX_MEMBERS: usize = 100_000;
/// Links from one member to the next.
const MAX_LINKS: usize = 16;

/// The files of one image, or of several.
pub(super) struct Files {
    image: String,
    place: Place,
}

enum Place {
    Directory(PathBuf),
    Tar { file: File, path: PathBuf, members: HashMap<Vec<u8>, Member> },
}

enum Member {
    Data { position: u64, length: u64 },
    Link(Vec<u8>),
}

/// An image that was found, with everything verified but its layers.
pub(super) struct Found {
    pub(super) id: Digest,
    pub(super) document: Document,
    pub(super) layers: Vec<Layer>,
}

/// A layer and the file that it is in.
pub(super) struct Layer {
    pub(super) file: String,
    pub(super) expected: Expected,
}

/// A part of a file.
struct Section<'a> {
    file: &'a File,
    position: u64,
    left: u64,
}

impl Files {
    /// Those in a directory; `image` names them in errors.
    pub(super) fn in_directory(image: String, directory: &Path) -> Self {
        Self { image, place: Place::Directory(directory.to_owned()) }
    }

    /// Those in a tar. A compressed one is decompressed first into `scratch`, an empty file that
    /// has no name.
    pub(super) fn in_tar(
        image: String,
        path: &Path,
        scratch: impl FnOnce() -> Result<File, Error>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let mut file = open_file(path)?;
        let read = || failed_to("read", path);
        let (compression, input) = Compression::detect(&file).map_err(read())?;
        if compression == Compression::Plain {
            file.rewind().map_err(read())?;
        } else {
            let input = BufReader::with_capacity(128 * 1024, input);
            let plain = Decoder::new(compression, input).map_err(read())?;
            let mut scratch = scratch()?;
            let mut plain = Hashing::counting(plain, limits.bytes, "the limit for an archive");
            io::copy(&mut plain, &mut scratch).map_err(failed_to("decompress", path))?;
            scratch.rewind().map_err(failed_to("decompress", path))?;
            file = scratch;
        }
        let members = members(&image, file.try_clone().map_err(read())?)?;
        Ok(Self { image, place: Place::Tar { file, path: path.to_owned(), members } })
    }

    /// Opens a file, if there is one of that name.
    pub(super) fn open(&self, name: &str) -> Result<Option<Box<dyn Read + '_>>, Error> {
        match &self.place {
            Place::Directory(directory) => match open_file(&directory.join(name)) {
                Ok(file) => Ok(Some(Box::new(file))),
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Ok(None)
                }
                Err(error) => Err(error),
            },
            Place::Tar { file, members, .. } => {
                let mut name = normal(b"", name.as_bytes());
                for _ in 0..MAX_LINKS {
                    match members.get(&name) {
                        None => return Ok(None),
                        Some(&Member::Data { position, length: left }) => {
                            return Ok(Some(Box::new(Section { file, position, left })));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                    }
                }
                Err(self.invalid(format!("`{}` is a loop of links", name.escape_ascii())))
            }
        }
    }

    /// Reads a whole document, and verifies it if its digest and size are known.
    pub(super) fn document(
        &self,
        name: &str,
        expected: Option<(&Digest, u64)>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let place = self.path().join(name);
        file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(failed_to("read", &place))?;
        let size = bytes.len() as u64;
        if size > MAX_DOCUMENT {
            return Err(self.invalid(format!("{name} has more than {MAX_DOCUMENT} bytes")));
        }
        if let Some((digest, expected_size)) = expected
            && (size != expected_size || Digest::of(&bytes) != *digest)
        {
            return Err(self.invalid(format!(
                "{name} should be {expected_size} bytes of {digest} but is {size} bytes of {}; \
                 the image is damaged or was changed",
                Digest::of(&bytes),
            )));
        }
        Ok(Some(bytes))
    }

    /// Parses a document.
    pub(super) fn json<T: DeserializeOwned>(&self, name: &str, json: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(json).map_err(self.not_json(name))
    }

    /// Parses a config.
    pub(super) fn config(&self, name: &str, json: &[u8]) -> Result<Document, Error> {
        Document::parse(json).map_err(self.not_json(name))
    }

    /// An error about this image.
    pub(super) fn invalid(&self, problem: impl Into<String>) -> Error {
        Error::Image { image: self.image.clone(), problem: problem.into() }
    }

    fn not_json(&self, name: &str) -> impl FnOnce(serde_json::Error) -> Error {
        let (image, document) = (self.image.clone(), name.to_owned());
        move |source| Error::Json { image, document, source }
    }

    fn path(&self) -> &Path {
        match &self.place {
            Place::Directory(path) | Place::Tar { path, .. } => path,
        }
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

/// Opens a regular file, without waiting for a writer if it is a FIFO after all.
fn open_file(path: &Path) -> Result<File, Error> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(failed_to("open", path))?;
    if file.metadata().map_err(failed_to("stat", path))?.is_file() {
        return Ok(file);
    }
    Err(failed_to("open", path)(io::Error::other("it is not a regular file")))
}

/// Where each member of a tar is. Of several with one name the last one counts.
fn members(image: &str, file: File) -> Result<HashMap<Vec<u8>, Member>, Error> {
    let invalid = |problem: String| Error::Image { image: image.to_owned(), problem };
    let mut members = HashMap::new();
    let mut entries = Entries::seeking(file);
    loop {
        let entry = entries.next().map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            invalid([error.to_string()].into_iter().chain(source).collect::<Vec<_>>().join(": "))
        })?;
        let Some(entry) = entry else { return Ok(members) };
        let name = normal(b"", &entry.name);
        let member = match entry.kind {
            Kind::File if entry.sparse.is_none() => {
                Member::Data { position: entry.position, length: entry.stored }
            }
            // docker used to save equal layers as links to the first one.
            Kind::Symlink => Member::Link(normal(parent(&name), &entry.link)),
            Kind::HardLink => Member::Link(normal(b"", &entry.link)),
            _ => continue,
        };
        members.insert(name, member);
        if members.len() > MAX_MEMBERS {
            return Err(invalid(format!("it has more than {MAX_MEMBERS} files")));
        }
    }
}

fn parent(name: &[u8]) -> &[u8] {
    name.iter().rposition(|&byte| byte == b'/').map_or(b"", |slash| &name[..slash])
}

/// The name of `link` as seen from `directory`. It is looked up in the index, never on disk.
fn normal(directory: &[u8], link: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let from = if link.starts_with(b"/") { b"" } else { directory };
    for part in from.split(|&b| b == b'/').chain(link.split(|&b| b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}
