//! What there is, and how it goes: removed, pruned, collected, loaded.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use serde_json::json;

use super::fixtures::{
    Layer, Place, Tar, add_image, assert_is_two_layers, config, index, tagged, two_layers,
    write_layout,
};
use crate::image::{
    Image, ImageSize, Images, Phase, Progress, PullPolicy, Reference, Settings, Sizes, Store,
    Summary, Thresholds, Usage, digest::Digest, progress::short,
};

const FULL: Usage = Usage { capacity: 1_000_000, available: 100_000 };

fn thresholds() -> Thresholds {
    Thresholds { minimum_age: Duration::ZERO, ..Thresholds::default() }
}

fn images(place: &Place) -> Images {
    Images::new(Store::open(&place.path("store")).unwrap(), Settings::default())
}

/// An image in a layout of its own, with `size` bytes above layers that all share.
fn image(place: &Place, name: &str, size: usize) -> (Reference, Image) {
    let upper = Tar::new().file(name, vec![1; size]).done();
    let dir = place.path(name);
    write_layout(&dir, &[&[two_layers().remove(0), Layer::gzip(&upper)]]);
    let reference = Reference::Oci { dir, tag: None };
    let image = place.prepare_reference(&reference).unwrap();
    (reference, image)
}

fn names(images: &Images) -> Vec<String> {
    images.store().list().unwrap().into_iter().map(|image| image.reference).collect()
}

fn find(images: &Images, text: &str) -> Vec<Summary> {
    images.store().find_all(text).unwrap()
}

#[test]
fn images_are_found_by_name_and_by_the_beginning_of_their_id() {
    let place = Place::new();
    let (reference, one) = image(&place, "one", 1000);
    image(&place, "two", 1000);
    let images = images(&place);
    let found = find(&images, &reference.to_string());
    assert_eq!((found.len(), &found[0].id), (1, &one.id));
    assert_eq!(found[0].layers, one.layers);
    assert!(found[0].bytes >= 1000 && found[0].bytes < 2000, "{}", found[0].bytes);
    assert_eq!(find(&images, &one.id)[0].id, one.id);
    assert_eq!(find(&images, &one.id["sha256:".len()..][..8])[0].id, one.id);
    assert!(find(&images, "nothing").is_empty());
    let totals = images.totals();
    assert_eq!(totals.sizes.count, 2);
    assert!((2000..3000).contains(&totals.sizes.bytes()), "{}", totals.sizes.bytes());
}

#[test]
fn sizes_say_what_images_share() {
    let place = Place::new();
    let (one, _) = image(&place, "one", 1000);
    let (two, _) = image(&place, "two", 3000);
    let images = images(&place);
    let sizes = images.totals().sizes;
    let shared = sizes.bytes() - 4000;
    assert!(shared > 0);
    let all = |sizes: &Sizes| {
        let images = sizes.images.iter();
        let image = |image: &ImageSize| (image.reference.clone(), image.bytes, image.unique_bytes);
        images.map(image).collect::<Vec<_>>()
    };
    assert_eq!(
        all(&sizes),
        [(two.to_string(), 3000 + shared, 3000), (one.to_string(), 1000 + shared, 1000)]
    );
    let layers: Vec<_> = sizes.layers.iter().map(|layer| layer.bytes).collect();
    assert_eq!(layers, [3000, 1000, shared]);
    // As `podctl image list` has them.
    let listed = images.store().list().unwrap();
    assert!(sizes.images.iter().all(|size| {
        listed.iter().any(|image| (&image.reference, image.bytes) == (&size.reference, size.bytes))
    }));

    images.remove(&find(&images, &two.to_string())[0]).unwrap();
    let sizes = images.totals().sizes;
    assert_eq!(all(&sizes), [(one.to_string(), 1000 + shared, 1000 + shared)]);
}

#[test]
fn what_goes_leaves_the_layers_of_others() {
    let place = Place::new();
    let (one, first) = image(&place, "one", 1000);
    let (_, second) = image(&place, "two", 1000);
    let images = images(&place);
    assert_eq!(first.layers[0], second.layers[0]);

    images.remove(&find(&images, &one.to_string())[0]).unwrap();

    assert!(first.layers[0].exists() && !first.layers[1].exists() && second.layers[1].exists());
    assert_eq!(place.counts(), [2, 2, 0]);
    assert_eq!(images.totals().sizes.count, 1);
    // It can be had again.
    assert_eq!(place.prepare_reference(&one).unwrap(), first);
}

#[tokio::test]
async fn pruning_spares_what_pods_use_and_all_names_unless_asked() {
    let place = Place::new();
    let (one, first) = image(&place, "one", 1000);
    image(&place, "two", 1000);
    let images = images(&place);
    assert_eq!(images.prune(false, HashSet::new()).await.unwrap(), (0, 0));
    let (count, bytes) = images.prune(true, [first.id.clone()].into()).await.unwrap();
    assert_eq!(count, 1);
    assert!(bytes >= 1000);
    assert_eq!(names(&images), [one.to_string()]);
    assert_eq!(place.prepare_reference(&one).unwrap(), first);
}

#[test]
fn a_full_disk_costs_the_images_unused_for_longest() {
    let place = Place::new();
    let all: Vec<_> =
        ["a", "b", "c", "d"].map(|name| image(&place, name, 60_000)).into_iter().collect();
    let images = images(&place);
    // `a` is used, `c` was used last, and `b` before `d`.
    for (name, age) in [("a", 9000), ("b", 5000), ("d", 4000), ("c", 10)] {
        set_used(&place, &images, &place.path(name).display().to_string(), age);
    }
    let in_use = HashSet::from([all[0].1.id.clone()]);

    let room = Usage { available: 160_000, ..FULL };
    images.collect(room, thresholds(), &in_use).unwrap();
    assert_eq!(names(&images).len(), 4, "the disk is not full");
    let young = Thresholds { minimum_age: Duration::from_secs(20_000), ..thresholds() };
    images.collect(FULL, young, &in_use).unwrap();
    assert_eq!(names(&images).len(), 4, "all are too young");
    // 100,000 bytes must go, which two images have.
    images.collect(FULL, thresholds(), &in_use).unwrap();
    let left = names(&images);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].ends_with("/a") && left[1].ends_with("/c"), "{left:?}");
    let totals = images.totals();
    assert_eq!((totals.collections, totals.collected_images), (2, 2));
    assert!(totals.collected_bytes >= 120_000);
    // What is used stays however full the disk is.
    images.collect(Usage { available: 0, ..FULL }, thresholds(), &in_use).unwrap();
    assert!(names(&images)[0].ends_with("/a"));
    assert!(all[0].1.layers.iter().all(|layer| layer.exists()));
}

#[test]
fn collecting_removes_layers_and_blobs_that_nobody_has() {
    let place = Place::new();
    let (reference, _) = image(&place, "one", 1000);
    let images = images(&place);
    // As a crash between the last layer and the record leaves it.
    for record in fs::read_dir(place.path("store/images")).unwrap() {
        fs::remove_file(record.unwrap().path()).unwrap();
    }
    let partial = place.path("store/blobs/sha256").join(format!("{}.partial", "0".repeat(64)));
    fs::write(&partial, "x").unwrap();
    // Somebody might use them whose record got lost.
    let lost = HashSet::from([format!("sha256:{}", "1".repeat(64))]);
    images.collect(FULL, thresholds(), &lost).unwrap();
    assert_eq!(place.counts(), [2, 2, 0]);
    assert!(!partial.exists());
    images.collect(FULL, thresholds(), &HashSet::new()).unwrap();
    assert_eq!(place.counts(), [0, 0, 0]);
    place.prepare_reference(&reference).unwrap();
}

#[tokio::test]
async fn pruning_removes_what_broken_pulls_have_left() {
    let place = Place::new();
    image(&place, "broken", 1000);
    let images = images(&place);
    for record in fs::read_dir(place.path("store/images")).unwrap() {
        fs::remove_file(record.unwrap().path()).unwrap();
    }
    let (reference, kept) = image(&place, "kept", 1000);
    // Somebody might use them whose record got lost.
    let lost = HashSet::from([kept.id.clone(), format!("sha256:{}", "1".repeat(64))]);
    assert_eq!(images.prune(false, lost).await.unwrap(), (0, 0));
    assert_eq!(place.counts(), [3, 3, 0]);

    let (count, bytes) = images.prune(false, HashSet::from([kept.id.clone()])).await.unwrap();

    assert!(count == 0 && bytes >= 1000, "{count} {bytes}");
    assert_eq!(place.counts(), [2, 2, 0]);
    assert_eq!(place.prepare_reference(&reference).unwrap(), kept);
}

#[test]
fn a_layer_that_cannot_be_removed_does_not_save_the_others() {
    let place = Place::new();
    let (_, stuck) = image(&place, "stuck", 60_000);
    let (_, other) = image(&place, "other", 60_000);
    let images = images(&place);
    let lock = fs::File::open(&stuck.layers[1]).unwrap();
    lock.lock().unwrap();

    images.collect(Usage { available: 0, ..FULL }, thresholds(), &HashSet::new()).unwrap();

    assert!(names(&images).is_empty());
    assert!(stuck.layers[1].exists() && !stuck.layers[0].exists() && !other.layers[1].exists());
    drop(lock);
    images.collect(FULL, thresholds(), &HashSet::new()).unwrap();
    assert_eq!(place.counts(), [0, 0, 0]);
}

#[test]
fn nobody_waits_for_the_files_of_a_layer_that_goes() {
    let place = Place::new();
    let (reference, image) = image(&place, "one", 1000);
    for record in fs::read_dir(place.path("store/images")).unwrap() {
        fs::remove_file(record.unwrap().path()).unwrap();
    }
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let mut inodes: Vec<_> = image.layers.iter().map(|layer| inode(layer)).collect();

    let taken = place.store.take_layers(|_| true).unwrap();

    // A full disk has no room for another directory to move them to.
    let tmp = fs::read_dir(place.path("store/tmp")).unwrap();
    let mut moved: Vec<_> = tmp.map(|entry| inode(&entry.unwrap().path())).collect();
    inodes.sort_unstable();
    moved.sort_unstable();
    assert_eq!(moved, inodes);
    assert_eq!(place.counts(), [0, 0, 2]);
    // The layers can be pinned and made again meanwhile, and another daemon leaves the old alone.
    assert!(place.store.pinned.try_lock().is_ok());
    Store::open(&place.path("store")).unwrap();
    assert_eq!(place.prepare_reference(&reference).unwrap(), image);
    assert_eq!(place.counts(), [2, 2, 2]);
    for (gone, _) in taken {
        gone.delete().unwrap();
    }
    assert_eq!(place.counts(), [2, 2, 0]);
    assert_eq!(fs::read(image.layers[1].join("one")).unwrap().len(), 1000);
}

#[tokio::test]
async fn archives_are_loaded_under_their_names() {
    let place = Place::new();
    let images = images(&place);
    let layout = place.path("layout");
    let one = tagged(add_image(&layout, &two_layers()), "registry.example/app:v1");
    let two = tagged(add_image(&layout, &two_layers()[..1]), "other:v2");
    fs::write(layout.join("index.json"), index(&[one, two])).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = place.path("archive.tar");
    let mut tar = tar::Builder::new(fs::File::create(&archive).unwrap());
    tar.append_dir_all(".", &layout).unwrap();
    tar.into_inner().unwrap();

    let loaded = images.load(&archive, None, Progress::default()).await.unwrap();
    assert_eq!(loaded, ["registry.example/app:v1", "docker.io/library/other:v2"]);
    let name: Reference = "registry.example/app:v1".parse().unwrap();
    let image = images.ensure(&name, PullPolicy::IfNotPresent, &[]).await.unwrap();
    assert_is_two_layers(&image);
    // It does not need the archive any more.
    fs::remove_file(&archive).unwrap();
    assert_eq!(images.ensure(&name, PullPolicy::Never, &[]).await.unwrap(), image);
}

#[tokio::test]
async fn images_without_a_name_do_not_keep_the_others_from_being_loaded() {
    let place = Place::new();
    let images = images(&place);
    let layers = [two_layers(), two_layers()[..1].to_vec(), two_layers()[1..].to_vec()];
    for number in 1..=2 {
        let layout = place.path(&format!("layout-{number}"));
        let named = tagged(add_image(&layout, &layers[0]), "registry.example/app:v1");
        // One that has a name elsewhere is not missed.
        let mut all = vec![add_image(&layout, &layers[0]), named];
        all.extend(layers[1..=number].iter().map(|layers| add_image(&layout, layers)));
        fs::write(layout.join("index.json"), index(&all)).unwrap();
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let archive = place.path("archive.tar");
        let mut tar = tar::Builder::new(fs::File::create(&archive).unwrap());
        tar.append_dir_all(".", &layout).unwrap();
        tar.into_inner().unwrap();

        let progress = Progress::default();
        let told = progress.listen();
        let loaded = images.load(&archive, None, progress).await.unwrap();

        assert_eq!(loaded, ["registry.example/app:v1"]);
        let skipped: Vec<_> = told
            .borrow()
            .iter()
            .filter(|layer| layer.phase == Phase::Skipped)
            .map(|image| image.id.clone())
            .collect();
        let ids = layers[1..=number].iter().map(|layers| short(&Digest::of(&config(layers))));
        assert_eq!(skipped, ids.collect::<Vec<_>>());
        // A name is for one image, whichever.
        let name = Some("local/app:v1".parse().unwrap());
        let error = images.load(&archive, name, Progress::default()).await.unwrap_err();
        assert!(error.to_string().contains("several images"), "{error}");
    }
}

#[tokio::test]
async fn an_archive_of_docker_is_loaded_without_its_images_that_have_no_name() {
    let place = Place::new();
    let images = images(&place);
    let archive = place.path("docker.tar");
    let mut tar = Tar::new();
    let mut items = Vec::new();
    for (number, tags) in [json!(["app:v1"]), json!(null)].into_iter().enumerate() {
        let layer = Layer::plain(Tar::new().file(number.to_string(), "").done());
        let names = [format!("{number}-config"), format!("{number}.tar")];
        tar = tar.file(&names[0], config(std::slice::from_ref(&layer))).file(&names[1], layer.blob);
        items.push(json!({"Config": names[0], "RepoTags": tags, "Layers": [names[1]]}));
    }
    let tar = tar.file("manifest.json", json!(items).to_string()).done();
    fs::write(&archive, tar).unwrap();
    let loaded = images.load(&archive, None, Progress::default()).await.unwrap();
    assert_eq!(loaded, ["docker.io/library/app:v1"]);
}

#[tokio::test]
async fn an_archive_whose_image_has_no_name_needs_one() {
    let place = Place::new();
    let images = images(&place);
    let layout = place.path("layout");
    write_layout(&layout, &[&two_layers()]);
    let archive = place.path("archive.tar");
    let mut tar = tar::Builder::new(fs::File::create(&archive).unwrap());
    tar.append_dir_all(".", &layout).unwrap();
    tar.into_inner().unwrap();
    let error = images.load(&archive, None, Progress::default()).await.unwrap_err();
    assert!(error.to_string().contains("--name"), "{error}");
    let name = "local/app:v1".parse().unwrap();
    let loaded = images.load(&archive, Some(name), Progress::default()).await.unwrap();
    assert_eq!(loaded, ["docker.io/local/app:v1"]);
    assert!(json!(names(&images)).to_string().contains("local/app"));
}

/// Pretends that the images with this in their name were last used so many seconds ago.
fn set_used(place: &Place, images: &Images, part: &str, age: u64) {
    for entry in fs::read_dir(place.path("store/images")).unwrap() {
        let path = entry.unwrap().path();
        let mut record: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if record["reference"].as_str().unwrap().ends_with(part) {
            record["since"] = 1.into();
            fs::write(&path, record.to_string()).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
    }
    assert!(!images.store().list().unwrap().is_empty());
}
