//! `cargo xtask test`: every test there is, from the quick ones to the VMs, and one sum at the end.

mod run;

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::unistd::Uid;

use crate::{
    build::{self, Artifacts, static_cargo},
    fuzz, lint,
    report::{self, Report},
    setup::{self, Group},
    vm,
};

/// Longest time that one runner may take on this host.
const LIMIT: Duration = Duration::from_mins(20);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the kernel tests on this host: no lints, no unit tests, no fuzzing, no VMs.
    #[arg(long)]
    host_only: bool,
    /// Everything but the VMs.
    #[arg(long)]
    no_vm: bool,
    /// Use the kernels that were downloaded before.
    #[arg(long)]
    offline: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// More arguments for the kernel tests.
    #[arg(last = true)]
    libtest: Vec<String>,
}

/// The phases so far, and what they found.
struct Phases {
    began: Instant,
    reports: Vec<Report>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let everything = !options.host_only;
    let vms = everything && !options.no_vm;
    if !Uid::effective().is_root() {
        bail!(
            "the kernel tests need root, type: sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask test"
        );
    }

    let mut phases = Phases { began: Instant::now(), reports: Vec::new() };
    let mut groups = vec![Group::Build, Group::Test];
    if vms {
        groups.push(Group::Vm);
    }
    // Without it the rest makes no sense.
    println!("== [   0 s] setup");
    setup::ensure(&groups)?;
    if everything {
        phases.phase("lint", || lint::check().map(|()| Vec::new()));
        phases.phase("unit tests", || Ok(vec![unit_tests(options)?]));
        if options.filter.is_none() {
            phases.phase("fuzz targets", || fuzz::run_for(fuzz::BRIEF, &[]));
        }
    }
    let mut artifacts = None;
    phases.phase("build", || {
        artifacts = Some(build::artifacts()?);
        Ok(Vec::new())
    });
    if let Some(artifacts) = artifacts {
        phases.phase("kernel tests on this host", || Ok(vec![host_tests(options, &artifacts)?]));
        if vms {
            phases.phase("kernel tests in VMs", || vm_tests(options, &artifacts));
        }
    }
    Ok(report::print("runner", &phases.reports)?)
}

impl Phases {
    /// Runs a phase. Its failure stands in the sum and does not stop the others.
    fn phase(&mut self, name: &str, run: impl FnOnce() -> anyhow::Result<Vec<Report>>) {
        println!("== [{:>4} s] {name}", self.began.elapsed().as_secs());
        let began = Instant::now();
        let result = run();
        let took = began.elapsed();
        let reports = result.unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            vec![Report::broken(name.to_owned(), took, format!("{error:#}"))]
        });
        let failed = reports.iter().any(|report| report.failed > 0);
        let outcome = if failed { "FAILED" } else { "done" };
        println!("== {name}: {outcome} in {:.1} s", took.as_secs_f64());
        self.reports.extend(reports);
    }
}

fn unit_tests(options: &Options) -> anyhow::Result<Report> {
    let mut cargo = static_cargo("test");
    cargo.args(options.filter.as_slice());
    run::libtest(cargo, run::Streams::Stdout, "unit tests".to_owned(), LIMIT)
}

/// Runs the kernel tests in mount and network namespaces of their own.
fn host_tests(options: &Options, artifacts: &Artifacts) -> anyhow::Result<Report> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;

    let mut tests = Command::new("unshare");
    tests.args(["--mount", "--net", "--propagation", "private"]);
    tests.args(["sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).arg(&artifacts.kernel_test);
    tests.args(vm::LIBTEST).args(options.filter.as_slice()).args(&options.libtest);
    let (name, value) = vm::BOOTSTRAP;
    tests.env("PODSCOPE_BIN_DIR", &artifacts.bin_dir).env(name, value);
    let report =
        run::libtest(tests, run::Streams::Both, format!("host {}", release.trim()), LIMIT)?;
    Ok(if options.filter.is_none() { report.must_have_run() } else { report })
}

fn vm_tests(options: &Options, artifacts: &Artifacts) -> anyhow::Result<Vec<Report>> {
    let matrix = vm::Options {
        kernel: Vec::new(),
        jobs: 2,
        timeout: vm::TIMEOUT,
        offline: options.offline,
        bless: false,
        brief: true,
        filter: options.filter.clone(),
        libtest: options.libtest.clone(),
    };
    vm::matrix(&matrix, artifacts)
}
