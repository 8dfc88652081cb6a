//! `podctl`: see [`pod_daemon::podctl`].

use std::process::ExitCode;

use pod_daemon::podctl::{self, Output};

fn main() -> ExitCode {
    let mut output = Output::of_process();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.cannot_start(&error).into(),
    };
    runtime.block_on(podctl::run(std::env::args_os(), &mut output)).into()
}
