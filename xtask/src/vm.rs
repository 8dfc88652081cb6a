//! `cargo xtask vm-test`: the kernel tests on real distribution kernels, each in a VM of its own.

mod apt;
mod fetch;
mod initramfs;
mod kernels;
mod modules;
mod qemu;

use std::{
    fs, mem,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    build::{self, Artifacts},
    process::target_dir,
    report::{self, Report},
    setup::{self, Group},
    vm::{fetch::Kernel, initramfs::Payload, qemu::Boot},
};

/// Arguments of the kernel tests everywhere. They share one kernel, so they run one by one; and
/// what a passed test said is shown, since it may be why it was skipped. How long each takes is an
/// unstable option of libtest's, which [`BOOTSTRAP`] lets a stable one take.
pub(crate) const LIBTEST: [&str; 4] =
    ["--test-threads=1", "--show-output", "-Zunstable-options", "--report-time"];

/// Has to be in the environment of a test binary for it to take [`LIBTEST`].
pub(crate) const BOOTSTRAP: (&str, &str) = ("RUSTC_BOOTSTRAP", "1");

/// Seconds that one VM may take.
pub(crate) const TIMEOUT: u64 = 2700;

/// Beginnings of names of tests that are of the daemon itself: `--brief` leaves them to
/// `cargo xtask test` on this host. Emulated, a daemon takes a quarter of a minute to start, and
/// these tests start many.
const ON_HOST: [&str; 16] = [
    "admission::",
    "adoption::",
    "ceiling::",
    "chaos::",
    "churn::",
    "clients::",
    "events::",
    "governor::",
    "held::",
    "hostports::",
    "prometheus::",
    "recovery::",
    "registry::",
    "restarts::",
    "trace::what_finds_no_room",
    "volumes::",
];

/// The same of tests of what kernels have done in one way since the oldest of the matrix: `--brief`
/// runs them on the newest only.
const ON_NEWEST: [&str; 7] = [
    "cadvisor::",
    "disk::",
    "lifecycle::the_probes_log",
    "network::",
    "security::context::",
    "security::escapes::",
    "security::syscalls::",
];

/// The kernel that `--brief` leaves out: both of its neighbours run.
const BETWEEN: &str = "6.18";

/// Seconds of them that booting may take on a busy machine.
const BOOT: u64 = 30;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Series of kernels, such as 6.1; the whole matrix unless given.
    #[arg(long)]
    pub(crate) kernel: Vec<String>,
    /// VMs at a time.
    #[arg(long, default_value_t = 2)]
    pub(crate) jobs: usize,
    /// Seconds that one VM may take.
    #[arg(long, default_value_t = TIMEOUT)]
    pub(crate) timeout: u64,
    /// Use the kernels that were downloaded before.
    #[arg(long)]
    pub(crate) offline: bool,
    /// Write docs/kernels.md from what the tests say of the probes there.
    #[arg(long)]
    pub(crate) bless: bool,
    /// Leave out 6.18, what is tested on this host, and on all kernels but the newest what they do in
    /// one way.
    #[arg(long)]
    pub(crate) brief: bool,
    /// Only tests whose name contains this.
    pub(crate) filter: Option<String>,
    /// More arguments for the kernel tests.
    #[arg(last = true)]
    pub(crate) libtest: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct FetchOptions {
    /// Series of kernels, such as 6.1; the whole matrix unless given.
    #[arg(long)]
    kernel: Vec<String>,
}

pub(crate) fn run_fetch(options: &FetchOptions) -> anyhow::Result<()> {
    setup::ensure(&[Group::Vm])?;
    for kernel in fetch::kernels(&options.kernel, false)? {
        println!("{:<7} {} ({})", kernel.series, kernel.release, kernel.dir.display());
    }
    Ok(())
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[Group::Build, Group::Vm])?;
    let artifacts = build::artifacts()?;
    let reports = matrix(options, &artifacts)?;
    Ok(report::print("kernel", &reports)?)
}

/// Boots each kernel and runs the tests there; an error is one that no report could tell.
pub(crate) fn matrix(options: &Options, artifacts: &Artifacts) -> anyhow::Result<Vec<Report>> {
    let mut kernels = fetch::kernels(&options.kernel, options.offline)?;
    if options.brief && options.kernel.is_empty() {
        println!("vm-test: {BETWEEN}: left out, since this run is to be brief");
        kernels.retain(|kernel| kernel.series != BETWEEN);
    }
    let dir = target_dir().join("vm");
    let limit = Duration::from_secs(options.timeout.saturating_sub(BOOT).max(1));
    let payload = Payload::new(artifacts, &dir, limit)?;

    // The newest is last in the matrix and takes longest: it begins.
    let queue: Mutex<Vec<(usize, &Kernel)>> = Mutex::new(kernels.iter().enumerate().collect());
    let reports = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, kernels.len()) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let Some((index, kernel)) = next else { return };
                    let report = test(kernel, &payload, &dir, options);
                    let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
                    reports.push((index, report));
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    reports.sort_by_key(|(index, _)| *index);
    let mut reports: Vec<Report> = reports.into_iter().map(|(_, report)| report).collect();

    let probes = kernels.iter().zip(&mut reports);
    let found: kernels::Found = probes
        .map(|(kernel, report)| (kernel.series.clone(), mem::take(&mut report.probes)))
        .filter(|(_, probes)| !probes.is_empty())
        .collect();
    if options.bless {
        kernels::bless(&found)?;
    } else {
        reports.extend(kernels::check(&found));
    }
    Ok(reports)
}

/// Runs the tests on one kernel.
fn test(kernel: &Kernel, payload: &Payload, dir: &Path, options: &Options) -> Report {
    println!("vm-test: {}: starting", kernel.release);
    let began = Instant::now();
    let dir = dir.join(&kernel.release);
    let report = match boot(kernel, payload, &dir, options) {
        Ok(boot) => verdict(kernel, &boot, options),
        Err(error) => Report::broken(kernel.release.clone(), began.elapsed(), format!("{error:#}")),
    };
    println!(
        "vm-test: {}: {} passed, {} failed, {} skipped in {:.1} s",
        report.runner,
        report.passed,
        report.failed,
        report.skipped.len(),
        report.took.as_secs_f64()
    );
    report
}

fn boot(kernel: &Kernel, payload: &Payload, dir: &Path, options: &Options) -> anyhow::Result<Boot> {
    let mut arguments: Vec<String> = LIBTEST.map(str::to_owned).to_vec();
    arguments.extend(options.filter.clone());
    arguments.extend_from_slice(&options.libtest);
    if options.brief {
        let on_newest = if kernel.series == fetch::NEWEST { &[][..] } else { &ON_NEWEST };
        let left_out = ON_HOST.iter().chain(on_newest);
        arguments.extend(left_out.map(|name| format!("--skip={name}")));
    }
    fs::create_dir_all(dir).context("create the VM's folder")?;
    let initramfs: PathBuf = dir.join("initramfs.cpio");
    let size = payload.write(kernel, &arguments, &initramfs)?;
    let boot = qemu::boot(kernel, dir, &initramfs, size, Duration::from_secs(options.timeout));
    fs::remove_file(&initramfs).context("remove the initramfs")?;
    boot
}

/// Passed is only what QEMU's status, the init's last line and the tests' own counts agree upon.
fn verdict(kernel: &Kernel, boot: &Boot, options: &Options) -> Report {
    let mut problems: Vec<&str> = Vec::new();
    let exit = format!("QEMU ended with {}", boot.status.unwrap_or(-1));
    match boot.status {
        None => problems.push("killed at its time limit"),
        // 2 * code + 1, where the init wrote the code: 3 is that tests failed.
        Some(1 | 3) => {}
        Some(_) => problems.push(&exit),
    }
    let ended = boot.results.lines().find_map(|line| line.strip_prefix("RESULT kernel "));
    match ended {
        Some("0") => {}
        // libtest's own status when tests failed; their names say more.
        Some("101") if boot.tally().has_failures() => {}
        Some("timeout") => problems.push("the tests took too long"),
        Some(_) => problems.push("the tests broke off"),
        None => problems.push("the tests did not end"),
    }
    if boot.status == Some(3) && ended == Some("0") {
        problems.push("the init failed");
    }
    let problem = (!problems.is_empty()).then(|| problems.join(", "));

    let mut report = boot.tally().report(kernel.name(&boot.results), boot.took, problem);
    if options.filter.is_none() && options.libtest.is_empty() {
        report = report.must_have_run();
    }
    if report.failed > 0 {
        boot.show_failure(&report.runner);
    }
    report
}
