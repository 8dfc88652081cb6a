//! Who a container runs as: from the manifest, or else from the image's `User`.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
};

use crate::{image::merged, sandbox::Identity};

/// The most that is read of an image's passwd or group file: they are the image's, so they could
/// be of any size.
const READ_MAX: u64 = 1 << 20;

/// The most groups that a process can be in, as the kernel has it.
const GROUPS_MAX: usize = 65_536;

/// A `User` that cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the image's user {user:?} {problem}")]
pub(super) struct Error {
    user: String,
    problem: &'static str,
}

/// What a manifest says about who a container runs as.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Takes the place of the image's user, and of its group.
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
    /// More groups.
    pub(super) groups: Vec<u32>,
    /// Whether the groups are these alone, and not those of the image's files as well.
    pub(super) strict: bool,
}

/// The identity that `wanted` and the image's `user[:group]`, names or numbers, make with the files
/// of the image's layers, lowest first.
pub(super) fn resolve(
    wanted: &Wanted,
    user: &str,
    layers: &[impl AsRef<Path>],
) -> Result<Identity, Error> {
    let fail = |problem| Error { user: user.to_owned(), problem };
    let own = wanted.user.map(|user| user.to_string());
    let text = own.as_deref().unwrap_or(user);
    let (name, group_name) =
        text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let entry = if is_number(name) {
        // A number is an id, also where the passwd file has a user of that name (CVE-2024-40635).
        let uid = if name.is_empty() { Some(0) } else { id(name) };
        let uid = uid.ok_or_else(|| fail("is out of range"))?;
        let entry = find(layers, "etc/passwd", |fields| {
            fields.get(2).and_then(|text| id(text)) == Some(uid)
        });
        let primary = entry.as_ref().and_then(|entry| id(entry.get(3)?)).unwrap_or(0);
        let home = entry.as_ref().and_then(|entry| entry.get(5).cloned());
        (uid, primary, entry.and_then(|entry| entry.into_iter().next()), home)
    } else {
        let entry = find(layers, "etc/passwd", |fields| fields.first() == Some(&name));
        let entry = entry.ok_or_else(|| fail("is not in the image's /etc/passwd"))?;
        let field = |index: usize| entry.get(index).and_then(|text| id(text));
        (
            field(2).ok_or_else(|| fail("has no valid id in the image's /etc/passwd"))?,
            field(3).ok_or_else(|| fail("has no valid group in the image's /etc/passwd"))?,
            Some(name.to_owned()),
            entry.get(5).cloned(),
        )
    };
    let (uid, primary, name, home) = entry;
    let home = home.filter(|home| home.starts_with('/') && !home.contains('\0'));
    let group = match (wanted.group, group_name) {
        (Some(group), _) => group,
        (None, None) => primary,
        (None, Some(text)) if is_number(text) => {
            id(text).ok_or_else(|| fail("has a group out of range"))?
        }
        (None, Some(text)) => find(layers, "etc/group", |fields| fields.first() == Some(&text))
            .and_then(|entry| id(entry.get(2)?))
            .ok_or_else(|| fail("has a group that is not in the image's /etc/group"))?,
    };
    let mut groups = vec![group];
    groups.extend(&wanted.groups);
    if let Some(name) = name.filter(|_| !wanted.strict) {
        groups.extend(memberships(layers, &name));
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|group| seen.insert(*group));
    // More than the kernel takes would be an image's attempt to stop its own start.
    groups.truncate(GROUPS_MAX);
    Ok(Identity { user: uid, group, groups, home, base: 0 })
}

/// Whether the image's user is one that can be told from root without looking into the image:
/// `Some(id)` for a number.
pub(super) fn numeric(user: &str) -> Option<u32> {
    let name = user.split(':').next().unwrap_or_default();
    if name.is_empty() { Some(0) } else { is_number(name).then(|| id(name)).flatten() }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The groups whose members the image's group file says the user is one of.
fn memberships(layers: &[impl AsRef<Path>], user: &str) -> Vec<u32> {
    let mut groups = Vec::new();
    find(layers, "etc/group", |fields| {
        let is_member =
            fields.get(3).is_some_and(|members| members.split(',').any(|member| member == user));
        if is_member && groups.len() < GROUPS_MAX {
            groups.extend(fields.get(2).and_then(|text| id(text)));
        }
        false
    });
    groups
}

/// An id: decimal, below 2^31, as no tool agrees on what more than that means.
fn id(text: &str) -> Option<u32> {
    text.parse::<i32>().ok().and_then(|id| u32::try_from(id).ok())
}

/// The first entry of a colon-separated file of the image that `matches`.
fn find(
    layers: &[impl AsRef<Path>],
    file: &str,
    mut matches: impl FnMut(&[&str]) -> bool,
) -> Option<Vec<String>> {
    let file = merged::open(layers, Path::new(file))?;
    let lines = BufReader::new(file.take(READ_MAX)).split(b'\n');
    lines.map_while(Result::ok).find_map(|line| {
        // One that is no text hides none of the others.
        let line = String::from_utf8(line).ok()?;
        let fields: Vec<&str> = line.split(':').collect();
        matches(&fields).then(|| fields.iter().map(|field| (*field).to_owned()).collect())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn layer() -> tempfile::TempDir {
        let layer = tempfile::tempdir().unwrap();
        fs::create_dir(layer.path().join("etc")).unwrap();
        fs::write(
            layer.path().join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/:/bin/sh\n1:x:0:0::/:/bin/sh\nbig:x:4294967296:0::/:/bin/sh\n\
             work:x:1001:1001::/home/work:/bin/sh\nnone:x:1003:1003:::\n",
        )
        .unwrap();
        fs::write(
            layer.path().join("etc/group"),
            "root:x:0:\nstaff:x:50:web\nmail:x:8:cyrus,web\nbig:x:4294967296:web\n",
        )
        .unwrap();
        layer
    }

    fn check(user: &str, expected: Result<(u32, u32), &str>) {
        let layer = layer();
        let result = resolve(&Wanted::default(), user, &[layer.path()]);
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

    #[test]
    fn a_home_is_what_the_image_says() {
        let layer = layer();
        let home = |user| resolve(&Wanted::default(), user, &[layer.path()]).unwrap().home;
        assert_eq!(home("").as_deref(), Some("/root"));
        assert_eq!(home("work").as_deref(), Some("/home/work"));
        assert_eq!(home("1001").as_deref(), Some("/home/work"));
        assert_eq!(home("1002"), None);
        // That is no path.
        assert_eq!(home("none"), None);
    }

    #[test]
    fn a_manifest_goes_before_the_image() {
        let layer = layer();
        let check = |wanted: Wanted, user: &str, expected: (u32, u32, &[u32])| {
            let identity = resolve(&wanted, user, &[layer.path()]).unwrap();
            let (uid, gid, groups) = expected;
            assert_eq!((identity.user, identity.group), (uid, gid), "{wanted:?} {user}");
            assert_eq!(identity.groups, groups, "{wanted:?} {user}");
        };
        let user = |user| Wanted { user: Some(user), ..Wanted::default() };
        check(Wanted::default(), "web", (33, 44, &[44, 50, 8]));
        check(user(1000), "web:staff", (1000, 0, &[0]));
        check(user(33), "", (33, 44, &[44, 50, 8]));
        check(Wanted { group: Some(7), ..user(33) }, "", (33, 7, &[7, 50, 8]));
        check(Wanted { group: Some(7), ..Wanted::default() }, "web:staff", (33, 7, &[7, 50, 8]));
        let groups = vec![2000, 50];
        check(Wanted { groups: groups.clone(), ..user(33) }, "", (33, 44, &[44, 2000, 50, 8]));
        check(Wanted { groups, strict: true, ..user(33) }, "", (33, 44, &[44, 2000, 50]));
    }

    #[test]
    fn a_huge_group_file_is_read_in_part() {
        let layer = layer();
        let mut text = fs::read_to_string(layer.path().join("etc/group")).unwrap();
        let line = format!("many:x:60:{}\n", "somebody,".repeat(100));
        text.push_str(&line.repeat((50 << 20) / line.len()));
        text.push_str("last:x:61:web\n");
        fs::write(layer.path().join("etc/group"), text).unwrap();
        let began = std::time::Instant::now();
        let identity = resolve(&Wanted::default(), "web", &[layer.path()]).unwrap();
        assert_eq!(identity.groups, [44, 50, 8]);
        assert!(began.elapsed() < std::time::Duration::from_secs(2));
    }

    #[test]
    fn only_numbers_can_be_told_from_root() {
        assert_eq!(numeric(""), Some(0));
        assert_eq!(numeric("0:0"), Some(0));
        assert_eq!(numeric("1000:web"), Some(1000));
        assert_eq!(numeric("web"), None);
        assert_eq!(numeric("4294967296"), None);
    }
}
