//! A pull from a registry on this machine, unpacked: beside `skopeo copy` and `umoci unpack`.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    StartDaemon,
    sheet::{Sheet, Times},
};
use crate::{daemon::free_port, process::exec, stop};

/// Layers of the image, each with as many files of a megabyte.
const LAYERS: usize = 5;
const FILES: usize = 40;
const MEGABYTE: usize = 1 << 20;
/// Pulls of each kind.
const ROUNDS: usize = 5;

/// A registry that ends when this is dropped.
struct Registry {
    child: Child,
    address: SocketAddr,
}

pub(super) fn run(start_daemon: &StartDaemon<'_>) -> anyhow::Result<Value> {
    println!("bench: making an image of {} MB", LAYERS * FILES);
    let daemon = start_daemon(&[])?;
    let place = daemon.directory().join("pull");
    fs::create_dir(&place).context("make a directory for the image")?;
    let registry = Registry::start(&place)?;
    let layout = place.join("layout");
    make_image(&place, &layout)?;
    let remote = format!("docker://{}/bench:v1", registry.address);
    let local = |layout: &Path| format!("oci:{}:v1", layout.display());
    exec(skopeo().args(["copy", "--quiet", "--dest-tls-verify=false", &local(&layout), &remote]))?;

    let name = format!("{}/bench:v1", registry.address);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first round fills the caches.
    for round in 0..=ROUNDS {
        stop::check()?;
        let quiet = |command: &mut Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null());
            exec(command)
        };
        settle();
        let began = Instant::now();
        quiet(daemon.podctl().args(["image", "pull", &name]))?;
        let own = began.elapsed();
        quiet(daemon.podctl().args(["image", "remove", &name]))?;

        let (copy, bundle) = (place.join("copy"), place.join("bundle"));
        settle();
        let began = Instant::now();
        exec(skopeo().args(["copy", "--quiet", "--src-tls-verify=false", &remote, &local(&copy)]))?;
        let image = format!("{}:v1", copy.display());
        exec(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
        let other = began.elapsed();
        for directory in [copy, bundle] {
            fs::remove_dir_all(&directory).context("remove what was unpacked")?;
        }
        if round > 0 {
            ours.push(own);
            theirs.push(other);
        }
    }
    drop(registry);
    daemon.stop()?;

    let (ours, theirs) = (Times::new(ours), Times::new(theirs));
    let title = format!("pull: an image of {LAYERS} layers, {} MB, half noise", LAYERS * FILES);
    let mut sheet = Sheet::new(&title, ["", "p50", "p95", "ratio"]);
    sheet.times("pull", "podctl image pull", &ours, Some(&theirs));
    sheet.times("skopeo_umoci", "skopeo copy + umoci unpack", &theirs, None);
    sheet.target("pull and unpack", ours.p50() / theirs.p50(), 1.0, "");
    Ok(sheet.finish())
}

/// What earlier steps have left to be written is not to be waited for in later ones.
fn settle() {
    nix::unistd::sync();
}

fn skopeo() -> Command {
    let mut skopeo = Command::new("skopeo");
    skopeo.arg("--insecure-policy");
    skopeo
}

fn make_image(place: &Path, layout: &Path) -> anyhow::Result<()> {
    let umoci = |words: &[&str]| exec(Command::new("umoci").args(words));
    let image = format!("{}:v1", layout.display());
    umoci(&["init", "--layout", &layout.display().to_string()])?;
    umoci(&["new", "--image", &image])?;
    let mut noise = File::open("/dev/urandom").context("open /dev/urandom")?;
    let mut block = vec![0; MEGABYTE];
    let text: Vec<u8> = (0..)
        .flat_map(|line: u32| format!("line {line} of a program's log\n").into_bytes())
        .take(MEGABYTE)
        .collect();
    for layer in 0..LAYERS {
        stop::check()?;
        let files = place.join(format!("files-{layer}"));
        fs::create_dir(&files).context("make a layer")?;
        for number in 0..FILES {
            if number % 2 == 0 {
                noise.read_exact(&mut block).context("read /dev/urandom")?;
            } else {
                block.copy_from_slice(&text);
            }
            let mut file = File::create(files.join(number.to_string())).context("make a file")?;
            file.write_all(&block).context("write a file")?;
        }
        let source = files.display().to_string();
        umoci(&["insert", "--image", &image, &source, &format!("/layer-{layer}")])?;
        fs::remove_dir_all(&files).context("remove the files")?;
    }
    Ok(())
}

impl Registry {
    fn start(place: &Path) -> anyhow::Result<Self> {
        let address = free_port(5000)?;
        let config = place.join("registry.yml");
        let data = place.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: {address}}}\n",
            data.display()
        );
        fs::write(&config, text).context("write the registry's config")?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start docker-registry")?;
        let registry = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < deadline, "docker-registry does not listen on {address}");
            stop::sleep_until(Instant::now() + Duration::from_millis(50));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
