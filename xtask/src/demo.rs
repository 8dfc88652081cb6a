//! `cargo xtask demo`: two pods, what the probes see of them, and Prometheus to ask about it.
//!
//! It runs beside whatever else runs here, a daemon included: directories, cgroups, network range
//! and ports are its own, and at the end they are gone.

mod table;

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::Uid;

use crate::{
    build,
    daemon::{self, Daemon},
    process::{exec, root},
    setup::{self, Group},
    stop,
};

/// The folder that the manifest names; the demo puts its own in place of it.
const PLACEHOLDER: &str = "/tmp/podscope-demo";

/// The pods of the manifest.
const PODS: [&str; 2] = ["web", "client"];

/// How long pods and Prometheus may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two tables: on a terminal, where one replaces the other, and elsewhere.
const REDRAW: Duration = Duration::from_secs(1);
const APPEND: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// End by itself after this time, such as 20s or 2m.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// Run the pod-daemon and podctl of this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !Uid::effective().is_root() {
        bail!("pods need root, type: sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask demo");
    }
    let bin_dir = if let Some(bin_dir) = &options.bin_dir {
        setup::ensure(&[Group::Demo])?;
        bin_dir.clone()
    } else {
        setup::ensure(&[Group::Build, Group::Demo])?;
        say("building the daemon and podctl (the first time takes minutes)")?;
        build::release()?
    };

    stop::listen()?;
    say("starting the daemon")?;
    let daemon = Daemon::start(&bin_dir, "demo", &[])?;
    let shown = show(&daemon, options);
    if shown.is_err() && !stop::asked() {
        eprintln!("the daemon's log ends with:\n{}", daemon.last_words());
    }
    say("removing everything that the demo made")?;
    daemon.stop()?;
    if !stop::asked() {
        shown?;
    }
    say("nothing is left: no process, cgroup, mount, network interface or file")
}

/// Everything between the daemon's start and its end.
fn show(daemon: &Daemon, options: &Options) -> anyhow::Result<()> {
    make_image(&daemon.directory().join("image"))?;
    let manifest = root().join("examples/demo.yaml");
    let text = fs::read_to_string(&manifest).context("read the manifest")?;
    let text = text.replace(PLACEHOLDER, &daemon.directory().display().to_string());
    let copy = daemon.directory().join("demo.yaml");
    fs::write(&copy, text).context("write the manifest")?;

    say("podctl apply -f examples/demo.yaml")?;
    exec(daemon.podctl().arg("apply").arg("-f").arg(&copy))?;
    wait_for_pods(daemon)?;
    exec(daemon.podctl().args(["get", "pods"]))?;

    let mut prometheus = Prometheus::start(daemon)?;
    prometheus.wait_until_ready()?;
    let links = links(daemon, prometheus.address);
    table_until_the_end(daemon, options, &links)?;
    prometheus.stop()
}

/// A root file system with nothing in it but busybox under its many names.
fn make_image(image: &Path) -> anyhow::Result<()> {
    let bin = image.join("bin");
    fs::create_dir_all(&bin).context("make the image")?;
    let busybox = bin.join("busybox");
    fs::copy("/bin/busybox", &busybox).context("copy busybox")?;
    exec(Command::new(&busybox).arg("--install").arg(&bin))
}

fn wait_for_pods(daemon: &Daemon) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        stop::check()?;
        let metrics = daemon.scrape()?;
        if PODS.iter().all(|pod| metrics.sum("podscope_pod_ready", &[("pod", pod)]) > 0.0) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            exec(daemon.podctl().args(["describe", "pod"]))?;
            bail!("the pods are not ready after {} s", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Debian's Prometheus, on a copy of the configuration in dashboards/.
struct Prometheus {
    child: Option<Child>,
    address: SocketAddr,
}

impl Prometheus {
    fn start(daemon: &Daemon) -> anyhow::Result<Self> {
        let directory = daemon.directory().join("prometheus");
        fs::create_dir(&directory).context("make Prometheus' directory")?;
        let from = root().join("dashboards");
        let config = fs::read_to_string(from.join("prometheus.yml")).context("read its config")?;
        let target = daemon.metrics_address().to_string();
        ensure!(config.contains("127.0.0.1:9464"), "prometheus.yml does not scrape the daemon");
        let config = config.replace("127.0.0.1:9464", &target);
        fs::write(directory.join("prometheus.yml"), config).context("write its config")?;
        fs::copy(from.join("rules.yml"), directory.join("rules.yml")).context("copy its rules")?;

        let address = daemon::free_port(9090)?;
        let log = fs::File::create(directory.join("log")).context("create Prometheus' log")?;
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", directory.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdout(Stdio::null()).stderr(log);
        Ok(Self { child: Some(daemon::spawn(&mut command)?), address })
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            stop::check()?;
            let ended = self.child.as_mut().map(Child::try_wait).transpose();
            ensure!(ended.context("wait for Prometheus")?.flatten().is_none(), "Prometheus ended");
            ensure!(Instant::now() < deadline, "Prometheus does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.child.take().map_or(Ok(()), |mut child| daemon::terminate(&mut child, "Prometheus"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child
            && let Err(error) = daemon::terminate(child, "Prometheus")
        {
            eprintln!("demo: {error:#}");
        }
    }
}

/// What to try while it runs.
fn links(daemon: &Daemon, prometheus: SocketAddr) -> String {
    let podctl =
        format!("{} --socket {}", daemon.podctl_path().display(), daemon.socket().display());
    let query = "g0.expr=rate(podscope_exec_total%5B1m%5D)&g0.tab=0&g0.range_input=5m";
    format!(
        "metrics      http://{}/metrics\n\
         Prometheus   http://{prometheus}/graph?{query}\n\
         podctl       {podctl} get pods -o wide\n\
         \x20            {podctl} logs -f client -c worker\n\
         \x20            {podctl} exec web -c writer -- cat /content/index.html\n",
        daemon.metrics_address(),
    )
}

fn table_until_the_end(daemon: &Daemon, options: &Options, links: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let on_terminal = out.is_terminal();
    let pause = if on_terminal { REDRAW } else { APPEND };
    let end = options.time.map(|time| Instant::now() + time);
    write!(out, "\n{links}")?;

    let mut earlier = None;
    let mut drawn = 0;
    while !stop::asked() {
        let seen = table::Seen::read(daemon)?;
        let mut text = seen.table(earlier.as_ref());
        text.push_str(match end {
            Some(_) => "Ctrl-C ends the demo before its time\n",
            None => "Ctrl-C ends the demo\n",
        });
        if on_terminal && drawn > 0 {
            // Up to the table's first line, and nothing of it stays.
            write!(out, "\x1b[{drawn}A\x1b[J")?;
        }
        if on_terminal {
            // Lines that are too long are cut, since wrapped ones would count twice.
            write!(out, "\x1b[?7l\n{text}\x1b[?7h")?;
        } else {
            write!(out, "\n{text}")?;
        }
        out.flush()?;
        drawn = text.lines().count() + 1;
        earlier = Some(seen);

        let next = Instant::now() + pause;
        stop::sleep_until(end.map_or(next, |end| end.min(next)));
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
    }
    writeln!(out)?;
    Ok(())
}

fn say(what: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "demo: {what}")?;
    out.flush().context("write to the terminal")
}

/// Reads `20s`, `2m`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: u64 =
        number.parse().map_err(|error| format!("{error}; expected a time such as 20s or 2m"))?;
    Ok(Duration::from_secs(number * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert!(duration("soon").is_err());
    }
}
