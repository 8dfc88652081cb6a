//! The root file system that all runtimes run: one static program under several names.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::process::{exec, root};

/// The names of the program; it does what it is called.
const NAMES: [&str; 4] = ["true", "sleep", "stamp", "load"];

/// Makes it below `parent`.
pub(super) fn make(parent: &Path) -> anyhow::Result<PathBuf> {
    let rootfs = parent.join("rootfs");
    // Not every runtime makes its own mount points.
    for directory in ["bin", "dev", "proc", "sys", "etc", "out"] {
        fs::create_dir_all(rootfs.join(directory)).context("make a root file system")?;
    }
    let program = parent.join("program");
    exec(
        Command::new("rustc")
            .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static"])
            .args(["-C", "panic=abort", "-C", "strip=symbols", "-o"])
            .arg(&program)
            .arg(root().join("xtask/programs/load.rs"))
            .current_dir(root()),
    )?;
    for name in NAMES {
        fs::hard_link(&program, rootfs.join("bin").join(name)).context("name the program")?;
    }
    Ok(rootfs)
}
