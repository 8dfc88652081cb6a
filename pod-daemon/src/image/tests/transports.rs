//! Where images come from, how one of several is chosen, and what is verified.

use std::{fs, path::Path, sync::Barrier, thread};

use serde_json::json;

use super::fixtures::*;
use crate::image::{Image, Reference, Store, config::architecture, digest::Digest};

/// A tar of a directory tree, last names first, as no tool writes it.
fn tar_of(directory: &Path) -> Vec<u8> {
    fn add(tar: Tar, directory: &Path, below: &str) -> Tar {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().rev().fold(tar, |tar, name| {
            let path = directory.join(&name);
            let name = format!("{below}/{}", name.display());
            match path.is_dir() {
                true => add(tar, &path, &name),
                false => tar.file(name, fs::read(path).unwrap()),
            }
        })
    }
    add(Tar::new(), directory, ".").done()
}

#[test]
fn a_directory_is_its_own_layer() {
    let place = Place::new();
    fs::create_dir(place.path("rootfs")).unwrap();
    let reference = Reference::Dir(place.path("rootfs"));

    let image = place.prepare_reference(&reference).unwrap();

    assert_eq!(image.id, reference.to_string());
    assert_eq!(image.layers, [place.path("rootfs")]);
    let error = place.prepare_reference(&Reference::Dir(place.path("none"))).unwrap_err();
    assert!(error.contains("none"), "{error}");
}

#[test]
fn a_layout_is_unpacked_once() {
    let place = Place::new();
    let layout = place.path("layout");
    write_layout(&layout, &[&two_layers()]);
    let reference = Reference::Oci { dir: layout.clone(), tag: None };

    let image = place.prepare_reference(&reference).unwrap();
    assert_is_two_layers(&image);
    assert_eq!(place.counts(), [2, 2, 0]);

    // Without the layers' blobs there is nothing that could be unpacked again.
    for layer in two_layers() {
        fs::remove_file(layout.join("blobs/sha256").join(Digest::of(&layer.blob).hex())).unwrap();
    }
    assert_eq!(place.prepare_reference(&reference).unwrap(), image);
    let reopened = Store::open(&place.path("store")).unwrap();
    assert_eq!(reopened.prepare(&reference).unwrap(), image);
}

#[test]
fn an_archive_is_read_where_it_is_in_any_order_and_compression() {
    let layout = tempfile::tempdir().unwrap();
    write_layout(layout.path(), &[&two_layers()]);
    let tar = tar_of(layout.path());
    for bytes in [gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap(), tar] {
        let place = Place::new();
        let file = place.path("image.tar");
        fs::write(&file, bytes).unwrap();
        let reference = Reference::OciArchive { file: file.clone(), tag: None };

        assert_is_two_layers(&place.prepare_reference(&reference).unwrap());

        assert_eq!(place.counts(), [2, 2, 0]);
        let reference = Reference::DockerArchive { file, tag: None };
        let error = place.prepare_reference(&reference).unwrap_err();
        assert!(error.contains("use oci-archive:"), "{error}");
    }
}

#[test]
fn an_unchanged_archive_is_not_read_again_and_a_changed_one_is() {
    let place = Place::new();
    let file = place.path("image.tar");
    let write = |layers: &[Layer]| {
        let layout = tempfile::tempdir().unwrap();
        write_layout(layout.path(), &[layers]);
        fs::write(&file, tar_of(layout.path())).unwrap();
    };
    let reference = Reference::OciArchive { file: file.clone(), tag: None };
    write(&two_layers());
    let first = place.prepare_reference(&reference).unwrap();
    // Just written, so the time of a change could not be told from it.
    assert_eq!(place.store.known(&reference).unwrap(), None);

    thread::sleep(std::time::Duration::from_millis(2100));
    assert_eq!(place.prepare_reference(&reference).unwrap(), first);
    assert_eq!(place.store.known(&reference).unwrap(), Some(first.clone()));

    write(&two_layers()[..1]);
    assert_eq!(place.store.known(&reference).unwrap(), None);
    assert_eq!(place.prepare_reference(&reference).unwrap().layers, first.layers[..1]);
}

#[test]
fn a_tag_or_a_platform_picks_the_image() {
    let place = Place::new();
    let layout = place.path("layout");
    let layers = two_layers();
    let platform = |mut descriptor: serde_json::Value, os: &str, architecture: &str| {
        descriptor["platform"] = json!({"os": os, "architecture": architecture});
        descriptor
    };
    let one = add_image(&layout, &layers[..1]);
    let both = add_image(&layout, &layers);
    let nested = index(&[
        platform(one.clone(), "linux", "s390x"),
        platform(both.clone(), "linux", architecture()),
        platform(one.clone(), "unknown", "unknown"),
    ]);
    let foreign = index(&[platform(one.clone(), "windows", "amd64")]);
    let nested = add_blob(&layout, INDEX, &nested);
    let foreign = add_blob(&layout, INDEX, &foreign);
    let top = index(&[tagged(nested, "latest"), tagged(one, "v1"), tagged(foreign, "win")]);
    fs::write(layout.join("index.json"), top).unwrap();
    let prepare = |tag: Option<&str>| {
        let tag = tag.map(Into::into);
        place.prepare_reference(&Reference::Oci { dir: layout.clone(), tag })
    };

    assert_is_two_layers(&prepare(Some("latest")).unwrap());
    assert_eq!(prepare(Some("v1")).unwrap().layers.len(), 1);
    for (tag, problem) in [
        (None, "several images; add one of its tags: latest, v1, win".to_owned()),
        (Some("v2"), r#"no tag "v2"; it has: latest, v1, win"#.to_owned()),
        (Some("win"), format!("no image for linux/{}; it has: windows/amd64", architecture())),
    ] {
        let error = prepare(tag).unwrap_err();
        assert!(error.contains(&problem), "{error}");
    }
}

#[test]
fn of_several_variants_of_a_platform_the_least_is_taken() {
    let layers = two_layers();
    let least = LEAST[usize::from(architecture() != "amd64")];
    for (first, second) in [("v9", None), ("v3", Some("v2")), ("v2", Some(least))] {
        let place = Place::new();
        let layout = place.path("layout");
        let for_variant = |mut descriptor: serde_json::Value, variant: Option<&str>| {
            descriptor["platform"] =
                json!({"os": "linux", "architecture": architecture(), "variant": variant});
            if variant.is_none() {
                descriptor["platform"].as_object_mut().unwrap().remove("variant");
            }
            descriptor
        };
        let special = for_variant(add_image(&layout, &layers[..1]), Some(first));
        let usual = for_variant(add_image(&layout, &layers), second);
        // And once more, as in another compression.
        let again = for_variant(add_image(&layout, &layers[1..]), second);
        fs::write(layout.join("index.json"), index(&[special, usual, again])).unwrap();
        let reference = Reference::Oci { dir: layout, tag: None };
        assert_is_two_layers(&place.prepare_reference(&reference).unwrap());
    }
}

/// The least variants of amd64 and arm64.
const LEAST: [&str; 2] = ["v1", "v8"];

#[test]
fn a_document_of_two_kinds_is_refused() {
    let descriptor =
        json!({"mediaType": MANIFEST, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1});
    let kinds = [
        json!({"schemaVersion": 2, "config": descriptor, "layers": [], "manifests": []}),
        json!({"schemaVersion": 2, "mediaType": INDEX, "config": descriptor, "layers": []}),
        json!({"schemaVersion": 1, "config": descriptor, "layers": []}),
        json!({"schemaVersion": 2, "manifests": [descriptor]}),
        json!([]),
    ];
    for kind in kinds {
        let place = Place::new();
        let layout = place.path("layout");
        let manifest = add_blob(&layout, MANIFEST, &serde_json::to_vec(&kind).unwrap());
        fs::write(layout.join("index.json"), index(&[manifest])).unwrap();
        let error =
            place.prepare_reference(&Reference::Oci { dir: layout, tag: None }).unwrap_err();
        let named = error.contains("is not an image manifest")
            || error.contains("says it is of type")
            || error.contains("failed to parse blobs/sha256/");
        assert!(named, "{error}");
    }
    let place = Place::new();
    let layers =
        [two_layers().remove(0).media_type("application/vnd.oci.image.layer.v1.tar+encrypted")];
    let error = place.prepare(&layers).unwrap_err();
    assert!(error.contains("+encrypted is not supported"), "{error}");
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_and_nothing_is_left() {
    let layout = tempfile::tempdir().unwrap();
    write_layout(layout.path(), &[&two_layers()]);
    let blobs = layout.path().join("blobs/sha256");
    let mut seen = 0;
    for blob in fs::read_dir(&blobs).unwrap() {
        let path = blob.unwrap().path();
        let good = fs::read(&path).unwrap();
        for position in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[position] ^= 1;
            fs::write(&path, bad).unwrap();
            let place = Place::new();
            let reference = Reference::Oci { dir: layout.path().into(), tag: None };
            place.prepare_reference(&reference).unwrap_err();
            let [layers, records, tmp] = place.counts();
            // The layer below the bad one may stay; it is whole.
            assert!(layers <= 1 && records == layers && tmp == 0);
            seen += 1;
        }
        for bad in [&good[..good.len() - 1], &[&good[..], b"x"].concat()] {
            fs::write(&path, bad).unwrap();
            let reference = Reference::Oci { dir: layout.path().into(), tag: None };
            Place::new().prepare_reference(&reference).unwrap_err();
        }
        fs::write(&path, good).unwrap();
    }
    assert_eq!(seen, 12);
}

#[test]
fn a_layer_with_another_diff_id_is_refused() {
    let place = Place::new();
    let mut layers = two_layers();
    layers[0].diff_id = Digest::of(b"another");
    let error = place.prepare(&layers).unwrap_err();
    assert!(error.contains("uncompressed digest should be sha256:"), "{error}");
    assert_eq!(place.counts(), [0, 0, 0]);
}

#[test]
fn images_share_their_layers_and_threads_wait_for_each_other() {
    let place = Place::new();
    let big = vec![7; 8 << 20];
    let shared = Layer::gzip(&Tar::new().file("big", &big).done());
    let (a, b) = (Tar::new().file("a", "").done(), Tar::new().file("b", "").done());
    let images = [[shared.clone(), Layer::plain(a)], [shared, Layer::plain(b)]];
    let references: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(number, layers)| {
            let dir = place.path(&number.to_string());
            write_layout(&dir, &[layers]);
            Reference::Oci { dir, tag: None }
        })
        .collect();
    let barrier = Barrier::new(8);

    let prepared: Vec<Image> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let (barrier, reference) = (&barrier, &references[number % 2]);
                let store = &place.store;
                scope.spawn(move || {
                    barrier.wait();
                    store.prepare(reference).unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    assert_eq!(place.counts(), [3, 3, 0]);
    assert!(prepared.iter().all(|image| image.layers[0] == prepared[0].layers[0]));
    assert_eq!(fs::read(prepared[0].layers[0].join("big")).unwrap(), big);
    assert!(prepared[0].layers[1].join("a").exists() && prepared[1].layers[1].join("b").exists());
    // Ids are short, for overlayfs takes one page for all of them.
    assert_eq!(prepared[0].layers[0].file_name().unwrap().len(), 12);
}
