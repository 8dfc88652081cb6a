//! `pod-daemon`: flags, logging, signals, exit code.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use pod_daemon::{config::Flags, daemon};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// `EX_USAGE` of sysexits.h: settings that cannot be used.
const USAGE: u8 = 64;

/// Threads for what blocks, such as starting a container. More than this many starts at once only
/// wait for each other in the kernel.
const BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    // Before anything that would be done twice.
    let sealed = pod_daemon::sandbox::run_sealed();
    limit_arenas();
    // What the daemon makes for containers, such as mount points, must not depend on who started it.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let flags = Flags::parse();
    let filter = EnvFilter::try_from_env("PODSCOPE_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,probes=debug"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .init();
    if let Err(error) = sealed {
        tracing::warn!(%error, "this program can be written to by way of /proc");
    }
    let config = match flags.into_config() {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{:#}", anyhow::Error::from(error));
            return ExitCode::from(USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "failed to start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        daemon::run(config, shutdown).await
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

/// Keeps the C library from giving every thread a heap of its own: starts run on short-lived
/// threads, and what their heaps grew to would stay with the daemon (with 200 pods, 110 MB). The daemon allocates
/// too little for one heap to be a bottleneck.
fn limit_arenas() {
    // SAFETY: sets a parameter of the allocator, before there is a second thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// SIGTERM and SIGINT stop the daemon in an orderly way.
async fn cancel_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be handled");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
}
