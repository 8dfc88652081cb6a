//! Builds the infra program, `pause/`, with the flags that keep it below one page.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

/// Part of the pinned toolchain for every host, and able to link for every target.
const LINKER: [&str; 2] = ["linker=rust-lld", "linker-flavor=ld.lld"];

/// A static program at a fixed address has nothing to relocate, and nothing in it unwinds.
const CODEGEN: [&str; 3] =
    ["target-feature=+crt-static", "relocation-model=static", "force-unwind-tables=no"];

/// Everything in one segment, readable and executable, which begins with the ELF header: no
/// padding up to page boundaries, and one page resident.
const LAYOUT: &str = "link-args=-n --no-rosegment --no-eh-frame-hdr --build-id=none";

/// Builds the program for the daemon's own target, as `OUT_DIR/pause`.
pub(crate) fn build(out_dir: &Path) -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=pause/Cargo.toml");
    println!("cargo::rerun-if-changed=pause/src");

    let target = env::var("TARGET").context("read TARGET")?;
    let program = compile(&target, &out_dir.join("pause-target"), &[])?;
    let embedded = out_dir.join("pause");
    fs::copy(&program, &embedded)
        .with_context(|| format!("copy {} to {}", program.display(), embedded.display()))?;
    Ok(())
}

/// Builds the program for `target` in `target_dir` and returns its path.
///
/// `options` are more options for cargo: a target whose `core` is not installed needs
/// `-Z build-std=core`.
pub(crate) fn compile(
    target: &str,
    target_dir: &Path,
    options: &[&str],
) -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.args(["rustc", "--release", "--locked", "--quiet", "--manifest-path"]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/pause/Cargo.toml"));
    cargo.args(["--target", target]).arg("--target-dir").arg(target_dir).args(options).arg("--");
    for flag in LINKER.iter().chain(&CODEGEN).chain([&LAYOUT]) {
        cargo.args(["-C", flag]);
    }
    // What the daemon is built with (coverage, sanitizers, clippy) is not for this program.
    for variable in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(variable);
    }
    // Lets a stable toolchain take `-Z`.
    cargo.env("RUSTC_BOOTSTRAP", "1");

    let status = cargo.status().context("start cargo")?;
    ensure!(status.success(), "cargo could not build the infra program for {target}: {status}");
    Ok(target_dir.join(target).join("release/pause"))
}
