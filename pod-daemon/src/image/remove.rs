//! Removes a directory tree of any depth.

use std::{
    ffi::CString,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{self, AtFlags, Dir, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};

/// Removes the directory `name` in `parent` and all that is in it, following no link.
///
/// Directories within directories are first moved up to the outermost one. So it needs three
/// descriptors and no recursion, while a hostile layer can be deeper than there are descriptors.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let top = open(parent, name)?;
    let mut number: u64 = 0;
    loop {
        let mut directories = Vec::new();
        for (name, is_directory) in list(&top)? {
            if is_directory {
                directories.push(name);
            } else {
                fs::unlinkat(&top, name, AtFlags::empty())?;
            }
        }
        if directories.is_empty() {
            return fs::unlinkat(parent, name, AtFlags::REMOVEDIR);
        }
        for directory in directories {
            let inner = open(top.as_fd(), directory.as_bytes())?;
            for (name, is_directory) in list(&inner)? {
                if !is_directory {
                    fs::unlinkat(&inner, name, AtFlags::empty())?;
                    continue;
                }
                loop {
                    number += 1;
                    let to = format!("{number:x}");
                    match fs::renameat_with(&inner, &name, &top, to, RenameFlags::NOREPLACE) {
                        Err(Errno::EXIST) => {}
                        moved => break moved?,
                    }
                }
            }
            fs::unlinkat(&top, directory, AtFlags::REMOVEDIR)?;
        }
    }
}

fn open(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(parent, name, flags, Mode::empty())
}

/// All names in a directory and whether they are directories; read before anything is changed.
pub(super) fn list(directory: &OwnedFd) -> Result<Vec<(CString, bool)>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_owned();
        if matches!(name.as_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        names.push((name, kind.is_dir()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_deeper_than_there_are_descriptors_is_removed_and_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("kept")).unwrap();
        std::fs::write(place.path().join("kept/file"), "").unwrap();
        let base = open(fs::CWD, place.path().as_os_str().as_encoded_bytes()).unwrap();
        let mut deepest = base.try_clone().unwrap();
        for _ in 0..2000 {
            fs::mkdirat(&deepest, "1", Mode::RWXU).unwrap();
            fs::symlinkat("/", &deepest, "link").unwrap();
            deepest = open(deepest.as_fd(), b"1").unwrap();
        }
        symlink(place.path().join("kept"), place.path().join("1/kept")).unwrap();

        remove_tree(base.as_fd(), b"1").unwrap();

        assert!(!place.path().join("1").exists());
        assert!(place.path().join("kept/file").exists());
    }
}
