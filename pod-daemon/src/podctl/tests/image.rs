//! `podctl image`, with images that come from archives.

use std::{fs, path::Path};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{check, file, podctl, serve};

const TYPE: &str = "application/vnd.oci.image";

/// Writes an archive with an OCI image of one file, which may have a name there.
fn archive(path: &Path, content: &str, name: Option<&str>) {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "file", content.as_bytes());
    let layer = tar.into_inner().unwrap();
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |kind: &str, bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        append(&mut tar, &format!("blobs/sha256/{hex}"), bytes);
        let kind = format!("{TYPE}.{kind}");
        json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let layer = add("layer.v1.tar", &layer);
    let config =
        json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let config = add("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let mut manifest = add("manifest.v1+json", manifest.to_string().as_bytes());
    if let Some(name) = name {
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    append(&mut tar, "index.json", index.to_string().as_bytes());
    tar.into_inner().unwrap();
}

fn append(tar: &mut tar::Builder<impl std::io::Write>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).unwrap();
}

#[tokio::test]
async fn images_are_loaded_listed_inspected_and_removed() {
    let served = serve();
    check(&served, "image list", 0, "", "No images found\n").await;
    let path = served.dir.path().join("web.tar");
    archive(&path, "web", Some("team/web:v1"));
    let done = podctl(&served, &format!("image load -i {}", path.display())).await;
    assert_eq!((done.code, &*done.out), (0, "loaded docker.io/team/web:v1\n"), "{done:?}");
    assert!(done.err.contains(": Done\n"), "{done:?}");

    let list = podctl(&served, "image ls -o wide").await.out;
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    assert!(lines[0].starts_with("IMAGE ") && lines[0].ends_with("PODS"), "{list}");
    assert!(lines[1].starts_with("docker.io/team/web:v1   "), "{list}");
    check(&served, "image list -o name", 0, "docker.io/team/web:v1\n", "").await;
    let json: Value =
        serde_json::from_str(&podctl(&served, "image list -o json").await.out).unwrap();
    let id = json["items"][0]["id"].as_str().unwrap();
    for name in ["team/web:v1", "docker.io/team/web:v1", id, &id["sha256:".len()..][..10]] {
        let inspected = podctl(&served, &format!("image inspect {name}")).await;
        let value: Value = serde_json::from_str(&inspected.out).unwrap();
        assert_eq!(value["id"], id, "{name}");
        assert_eq!(value["layers"].as_array().unwrap().len(), 1);
    }

    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n\
               spec: {containers: [{name: a, image: 'docker.io/team/web:v1'}]}\n";
    let manifest = file(&served, "pod.yaml", pod);
    assert_eq!(podctl(&served, &format!("apply -f {manifest}")).await.code, 0);
    let used = "error: image docker.io/team/web:v1 is used by default/web; delete what uses it \
                first\n";
    check(&served, "image rm team/web:v1", 1, "", used).await;
    check(&served, "image prune --all", 0, "0 images removed, 0 freed\n", "").await;
    assert_eq!(podctl(&served, "delete pod web --now").await.code, 0);
    check(&served, "image rm team/web:v1", 0, "docker.io/team/web:v1 removed\n", "").await;
    let gone = "error: images \"team/web:v1\" not found; `podctl image list` shows what there is\n";
    check(&served, "image remove team/web:v1", 1, "", gone).await;
    check(&served, "image inspect team/web:v1", 1, "", gone).await;
}

#[tokio::test]
async fn what_cannot_be_loaded_or_pulled_says_why_and_leaves_nothing() {
    let served = serve();
    let path = served.dir.path().join("web.tar");
    archive(&path, "web", None);
    let load = format!("image load -i {}", path.display());
    let done = podctl(&served, &load).await;
    assert_eq!(done.code, 1);
    assert!(done.err.contains("give it one with --name"), "{done:?}");
    let done = podctl(&served, &format!("{load} --name Wrong")).await;
    assert!(done.err.contains("invalid image \"Wrong\""), "{done:?}");
    let done = podctl(&served, &format!("{load} --name web")).await;
    assert_eq!(done.out, "loaded docker.io/library/web:latest\n");
    // Under the same name another one: the first has lost its name and can be pruned.
    archive(&path, "other", Some("web:latest"));
    assert_eq!(podctl(&served, &load).await.code, 0);
    let list = podctl(&served, "image list").await.out;
    assert!(list.contains("docker.io/library/web@<none>"), "{list}");
    let pruned = podctl(&served, "image prune").await.out;
    assert!(pruned.starts_with("1 image removed, "), "{pruned}");

    let text = file(&served, "text.tar", "no archive");
    let done = podctl(&served, &format!("image load -i {text}")).await;
    assert!(done.code == 1 && done.err.starts_with("error: ErrImageLoad: "), "{done:?}");
    let done = podctl(&served, "image load -i /nonexistent").await;
    assert!(done.err.contains("cannot read `/nonexistent`"), "{done:?}");
    // Nobody listens there.
    let done = podctl(&served, "image pull 127.0.0.1:1/a").await;
    assert_eq!(done.code, 1);
    assert!(done.err.contains("RegistryUnavailable: failed to pull image"), "{done:?}");
    let done = podctl(&served, "image pull Wrong").await;
    assert!(done.err.contains("invalid image \"Wrong\""), "{done:?}");
    let left = fs::read_dir(served.dir.path().join("images/tmp")).unwrap().count();
    assert_eq!(left, 0, "uploads are left behind");
}
