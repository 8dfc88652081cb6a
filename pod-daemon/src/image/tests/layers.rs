//! What entries become on disk, and what overlayfs then shows.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    thread,
};

use rustix::fs::lgetxattr;
use tar::{EntryType, GnuExtSparseHeader};

use super::fixtures::*;
use crate::image::{Store, metadata::is_whiteout};

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_hidden(path: &Path) -> bool {
    rustix::fs::lstat(path).is_ok_and(|stat| is_whiteout(&stat))
}

fn is_opaque(path: &Path) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

#[test]
fn owner_mode_times_and_attributes_are_kept() {
    let place = Place::new();
    let capability =
        b"\x01\x00\x00\x02\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let tar = Tar::new()
        .with(EntryType::Directory, "./", "", b"", |header| header.set_mode(0o711))
        .with(EntryType::Directory, "tmp/", "", b"", |header| header.set_mode(0o1777))
        .with(EntryType::Regular, "tmp/su", "", b"#!", |header| {
            header.set_mode(0o6755);
            header.set_uid(1000);
            header.set_gid(1001);
        })
        .pax(&[
            ("mtime", b"1234567890.123456789"),
            ("uid", b"3000000000"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\n18 path=/etc/evil\n"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.selinux", b"system_u"),
            ("path", "tmp/ümlaut".as_bytes()),
        ])
        .file("x", "data")
        .with(EntryType::Symlink, "tmp/link", "../su", b"", |header| header.set_uid(7))
        .with(EntryType::Fifo, "tmp/fifo", "", b"", |header| header.set_mode(0o622))
        .hard_link("hard", "./tmp/su")
        .file("v7dir/", "")
        .done();

    let layer = place.unpack(&[tar]).unwrap().layers.remove(0);

    let stat = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();
    assert_eq!(stat("").mode() & 0o7777, 0o711);
    assert_eq!((stat("tmp").mode() & 0o7777, stat("tmp").mtime()), (0o1777, 1_600_000_000));
    let su = stat("tmp/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o6755, 1000, 1001));
    assert_eq!((su.mtime(), su.nlink(), su.ino()), (1_600_000_000, 2, stat("hard").ino()));
    let pax = stat("tmp/ümlaut");
    assert_eq!(
        (pax.mtime(), pax.mtime_nsec(), pax.uid()),
        (1_234_567_890, 123_456_789, 3_000_000_000)
    );
    let path = layer.join("tmp/ümlaut");
    assert_eq!(xattr(&path, "security.capability").unwrap(), capability);
    assert_eq!(xattr(&path, "user.note").unwrap(), b"a\n18 path=/etc/evil\n");
    for name in ["user.overlay.opaque", "trusted.overlay.redirect"] {
        assert_eq!(xattr(&path, name), None, "{name}");
    }
    let link = stat("tmp/link");
    assert_eq!((link.uid(), link.mtime()), (7, 1_600_000_000));
    assert_eq!(fs::read_link(layer.join("tmp/link")).unwrap(), Path::new("../su"));
    assert!(stat("tmp/fifo").file_type().is_fifo());
    assert_eq!(stat("tmp/fifo").mode() & 0o7777, 0o622);
    assert!(stat("v7dir").is_dir());
}

#[test]
fn long_names_of_either_kind_are_kept() {
    let place = Place::new();
    let long = "d/".repeat(60) + &"n".repeat(200);
    let gnu = [long.as_bytes(), b"\0"].concat();
    let tar = Tar::new()
        .with(EntryType::GNULongName, "././@LongLink", "", &gnu, |_| {})
        .file("cut", "gnu")
        .with(EntryType::GNULongLink, "././@LongLink", "", &gnu, |_| {})
        .hard_link("hard", "cut")
        .pax(&[
            ("path", [long.as_bytes(), b"-pax"].concat().as_slice()),
            ("linkpath", gnu.trim_ascii()),
        ])
        .file("cut", "pax")
        .done();
    let error = place.unpack(std::slice::from_ref(&tar));
    let layer = error.unwrap().layers.remove(0);
    assert_eq!(fs::read(layer.join(&long)).unwrap(), b"gnu");
    assert_eq!(fs::read(layer.join("hard")).unwrap(), b"gnu");
    assert_eq!(fs::read(layer.join(long + "-pax")).unwrap(), b"pax");
}

#[test]
fn a_zstd_stream_may_begin_with_a_frame_to_skip() {
    for first in [0x50, 0x5f] {
        let layer = Layer::zstd(&Tar::new().file("a", "data").done());
        let blob = [&[first, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], &layer.blob[..]].concat();
        let place = Place::new();
        let image = place.prepare(&[Layer { blob, ..layer }]).unwrap();
        assert_eq!(fs::read(image.layers[0].join("a")).unwrap(), b"data");
    }
}

#[test]
fn sparse_files_of_each_kind_have_their_holes() {
    const HOLE: u64 = 1 << 30;
    let map = format!("2\n0\n3\n{HOLE}\n4\n");
    let mut in_data = map.into_bytes();
    in_data.resize(512, 0);
    in_data.extend_from_slice(b"abcdefg");
    let size = (HOLE + 4096).to_string();
    let size = size.as_bytes();
    let old = || {
        let octal = |field: &mut [u8; 12], number: u64| {
            field[..11].copy_from_slice(format!("{number:011o}").as_bytes());
        };
        let mut extended = GnuExtSparseHeader::new();
        octal(&mut extended.sparse[0].offset, HOLE);
        octal(&mut extended.sparse[0].numbytes, 4);
        // The extension stands between header and data, and is not part of either's size.
        let stored = [extended.as_bytes(), &b"abcdefg"[..]].concat();
        let mut tar = Tar::new()
            .with(EntryType::GNUSparse, "old", "", &stored, |header| {
                header.set_size(7);
                let gnu = header.as_gnu_mut().unwrap();
                octal(&mut gnu.sparse[0].offset, 0);
                octal(&mut gnu.sparse[0].numbytes, 3);
                octal(&mut gnu.realsize, HOLE + 4096);
                gnu.isextended[0] = 1;
            })
            .done();
        tar.truncate(3 * 512);
        tar
    };
    let pax = Tar::new()
        .pax(&[("GNU.sparse.map", format!("0,3,{HOLE},4").as_bytes()), ("GNU.sparse.size", size)])
        .file("v0.1", "abcdefg")
        .pax(&[
            ("GNU.sparse.size", size),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", HOLE.to_string().as_bytes()),
            ("GNU.sparse.numbytes", b"4"),
        ])
        .file("v0.0", "abcdefg")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"v1.0"),
            ("GNU.sparse.realsize", size),
        ])
        .file("GNUSparseFile.0/v1.0", in_data)
        .done();

    let layer = Place::new();
    let layer_dir = layer.unpack(&[[old(), pax].concat()]).unwrap().layers.remove(0);

    for name in ["old", "v0.1", "v0.0", "v1.0"] {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::open(layer_dir.join(name)).unwrap();
        let (mut start, mut end) = ([0; 5], [0; 6]);
        file.read_exact_at(&mut start, 0).unwrap();
        file.read_exact_at(&mut end, HOLE - 1).unwrap();
        assert_eq!((&start, &end), (b"abc\0\0", b"\0defg\0"), "{name}");
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.size(), HOLE + 4096, "{name}");
        assert!(metadata.blocks() < 1000, "{name} has no hole");
    }
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = Place::new();
    let tar = Tar::new()
        .file("a", "1")
        .hard_link("b", "a")
        .file("a", "2")
        .directory("d/")
        .file("d/x/y", "")
        .file("d", "file")
        .symlink("l", "/nowhere")
        .directory("l/")
        .file("l/in", "")
        .directory("keep/")
        .file("keep/in", "")
        .directory("keep/")
        .hard_link("b", "b")
        .done();
    let layer = place.unpack(&[tar]).unwrap().layers.remove(0);
    assert_eq!(fs::read(layer.join("a")).unwrap(), b"2");
    assert_eq!(fs::read(layer.join("b")).unwrap(), b"1");
    assert_eq!(fs::read(layer.join("d")).unwrap(), b"file");
    assert!(layer.join("l/in").exists() && layer.join("keep/in").exists());
}

#[test]
fn whiteouts_become_overlayfs_own_in_either_order() {
    let place = Place::new();
    let lower = Tar::new()
        .file("gone", "")
        .file("dir/old", "")
        .file("first/old", "")
        .file("last/old", "")
        .file("implicit/old", "")
        .file("swapped", "old")
        .file("d/gone", "")
        .done();
    let upper = Tar::new()
        .file(".wh.gone", "")
        .file(".wh.never-was", "")
        .file("dir/.wh..wh..opq", "")
        .file("dir/new", "")
        .file("dir/.wh.old", "")
        .file(".wh.first", "")
        .directory("first/")
        .directory("last/")
        .file(".wh.last", "")
        .file(".wh.implicit", "")
        .file("implicit/new", "")
        .file(".wh.swapped", "")
        .file("swapped", "new")
        .file("d/.wh.gone", "")
        .file(".wh..wh.plnk/1.2", "")
        .file(".wh..wh.aufs", "")
        .done();

    let image = place.unpack(&[lower, upper]).unwrap();

    let layer = &image.layers[1];
    assert!(is_hidden(&layer.join("gone")) && is_hidden(&layer.join("d/gone")));
    for directory in ["dir", "first", "last", "implicit"] {
        assert!(is_opaque(&layer.join(directory)), "{directory}");
        assert!(!is_hidden(&layer.join(directory).join("old")), "{directory}");
    }
    let mut names: Vec<_> =
        fs::read_dir(layer).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d", "dir", "first", "gone", "implicit", "last", "swapped"]);
    shown(&image.layers, |root| {
        for name in ["gone", "d/gone", "dir/old", "first/old", "last/old", "implicit/old"] {
            assert!(!root.join(name).exists(), "{name}");
        }
        assert_eq!(fs::read(root.join("swapped")).unwrap(), b"new");
        assert_eq!(fs::read_dir(root.join("dir")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root).unwrap().count(), 6);
    });
}

#[test]
fn an_opaque_root_hides_all_below() {
    let place = Place::new();
    let lower = Tar::new().file("a", "").file("d/old", "").file("f", "old").done();
    let upper = Tar::new().file("d/new", "").file("f", "new").file(".wh..wh..opq", "").done();
    let image = place.unpack(&[lower, upper]).unwrap();
    shown(&image.layers, |root| {
        assert!(!root.join("a").exists() && !root.join("d/old").exists());
        assert!(root.join("d/new").exists());
        assert_eq!(fs::read(root.join("f")).unwrap(), b"new");
    });
}

#[test]
fn a_directory_without_an_entry_looks_as_it_does_below() {
    let place = Place::new();
    let lower = Tar::new()
        .with(EntryType::Directory, "tmp/", "", b"", |header| header.set_mode(0o1777))
        .with(EntryType::Directory, "home/", "", b"", |header| {
            header.set_mode(0o700);
            header.set_uid(1000);
        })
        .done();
    let upper = Tar::new().file("tmp/a/b", "").file("home/x", "").directory("home/y").done();
    let image = place.unpack(&[lower, upper]).unwrap();
    let stat = |name: &str| fs::symlink_metadata(image.layers[1].join(name)).unwrap();
    assert_eq!(stat("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(stat("tmp/a").mode() & 0o7777, 0o755);
    assert_eq!((stat("home").mode() & 0o7777, stat("home").uid()), (0o700, 1000));
    assert_eq!(stat("home").mtime(), 1_600_000_000);
}

#[test]
fn what_an_interrupted_unpack_left_is_removed_and_what_another_makes_is_not() {
    let place = Place::new();
    let image = place.unpack(&[Tar::new().file("a", "").done()]).unwrap();
    let store = place.path("store");
    fs::create_dir_all(store.join("tmp/1-1/root/deep/er")).unwrap();
    fs::create_dir_all(store.join("tmp/1-2/root")).unwrap();
    fs::write(store.join("tmp/9.scratch"), "").unwrap();
    fs::write(store.join("records/000000000000.json"), "{}").unwrap();
    let at_work = fs::File::open(store.join("tmp/1-2")).unwrap();
    at_work.lock().unwrap();

    Store::open(&store).unwrap();

    assert_eq!(place.counts(), [1, 1, 1]);
    assert!(store.join("tmp/1-2/root").exists());
    assert!(image.layers[0].join("a").exists());
    assert_eq!(fs::metadata(store).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn layers_whose_short_ids_collide_get_longer_ones() {
    let place = Place::new();
    let tar = Tar::new().file("a", "").done();
    let layer = Layer::plain(tar);
    let short = &layer.diff_id.hex()[..12];
    fs::create_dir(place.path("store/layers").join(short)).unwrap();
    let image = place.prepare(std::slice::from_ref(&layer)).unwrap();
    assert_eq!(image.layers[0].file_name().unwrap().to_str(), Some(&layer.diff_id.hex()[..16]));
    assert_eq!(place.prepare(&[layer]).unwrap(), image);
}

/// Mounts the layers in a mount namespace that ends with its thread.
fn shown(layers: &[std::path::PathBuf], check: impl FnOnce(&Path) + Send) {
    use nix::{mount, sched};
    let target = tempfile::tempdir().unwrap();
    let lower: Vec<_> = layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    thread::scope(|scope| {
        let mounted = scope.spawn(|| {
            sched::unshare(sched::CloneFlags::CLONE_NEWNS).unwrap();
            let flags = mount::MsFlags::MS_REC | mount::MsFlags::MS_PRIVATE;
            mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
            let flags = mount::MsFlags::MS_RDONLY;
            mount::mount(Some("image"), target.path(), Some("overlay"), flags, Some(&*options))
                .unwrap();
            check(target.path());
        });
        mounted.join().unwrap();
    });
}
