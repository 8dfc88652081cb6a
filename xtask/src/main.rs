//! Podscope's developer commands: `cargo xtask COMMAND`.
//!
//! A command is one file with `Options` and `run`, one variant and one arm below.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line talks on its terminal"
)]

mod bench;
mod build;
mod columns;
mod daemon;
mod demo;
mod fuzz;
mod http;
mod lint;
mod metrics;
mod process;
mod report;
mod setup;
mod stop;
mod test;
mod vm;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::process::Told;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about, disable_help_subcommand = true)]
enum Command {
    /// Install what the other commands need and this machine lacks.
    Setup(setup::Options),
    /// Build the daemon, podctl and the kernel tests, all statically linked.
    Build(build::Options),
    /// Run two pods and show what the probes see, until Ctrl-C.
    Demo(demo::Options),
    /// Measure starts, probes and scrapes beside crun, runc and the kernel alone.
    Bench(bench::Options),
    /// What `bench` runs in a process without threads.
    #[command(name = bench::floor::COMMAND, hide = true)]
    BenchFloor { n: usize, rootfs: PathBuf },
    /// Check formatting and lints.
    Lint(lint::Options),
    /// Feed what strangers may write to what reads it.
    Fuzz(fuzz::Options),
    /// Run every test there is: lints, unit tests, fuzz targets, kernel tests on this host and in
    /// VMs.
    Test(test::Options),
    /// Run the kernel tests in VMs with real distribution kernels.
    VmTest(vm::Options),
    /// Download the kernels that `vm-test` boots.
    VmFetch(vm::FetchOptions),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Setup(options) => setup::run(&options),
        Command::Build(options) => build::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::BenchFloor { n, rootfs } => bench::floor::main(n, &rootfs),
        Command::Lint(options) => lint::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Test(options) => test::run(&options),
        Command::VmTest(options) => vm::run(&options),
        Command::VmFetch(options) => vm::run_fetch(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Told>() {
                eprintln!("xtask: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
