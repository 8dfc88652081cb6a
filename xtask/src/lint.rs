//! `cargo xtask lint`: formatting and lints, in the order that fails fastest.

use std::{env, path::PathBuf, process::Command};

use crate::{
    build::static_cargo,
    process::{exec, root, target_dir},
    setup::{self, Group},
};

/// The infra program is no member of the workspace.
const PAUSE: &str = "pod-daemon/pause/Cargo.toml";

/// Nor are the fuzz targets.
const FUZZ: &str = "fuzz/Cargo.toml";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rewrite files where rustfmt and clippy know how.
    #[arg(long)]
    fix: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[Group::Build])?;
    if options.fix {
        fmt(&[])?;
        clippy(&["--fix", "--allow-dirty", "--allow-staged"])
    } else {
        check()
    }
}

/// Fails on the first thing that is not as it should be.
pub(crate) fn check() -> anyhow::Result<()> {
    fmt(&["--check"])?;
    clippy(&[])?;
    clippy_probes()
}

fn fmt(arguments: &[&str]) -> anyhow::Result<()> {
    exec(Command::new("cargo").args(["fmt", "--all"]).args(arguments).current_dir(root()))?;
    for manifest in [PAUSE, FUZZ] {
        let manifest: PathBuf = root().join(manifest);
        if manifest.exists() {
            let mut cargo = Command::new("cargo");
            exec(cargo.args(["fmt", "--manifest-path"]).arg(manifest).args(arguments))?;
        }
    }
    Ok(())
}

fn clippy(arguments: &[&str]) -> anyhow::Result<()> {
    let mut cargo = static_cargo("clippy");
    cargo.args(["--workspace", "--all-targets"]).args(arguments);
    exec(cargo.args(["--", "--deny", "warnings"]))
}

/// The probes compile for the BPF target only, so the host's clippy never sees them.
fn clippy_probes() -> anyhow::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["clippy", "--package", "pod-ebpf", "--bin", "probes", "--features", "ebpf"]);
    cargo.args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"]);
    cargo.arg("--target-dir").arg(target_dir().join("bpf")).current_dir(root());
    cargo.args(["--", "--deny", "warnings"]);
    // One pinned stable compiler builds all; only building `core` asks for an unstable option.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    // aya-ebpf picks kernel register layouts by the architecture the object will run on.
    cargo.env("RUSTFLAGS", format!("--cfg bpf_target_arch=\"{}\"", env::consts::ARCH));
    exec(cargo.env_remove("CARGO_ENCODED_RUSTFLAGS"))
}
