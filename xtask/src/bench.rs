//! `cargo xtask bench`: what Podscope costs, beside what the kernel alone and other runtimes cost.
//!
//! All that is compared is measured in one run and in turns, because machines have moods.

pub(crate) mod floor;
mod many;
mod overhead;
mod peers;
mod pods;
mod probes;
mod pull;
mod rootfs;
mod scrape;
mod sheet;
mod start;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use nix::unistd::Uid;
use serde_json::{Map, Value};

use crate::{
    build,
    daemon::Daemon,
    process::target_dir,
    setup::{self, Group},
    stop,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure; everything unless given.
    what: Vec<What>,
    /// Samples of each kind of start.
    #[arg(long, default_value_t = 100)]
    n: usize,
    /// Pods of the scrape measurement.
    #[arg(long, default_value_t = 500)]
    pods: usize,
    /// Also run 10,000 times `/bin/true` in one pod, and look for what got lost.
    #[arg(long)]
    soak: bool,
    /// Where the numbers go [default: bench.json in the target directory]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure the pod-daemon of this folder instead of building one.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// How long pods, containers and commands take to start.
    Start,
    /// What the probes cost.
    Probes,
    /// How long many pods take to start, to come and go, and to be taken over by a new daemon.
    Many,
    /// What 1,000 containers cost the daemon and Prometheus.
    Scrape,
    /// How long an image takes from a registry to the disk.
    Pull,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !Uid::effective().is_root() {
        bail!("pods need root, type: sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask bench");
    }
    let bin_dir = if let Some(bin_dir) = &options.bin_dir {
        setup::ensure(&[Group::Bench])?;
        bin_dir.clone()
    } else {
        setup::ensure(&[Group::Build, Group::Bench])?;
        println!("bench: building the daemon (the first time takes minutes)");
        build::release()?
    };
    stop::listen()?;

    let start_daemon = |flags: &[&str]| Daemon::start(&bin_dir, "bench", flags);
    let wanted = |what| options.what.is_empty() || options.what.contains(&what);
    let mut numbers = Map::new();
    if wanted(What::Start) {
        numbers.insert("start".to_owned(), start::run(&start_daemon, options.n)?);
    }
    if options.soak {
        numbers.insert("soak".to_owned(), start::soak(&start_daemon)?);
    }
    if wanted(What::Probes) {
        numbers.insert("probes".to_owned(), probes::run(&start_daemon)?);
        numbers.insert("overhead".to_owned(), overhead::run(&start_daemon)?);
    }
    if wanted(What::Many) {
        numbers.insert("many".to_owned(), many::run(&start_daemon)?);
    }
    if wanted(What::Scrape) {
        numbers.insert("scrape".to_owned(), scrape::run(&start_daemon, options.pods)?);
    }
    if wanted(What::Pull) {
        numbers.insert("pull".to_owned(), pull::run(&start_daemon)?);
    }

    let json = options.json.clone().unwrap_or_else(|| target_dir().join("bench.json"));
    let text = serde_json::to_string_pretty(&Value::Object(numbers)).context("write JSON")?;
    fs::write(&json, text + "\n").with_context(|| format!("write {}", json.display()))?;
    println!("numbers: {}", json.display());
    Ok(())
}

/// Starts a daemon with these flags more.
type StartDaemon<'a> = dyn Fn(&[&str]) -> anyhow::Result<Daemon> + 'a;
