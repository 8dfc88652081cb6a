//! Layers made to get out, to get in, or to exhaust. Whatever happens to them, the tree beside the
//! store is as it was.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use tar::EntryType;

use super::fixtures::*;
use crate::image::{
    Limits,
    digest::Digest,
    unpack::{Expected, unpack},
};

/// Everything about a tree that an attack could change.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, (u32, u32, u64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if stat.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (stat.mode(), stat.uid(), stat.nlink(), stat.mtime(), content));
    }
    found
}

/// Unpacks what `attack` makes of the path of a tree that is not to be touched.
fn attack(place: &Place, attack: impl Fn(Tar, &str) -> Tar) -> Result<PathBuf, String> {
    let outside = place.path("outside");
    fs::create_dir_all(outside.join("dir")).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    fs::set_permissions(outside.join("victim"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = snapshot(&outside);

    let tar = attack(Tar::new(), outside.to_str().unwrap()).done();
    let result = place.unpack(&[tar]);

    assert_eq!(snapshot(&outside), before);
    if result.is_err() {
        assert_eq!(place.counts(), [0, 0, 0], "something is left");
    }
    result.map(|mut image| image.layers.remove(0))
}

#[track_caller]
fn refused(problem: &str, make: impl Fn(Tar, &str) -> Tar) {
    let error = attack(&Place::with_limits(1000, 1 << 20), make).unwrap_err();
    assert!(error.contains(problem), "{error}");
}

/// The layer is taken, but leads nowhere outside: what it makes is inside.
#[track_caller]
fn contained(inside: &[&str], make: impl Fn(Tar, &str) -> Tar) {
    let place = Place::with_limits(1000, 1 << 20);
    let layer = attack(&place, make).unwrap();
    for name in inside {
        let name = name.replace("OUTSIDE", place.path("outside").to_str().unwrap());
        let path = layer.join(name.trim_start_matches('/'));
        assert!(fs::symlink_metadata(&path).is_ok(), "{}", path.display());
    }
}

#[test]
fn names_that_lead_upwards_are_refused() {
    for name in ["../evil", "a/../../evil", "..", "./..", "/../evil", "a/..", "a/b/../../../x"] {
        refused("leads upwards", |tar, _| tar.file(name, "evil"));
        refused("leads upwards", |tar, _| tar.directory(name));
        refused("leads upwards", |tar, _| tar.symlink(name, "x"));
        refused("leads upwards", |tar, _| tar.file("a", "").hard_link(name, "a"));
    }
    refused("leads upwards", |tar, _| tar.file("../.wh.victim", ""));
    refused("leads upwards", |tar, _| tar.file("../outside/.wh..wh..opq", ""));
    refused("leads upwards", |tar, _| tar.pax(&[("path", b"../evil")]).file("a", ""));
    refused("leads upwards", |tar, _| {
        tar.with(EntryType::GNULongName, "L", "", b"../evil\0", |_| {}).file("a", "")
    });
}

#[test]
fn absolute_names_stay_inside() {
    contained(&["OUTSIDE/victim"], |tar, outside| tar.file(format!("{outside}/victim"), "evil"));
    contained(&["OUTSIDE/dir"], |tar, outside| tar.directory(format!("//{outside}//dir/")));
    contained(&[], |tar, outside| tar.file(format!("{outside}/.wh.victim"), ""));
    contained(&["OUTSIDE"], |tar, outside| tar.file(format!("{outside}/.wh..wh..opq"), ""));
}

#[test]
fn names_of_the_root_are_directories_or_refused() {
    for name in ["", ".", "/", "./", "//./"] {
        contained(&[""], |tar, _| tar.directory(name));
        refused("stands for the root", |tar, _| tar.symlink(name, "/etc"));
        refused("hard link", |tar, _| tar.hard_link("a", name));
    }
    for name in ["", ".", "/."] {
        refused("stands for the root", |tar, _| tar.file(name, "x"));
    }
}

#[test]
fn writing_through_a_link_stays_inside() {
    contained(&["OUTSIDE/evil"], |tar, outside| {
        tar.symlink("l", outside).file("l/evil", "evil").directory("l/dir/")
    });
    contained(&["evil"], |tar, _| tar.symlink("l", "../../../..").file("l/evil", "evil"));
    contained(&["evil"], |tar, _| tar.symlink("l", "/").file("l/evil", "evil"));
    contained(&["a/b/x/evil"], |tar, _| {
        tar.directory("a/b/").symlink("a/b/l", "../../../../a/b/x").file("a/b/l/evil", "")
    });
    contained(&["proc/self/root/evil"], |tar, _| {
        tar.symlink("l", "/proc/self/root").file("l/evil", "evil")
    });
    contained(&["OUTSIDE/evil"], |tar, outside| {
        tar.symlink("l1", "l2").symlink("l2", outside).file("l1/evil", "evil")
    });
    // A directory that becomes a link after its descriptor was kept.
    contained(&["OUTSIDE/evil"], |tar, outside| {
        tar.file("d/first", "").symlink("d", outside).file("d/evil", "evil")
    });
    contained(&["OUTSIDE/x/evil"], |tar, outside| {
        tar.file("d/x/first", "").symlink("d", outside).file("d/x/evil", "evil")
    });
}

#[test]
fn a_last_part_that_is_a_link_is_replaced_and_not_followed() {
    contained(&["l"], |tar, outside| {
        tar.symlink("l", format!("{outside}/victim")).file("l", "evil")
    });
    contained(&["l"], |tar, outside| {
        tar.symlink("l", format!("{outside}/dir")).with(EntryType::Directory, "l", "", b"", |h| {
            h.set_mode(0o777);
        })
    });
    contained(&["l"], |tar, outside| {
        tar.symlink("l", format!("{outside}/victim")).other(EntryType::Fifo, "l")
    });
    contained(&["l"], |tar, outside| {
        tar.symlink("l", format!("{outside}/victim")).symlink("l", format!("{outside}/dir"))
    });
    contained(&["l"], |tar, outside| {
        tar.symlink("l", outside).file("l/.wh.victim", "").file("l/.wh..wh..opq", "")
    });
    contained(&["l"], |tar, outside| tar.symlink("l", outside).file(".wh.l", ""));
    contained(&["l"], |tar, outside| {
        let capability: &[u8] = &[1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        tar.pax(&[("SCHILY.xattr.security.capability", capability)])
            .symlink("l", format!("{outside}/victim"))
    });
}

#[test]
fn hard_links_reach_files_of_the_layer_only() {
    refused("not in the layer", |tar, outside| {
        tar.directory(outside).hard_link("h", format!("{outside}/victim"))
    });
    refused("find the target", |tar, outside| {
        tar.symlink("l", outside).hard_link("h", "l/victim").file("h", "evil")
    });
    refused("leads upwards", |tar, _| tar.hard_link("h", "../outside/victim"));
    refused("what is not a file", |tar, _| tar.directory("d/").hard_link("h", "d"));
    refused("what is not a file", |tar, _| tar.file(".wh.x", "").hard_link("h", "x"));
    refused("not in the layer", |tar, _| tar.hard_link("h", "h"));
    refused("not in the layer", |tar, _| tar.hard_link("h", ".wh.x"));
    // To the link itself; then the file that replaces it is a new one.
    contained(&["l", "h"], |tar, outside| {
        tar.symlink("l", format!("{outside}/victim")).hard_link("h", "l").file("h", "evil")
    });
}

#[test]
fn devices_are_never_made() {
    for kind in [EntryType::Char, EntryType::Block] {
        for (major, minor) in [(1, 1), (8, 0), (0, 0)] {
            let place = Place::new();
            let layer = attack(&place, |tar, _| {
                let tar = tar.with(kind, "dev/disk", "", b"", |header| {
                    header.set_device_major(major).unwrap();
                    header.set_device_minor(minor).unwrap();
                });
                tar.file("after", "")
            });
            let layer = layer.unwrap();
            assert!(fs::symlink_metadata(layer.join("dev/disk")).is_err());
            assert!(layer.join("after").exists());
        }
    }
    refused("type that is not known", |tar, _| tar.other(EntryType::new(b'D'), "x"));
}

#[test]
fn whiteouts_of_nothing_or_below_others_are_refused() {
    for name in [".wh.", "a/.wh.", ".wh..", ".wh...", "a/.wh..."] {
        refused("whiteout of no name", |tar, _| tar.file(name, ""));
    }
    refused("reserved for whiteouts", |tar, _| tar.file(".wh.a/b", ""));
    refused("reserved for whiteouts", |tar, _| tar.file("x/.wh.a/.wh.b", ""));
    refused("below a file", |tar, _| tar.file("a", "").file("a/.wh..wh..opq", ""));
    refused("below a file", |tar, _| tar.file("a", "").file("a/b", ""));
}

#[test]
fn loops_of_links_end() {
    refused("find the directory", |tar, _| tar.symlink("a", "b").symlink("b", "a").file("a/x", ""));
    refused("find the directory", |tar, _| tar.symlink("a", "a").file("a/x", ""));
    refused("find the directory", |tar, _| tar.symlink("a", "a/a").file("a/x", ""));
    refused("find the directory", |tar, _| tar.symlink("a", "x/../a").file("a/x", ""));
    refused("find the target", |tar, _| tar.symlink("a", "a").hard_link("h", "a/x"));
}

#[test]
fn names_with_zero_bytes_and_empty_targets_are_refused() {
    refused("zero byte", |tar, _| tar.pax(&[("path", b"a\0b")]).file("x", ""));
    refused("zero byte", |tar, _| {
        tar.with(EntryType::GNULongName, "L", "", b"a\0b\0", |_| {}).file("x", "")
    });
    refused("zero byte", |tar, _| tar.pax(&[("linkpath", b"a\0b")]).hard_link("x", "y"));
    refused("impossible target", |tar, _| tar.pax(&[("linkpath", b"a\0b")]).symlink("x", "y"));
    refused("impossible target", |tar, _| tar.symlink("x", ""));
    refused("records", |tar, _| tar.pax(&[("SCHILY.xattr.user.a\0b", b"")]).file("x", ""));
}

#[test]
fn sizes_that_lie_and_bombs_hit_a_limit() {
    let claims = |size: u64| {
        move |tar: Tar, _: &str| {
            tar.with(EntryType::Regular, "big", "", b"small", |header| header.set_size(size))
        }
    };
    refused("more than 1048576 bytes", claims(1 << 40));
    refused("more than 1048576 bytes", claims(u64::MAX >> 2));
    refused("longer than the tar", claims(100_000));
    refused("more than 1048576 bytes", |tar, _| {
        tar.file("a", vec![0; 600_000]).file("b", vec![0; 600_000])
    });
    refused("the limit for a layer", |tar, _| {
        tar.with(EntryType::XGlobalHeader, "g", "", &vec![0; 2 << 20], |_| {})
    });
    refused("more than 1048576 bytes", |tar, _| {
        tar.pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"9000000000000000000")])
            .file("sparse", "x")
    });
    refused("size", |tar, _| tar.pax(&[("size", b"18446744073709551615")]).file("a", ""));
    refused("over 1 MiB", |tar, _| {
        tar.with(EntryType::XHeader, "x", "", &vec![b'0'; (1 << 20) + 1], |_| {}).file("a", "")
    });
    refused("over 1 MiB", |tar, _| {
        tar.with(EntryType::GNULongName, "L", "", b"a", |h| h.set_size(1 << 40)).file("a", "")
    });
    refused("more than 1000 entries", |tar, _| {
        (0..1001).fold(tar, |tar, number| tar.symlink(number.to_string(), "x"))
    });
    // Directories without entries count too.
    refused("more than 1000 entries", |tar, _| {
        (0..30).fold(tar, |tar, number| tar.file(format!("{number}/{}", "d/".repeat(45)) + "f", ""))
    });
    refused("256 directories", |tar, _| {
        tar.pax(&[("path", "d/".repeat(257).as_bytes())]).file("x", "")
    });
    refused("4095 bytes", |tar, _| {
        tar.pax(&[("path", ("d".repeat(255) + "/").repeat(17).as_bytes())]).file("x", "")
    });
    refused("failed to create", |tar, _| tar.pax(&[("path", &[b'n'; 300])]).file("x", ""));
}

#[test]
fn owners_out_of_range_and_half_headers_are_refused() {
    for id in ["4294967295", "4294967296", "99999999999"] {
        refused("32-bit", |tar, _| tar.pax(&[("uid", id.as_bytes())]).file("x", ""));
        refused("32-bit", |tar, _| tar.pax(&[("gid", id.as_bytes())]).symlink("x", "y"));
    }
    refused("uid", |tar, _| tar.pax(&[("uid", b"-1")]).file("x", ""));
    refused("two headers", |tar, _| tar.pax(&[("uid", b"1")]).pax(&[("uid", b"2")]).file("x", ""));
    refused("belongs to another", |tar, _| tar.file("x", "").pax(&[("uid", b"1")]));
}

#[test]
fn a_deep_tree_grown_through_links_is_removed_again() {
    // Each link leads 250 directories down; the depth of the names never shows it.
    let place = Place::with_limits(100_000, 1 << 20);
    let error = attack(&place, |mut tar, _| {
        let deep = "d/".repeat(250);
        tar = tar.pax(&[("path", deep.as_bytes())]).directory("x").symlink("l0", &deep[..99]);
        for level in 1..9 {
            let mut path = format!("l{}", level - 1);
            for _ in 0..200 {
                path.push_str("/d");
                tar = tar.pax(&[("path", path.as_bytes())]).directory("x");
            }
            tar = tar.pax(&[("linkpath", path.as_bytes())]).symlink(format!("l{level}"), "");
        }
        tar.file("../evil", "")
    });
    error.unwrap_err();
}

#[test]
fn tars_with_bytes_changed_at_random_end_in_order() {
    let place = Place::with_limits(1000, 1 << 20);
    let good = Tar::new()
        .directory("d/")
        .pax(&[("path", b"d/pax"), ("mtime", b"1.5"), ("GNU.sparse.map", b"0,2"), ("size", b"2")])
        .file("x", "ab")
        .with(EntryType::GNULongName, "L", "", b"d/long\0", |_| {})
        .file("y", "content")
        .symlink("d/l", "../outside/dir")
        .file("d/l/z", "")
        .hard_link("h", "d/long")
        .file("d/.wh.gone", "")
        .done();
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for _ in 0..200 {
        let mut bad = good.clone();
        for _ in 0..=random(4) {
            let position = random(bad.len());
            bad[position] = [0, b'/', b'.', b'7', 0x80, 0xff, b' ', b'\n'][random(8)];
            // Without a correct checksum no change would get far.
            let header = &mut bad[position / 512 * 512..][..512];
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let outside = place.path("outside");
        fs::create_dir_all(outside.join("dir")).unwrap();
        let before = snapshot(&outside);
        let root = tempfile::tempdir_in(place.dir.path()).unwrap();
        let expected = Expected { diff_id: Digest::of(b"any"), blob: None };
        let limits = Limits { entries: 100, bytes: 1 << 20 };
        let opened = fs::File::open(root.path()).unwrap();
        assert!(unpack(&bad[..], &expected, opened.as_fd(), limits).is_err());
        assert_eq!(snapshot(&outside), before);
    }
}
