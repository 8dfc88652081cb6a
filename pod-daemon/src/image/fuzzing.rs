//! Doors for the fuzz targets.

use std::{fs, os::fd::AsFd as _};

use super::{
    config,
    digest::Digest,
    docker,
    files::Files,
    layout, records,
    unpack::{self, Expected, Limits},
};

/// So little that each run is short.
const LIMITS: Limits = Limits { entries: 64, bytes: 1 << 20 };

/// Unpacks `bytes` as a layer.
///
/// # Panics
/// When something was written beside the layer's directory.
pub fn layer(bytes: &[u8]) {
    let Ok(place) = tempfile::tempdir() else { return };
    let path = place.path().join("layer");
    fs::create_dir(&path).expect("make the layer's directory");
    let root = fs::File::open(&path).expect("open the layer's directory");
    let expected = Expected { diff_id: Digest::of(bytes), blob: None };
    // To be refused is fine.
    drop(unpack::unpack(bytes, &expected, root.as_fd(), LIMITS));
    let beside = fs::read_dir(place.path()).expect("list the place").count();
    assert_eq!(beside, 1, "something was written outside the layer");
}

/// Reads `bytes` as an archive of an image, and as each of the documents that describe one.
pub fn metadata(bytes: &[u8]) {
    drop(config::Document::parse(bytes));
    drop(serde_json::from_slice::<records::Record>(bytes));
    let Ok(place) = tempfile::tempdir() else { return };
    for name in ["index.json", "manifest.json"] {
        fs::write(place.path().join(name), bytes).expect("write the document");
    }
    let directory = Files::in_directory("fuzz".to_owned(), place.path());
    drop(layout::find(&directory, None));
    drop(docker::find(&directory, None));

    let archive = place.path().join("archive");
    fs::write(&archive, bytes).expect("write the archive");
    let scratch = || Ok(tempfile::tempfile().expect("make an unnamed file"));
    if let Ok(files) = Files::in_tar("fuzz".to_owned(), &archive, scratch, LIMITS) {
        drop(layout::find(&files, None));
        drop(docker::find(&files, None));
    }
}
