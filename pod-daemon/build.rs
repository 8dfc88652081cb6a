//! Builds what the daemon carries inside itself: the eBPF object and the infra program.

#[path = "build/pause.rs"]
mod pause;

use std::{env, path::PathBuf};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("read OUT_DIR")?);
    pause::build(&out_dir).context("build the infra program")?;

    // The BPF target has no prebuilt `core`; building it needs an unstable flag of the one stable
    // toolchain that this repository pins. What its build says about its progress would be shown as
    // warnings of this one; what the compiler warns of still is.
    // SAFETY: a build script has one thread.
    #[expect(clippy::disallowed_methods, reason = "no other thread reads the environment")]
    unsafe {
        env::set_var("RUSTC_BOOTSTRAP", "1");
        env::set_var("CARGO_TERM_QUIET", "true");
    }
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "1.98.0".to_owned());
    let package = Package {
        name: "pod-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../pod-ebpf"),
        features: &["ebpf"],
        ..Package::default()
    };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain))
        .context("build the eBPF object (is bpf-linker installed? `cargo xtask setup`)")
}
