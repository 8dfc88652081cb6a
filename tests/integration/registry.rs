//! Images from Debian's `docker-registry` on this machine: plain, with TLS, with a password, as a
//! mirror; and `podctl image`.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use pod_tests::{
    Daemon, binary, eventually, in_vm, manifest::pod, metrics::number, program, seconds, skip,
};
use serde_json::{Value, json};

/// `user` with the password `right`.
const HTPASSWD: &str = "user:$2y$05$qNKUi5v.8suxqweGGtsiHe6no.15GRGcwE8cqdoFHv02m5ublfv1.\n";

/// A registry with the image `team/app:v1`, whose only file is the workload.
struct Registry {
    child: Child,
    folder: PathBuf,
    host: String,
}

/// How it is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Plain,
    Tls,
    TlsAndPassword,
}

impl Registry {
    /// Nothing, said aloud, if this machine lacks what it takes.
    fn start(access: Access) -> Option<Self> {
        if in_vm() {
            skip("the VMs have no docker-registry");
            return None;
        }
        for name in ["docker-registry", "skopeo", "openssl"] {
            if program::find(name).is_none() {
                skip(&format!("there is no `{name}` (apt-get install {name})"));
                return None;
            }
        }
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let host = address.to_string();
        let folder = std::env::temp_dir().join(format!("podscope-registry-{}", address.port()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir(&folder).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n",
            at("data")
        );
        config.push_str(&match access {
            Access::Plain => format!("http: {{addr: {host}}}\n"),
            _ => {
                certify(&folder);
                let (certificate, key) = (at("cert.pem"), at("key.pem"));
                let tls = format!("{{certificate: {certificate}, key: {key}}}");
                format!("http: {{addr: {host}, tls: {tls}}}\n")
            }
        });
        if access == Access::TlsAndPassword {
            fs::write(at("htpasswd"), HTPASSWD).unwrap();
            config
                .push_str(&format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", at("htpasswd")));
        }
        fs::write(at("config.yml"), config).unwrap();
        let log = File::create(at("log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = Self { child, folder, host };
        eventually("the registry listens", seconds(30), || {
            std::net::TcpStream::connect(address).ok()
        });
        registry.push();
        Some(registry)
    }

    fn push(&self) {
        layout(&self.folder.join("layout"));
        let source = format!("oci:{}:v1", self.folder.join("layout").display());
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
        copy.args(["--dest-creds", "user:right", &source]);
        copy.arg(format!("docker://{}/team/app:v1", self.host));
        program::run(&mut copy, seconds(60)).success();
    }

    fn image(&self) -> String {
        format!("{}/team/app:v1", self.host)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// A config file for the daemon.
    fn config(&self, text: &str) -> String {
        let path = self.path("daemon.toml");
        fs::write(&path, text).unwrap();
        format!("--config={path}")
    }

    fn write_auth(&self, password: &str) {
        let entry = json!({"username": "user", "password": password});
        let auths = json!({"auths": {&self.host: entry}});
        fs::write(self.path("auth.json"), auths.to_string()).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        program::end(&mut self.child);
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// Makes an authority and a certificate of it for this machine.
fn certify(folder: &Path) {
    let openssl = |words: &str| {
        let mut command = Command::new("openssl");
        command.args(words.split_whitespace()).current_dir(folder);
        program::run(&mut command, seconds(30)).success();
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca -days 2"));
    openssl(&format!("req {key} -keyout key.pem -out request.pem -subj /CN=registry"));
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names \
         -days 2 -out cert.pem",
    );
}

/// Writes an OCI image layout by hand: one layer with the workload.
fn layout(layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    let rootfs = layout.join("rootfs");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    fs::copy(binary("workload"), rootfs.join("bin/workload")).unwrap();
    let tar = layout.join("layer.tar");
    let mut pack = Command::new("tar");
    pack.arg("-C").arg(&rootfs).arg("-cf").arg(&tar).arg("bin");
    program::run(&mut pack, seconds(60)).success();
    let layer = add(&blobs, "application/vnd.oci.image.layer.v1.tar", &fs::read(&tar).unwrap());
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "os": "linux",
        "architecture": architecture,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        "config": {"Env": ["FROM_IMAGE=yes"]},
    });
    let config =
        add(&blobs, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let mut manifest = add(&blobs, kind, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn add(blobs: &Path, kind: &str, content: &[u8]) -> Value {
    let file = blobs.join("new");
    fs::write(&file, content).unwrap();
    let sum = program::run(Command::new("sha256sum").arg(&file), seconds(30)).success();
    let hex = sum.split_whitespace().next().unwrap().to_owned();
    fs::rename(&file, blobs.join(&hex)).unwrap();
    json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": content.len()})
}

/// Bytes of the files below a directory, as `du` says of them.
fn bytes_of_files(directory: &Path) -> u64 {
    let list = Command::new("find").arg(directory).args(["-type", "f"]).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let sum = Command::new("du").args(["--bytes", "--total"]).args(list.lines()).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    sum.lines().last().and_then(|line| line.split('\t').next()).unwrap().parse().unwrap()
}

/// Reason and message for which the pod's container waits.
fn waiting(pod: &Value) -> (&str, &str) {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let text = |name: &str| waiting[name].as_str().unwrap_or_default();
    (text("reason"), text("message"))
}

#[test]
fn a_pod_runs_an_image_from_a_plain_registry_and_podctl_manages_it() {
    let Some(registry) = Registry::start(Access::Plain) else { return };
    let daemon = Daemon::start(&["--image-pull-backoff-ms=500"]);
    let image = registry.image();
    let of = |image: &str| json!({"image": image, "imagePullPolicy": "Always"});
    daemon.run(pod("pulled").container_with("app", "print from-registry , pause", of(&image)));
    daemon.wait_logged("pulled", "", "from-registry");
    let status = daemon.pod("pulled");
    let id = status["status"]["containerStatuses"][0]["imageID"].as_str().unwrap().to_owned();
    assert!(id.contains("sha256:"), "{id}");

    // A static program resolves names without the C library's plug-ins.
    let port = registry.host.rsplit_once(':').unwrap().1;
    let by_name = format!("localhost:{port}/team/app:v1");
    let pulled = daemon.podctl(&["image", "pull", &by_name]);
    assert_eq!(pulled.code, 0, "{pulled:?}");
    assert!(pulled.stderr.contains("Already exists"), "{pulled:?}");
    assert_eq!(pulled.stdout.trim(), by_name);

    let list = daemon.podctl(&["image", "list"]).success();
    assert!(
        list.starts_with("IMAGE") && list.contains(&image) && list.contains(&by_name),
        "{list}"
    );
    let inspect = daemon.podctl(&["image", "inspect", &image]).success();
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    assert_eq!(inspect["pods"], json!(["default/pulled"]));
    assert_eq!(inspect["config"]["env"], json!(["FROM_IMAGE=yes"]));

    // Its size is that of the files of its layers, by each of its names.
    let layers = inspect["layers"].as_array().unwrap().iter();
    let there: u64 = layers.map(|layer| bytes_of_files(layer.as_str().unwrap().as_ref())).sum();
    assert_eq!(inspect["bytes"].as_u64(), Some(there));
    let metrics = daemon.metrics();
    for name in [&*image, &by_name] {
        for metric in ["podscope_image_size_bytes", "podscope_image_unique_bytes"] {
            assert_eq!(number(metrics.one(metric, &[("image", name)])), there, "{metric} {name}");
        }
    }
    assert_eq!(number(metrics.one("podscope_image_layer_size_bytes", &[])), there);
    assert_eq!(number(metrics.one("podscope_images_bytes", &[])), there);

    let refused = daemon.podctl(&["image", "remove", &image]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("is used by default/pulled"), "{refused:?}");
    let pruned = daemon.podctl(&["image", "prune", "--all"]).success();
    assert!(pruned.starts_with("0 images"), "{pruned}");

    let metrics = daemon.metrics();
    assert_eq!(metrics.find("podscope_images", &[]), Some(1.0));
    let pulls = metrics.find("podscope_image_pulls_total", &[("result", "success")]);
    assert_eq!(pulls, Some(2.0));
    daemon.delete("pulled");
    daemon.podctl(&["image", "remove", &image]).success();
    daemon.podctl(&["image", "remove", &by_name]).success();
    assert!(daemon.podctl(&["image", "list"]).stderr.contains("No images"));
    assert_eq!(daemon.metrics().about("podscope_image_size_bytes"), "");

    // From an archive, without the registry.
    let archive = registry.path("archive.tar");
    let mut pack = Command::new("tar");
    pack.arg("-C").arg(registry.path("layout")).args(["-cf", &archive]);
    pack.args(["index.json", "oci-layout", "blobs"]);
    program::run(&mut pack, seconds(60)).success();
    let name = "example.invalid/loaded:v1";
    let loaded = daemon.podctl(&["image", "load", "-i", &archive, "--name", name]);
    assert_eq!(loaded.success().trim(), format!("loaded {name}"));
    daemon.run(pod("loaded").container_with(
        "app",
        "print from-archive , pause",
        json!({"image": name}),
    ));
    daemon.wait_logged("loaded", "", "from-archive");
    daemon.delete("loaded");

    let missing = format!("{}/team/none:v1", registry.host);
    daemon.run(pod("missing").container_with("app", "pause", of(&missing)));
    daemon.wait_for("missing", "waiting for its image", |pod| waiting(pod).0 == "ErrImagePull");
    daemon.wait_for("missing", "in back-off", |pod| {
        let (reason, message) = waiting(pod);
        reason == "ImagePullBackOff" && message.contains("manifest unknown")
    });
    daemon.run(pod("never").container_with(
        "app",
        "pause",
        json!({"image": missing, "imagePullPolicy": "Never"}),
    ));
    daemon.wait_for("never", "refused", |pod| waiting(pod).0 == "ErrImageNeverPull");
    daemon.delete("missing");
    daemon.delete("never");
    daemon.stop();
}

#[test]
fn a_registry_with_tls_and_password_is_believed_and_told_the_right_one_only() {
    let Some(registry) = Registry::start(Access::TlsAndPassword) else { return };
    registry.write_auth("wrong");
    let config = registry.config(&format!(
        "registry-auth-file = {:?}\nimage-pull-backoff-ms = 1500\n\
         [[registry]]\nhost = {:?}\nca-file = {:?}\n",
        registry.path("auth.json"),
        registry.host,
        registry.path("ca.pem"),
    ));
    let daemon = Daemon::start(&[&config]);
    let image = json!({"image": registry.image()});
    daemon.run(pod("locked").container_with("app", "print unlocked , pause", image));
    daemon.wait_for("locked", "refused", |pod| {
        let (reason, message) = waiting(pod);
        reason == "ErrImagePull" && message.contains("authentication required")
    });
    daemon.wait_for("locked", "in back-off", |pod| {
        let (reason, message) = waiting(pod);
        reason == "ImagePullBackOff" && message.contains("authentication required")
    });
    registry.write_auth("right");
    daemon.wait_logged("locked", "", "unlocked");
    assert!(!daemon.log().contains("wrong"), "a password is logged");
    daemon.delete("locked");
    daemon.stop();
}

#[test]
fn a_certificate_of_a_stranger_is_refused() {
    let Some(registry) = Registry::start(Access::Tls) else { return };
    let other = registry.folder.join("other");
    fs::create_dir(&other).unwrap();
    certify(&other);
    let config = registry.config(&format!(
        "[[registry]]\nhost = {:?}\nca-file = {:?}\n",
        registry.host,
        registry.path("other/ca.pem"),
    ));
    let daemon = Daemon::start(&[&config]);
    let pulled = daemon.podctl(&["image", "pull", &registry.image()]);
    assert_eq!(pulled.code, 1);
    assert!(pulled.stderr.contains("certificate"), "{pulled:?}");
    daemon.stop();
}

#[test]
fn a_mirror_stands_in_for_a_registry_that_cannot_be_reached() {
    let Some(registry) = Registry::start(Access::Plain) else { return };
    let config = registry.config(&format!(
        "[[registry]]\nhost = \"registry.invalid\"\nmirrors = [{:?}]\n",
        registry.host,
    ));
    let daemon = Daemon::start(&[&config]);
    let image = json!({"image": "registry.invalid/team/app:v1"});
    daemon.run(pod("mirrored").container_with("app", "print mirrored , pause", image));
    daemon.wait_logged("mirrored", "", "mirrored");
    daemon.delete("mirrored");
    daemon.stop();
}
