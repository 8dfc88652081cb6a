//! Real programs keep their own accounts: ours agree with theirs, across the death of the daemon.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use pod_tests::{
    Daemon, eventually,
    manifest::{mounts, pod},
    metrics::number,
    program, seconds, skip, state,
};
use serde_json::{Value, json};

/// Makes an image of a program of this machine and what it is linked with.
fn image_of(daemon: &Daemon, name: &str) -> String {
    let program = program::find(name).expect("it is installed");
    let rootfs = daemon.folder().join(format!("image-{name}"));
    let libraries = Command::new("ldd").arg(&program).output().expect("run ldd").stdout;
    let libraries = String::from_utf8(libraries).expect("paths are text");
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.map(PathBuf::from) {
        copy(&file, &rootfs.join(file.strip_prefix("/").unwrap()));
    }
    copy(&program, &rootfs.join("bin").join(name));
    format!("dir:{}", rootfs.display())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

/// Ends the daemon in the middle of the load, twice.
fn crash_meanwhile(daemon: &mut Daemon) {
    for _ in 0..2 {
        thread::sleep(seconds(1));
        daemon.kill();
        thread::sleep(seconds(1));
        daemon.restart();
    }
}

#[test]
fn fio_and_the_probes_agree_on_every_byte() {
    if program::find("fio").is_none() {
        return skip("fio is not installed");
    }
    let mut daemon = Daemon::start(&["--on-stop=end"]);
    let image = image_of(&daemon, "fio");
    let [data, out] = ["fio-data", "fio-out"].map(|name| daemon.folder().join(name));
    fs::create_dir(&data).unwrap();
    fs::create_dir(&out).unwrap();
    // A file that is there already: what fio writes to make one is not in its account.
    fs::write(data.join("file"), vec![b'f'; 32 << 20]).unwrap();
    let command = "fio --directory=/data --filename=file --bs=4k --size=32m --ioengine=psync \
                   --thread --numjobs=2 --time_based --runtime=6 --fallocate=none --overwrite=1 \
                   --output-format=json --output=/out/report --group_reporting \
                   --name=write --rw=write --name=read --rw=randread --stonewall";
    let mut fields = mounts(&[("data", "/data"), ("out", "/out")]);
    fields["command"] = command.split_whitespace().collect::<Value>();
    fields["command"][0] = "/bin/fio".into();
    fields["image"] = image.into();
    let load = pod("load")
        .volume("data", "hostPath", json!({"path": data}))
        .volume("out", "hostPath", json!({"path": out}))
        .container_with("app", "", fields);
    daemon.run(load);
    daemon.wait_ready("load");
    crash_meanwhile(&mut daemon);
    let over = daemon.wait_over("load");
    assert_eq!(over["status"]["phase"], "Succeeded", "{}", daemon.logs("load", ""));

    let report: Value =
        serde_json::from_slice(&fs::read(out.join("report")).unwrap()).expect("fio's report");
    let jobs = report["jobs"].as_array().unwrap();
    let metrics = daemon.metrics();
    for (side, metric) in
        [("read", "podscope_file_read_bytes_total"), ("write", "podscope_file_written_bytes_total")]
    {
        let sum =
            |key: &str| -> u64 { jobs.iter().filter_map(|job| job[side][key].as_u64()).sum() };
        let counted = metrics.one(metric, &[("pod", "load"), ("volume", "data")]);
        let labels = [("pod", "load"), ("volume", "data"), ("operation", side)];
        let operations = metrics.one("podscope_file_operations_total", &labels);
        println!("{side}: fio {} bytes, counted {counted}", sum("io_bytes"));
        if let Some(missed) = metrics.missed() {
            daemon.stop();
            return skip(&missed);
        }
        assert!(sum("io_bytes") > 0, "{report:#}");
        assert_eq!(counted, sum("io_bytes") as f64, "{side}");
        assert_eq!(operations, sum("total_ios") as f64, "{side}");
    }
    daemon.stop();
}

#[test]
fn iperf3_the_interfaces_and_the_probes_agree() {
    if program::find("iperf3").is_none() {
        return skip("iperf3 is not installed");
    }
    let mut daemon = Daemon::start(&["--on-stop=end"]);
    let image = image_of(&daemon, "iperf3");
    let run = |name: &str, arguments: &str| {
        let command: Vec<&str> =
            std::iter::once("/bin/iperf3").chain(arguments.split_whitespace()).collect();
        pod(name).volume("tmp", "emptyDir", json!({})).container_with(
            "app",
            "",
            json!({
                "image": image,
                "command": command,
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }),
        )
    };
    daemon.run(run("server", "--server --forceflush"));
    daemon.wait_logged("server", "", "listening");
    let server = daemon.pod("server");
    let address = server["status"]["podIP"].as_str().unwrap();
    let link = state::host_end(&server);
    let before = state::interface(&link);
    daemon.run(run("client", &format!("--client {address} --time 6 --json")));
    daemon.wait_ready("client");
    crash_meanwhile(&mut daemon);
    let over = daemon.wait_over("client");
    assert_eq!(over["status"]["phase"], "Succeeded", "{}", daemon.logs("client", ""));

    let report: Value = serde_json::from_str(&daemon.logs("client", "")).expect("iperf3's report");
    let received = report["end"]["sum_received"]["bytes"].as_f64().unwrap();
    eventually("counters and interface agree", seconds(10), || {
        let metrics = daemon.metrics();
        let now = state::interface(&link);
        // What the host's end transmits, the server receives.
        let sides = ["transmit", "receive"].into_iter().enumerate();
        let problems: Vec<_> = sides
            .filter_map(|(side, direction)| {
                let labels = [("pod", "server"), ("direction", direction)];
                let sum = |name: &str| number(metrics.sum(name, &labels));
                let own =
                    (sum("podscope_network_bytes_total"), sum("podscope_network_packets_total"));
                let seen = (now[side].0 - before[side].0, now[side].1 - before[side].1);
                state::unexplained(own, seen).map(|problem| format!("{direction}: {problem}"))
            })
            .collect();
        if !problems.is_empty() {
            println!("{}", problems.join("\n"));
        }
        problems.is_empty().then_some(())
    });
    let labels = [("pod", "server"), ("direction", "receive")];
    let counted = daemon.metrics().sum("podscope_network_bytes_total", &labels);
    println!("iperf3: {received} bytes of payload, counted {counted} with headers");
    assert!(counted > received && counted < received * 1.1);
    daemon.stop();
}
