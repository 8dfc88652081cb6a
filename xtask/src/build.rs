//! `cargo xtask build`: everything that runs on another kernel, linked statically.
//!
//! All commands compile with these flags into one target directory of its own: lints, unit tests
//! and binaries then share dependencies, and a plain `cargo build` beside them is not thrown away.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context as _;

use crate::{
    process::{output, root, target_dir},
    setup::{self, Group},
};

/// Name of the kernel tests' binary.
const KERNEL_TEST: &str = "kernel";

/// What the tests would wait for without optimisation: reading BTF and unpacking images, which in
/// an emulated VM takes ten times as long. All the rest compiles faster than it would run.
const HOT: [&str; 5] = ["aya", "aya-obj", "memchr", "miniz_oxide", "sha2"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build what ships: optimised, and without the kernel tests.
    #[arg(long)]
    release: bool,
}

/// What the kernel tests consist of.
pub(crate) struct Artifacts {
    /// The folder of pod-daemon, podctl and the other programs.
    pub(crate) bin_dir: PathBuf,
    /// The kernel tests themselves: one libtest binary.
    pub(crate) kernel_test: PathBuf,
}

/// The one field of cargo's messages that says where a binary is, and those that tell which.
#[derive(serde::Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(serde::Deserialize)]
struct Target {
    name: String,
}

#[derive(serde::Deserialize)]
struct Profile {
    test: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[Group::Build])?;
    let bin_dir = if options.release { release()? } else { artifacts()?.bin_dir };
    println!("built: {}", bin_dir.display());
    Ok(())
}

/// Builds what ships, and returns the folder of its programs.
pub(crate) fn release() -> anyhow::Result<PathBuf> {
    let mut cargo = static_cargo("build");
    cargo.args(["--release", "--package", "pod-daemon", "--bins"]);
    binaries(&mut cargo)?
        .into_iter()
        .find(|(name, test, _)| name == "pod-daemon" && !test)
        .and_then(|(.., path)| path.parent().map(PathBuf::from))
        .context("find pod-daemon among the binaries")
}

/// Builds the daemon and the kernel tests.
pub(crate) fn artifacts() -> anyhow::Result<Artifacts> {
    let mut cargo = static_cargo("build");
    cargo.args(["--package", "pod-daemon", "--package", "pod-tests", "--bins"]);
    cargo.args(["--test", KERNEL_TEST]);
    let binaries = binaries(&mut cargo)?;
    let find = |wanted: &str, wanted_test: bool| {
        binaries
            .iter()
            .find(|(name, test, _)| name == wanted && *test == wanted_test)
            .map(|(.., path)| path.clone())
            .with_context(|| format!("find {wanted} among the binaries"))
    };
    let daemon = find("pod-daemon", false)?;
    let bin_dir = daemon.parent().context("find the folder of pod-daemon")?.to_owned();
    Ok(Artifacts { bin_dir, kernel_test: find(KERNEL_TEST, true)? })
}

/// Cargo with the flags and the target directory of everything that these commands compile.
pub(crate) fn static_cargo(subcommand: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.arg(subcommand).current_dir(root());
    cargo.arg("--target").arg(format!("{}-unknown-linux-gnu", env::consts::ARCH));
    cargo.arg("--target-dir").arg(target_dir().join("static"));
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
    for package in HOT {
        cargo.arg("--config").arg(format!("profile.dev.package.{package}.opt-level=2"));
    }
    cargo
}

/// Runs a cargo build and returns name, whether it is a test, and path of each binary.
fn binaries(cargo: &mut Command) -> anyhow::Result<Vec<(String, bool, PathBuf)>> {
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null());
    let mut found = Vec::new();
    for line in output(cargo)?.lines() {
        let message: Message = serde_json::from_str(line).context("parse cargo's message")?;
        if let Message { executable: Some(path), target: Some(target), profile: Some(profile) } =
            message
        {
            found.push((target.name, profile.test, path));
        }
    }
    Ok(found)
}
