//! A real Prometheus, fed by the daemon and asked what the dashboard asks.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use pod_tests::{
    Daemon, Metrics, eventually, http, in_vm,
    manifest::{mounts, pod},
    program, seconds, skip, within,
};
use serde_json::{Value, json};

use super::exemplars::TRACEPARENT;

/// A Prometheus that scrapes a daemon.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts it with the scrape configuration that is shipped, faster and for this daemon.
    fn start(program: &Path, daemon: &Daemon, options: &[&str]) -> Self {
        let folder = daemon.folder().join("prometheus");
        fs::create_dir(&folder).unwrap();
        let config = fs::read_to_string(dashboards().join("prometheus.yml")).unwrap();
        let target = daemon.metrics_address().to_string();
        let config = config
            .replace("127.0.0.1:9464", &target)
            .replace("scrape_interval: 5s", "scrape_interval: 1s")
            // What is only for those who have no kubelet.
            .replace("  # - job_name", "  - job_name")
            .replace("  #   ", "    ");
        assert!(config.contains(&target), "{config}");
        assert!(config.contains("scrape_interval: 1s"), "{config}");
        assert!(config.contains("\n  - job_name: cadvisor\n    metrics_path"), "{config}");
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        fs::copy(dashboards().join("rules.yml"), folder.join("rules.yml")).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = File::create(folder.join("log")).unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Self { child, address };
        eventually("Prometheus is ready", seconds(60), || {
            http::tcp(address, "/-/ready").ok().filter(|answer| answer.status == 200)
        });
        prometheus
    }

    /// The result of a query, or why there is none.
    fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let path = format!("/api/v1/query?query={}", http::escape(query));
        let answer = http::tcp(self.address, &path).map_err(|error| error.to_string())?.json();
        match answer["data"]["result"].as_array() {
            Some(result) => Ok(result.clone()),
            None => Err(answer["error"].to_string()),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        program::end(&mut self.child);
    }
}

/// Where a program of Prometheus' package is; if it is not there, says so aloud.
fn of_package(name: &str) -> Option<PathBuf> {
    if in_vm() {
        skip("Prometheus is tested on the host");
        return None;
    }
    let program = program::find(name);
    if program.is_none() {
        skip(&format!("there is no `{name}` (apt-get install prometheus)"));
    }
    program
}

/// The folder of that name in the repository.
fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards")
}

/// Titles and queries of a dashboard's panels.
fn queries(panels: &Value, found: &mut Vec<(String, String)>) {
    for panel in panels.as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            found.push((text(&panel["title"]), text(&target["expr"])));
        }
        queries(&panel["panels"], found);
    }
}

/// A query as Grafana sends it when everything is selected.
fn complete(query: &str) -> String {
    let query = query.replace("$__rate_interval", "20s").replace("$__range", "1h");
    ["namespace", "pod", "container", "node", "instance"]
        .iter()
        .fold(query, |query, name| query.replace(&format!("${name}"), ".*"))
}

#[test]
fn every_query_of_the_dashboard_returns_data() {
    let Some(program) = of_package("prometheus") else { return };
    let daemon = Daemon::start(&[]);
    let prometheus = Prometheus::start(&program, &daemon, &[]);
    daemon.run(pod("server").container("app", "serve 7000"));
    daemon.wait_logged("server", "", "listening");
    let address = daemon.pod("server")["status"]["podIP"].as_str().unwrap().to_owned();
    daemon.run(pod("names").container("app", "dns-serve 1"));
    daemon.wait_logged("names", "", "listening");
    let names = daemon.pod("names")["status"]["podIP"].as_str().unwrap().to_owned();
    let steps = format!(
        "dns-ask {names} udp noerror , write /data/file 1000 , read /data/file 500 , spawn 2 , connect {address}:7000 , connect {address}:9 , \
         threads 1 , sleep-ms 100 , exit 1"
    );
    let busy = pod("busy")
        .with("restartPolicy", "Always")
        .volume("data", "emptyDir", json!({}))
        .container_with("app", &steps, mounts(&[("data", "/data")]));
    daemon.run(busy);
    daemon.run(
        pod("crash")
            .with("restartPolicy", "Always")
            .container("app", "sleep-ms 200 , end-child 9 , abort"),
    );

    let dashboard = fs::read_to_string(dashboards().join("podscope.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut missing = Vec::new();
    queries(&dashboard["panels"], &mut missing);
    assert!(missing.len() > 30, "{} queries", missing.len());
    for (_, query) in &mut missing {
        *query = complete(query);
        assert!(!query.contains('$'), "{query}");
    }
    let all = missing.len();
    within(seconds(40), || {
        missing.retain(|(title, query)| match prometheus.query(query) {
            Ok(result) => result.is_empty(),
            Err(error) => panic!("{title}: {query}: {error}"),
        });
        missing.is_empty()
    });
    assert!(missing.is_empty(), "without data: {missing:#?}");
    println!("{all} queries return data");
    let up = prometheus.query("up{job=\"podscope\"}").unwrap();
    assert_eq!(up[0]["value"][1], "1", "{up:?}");
    // As a user would compute it.
    eventually("the execs show as an increase", seconds(20), || {
        let query = "sum(increase(podscope_exec_total{pod=\"busy\"}[20s])) > 0";
        prometheus.query(query).ok().filter(|result| !result.is_empty())
    });
    drop(prometheus);
    daemon.stop();
}

/// As the rules and dashboards ask that were made for a kubelet's cAdvisor.
const KUBERNETES: [&str; 9] = [
    "sum by (namespace, pod, container) (irate(container_cpu_usage_seconds_total\
     {job=\"cadvisor\", image!=\"\"}[20s]) * on (namespace, pod) group_left (node) \
     topk by (namespace, pod) (1, max by (namespace, pod, node) (podscope_pod_info)))",
    "sum by (namespace) (rate(container_cpu_usage_seconds_total{job=\"cadvisor\", container!=\"\"}[20s]))",
    "sum by (pod) (irate(container_network_receive_bytes_total{job=\"cadvisor\", namespace=~\".+\"}[20s]))",
    "sum by (pod) (irate(container_network_transmit_packets_total{job=\"cadvisor\"}[20s]))",
    "sum by (pod) (irate(container_network_transmit_packets_dropped_total{job=\"cadvisor\"}[20s]))",
    "count by (namespace) (container_start_time_seconds{job=\"cadvisor\", container!=\"\"})",
    "time() - max by (pod) (container_last_seen{job=\"cadvisor\"}) < 60",
    "sum (rate(container_cpu_usage_seconds_total{job=\"cadvisor\", container!=\"\"}[20s])) \
     / sum (machine_cpu_cores{job=\"cadvisor\"})",
    "sum (machine_memory_bytes{job=\"cadvisor\"})",
];

#[test]
fn queries_that_were_made_for_kubernetes_return_data() {
    let Some(program) = of_package("prometheus") else { return };
    let daemon = Daemon::start(&[]);
    let prometheus = Prometheus::start(&program, &daemon, &[]);
    daemon.run(pod("busy").container("app", "burn 1 2000 , pause"));
    let mut missing = KUBERNETES.to_vec();
    within(seconds(30), || {
        missing.retain(|query| prometheus.query(query).unwrap().is_empty());
        missing.is_empty()
    });
    assert!(missing.is_empty(), "without data: {missing:#?}");
    // The same container under the names of both, once it does nothing any more.
    daemon.wait_logged("busy", "", "burned");
    let seconds_of = |query: &str| -> Option<f64> {
        prometheus.query(query).unwrap().first()?["value"][1].as_str()?.parse().ok()
    };
    eventually("both tell the same CPU time", seconds(20), || {
        let labels = "{pod=\"busy\", container=\"app\"}";
        let cadvisor = seconds_of(&format!("sum(container_cpu_usage_seconds_total{labels})"))?;
        let own = seconds_of(&format!("sum(podscope_cpu_seconds_total{labels})"))?;
        println!("{cadvisor} s and {own} s of CPU time");
        (cadvisor > 0.1 && (cadvisor - own).abs() < 0.01).then_some(())
    });
    drop(prometheus);
    daemon.stop();
}

#[test]
fn native_histograms_have_the_kernels_own_buckets() {
    let Some(program) = of_package("prometheus") else { return };
    let daemon = Daemon::start(&[]);
    let prometheus = Prometheus::start(&program, &daemon, &["--enable-feature=native-histograms"]);
    daemon.run(pod("server").container("app", "serve 7000"));
    daemon.wait_logged("server", "", "listening");
    let address = daemon.pod("server")["status"]["podIP"].as_str().unwrap().to_owned();
    let connects = vec![format!("connect {address}:7000"); 20].join(" , ");
    daemon.run(pod("client").container("app", &format!("{connects} , exit 0")));
    daemon.wait_over("client");
    let name = "podscope_tcp_connect_duration_seconds";
    let client = "{pod=\"client\"}";
    let number = |query: &str| -> Option<f64> {
        let result = prometheus.query(query).unwrap();
        result.first()?["value"][1].as_str()?.parse().ok()
    };
    eventually("the native histogram has all connections", seconds(30), || {
        number(&format!("histogram_count({name}{client})")).filter(|count| *count == 20.0)
    });
    // Prometheus keeps one of the two.
    assert!(prometheus.query(&format!("{name}_bucket{client}")).unwrap().is_empty());
    let metrics = daemon.metrics();
    let sum = number(&format!("histogram_sum({name}{client})")).unwrap();
    assert_eq!(sum, metrics.one(&format!("{name}_sum"), &[("pod", "client")]));
    // Every second bound is in the text, and in the native histogram every one: between two of
    // the text's, both count the same.
    let bucket = format!("{name}_bucket");
    for sample in metrics.series(&bucket, &[("pod", "client")]) {
        let le = sample.labels["le"].as_str();
        if le != "+Inf" {
            let share = number(&format!("histogram_fraction(0, {le}, {name}{client})")).unwrap();
            assert_eq!((share * 20.0).round(), sample.value, "{le}");
        }
    }
    let median = number(&format!("histogram_quantile(0.5, {name}{client})")).unwrap();
    let mean = sum / 20.0;
    println!("median {median}, mean {mean}");
    assert!(median > 0.0 && median < 1.0, "{median}");
    drop(prometheus);
    daemon.stop();
}

#[test]
fn exemplars_lead_to_the_trace() {
    let Some(program) = of_package("prometheus") else { return };
    let daemon = Daemon::start(&[]);
    let exemplars = "--enable-feature=exemplar-storage";
    let native = "--enable-feature=exemplar-storage,native-histograms";
    let name = "podscope_tcp_connect_duration_seconds";
    daemon.run(pod("server").container("app", "serve 7000"));
    daemon.wait_logged("server", "", "listening");
    let address = daemon.pod("server")["status"]["podIP"].as_str().unwrap().to_owned();
    let env = json!({"env": [{"name": "TRACEPARENT", "value": TRACEPARENT}]});
    let steps = format!("connect {address}:7000 , print done , pause");
    daemon.run(pod("client").container_with("app", &steps, env));
    daemon.wait_logged("client", "", "done");
    let pid = daemon.pid_of(&daemon.pod("client"), "app").to_string();
    let took = daemon.metrics().one(&format!("{name}_sum"), &[("pod", "client")]);
    for (options, series) in [(exemplars, format!("{name}_bucket")), (native, name.to_owned())] {
        let prometheus = Prometheus::start(&program, &daemon, &[options]);
        let query = http::escape(&format!("{series}{{pod=\"client\"}}"));
        let path = format!("/api/v1/query_exemplars?query={query}&start=0&end=9999999999");
        let found = eventually("Prometheus has the exemplar", seconds(30), || {
            let answer = http::tcp(prometheus.address, &path).ok()?.json();
            answer["data"].as_array().filter(|found| !found.is_empty()).cloned()
        });
        // Several scrapes later it is the same.
        eventually("some more scrapes", seconds(30), || {
            let count = prometheus.query("count_over_time(up{job=\"podscope\"}[1m])").ok()?;
            let count: f64 = count.first()?["value"][1].as_str()?.parse().ok()?;
            (count >= 4.0).then_some(())
        });
        let again = http::tcp(prometheus.address, &path).unwrap().json();
        assert_eq!(again["data"].as_array(), Some(&found));
        println!("{found:?}");
        assert_eq!(found.len(), 1, "{found:?}");
        let [exemplar] = &found[0]["exemplars"].as_array().unwrap()[..] else {
            panic!("{found:?}")
        };
        let expected = json!({
            "pid": pid,
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "span_id": "b7ad6b7169203331",
        });
        assert_eq!(exemplar["labels"], expected);
        let value: f64 = exemplar["value"].as_str().unwrap().parse().unwrap();
        assert_eq!(value, took);
        let log = fs::read_to_string(daemon.folder().join("prometheus/log")).unwrap();
        assert!(!log.contains("exemplars with"), "{log}");
        drop(prometheus);
        fs::remove_dir_all(daemon.folder().join("prometheus")).unwrap();
    }
    daemon.stop();
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let Some(promtool) = of_package("promtool") else { return };
    let daemon = Daemon::start(&[]);
    let steps = "write /data/file 10 , connect 127.0.0.1:9 , spawn 1 , pause";
    let busy = pod("busy").volume("data", "emptyDir", json!({}));
    daemon.run(busy.container_with("app", steps, mounts(&[("data", "/data")])));
    daemon.run(pod("dead").container("app", "end-child 9 , abort"));
    daemon.wait_ready("busy");
    daemon.wait_over("dead");
    let scrape = daemon.folder().join("scrape");
    fs::write(&scrape, daemon.metrics().text).unwrap();
    let mut check = Command::new("sh");
    check.args(["-c", "exec \"$0\" check metrics < \"$1\""]).arg(&promtool).arg(&scrape);
    let output = program::run(&mut check, seconds(20));
    assert_eq!((output.code, &*output.stdout, &*output.stderr), (0, "", ""));
    for (what, file) in [("config", "prometheus.yml"), ("rules", "rules.yml")] {
        let mut check = Command::new(&promtool);
        program::run(check.args(["check", what]).arg(dashboards().join(file)), seconds(20))
            .success();
    }
    daemon.stop();
}

#[test]
fn who_asks_gets_the_page_compressed() {
    if in_vm() {
        return skip("`gzip` is used on the host");
    }
    let daemon = Daemon::start(&[]);
    daemon.run(pod("busy").container("app", "spawn 2 , print done , pause"));
    daemon.wait_logged("busy", "", "done");
    let plain = daemon.metrics();
    for (path, header, end) in [
        ("/metrics", "Accept-Encoding: gzip", ""),
        ("/metrics", "Accept: application/openmetrics-text\r\nAccept-Encoding: gzip", "# EOF\n"),
        ("/metrics/cadvisor", "Accept-Encoding: gzip;q=0.5, *;q=0", ""),
    ] {
        let (head, body) = http::bytes(daemon.metrics_address(), path, header).unwrap();
        let head = head.to_ascii_lowercase();
        assert!(head.contains("\r\ncontent-encoding: gzip"), "{head}");
        assert!(head.contains("\r\nvary: accept, accept-encoding"), "{head}");
        let file = daemon.folder().join("page.gz");
        fs::write(&file, &body).unwrap();
        let text = program::run(Command::new("gzip").arg("-dc").arg(&file), seconds(20)).success();
        println!("{path}: {} bytes are {} on the wire", text.len(), body.len());
        assert!(body.len() * 3 < text.len() && text.ends_with(end));
        if header == "Accept-Encoding: gzip" {
            let page = Metrics::parse(text);
            let labels = [("pod", "busy"), ("container", "app")];
            assert_eq!(page.one("podscope_forks_total", &labels), 2.0);
            let series = |page: &Metrics| {
                let names = page.all().map(|sample| (sample.name.clone(), sample.labels.clone()));
                names.filter(|(_, labels)| labels.contains_key("pod")).collect::<BTreeSet<_>>()
            };
            // Others may have come meanwhile.
            assert!(series(&plain).is_subset(&series(&page)));
        }
    }
    let (head, body) = http::bytes(daemon.metrics_address(), "/metrics", "Accept: */*").unwrap();
    assert!(!head.to_ascii_lowercase().contains("content-encoding"), "{head}");
    assert!(body.starts_with(b"# HELP "));
    daemon.delete("busy");
    daemon.stop();
}
