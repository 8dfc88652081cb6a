//! What `docker save` wrote over the years.

use std::fs;

use serde_json::json;

use super::fixtures::*;
use crate::image::{Reference, digest::Digest};

#[test]
fn docker_archives_of_old_and_new_are_read() {
    let layers = two_layers();
    let config = config(&layers);
    let hex = Digest::of(&config).hex().to_owned();
    let plain: Vec<_> = layers
        .iter()
        .zip([|b: &[u8]| gunzip(b), |b: &[u8]| zstd::decode_all(b).unwrap()])
        .map(|(layer, decode)| decode(&layer.blob))
        .collect();
    let manifest = |config: String, layers: [&str; 2]| {
        json!([{"Config": config, "RepoTags": ["web:v1"], "Layers": layers}]).to_string()
    };
    let old = Tar::new()
        .symlink("b/layer.tar", "../c/layer.tar")
        .hard_link("c/layer.tar", "d/layer.tar")
        .file("d/layer.tar", &plain[1])
        .file("a/layer.tar", &plain[0])
        .file(format!("{hex}.json"), &config)
        .file("manifest.json", manifest(format!("{hex}.json"), ["a/layer.tar", "b/layer.tar"]))
        .done();
    let new = Tar::new()
        .file("blobs/sha256/1", &layers[0].blob)
        .file("blobs/sha256/2", &plain[1])
        .file(format!("blobs/sha256/{hex}"), &config)
        .file(
            "manifest.json",
            manifest(format!("blobs/sha256/{hex}"), ["blobs/sha256/1", "blobs/sha256/2"]),
        )
        .done();
    for tar in [old, gzip(&new), new] {
        let place = Place::new();
        let file = place.path("image.tar");
        fs::write(&file, tar).unwrap();
        for tag in [None, Some("web:v1"), Some("docker.io/library/web:v1")] {
            let reference =
                Reference::DockerArchive { file: file.clone(), tag: tag.map(Into::into) };
            assert_is_two_layers(&place.prepare_reference(&reference).unwrap());
        }
        let reference = Reference::DockerArchive { file, tag: Some("web".into()) };
        let error = place.prepare_reference(&reference).unwrap_err();
        assert!(error.contains(r#"no tag "web"; it has: web:v1"#), "{error}");
    }
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::copy(&mut flate2::read::GzDecoder::new(bytes), &mut plain).unwrap();
    plain
}

#[test]
fn a_docker_archive_with_a_loop_or_another_config_is_refused() {
    let hex = "0".repeat(64);
    let manifest =
        |config: &str| json!([{"Config": config, "RepoTags": null, "Layers": ["a"]}]).to_string();
    let renamed = Tar::new()
        .file(format!("{hex}.json"), config(&two_layers()[..1]))
        .file("manifest.json", manifest(&format!("{hex}.json")))
        .done();
    let looped = Tar::new()
        .symlink("a", "b")
        .symlink("b", "./x/../a")
        .file("c", config(&two_layers()[..1]))
        .file("manifest.json", manifest("c"))
        .done();
    let missing = Tar::new()
        .file("c", config(&two_layers()[..1]))
        .file("manifest.json", manifest("c"))
        .done();
    for (tar, problem) in [
        (renamed, "the image is damaged or was changed"),
        (looped, "loop of links"),
        (missing, "a is missing"),
    ] {
        let place = Place::new();
        let file = place.path("image.tar");
        fs::write(&file, tar).unwrap();
        let reference = Reference::DockerArchive { file, tag: None };
        let error = place.prepare_reference(&reference).unwrap_err();
        assert!(error.contains(problem), "{error}");
        assert_eq!(place.counts(), [0, 0, 0]);
    }
}
