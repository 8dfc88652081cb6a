//! Debian's package indexes of other releases, in private folders: the system's own stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};

use crate::process::{exec, output, succeeds};

/// The suites that hold the matrix, and whether they are in the security archive. Together they
/// are 1.6 MB of index; the full releases would be 50.
const SUITES: [(&str, bool); 4] = [
    ("bullseye-security", true),
    ("bookworm-security", true),
    ("trixie-security", true),
    ("trixie-backports", false),
];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An index older than this is fetched again.
const FRESH: Duration = Duration::from_hours(24);

/// A private set of package indexes.
pub(super) struct Index {
    dir: PathBuf,
}

impl Index {
    /// Opens the indexes in `dir`, and fetches them if they are missing or old.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let index = Self { dir: dir.to_owned() };
        let stamp = dir.join("updated");
        let age = fs::metadata(&stamp).and_then(|meta| meta.modified()).ok();
        if age.and_then(|time| time.elapsed().ok()).is_none_or(|age| age > FRESH) {
            index.update()?;
            fs::write(&stamp, "").context("note the update")?;
        }
        Ok(index)
    }

    /// Names of all kernel packages of the cloud flavour, the one with the quickest boot.
    pub(super) fn kernel_packages(&self) -> anyhow::Result<Vec<String>> {
        let pattern = "^linux-(image|binary|modules|base)-[0-9.]+[^ ]*-cloud-amd64$";
        let found = output(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// Downloads packages into `dir`.
    pub(super) fn download(&self, packages: &[String], dir: &Path) -> anyhow::Result<()> {
        exec(self.apt("apt-get").args(["-qq", "download"]).args(packages).current_dir(dir))
    }

    fn update(&self) -> anyhow::Result<()> {
        for part in ["lists/partial", "cache/archives/partial", "parts"] {
            fs::create_dir_all(self.dir.join(part)).context("create apt's folders")?;
        }
        // Empty, so that what this machine has installed does not count as available.
        fs::write(self.dir.join("status"), "").context("write apt's status")?;
        fs::write(self.dir.join("sources.list"), sources()?).context("write sources.list")?;
        println!("vm-fetch: looking for new kernels");
        // A suite that has left the mirror must not hide those that are there.
        if !succeeds(self.apt("apt-get").args(["-qq", "update"])) {
            println!("vm-fetch: some of Debian's suites could not be read");
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        for (option, path) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "parts"),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            apt.arg("-o").arg(format!("{option}={}", self.dir.join(path).display()));
        }
        // Root's own cache is not readable for the user that apt would download as.
        apt.args(["-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root"]);
        apt
    }
}

/// A sources.list with the mirrors that this machine uses already.
fn sources() -> anyhow::Result<String> {
    let mut known = configured()?;
    if known.is_empty() {
        // A minimal image has sources, but no index yet that would name them.
        exec(Command::new("apt-get").args(["-qq", "update"]))?;
        known = configured()?;
    }
    let mirror =
        |label: &str| known.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix('|'));
    let (Some(main), Some(security)) = (mirror("Debian"), mirror("Debian-Security")) else {
        bail!("this machine's apt knows no Debian mirror: the kernels are Debian's");
    };
    Ok(SUITES
        .map(|(suite, is_security)| {
            let uri = if is_security { security } else { main };
            format!("deb [arch=amd64 signed-by={KEYRING}] {uri} {suite} main\n")
        })
        .concat())
}

/// Labels and addresses of the archives that this machine's apt uses.
fn configured() -> anyhow::Result<String> {
    output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL)|$(REPO_URI)",
        "Created-By: Packages",
    ]))
}
