//! Which modules a VM needs, and in which order they load.
//!
//! Debian's packages come without modules.dep, so dependencies are read from the modules
//! themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::process::exec;

/// What pods need of the kernel: their links, their root file systems, their nftables rules; and the
/// disk of the VM.
/// A kernel that has one built in, or not at all, does without the module.
const WANTED: &[&str] = &[
    "veth",
    "bridge",
    "overlay",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_connlimit",
    "nft_counter",
    "nft_reject_inet",
    "nft_fib_inet",
    "dummy",
    "loop",
    "virtio_pci",
    "virtio_blk",
];

/// In a kernel's folder: [`WANTED`] as it was when the modules were unpacked.
const LIST: &str = "modules.wanted";

/// Whether a kernel's folder has the modules that are wanted now.
pub(super) fn are_unpacked(kernel: &Path) -> bool {
    fs::read_to_string(kernel.join(LIST)).is_ok_and(|list| list == WANTED.join("\n"))
}

/// The modules of an unpacked kernel package.
pub(super) struct Tree {
    files: BTreeMap<String, PathBuf>,
}

impl Tree {
    /// Finds all modules below `dir`.
    pub(super) fn find(dir: &Path) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).context("list the modules")? {
                let entry = entry.context("list the modules")?;
                if entry.file_type().context("stat a module")?.is_dir() {
                    dirs.push(entry.path());
                } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { files })
    }

    /// Puts the wanted modules into a kernel's folder, with the order to load them in.
    pub(super) fn unpack_wanted(&self, kernel: &Path) -> anyhow::Result<()> {
        let to = kernel.join("modules");
        fs::create_dir_all(&to).context("create the modules' folder")?;
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in WANTED {
            self.copy(name, &to, &mut seen, &mut order)?;
        }
        fs::write(kernel.join("modules.load"), order.join("\n") + "\n")
            .and_then(|()| fs::write(kernel.join(LIST), WANTED.join("\n")))
            .context("write which modules there are")
    }

    fn copy(
        &self,
        name: &str,
        to: &Path,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let Some(from) = self.files.get(name) else {
            return Ok(());
        };
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let copy = to.join(format!("{name}.ko"));
        if from.extension().is_some_and(|extension| extension == "xz") {
            let packed = copy.with_extension("ko.xz");
            fs::copy(from, &packed).context("copy a module")?;
            exec(Command::new("xz").args(["--decompress", "--force"]).arg(&packed))?;
        } else {
            fs::copy(from, &copy).context("copy a module")?;
        }
        let object = fs::read(&copy).context("read a module")?;
        for dependency in dependencies(&object) {
            self.copy(&dependency, to, seen, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }
}

/// The kernel's name for a module file; `-` and `_` are one to it.
fn module_name(file: &str) -> Option<String> {
    let name = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// Reads `depends=a,b` from a module's strings.
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = object.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = object[start + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_a_module() {
        let names = dependencies(b"\x7fELF..license=GPL\0depends=nf-nat,nf_tables\0name=x\0");

        assert_eq!(names, ["nf_nat", "nf_tables"]);
        assert!(dependencies(b"x\0depends=\0").is_empty());
        assert_eq!(module_name("nft_ct.ko.xz").as_deref(), Some("nft_ct"));
    }
}
