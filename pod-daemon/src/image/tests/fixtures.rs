//! Tars and images, written byte by byte where the `tar` crate would not write them.

use std::{
    error::Error as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use crate::image::{Config, Image, Limits, Reference, Store, config::architecture, digest::Digest};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A tar in the making, whose names are taken as they are.
pub(super) struct Tar(Builder<Vec<u8>>);

/// A layer, compressed or not.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) diff_id: Digest,
    pub(super) blob: Vec<u8>,
    pub(super) media_type: String,
}

/// A store in a directory of its own, and room beside it.
pub(super) struct Place {
    pub(super) dir: TempDir,
    pub(super) store: Store,
}

impl Tar {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(super) fn with(
        mut self,
        kind: EntryType,
        name: impl AsRef<[u8]>,
        link: impl AsRef<[u8]>,
        data: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        let (name, link) = (name.as_ref(), link.as_ref());
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(super) fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.with(EntryType::Regular, name, "", data.as_ref(), |_| {})
    }

    pub(super) fn directory(self, name: impl AsRef<[u8]>) -> Self {
        self.with(EntryType::Directory, name, "", b"", |_| {})
    }

    pub(super) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.with(EntryType::Symlink, name, target, b"", |_| {})
    }

    pub(super) fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.with(EntryType::Link, name, target, b"", |_| {})
    }

    pub(super) fn other(self, kind: EntryType, name: impl AsRef<[u8]>) -> Self {
        self.with(kind, name, "", b"", |_| {})
    }

    /// PAX records for the next entry.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.with(EntryType::XHeader, "pax", "", &text, |_| {})
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

impl Layer {
    pub(super) fn plain(tar: Vec<u8>) -> Self {
        Self { diff_id: Digest::of(&tar), blob: tar, media_type: LAYER.into() }
    }

    pub(super) fn gzip(tar: &[u8]) -> Self {
        let media_type = format!("{LAYER}+gzip");
        Self { diff_id: Digest::of(tar), blob: gzip(tar), media_type }
    }

    pub(super) fn zstd(tar: &[u8]) -> Self {
        let blob = zstd::encode_all(tar, 1).unwrap();
        Self { diff_id: Digest::of(tar), blob, media_type: format!("{LAYER}+zstd") }
    }

    pub(super) fn media_type(self, media_type: &str) -> Self {
        Self { media_type: media_type.into(), ..self }
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn config(layers: &[Layer]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let document = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/bin/app"],
            "Cmd": ["serve"],
            "Env": ["PATH=/bin"],
            "WorkingDir": "/srv",
            "User": "1000:1000",
            "StopSignal": "SIGQUIT",
            "Labels": {"a": "b"},
            "Volumes": {"/data": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    serde_json::to_vec(&document).unwrap()
}

/// Adds a blob to a layout and describes it.
pub(super) fn add_blob(layout: &Path, media_type: &str, blob: &[u8]) -> Value {
    let digest = Digest::of(blob);
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("blobs/sha256").join(digest.hex()), blob).unwrap();
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": blob.len()})
}

/// Adds an image to a layout and describes its manifest.
pub(super) fn add_image(layout: &Path, layers: &[Layer]) -> Value {
    let config_type = "application/vnd.oci.image.config.v1+json";
    let config = add_blob(layout, config_type, &config(layers));
    let layers: Vec<_> =
        layers.iter().map(|layer| add_blob(layout, &layer.media_type, &layer.blob)).collect();
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    add_blob(layout, MANIFEST, &serde_json::to_vec(&manifest).unwrap())
}

pub(super) fn tagged(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    descriptor
}

pub(super) fn index(manifests: &[Value]) -> Vec<u8> {
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    serde_json::to_vec(&index).unwrap()
}

/// Writes a layout with these images, without tags.
pub(super) fn write_layout(layout: &Path, images: &[&[Layer]]) {
    let manifests: Vec<_> = images.iter().map(|layers| add_image(layout, layers)).collect();
    fs::write(layout.join("index.json"), index(&manifests)).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

impl Place {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    pub(super) fn with_limits(entries: u64, bytes: u64) -> Self {
        let Self { dir, store } = Self::new();
        Self { dir, store: store.with_limits(Limits { entries, bytes }) }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts the layers into a layout and prepares that; errors come with their causes.
    pub(super) fn prepare(&self, layers: &[Layer]) -> Result<Image, String> {
        let layout = tempfile::tempdir_in(self.dir.path()).unwrap();
        write_layout(layout.path(), &[layers]);
        self.prepare_reference(&Reference::Oci { dir: layout.path().into(), tag: None })
    }

    /// As [`Place::prepare`] for tars.
    pub(super) fn unpack(&self, tars: &[Vec<u8>]) -> Result<Image, String> {
        let layers: Vec<_> = tars.iter().map(|tar| Layer::gzip(tar)).collect();
        self.prepare(&layers)
    }

    pub(super) fn prepare_reference(&self, reference: &Reference) -> Result<Image, String> {
        self.store.prepare(reference).map_err(|error| {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            text
        })
    }

    /// How many layers, records and unfinished layers there are.
    pub(super) fn counts(&self) -> [usize; 3] {
        ["layers", "records", "tmp"]
            .map(|name| fs::read_dir(self.path("store").join(name)).unwrap().count())
    }
}

/// The layers of an image to try things with.
pub(super) fn two_layers() -> Vec<Layer> {
    let lower = Tar::new().directory("bin/").file("bin/app", "v1").file("old", "").done();
    let upper = Tar::new().file("bin/app", "v2").file(".wh.old", "").done();
    vec![Layer::gzip(&lower), Layer::zstd(&upper)]
}

/// That this is the image of [`two_layers`], all of it.
#[track_caller]
pub(super) fn assert_is_two_layers(image: &Image) {
    assert_eq!(image.layers.len(), 2);
    assert_eq!(fs::read(image.layers[0].join("bin/app")).unwrap(), b"v1");
    assert_eq!(fs::read(image.layers[1].join("bin/app")).unwrap(), b"v2");
    let expected = Config {
        entrypoint: vec!["/bin/app".into()],
        cmd: vec!["serve".into()],
        env: vec!["PATH=/bin".into()],
        working_dir: Some("/srv".into()),
        user: Some("1000:1000".into()),
        stop_signal: Some("SIGQUIT".into()),
        labels: [("a".into(), "b".into())].into(),
        volumes: vec!["/data".into()],
    };
    assert_eq!(image.config, expected);
    assert_eq!(image.id, Digest::of(&config(&two_layers())).to_string());
}
