//! What a whole workload loses to the probes: the same pods with them and, after they have been taken
//! away, without.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    StartDaemon,
    pods::{Pods, pod},
    rootfs,
    sheet::Sheet,
};
use crate::stop;

/// Where the server listens.
const PORT: &str = "7000";

/// A load, its count, and what one of it is.
const LOADS: [(&str, &str, &str); 2] = [
    ("request", "10000", "200 B to another pod, 4 KiB back"),
    ("file", "75000", "4 KiB written and read"),
];

/// Each is measured so often, for a quarter of a second, and the best counts: all else is somebody
/// else's work.
const ROUNDS: usize = 4;
const SAMPLES: usize = 10;

/// Nanoseconds of each load with and without probes.
type Best = [[f64; 2]; LOADS.len()];

pub(super) fn run(start_daemon: &StartDaemon<'_>) -> anyhow::Result<Value> {
    let mut best: Best = [[f64::INFINITY; 2]; LOADS.len()];
    for round in 1..=ROUNDS {
        println!("bench: whole workloads, round {round} of {ROUNDS}");
        let daemon = start_daemon(&[])?;
        let rootfs = rootfs::make(daemon.directory())?;
        let out = daemon.directory().join("out");
        fs::create_dir(&out).context("make a directory for the loads")?;
        let mut pods = Pods::connect(&daemon)?;
        let serve = ["/bin/load", "serve", PORT, "/out", "-"];
        pods.create(&pod("server", &rootfs, &serve, "Always", &out))?;
        // One pod for both: a new one would get probes of its own.
        pods.create(&pod("client", &rootfs, &["/bin/sleep"], "Always", &out))?;
        pods.wait_for("server", "Running")?;
        pods.wait_for("client", "Running")?;
        let address = format!("{}:{PORT}", pods.ip("server")?);

        measure(&pods, &out, &address, &mut best, 0)?;
        take_probes_away(&daemon.directory().join("bpf"))?;
        measure(&pods, &out, &address, &mut best, 1)?;
        daemon.stop()?;
    }
    Ok(report(&best))
}

fn measure(
    pods: &Pods,
    out: &Path,
    address: &str,
    best: &mut Best,
    column: usize,
) -> anyhow::Result<()> {
    for ((load, count, _), best) in LOADS.iter().zip(best) {
        for _ in 0..SAMPLES {
            stop::check()?;
            pods.exec("client", &["/bin/load", load, count, "/out", address])?;
            let result = out.join(load);
            let nanos: f64 = fs::read_to_string(&result)
                .context("read a load's result")?
                .parse()
                .context("read a load's result")?;
            fs::remove_file(&result).context("remove a load's result")?;
            best[column] = best[column].min(nanos / count.parse::<f64>()?);
        }
    }
    Ok(())
}

/// Detaches every program: a link lives as long as its pin.
fn take_probes_away(bpf: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(bpf).context("list the pins")? {
        let path = entry.context("list the pins")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let links = if name == "pods" { path } else { path.join("links") };
        if (name == "pods" || name.starts_with("object-")) && links.is_dir() {
            fs::remove_dir_all(&links).context("remove the pins")?;
        }
    }
    Ok(())
}

fn report(best: &Best) -> Value {
    let columns = ["one operation in a pod", "without probes", "with them", "more"];
    let mut sheet = Sheet::new("probes: whole workloads", columns);
    for ((load, _, what), [with, without]) in LOADS.iter().zip(best) {
        let more = (with / without - 1.0) * 100.0;
        sheet.row([
            format!("{load}: {what}"),
            format!("{without:.0} ns"),
            format!("{with:.0} ns"),
            format!("{more:.1} %"),
        ]);
        sheet.note(load, json!({ "with_ns": with, "without_ns": without, "more_percent": more }));
    }
    let [with, without] = best[0];
    sheet.target("requests over the network", (with / without - 1.0) * 100.0, 2.0, " %");
    sheet.finish()
}
