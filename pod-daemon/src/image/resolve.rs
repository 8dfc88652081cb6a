//! Names within a layer, and the directories they lead to.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::{
    metadata::{is_whiteout, set_opaque},
    unpack::Error,
};

/// The kernel takes one byte more, for the terminating zero.
const MAX_PATH: usize = 4095;
/// Far deeper than images are. Deep trees are slow to walk and cost a descriptor per level.
const MAX_DEPTH: usize = 256;
/// As the kernel's own.
const MAX_LINKS: usize = 40;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What is wrong with an entry; becomes an [`Error`] with the entry's name.
pub(super) enum Fault {
    Refused(&'static str),
    Limit(String),
    /// The layer's own bytes could not be read.
    Unread(io::Error),
    Failed(&'static str, io::Error),
}

/// A name in a layer: relative, without `.`, `..`, empty parts and zero bytes. Empty for the root.
pub(super) struct Path(Vec<u8>);

/// A directory that did not exist, and those above it that did not either.
pub(super) struct Made {
    pub(super) directory: OwnedFd,
    pub(super) created: Vec<Created>,
}

/// A directory that no entry has asked for yet.
pub(super) struct Created {
    pub(super) inode: u64,
    /// Without links.
    pub(super) path: Vec<u8>,
}

impl Fault {
    /// For `map_err`: names the operation.
    pub(super) fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Failed(action, source.into())
    }

    /// The fault of the entry called `name`.
    pub(super) fn of(self, name: &[u8]) -> Error {
        let shown = name.get(..200).unwrap_or(name).escape_ascii();
        let entry = format!("`{shown}`{}", if name.len() > 200 { "..." } else { "" });
        match self {
            Self::Refused(problem) => Error::Refused { entry, problem },
            Self::Limit(limit) => Error::Limit { limit },
            Self::Unread(source) => Error::Data { entry, source },
            Self::Failed(action, source) => Error::Entry { action, entry, source },
        }
    }
}

impl Path {
    /// Checks a name from a tar. A leading `/` means the layer's root.
    pub(super) fn parse(name: &[u8]) -> Result<Self, Fault> {
        let mut path = Vec::with_capacity(name.len());
        let mut depth = 0;
        for part in name.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(Fault::Refused("leads upwards, out of the layer")),
                _ if part.contains(&0) => {
                    return Err(Fault::Refused("has a zero byte in its name"));
                }
                _ => {}
            }
            if depth > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(part);
            depth += 1;
        }
        if path.len() > MAX_PATH {
            return Err(Fault::Limit(format!("{MAX_PATH} bytes in a path")));
        }
        if depth > MAX_DEPTH {
            return Err(Fault::Limit(format!("{MAX_DEPTH} directories in a path")));
        }
        Ok(Self(path))
    }

    /// Parent and last part, or nothing for the root.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        split(&self.0)
    }

    /// The parts, outermost first.
    pub(super) fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/')
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Parent and last part, or nothing for the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// The path of `name` in `parent`.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// Opens a directory of the layer, following links as if the layer were the whole file system.
pub(super) fn directory(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    open(root, path, DIRECTORY, resolve)
}

/// Opens whatever is at `path`, which no link leads to or is.
pub(super) fn without_links(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, resolve)
}

fn open(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let mut tries = 0;
    loop {
        match fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // A rename anywhere on the machine while the kernel resolved a `..` in a link.
            Err(Errno::AGAIN | Errno::INTR) if tries < 1000 => tries += 1,
            opened => return opened,
        }
    }
}

/// What has this name, if anything; a link itself rather than its target.
pub(super) fn stat(parent: &OwnedFd, name: &[u8]) -> Result<Option<Stat>, Fault> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Fault::Failed("stat", errno.into())),
    }
}

/// As [`directory`], but makes what is missing, at the end of dangling links too.
///
/// Goes one name at a time and reads the links itself, with a stack of open directories: the last
/// one cannot be left upwards.
pub(super) fn make_directories(root: BorrowedFd<'_>, path: &[u8]) -> Result<Made, Fault> {
    let mut stack: Vec<(OwnedFd, Vec<u8>)> = Vec::new();
    let mut created = Vec::new();
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec).collect()
    };
    let mut left = parts(path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                stack.pop();
                continue;
            }
            _ if stack.len() == MAX_DEPTH => {
                return Err(Fault::Limit(format!("{MAX_DEPTH} directories in a path")));
            }
            _ => {}
        }
        let (parent, above) = stack
            .last()
            .map_or((root, &b""[..]), |(directory, path)| (directory.as_fd(), path.as_slice()));
        let path = join(above, &name);
        match enter(parent, &name)? {
            Step::Into(directory) => stack.push((directory, path)),
            Step::Created(directory) => {
                let stat = fs::fstat(&directory).map_err(Fault::failed("stat"))?;
                created.push(Created { inode: stat.st_ino, path: path.clone() });
                stack.push((directory, path));
            }
            Step::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    let source = Errno::LOOP.into();
                    return Err(Fault::Failed("find the directory of", source));
                }
                if target.starts_with(b"/") {
                    stack.clear();
                }
                left.extend(parts(&target));
            }
        }
    }
    let directory = match stack.pop() {
        Some((directory, _)) => directory,
        None => directory(root, b"").map_err(Fault::failed("open the directory of"))?,
    };
    Ok(Made { directory, created })
}

enum Step {
    Into(OwnedFd),
    Created(OwnedFd),
    Link(Vec<u8>),
}

fn enter(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Step, Fault> {
    let open = || fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
    let create = || {
        fs::mkdirat(parent, name, Mode::empty())?;
        // Not what mkdir would leave of it under the daemon's umask.
        fs::chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
        open()
    };
    match open() {
        Ok(directory) => return Ok(Step::Into(directory)),
        Err(Errno::NOENT) => {
            let directory = create().map_err(Fault::failed("create the directory of"))?;
            return Ok(Step::Created(directory));
        }
        Err(Errno::NOTDIR | Errno::LOOP) => {}
        Err(errno) => return Err(Fault::Failed("open the directory of", errno.into())),
    }
    if let Ok(target) = fs::readlinkat(parent, name, Vec::new()) {
        return Ok(Step::Link(target.into_bytes()));
    }
    let found = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    if !found.as_ref().is_ok_and(is_whiteout) {
        return Err(Fault::Refused("is below a file"));
    }
    // The layer removes what is below and makes a directory of its own there.
    let remake = || {
        fs::unlinkat(parent, name, AtFlags::empty())?;
        let directory = create()?;
        set_opaque(directory.as_fd())?;
        Ok::<_, Errno>(directory)
    };
    remake().map(Step::Into).map_err(Fault::failed("create the directory of"))
}
