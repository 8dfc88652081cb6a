//! `cargo xtask setup`: installs what is missing, says what and why, and leaves the rest alone.
//!
//! What is there is found by looking at files, so that a second run needs neither network nor time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use nix::unistd::Uid;

use crate::process::{exec, output, root, which};

/// Where Debian puts LLVM of the release that rustc 1.98 carries.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Asked by Debian's packages before they start their service; 101 means no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to prepare for; everything unless given.
    groups: Vec<Group>,
}

/// What a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    /// Compile the daemon and the probes.
    Build,
    /// Run the kernel tests on this host.
    Test,
    /// Run the demo.
    Demo,
    /// Boot other kernels.
    Vm,
    /// Compare with other runtimes.
    Bench,
}

/// A Debian package.
struct Package {
    name: &'static str,
    groups: &'static [Group],
    /// A program on the path, or a file, that tells that it is installed.
    proof: &'static str,
    why: &'static str,
}

/// LLVM is not in this list: only building bpf-linker needs its headers.
#[rustfmt::skip]
const PACKAGES: &[Package] = &[
    Package { name: "nftables", groups: &[Group::Test, Group::Demo, Group::Vm, Group::Bench], proof: "nft", why: "pods reach other networks through it; VMs get a copy" },
    Package { name: "iproute2", groups: &[Group::Test, Group::Demo, Group::Vm, Group::Bench], proof: "ip", why: "tests look at links and addresses; VMs get a copy" },
    Package { name: "g++", groups: &[Group::Test], proof: "g++", why: "compiles the fuzzer that is linked into the fuzz targets" },
    Package { name: "prometheus", groups: &[Group::Test, Group::Demo], proof: "promtool", why: "scrapes the daemon in tests and in the demo" },
    Package { name: "fio", groups: &[Group::Test], proof: "fio", why: "its account of files is compared with the probes'" },
    Package { name: "iperf3", groups: &[Group::Test], proof: "iperf3", why: "its account of the network is compared with the probes'" },
    Package { name: "docker-registry", groups: &[Group::Test, Group::Bench], proof: "docker-registry", why: "tests and benchmarks pull from it" },
    Package { name: "skopeo", groups: &[Group::Test, Group::Bench], proof: "skopeo", why: "fills registries; benchmarks compare with its pull" },
    Package { name: "openssl", groups: &[Group::Test], proof: "openssl", why: "makes the certificates of the tests' registries" },
    Package { name: "umoci", groups: &[Group::Bench], proof: "umoci", why: "unpacks what skopeo pulls, to compare with" },
    Package { name: "busybox-static", groups: &[Group::Demo], proof: "/var/lib/dpkg/info/busybox-static.list", why: "all that is in the demo's image" },
    Package { name: "apparmor", groups: &[Group::Vm], proof: "apparmor_parser", why: "loads the containers' AppArmor profile in VMs" },
    Package { name: "qemu-system-x86", groups: &[Group::Vm], proof: "qemu-system-x86_64", why: "boots the kernels of the test matrix" },
    Package { name: "e2fsprogs", groups: &[Group::Vm], proof: "mkfs.ext4", why: "formats the VMs' disks" },
    Package { name: "xz-utils", groups: &[Group::Vm], proof: "xz", why: "kernel modules are xz-compressed" },
    Package { name: "crun", groups: &[Group::Bench], proof: "crun", why: "the runtime to compare with" },
    Package { name: "podman", groups: &[Group::Bench], proof: "podman", why: "the engine to compare many pods with" },
    Package { name: "runc", groups: &[Group::Bench], proof: "runc", why: "the other runtime to compare with" },
    Package { name: "bpftrace", groups: &[Group::Bench], proof: "bpftrace", why: "counts files by a one-liner, to compare with" },
    Package { name: "prometheus-node-exporter", groups: &[Group::Bench], proof: "prometheus-node-exporter", why: "the exporter to compare a scrape with" },
    Package { name: "strace", groups: &[Group::Bench], proof: "strace", why: "counts the system calls of a start" },
];

const LLVM: Package = Package {
    name: "llvm-22-dev",
    groups: &[Group::Build],
    proof: "/usr/lib/llvm-22/include/llvm-c/Core.h",
    why: "bpf-linker is built against the LLVM release of rustc",
};

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let all = [Group::Build, Group::Test, Group::Demo, Group::Vm, Group::Bench];
    let groups = if options.groups.is_empty() { &all[..] } else { &options.groups };
    ensure(groups)?;
    println!("setup: everything is there for {}:", names(groups));
    if groups.contains(&Group::Build) {
        println!("  {:<16} compiles everything", "rust toolchain");
        println!("  {:<16} links the probes", "bpf-linker");
    }
    for package in packages(groups) {
        println!("  {:<16} {}", package.name, package.why);
    }
    Ok(())
}

/// Installs what these groups need and this machine lacks; silent if that is nothing.
pub(crate) fn ensure(groups: &[Group]) -> anyhow::Result<()> {
    let build = groups.contains(&Group::Build);
    if build && !toolchain_is_complete()? {
        install_toolchain()?;
    }

    let linker = build && !bpf_linker_works();
    let missing: Vec<_> = packages(groups)
        .chain(linker.then_some(&LLVM))
        .filter(|package| !package.is_installed())
        .collect();
    for package in &missing {
        println!("setup: {:<16} missing: {}", package.name, package.why);
    }
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    if linker {
        install_bpf_linker()?;
    }
    Ok(())
}

impl Package {
    fn is_installed(&self) -> bool {
        if self.proof.starts_with('/') {
            Path::new(self.proof).exists()
        } else {
            which(self.proof).is_some()
        }
    }
}

/// The packages that any of these groups needs.
fn packages(groups: &[Group]) -> impl Iterator<Item = &'static Package> {
    PACKAGES.iter().filter(|package| package.groups.iter().any(|group| groups.contains(group)))
}

fn names(groups: &[Group]) -> String {
    let names: Vec<_> = groups.iter().map(|group| format!("{group:?}").to_lowercase()).collect();
    names.join(", ")
}

/// Whether the toolchain that runs us has the components which rust-toolchain.toml lists.
fn toolchain_is_complete() -> anyhow::Result<bool> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))?;
    let sysroot = PathBuf::from(sysroot.trim());
    let parts = ["lib/rustlib/src/rust/library/core", "bin/cargo-clippy", "bin/cargo-fmt"];
    Ok(parts.iter().all(|part| sysroot.join(part).exists()))
}

fn install_toolchain() -> anyhow::Result<()> {
    println!("setup: rust toolchain   incomplete: rust-toolchain.toml names its parts");
    // The variable comes from the cargo proxy that runs us, and would hide rust-toolchain.toml.
    exec(
        Command::new("rustup")
            .args(["toolchain", "install"])
            .env_remove("RUSTUP_TOOLCHAIN")
            .current_dir(root()),
    )
}

fn bpf_linker_works() -> bool {
    // It also fails if the LLVM library that it was linked with has gone.
    let version = Command::new("bpf-linker").arg("--version").output();
    version.is_ok_and(|output| output.stdout.starts_with(b"bpf-linker 0.13."))
}

fn install_bpf_linker() -> anyhow::Result<()> {
    println!("setup: bpf-linker       missing: links the probes; its build takes a minute or two");
    exec(
        Command::new("cargo")
            .args(["install", "bpf-linker", "--locked", "--version", "0.13.*", "--force"])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM_PREFIX)
            // LLVM does the work; these save a fifth of the build.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .current_dir(root()),
    )
}

fn install_packages(missing: &[&Package]) -> anyhow::Result<()> {
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    let names = names.join(" ");
    let install = format!("apt-get install -y --no-install-recommends {names}");
    if which("apt-get").is_none() {
        bail!("no apt-get here: install what Debian calls {names} and run this again");
    }
    if !Uid::effective().is_root() {
        bail!("only root can install packages, type: sudo sh -c 'apt-get update && {install}'");
    }

    let _services_stay_off = ServicesStayOff::new()?;
    apt(&["-q", "update"])?;
    apt(&[
        &["-q", "-y", "--no-install-recommends", "install"],
        &names.split(' ').collect::<Vec<_>>()[..],
    ]
    .concat())?;

    // The tests start their own Prometheus; the package's would start at the next boot.
    if names.contains("prometheus") && Path::new("/run/systemd/system").exists() {
        exec(Command::new("systemctl").args(["disable", "prometheus.service"]))?;
    }
    Ok(())
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    exec(
        Command::new("apt-get")
            .args(["-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// While this lives, packages that are installed do not start their services.
struct ServicesStayOff {
    /// The policy file if it is ours, to be removed.
    ours: Option<&'static Path>,
}

impl ServicesStayOff {
    fn new() -> anyhow::Result<Self> {
        let path = Path::new(POLICY);
        if path.exists() {
            return Ok(Self { ours: None });
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").context("write policy-rc.d")?;
        exec(Command::new("chmod").arg("755").arg(path))?;
        Ok(Self { ours: Some(path) })
    }
}

impl Drop for ServicesStayOff {
    fn drop(&mut self) {
        if let Some(path) = self.ours
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("setup: {} could not be removed: {error}", path.display());
        }
    }
}
