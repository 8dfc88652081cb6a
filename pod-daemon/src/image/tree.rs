//! Makes a layer's entries in a directory, as overlayfs wants them, and nothing outside it.
//!
//! Every name is made relative to the descriptor of its parent directory, never followed if it is
//! a link, and never opened for writing unless this very call created it. Parents are resolved as
//! if the layer were the root of the file system (`RESOLVE_IN_ROOT`), because images do contain
//! entries below links; so a link to `/etc` or to `../../..` leads to a place inside the layer.
//! Nobody else can reach the directory meanwhile: it is below one with mode 0700.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    rc::Rc,
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags},
    io::Errno,
};

use super::{
    entries::Entry,
    fields::Kind,
    metadata::{dress, dress_unopened, is_whiteout, modified, set_opaque},
    remove::remove_tree,
    resolve::{self, Fault, Path, stat},
    settle::Grown,
    unpack::{Error, Limits},
};

/// Marks in a tar that a name of the layers below is gone.
const WHITEOUT: &[u8] = b".wh.";
/// Marks in a tar that everything in a directory of the layers below is gone.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that AUFS used for itself.
const AUFS: &[u8] = b".wh..wh.";

/// A layer that is being unpacked.
pub(super) struct Tree<'a> {
    root: BorrowedFd<'a>,
    limits: Limits,
    entries: u64,
    bytes: u64,
    devices: u64,
    /// The last parent that was asked for: tars mostly go directory by directory.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    buffer: Vec<u8>,
    grown: Grown,
}

impl<'a> Tree<'a> {
    /// Starts in the empty directory `root`.
    pub(super) fn new(root: BorrowedFd<'a>, limits: Limits) -> io::Result<Self> {
        // Without an entry of its own the root too looks as in the layers below.
        let implicit = BTreeMap::from([(fs::fstat(root)?.st_ino, Vec::new())]);
        let grown = Grown { implicit, ..Grown::default() };
        let buffer = vec![0; 128 * 1024];
        Ok(Self { root, limits, entries: 0, bytes: 0, devices: 0, parent: None, buffer, grown })
    }

    /// Makes one entry; a file's content comes from `data`.
    pub(super) fn add(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), Error> {
        self.make(entry, data).map_err(|fault| fault.of(&entry.name))
    }

    /// What remains to be done when all entries are there.
    pub(super) fn grown(self) -> Grown {
        Grown { bytes: self.bytes, ..self.grown }
    }

    fn make(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), Fault> {
        self.count_entry()?;
        let path = Path::parse(&entry.name)?;
        let Some((parent, name)) = path.split() else {
            return match entry.kind {
                Kind::Directory => self.dress_directory(self.root, entry, &path),
                _ => Err(Fault::Refused("stands for the root and is not a directory")),
            };
        };
        if path.components().any(|component| component.starts_with(AUFS) && component != OPAQUE) {
            return Ok(());
        }
        if path.components().rev().skip(1).any(|component| component.starts_with(WHITEOUT)) {
            return Err(Fault::Refused("is below a name that is reserved for whiteouts"));
        }
        if name == OPAQUE {
            return self.make_opaque(parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return match hidden {
                b"" | b"." | b".." => Err(Fault::Refused("is a whiteout of no name")),
                _ => self.make_whiteout(parent, hidden),
            };
        }
        match entry.kind {
            Kind::File => self.make_file(parent, name, entry, data),
            Kind::Directory => self.make_directory(parent, name, entry, &path),
            Kind::Symlink => self.make_symlink(parent, name, entry),
            Kind::HardLink => self.make_hard_link(parent, name, entry),
            Kind::Fifo => self.make_fifo(parent, name, entry),
            Kind::Device => {
                self.skip_device(&path);
                Ok(())
            }
            Kind::Unknown(_) => Err(Fault::Refused("is of a type that is not known")),
        }
    }

    fn make_file(
        &mut self,
        parent: &[u8],
        name: &[u8],
        entry: &Entry,
        data: &mut impl Read,
    ) -> Result<(), Fault> {
        let size = entry.sparse.as_ref().map_or(entry.stored, |map| map.real_size);
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(Fault::Limit(format!("{} bytes", self.limits.bytes)));
        }

        let parent = self.parent(parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self
            .replacing(&parent, name, || fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR));
        let mut file = File::from(file.map_err(Fault::failed("create"))?);
        if let Some(map) = &entry.sparse {
            file.set_len(map.real_size).map_err(Fault::failed("extend"))?;
            for segment in &map.segments {
                self.copy(data, segment.length, |done, part| {
                    file.write_all_at(part, segment.offset + done)
                })?;
            }
        } else {
            self.copy(data, entry.stored, |_, part| file.write_all(part))?;
        }
        dress(file.as_fd(), entry)?;
        fs::futimens(&file, &modified(entry.mtime)).map_err(Fault::failed("set the time of"))
    }

    fn copy(
        &mut self,
        data: &mut impl Read,
        length: u64,
        mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < length {
            let wanted =
                usize::try_from(length - done).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = match data.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Err(Fault::Refused("is longer than the tar")),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Unread(error)),
            };
            write(done, &self.buffer[..read]).map_err(Fault::failed("write"))?;
            done += read as u64;
        }
        Ok(())
    }

    fn make_directory(
        &mut self,
        parent: &[u8],
        name: &[u8],
        entry: &Entry,
        path: &Path,
    ) -> Result<(), Fault> {
        let parent = self.parent(parent)?;
        let mut replaces_lower = false;
        match stat(&parent, name)? {
            Some(found) if FileType::from_raw_mode(found.st_mode).is_dir() => {}
            found => {
                replaces_lower = found.as_ref().is_some_and(is_whiteout);
                self.replacing(&parent, name, || fs::mkdirat(&parent, name, Mode::RWXU))
                    .map_err(Fault::failed("create"))?;
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory =
            fs::openat(&parent, name, flags, Mode::empty()).map_err(Fault::failed("open"))?;
        if replaces_lower {
            set_opaque(directory.as_fd()).map_err(Fault::failed("make opaque"))?;
        }
        self.dress_directory(directory.as_fd(), entry, path)
    }

    fn dress_directory(
        &mut self,
        directory: BorrowedFd<'_>,
        entry: &Entry,
        path: &Path,
    ) -> Result<(), Fault> {
        let inode = fs::fstat(directory).map_err(Fault::failed("stat"))?.st_ino;
        self.grown.implicit.remove(&inode);
        dress(directory, entry)?;
        // Set at the end: each name made in it changes it again.
        self.grown.times.push((path.as_bytes().to_vec(), entry.mtime));
        Ok(())
    }

    fn make_symlink(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(Fault::Refused("is a link with an impossible target"));
        }
        let parent = self.parent(parent)?;
        self.replacing(&parent, name, || fs::symlinkat(&*entry.link, &parent, name))
            .map_err(Fault::failed("create"))?;
        dress_unopened(&parent, name, entry)
    }

    fn make_hard_link(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let target = Path::parse(&entry.link)?;
        let Some((target_parent, target_name)) = target.split() else {
            return Err(Fault::Refused("is a hard link to a directory"));
        };
        let target_parent = resolve::directory(self.root, target_parent)
            .map_err(Fault::failed("find the target of"))?;
        let Some(target) = stat(&target_parent, target_name)? else {
            return Err(Fault::Refused("is a hard link to an entry that is not in the layer"));
        };
        match FileType::from_raw_mode(target.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Err(Fault::Refused("is a hard link to what is not a file")),
        }
        let parent = self.parent(parent)?;
        if stat(&parent, name)?.is_some_and(|found| found.st_ino == target.st_ino) {
            return Ok(());
        }
        // Without SYMLINK_FOLLOW: a link to a symlink is one to the symlink itself.
        self.replacing(&parent, name, || {
            fs::linkat(&target_parent, target_name, &parent, name, AtFlags::empty())
        })
        .map_err(Fault::failed("create"))
    }

    fn make_fifo(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let parent = self.parent(parent)?;
        self.replacing(&parent, name, || {
            fs::mknodat(&parent, name, FileType::Fifo, Mode::empty(), 0)
        })
        .map_err(Fault::failed("create"))?;
        dress_unopened(&parent, name, entry)?;
        // Does not follow a link: the name is the FIFO made above. After the owner, see `dress`.
        fs::chmodat(&parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(Fault::failed("set the mode of"))
    }

    /// Containers get a `/dev` of their own, and through any other node they could reach a disk.
    fn skip_device(&mut self, path: &Path) {
        self.devices += 1;
        let path = path.as_bytes().escape_ascii();
        match self.devices {
            1..=10 => tracing::warn!(%path, "device node in a layer skipped"),
            11 => tracing::warn!(%path, "more device nodes skipped; no further ones are named"),
            _ => {}
        }
    }

    fn make_whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), Fault> {
        let path = resolve::join(parent, name);
        let parent = self.parent(parent)?;
        match fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => self.grown.whiteouts.push(path),
            Err(Errno::EXIST) => {
                // A whiteout is about the layers below. What this layer has under that name stays,
                // but a directory must not let theirs shine through.
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                if let Ok(directory) = fs::openat(&parent, name, flags, Mode::empty()) {
                    set_opaque(directory.as_fd()).map_err(Fault::failed("make opaque"))?;
                }
            }
            Err(errno) => return Err(Fault::Failed("create", errno.into())),
        }
        Ok(())
    }

    fn make_opaque(&mut self, parent: &[u8]) -> Result<(), Fault> {
        if parent.is_empty() {
            // Overlayfs always merges the roots of its layers.
            self.grown.opaque_root = true;
            return Ok(());
        }
        let parent = self.parent(parent)?;
        set_opaque(parent.as_fd()).map_err(Fault::failed("make opaque"))
    }

    /// The directory at `path`, made with what is above it if it is not there.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Fault> {
        if let Some((_, directory)) = self.parent.as_ref().filter(|(known, _)| known == path) {
            return Ok(Rc::clone(directory));
        }
        let directory = match resolve::directory(self.root, path) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            Err(errno) => return Err(Fault::Failed("find the directory of", errno.into())),
        };
        let directory = Rc::new(directory);
        self.parent = Some((path.to_vec(), Rc::clone(&directory)));
        Ok(directory)
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<OwnedFd, Fault> {
        let made = resolve::make_directories(self.root, path)?;
        for directory in made.created {
            self.count_entry()?;
            self.grown.implicit.insert(directory.inode, directory.path);
        }
        Ok(made.directory)
    }

    /// Calls `make`, and once more after removing what has the name already.
    fn replacing<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {}
            made => return Ok(made?),
        }
        // What is removed may be, or contain, the directory that was remembered.
        self.parent = None;
        let found = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode).is_dir() {
            remove_tree(parent.as_fd(), name)?;
        } else {
            fs::unlinkat(parent, name, AtFlags::empty())?;
        }
        Ok(make()?)
    }

    fn count_entry(&mut self) -> Result<(), Fault> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Fault::Limit(format!("{} entries", self.limits.entries)));
        }
        Ok(())
    }
}
