//! `cargo xtask fuzz`: feeds what strangers may write to what reads it, for a while.
//!
//! The targets are programs of their own in `fuzz/`, in the layout of cargo-fuzz. They are built and
//! run directly, so that neither that tool nor a nightly compiler has to be there: the flags that
//! let a program tell which way it went are stable.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    process::{exec, root, target_dir, wait_until},
    report::{self, Report},
    setup::{self, Group},
};

/// What every target may take, in seconds, when all tests are run.
pub(crate) const BRIEF: u64 = 12;

/// Coverage that libFuzzer reads: a counter for each edge, their addresses, and what is compared.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Bounds of one input: its size, the seconds and the memory that it may take.
const BOUNDS: [&str; 3] = ["-max_len=20000", "-timeout=10", "-rss_limit_mb=2048"];

/// How long a target may go on after its time is over: until its current input is done.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds for each target.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// Only these targets.
    targets: Vec<String>,
    /// Run one target on this input only, as after a failure.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[Group::Build, Group::Test])?;
    if let Some(input) = &options.input {
        let [target] = &options.targets[..] else { bail!("name the one target that reads it") };
        let bin_dir = build(options.seconds)?;
        return exec(Command::new(bin_dir.join(target)).arg(input));
    }
    Ok(report::print("target", &run_for(options.seconds, &options.targets)?)?)
}

/// Builds the targets and runs each for so many seconds; all of them if none is named.
pub(crate) fn run_for(seconds: u64, wanted: &[String]) -> anyhow::Result<Vec<Report>> {
    let all = targets()?;
    if let Some(unknown) = wanted.iter().find(|wanted| !all.contains(wanted)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    let bin_dir = build(seconds)?;
    all.iter()
        .filter(|target| wanted.is_empty() || wanted.contains(target))
        .map(|target| run_one(&bin_dir, target, seconds))
        .collect()
}

/// The targets are the files of one folder.
fn targets() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/targets")).context("list the fuzz targets")? {
        let path = entry.context("list the fuzz targets")?.path();
        if let Some(name) = path.file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Builds for runs of so many seconds, and returns the folder of the programs.
fn build(seconds: u64) -> anyhow::Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let target_dir = target_dir().join("fuzz");
    let mut cargo = Command::new("cargo");
    cargo.arg("build").current_dir(root().join("fuzz"));
    // With a target, what runs at build time is compiled without these flags.
    cargo.arg("--target").arg(&triple).arg("--target-dir").arg(&target_dir);
    cargo.env("RUSTFLAGS", COVERAGE.join(" ")).env_remove("CARGO_ENCODED_RUSTFLAGS");
    // Optimising takes minutes, which only a long run makes up for.
    if seconds > BRIEF {
        cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    }
    exec(&mut cargo)?;
    Ok(target_dir.join(triple).join("debug"))
}

/// Runs one target on its corpus, and on what it makes of it.
fn run_one(bin_dir: &Path, target: &str, seconds: u64) -> anyhow::Result<Report> {
    let fuzz = root().join("fuzz");
    // What is new stays out of the repository until somebody puts it there.
    let found = target_dir().join("fuzz-corpus").join(target);
    let artifacts = fuzz.join("artifacts");
    for folder in [&found, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let log_path = target_dir().join(format!("fuzz-{target}.log"));
    let log = fs::File::create(&log_path).context("create the fuzzer's log")?;
    let mut command = Command::new(bin_dir.join(target));
    command.args([&found, &fuzz.join("corpus").join(target)]).args(BOUNDS);
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix={}/{target}-", artifacts.display()));
    // Where there is memory for files, they need no disk.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);

    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start the target {target}"))?;
    let deadline = began + Duration::from_secs(seconds) + PATIENCE;
    let status = wait_until(&mut child, deadline).context("wait for the target")?;
    let took = began.elapsed();
    let runner = format!("fuzz {target}");
    if status.is_some_and(|status| status.success()) {
        println!("{runner}: {}", last_line(&log_path, "Done "));
        let report = Report { passed: 1, ..Report::empty(runner, took) };
        return Ok(report);
    }
    let problem = format!(
        "{target}: {}; see {}, and cargo xtask fuzz {target} --input FILE with the file in \
         fuzz/artifacts",
        last_line(&log_path, "SUMMARY"),
        log_path.display()
    );
    Ok(Report::broken(runner, took, problem))
}

/// What the fuzzer's log says last in a line that begins so.
fn last_line(log: &Path, start: &str) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| line.starts_with(start));
    line.unwrap_or("it ended without a word").to_owned()
}
