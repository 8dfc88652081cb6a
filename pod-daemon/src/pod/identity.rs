//! Who a container runs as, from the image's `User`.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::sandbox::Identity;

/// The most that is read of an image's passwd or group file: they are the image's, so they could
/// be of any size.
const READ_MAX: u64 = 1 << 20;

/// A `User` that cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the image's user {user:?} {problem}")]
pub(super) struct Error {
    user: String,
    problem: &'static str,
}

/// Resolves `user[:group]`, names or numbers, with the files of the image's layers, lowest first.
pub(super) fn resolve(user: &str, layers: &[impl AsRef<Path>]) -> Result<Identity, Error> {
    let fail = |problem| Error { user: user.to_owned(), problem };
    if user.is_empty() {
        return Ok(Identity::default());
    }
    let (name, group_name) =
        user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let entry = find(layers, "etc/passwd", |fields| fields.first() == Some(&name));
    // A number is an id, also where the passwd file has a user of that name (CVE-2024-40635).
    let number = name.bytes().all(|byte| byte.is_ascii_digit());
    let (uid, primary) = if number {
        let uid = id(name).ok_or_else(|| fail("is out of range"))?;
        let entry = find(layers, "etc/passwd", |fields| {
            fields.get(2).and_then(|text| id(text)) == Some(uid)
        });
        (uid, entry.and_then(|entry| id(entry.get(3)?)).unwrap_or(0))
    } else {
        let entry = entry.ok_or_else(|| fail("is not in the image's /etc/passwd"))?;
        let field = |index: usize| entry.get(index).and_then(|text| id(text));
        (
            field(2).ok_or_else(|| fail("has no valid id in the image's /etc/passwd"))?,
            field(3).ok_or_else(|| fail("has no valid group in the image's /etc/passwd"))?,
        )
    };
    let group = match group_name {
        None => primary,
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            id(text).ok_or_else(|| fail("has a group out of range"))?
        }
        Some(text) => find(layers, "etc/group", |fields| fields.first() == Some(&text))
            .and_then(|entry| id(entry.get(2)?))
            .ok_or_else(|| fail("has a group that is not in the image's /etc/group"))?,
    };
    Ok(Identity { user: uid, group, groups: vec![group] })
}

/// An id: decimal, below 2^31, as no tool agrees on what more than that means.
fn id(text: &str) -> Option<u32> {
    text.parse::<i32>().ok().and_then(|id| u32::try_from(id).ok())
}

/// The first entry of a colon-separated file that `matches`, in the topmost layer that has it.
fn find(
    layers: &[impl AsRef<Path>],
    file: &str,
    matches: impl Fn(&[&str]) -> bool,
) -> Option<Vec<String>> {
    let file = layers.iter().rev().find_map(|layer| open(layer.as_ref(), file))?;
    BufReader::new(file.take(READ_MAX)).lines().map_while(Result::ok).find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        matches(&fields).then(|| fields.iter().map(|field| (*field).to_owned()).collect())
    })
}

/// Opens a regular file below `root`, not following links out of it.
fn open(root: &Path, file: &str) -> Option<File> {
    let root = File::open(root).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(root, file, flags, Mode::empty(), resolve).ok()?);
    file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn check(user: &str, expected: Result<(u32, u32), &str>) {
        let layer = tempfile::tempdir().unwrap();
        fs::create_dir(layer.path().join("etc")).unwrap();
        fs::write(
            layer.path().join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/:/bin/sh\n1:x:0:0::/:/bin/sh\nbig:x:4294967296:0::/:/bin/sh\n",
        )
        .unwrap();
        fs::write(layer.path().join("etc/group"), "root:x:0:\nstaff:x:50:web\n").unwrap();
        let result = resolve(user, &[layer.path()]);
        match (result, expected) {
            (Ok(identity), Ok(expected)) => {
                assert_eq!((identity.user, identity.group), expected, "{user}");
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{user}: {error}");
            }
            (result, expected) => panic!("{user}: {result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn names_and_numbers_are_told_apart() {
        check("", Ok((0, 0)));
        check("web", Ok((33, 44)));
        check("web:staff", Ok((33, 50)));
        check("33", Ok((33, 44)));
        check("1", Ok((1, 0)));
        check("1000:5", Ok((1000, 5)));
        check("4294967296", Err("out of range"));
        check("2147483648", Err("out of range"));
        check("0x0", Err("not in the image"));
        check("big", Err("no valid id"));
        check("web:none", Err("group that is not"));
    }
}
