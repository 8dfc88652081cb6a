//! What is told one by one: execs, exits, failed connects; and what is said of a pod's life and death.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pod_tests::{Daemon, binary, eventually, in_vm, manifest::pod, program, seconds, skip};
use serde_json::{Value, json};

use super::limits::enforceable;

const BASE: &str = "/apis/podscope.dev/v1";

fn lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What is remembered of a pod.
fn events(daemon: &Daemon, pod: &str, kind: &str) -> Vec<Value> {
    let path = format!("{BASE}/namespaces/default/pods/{pod}/events?kind={kind}");
    let answer = daemon.api("GET", &path, None);
    assert_eq!(answer.status, 200, "{}", answer.body);
    lines(&answer.body)
}

/// Waits until as many events are remembered.
fn wait_for(daemon: &Daemon, pod: &str, kind: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{pod} has {count} events {kind}"), seconds(10), || {
        Some(events(daemon, pod, kind)).filter(|events| events.len() >= count)
    })
}

fn explain(daemon: &Daemon, pod: &str) -> Value {
    let path = format!("{BASE}/namespaces/default/pods/{pod}/explain");
    let answer = daemon.api("GET", &path, None);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

/// Why a probe is off, if it is.
fn is_off(daemon: &Daemon, probe: &str) -> Option<String> {
    let metrics = daemon.metrics();
    let labels = [("probe", probe), ("mode", "off")];
    let reason = metrics.series("podscope_probe_info", &labels).next();
    reason.map(|sample| format!("{probe} is off: {}", sample.labels["reason"]))
}

/// A `podctl` that listens, and the file with what it has heard.
struct Listener {
    child: Child,
    file: PathBuf,
}

impl Listener {
    fn start(daemon: &Daemon, arguments: &[&str]) -> Self {
        let file = daemon.folder().join("heard");
        let out = File::create(&file).unwrap();
        let child = Command::new(binary("podctl"))
            .args(arguments)
            .env("PODSCOPE_SOCKET", daemon.folder().join("run/api.sock"))
            .stdin(Stdio::null())
            .stdout(out)
            .spawn()
            .unwrap();
        Self { child, file }
    }

    fn heard(&self) -> Vec<Value> {
        lines(&fs::read_to_string(&self.file).unwrap())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        program::end(&mut self.child);
    }
}

fn of_kind<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["kind"] == kind)
}

/// How many events were lost, by what `told` says.
fn lost(events: &[Value], kind: &str) -> u64 {
    of_kind(events, "lost").filter_map(|event| event["lost"][kind].as_u64()).sum()
}

/// Lets a container go on that waits for `/tmp/go`.
pub(super) fn let_go(pid: Pid) {
    fs::create_dir_all(format!("/proc/{pid}/root/tmp")).unwrap();
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
}

#[test]
fn execs_and_exits_are_told_with_arguments_and_parents_in_order() {
    let daemon = Daemon::start(&[]);
    if let Some(reason) = is_off(&daemon, "event_exec") {
        skip(&reason);
        return daemon.stop();
    }
    let began = Timestamp::now();
    let long = "x".repeat(600);
    let steps = format!("run print one , run print two words , run print {long} , run exit 3");
    daemon.run(pod("known").container("app", &steps));
    daemon.wait_over("known");
    let told = wait_for(&daemon, "known", "exec,exit", 10);
    assert_eq!(told.len(), 10, "{told:#?}");

    let mut arguments = vec![json!("/bin/workload")];
    arguments.extend(steps.split_whitespace().map(Value::from));
    let whole = |event: &Value| event["argv"].as_array().unwrap().clone();
    let execs: Vec<&Value> = of_kind(&told, "exec").collect();
    let main = &execs[0]["pid"];
    // Cut after 512 bytes.
    assert_eq!(execs[0]["truncated"], true);
    assert_eq!(whole(execs[0])[..10], arguments[..10]);
    for (exec, words) in execs[1..].iter().zip(["print one", "print two words"]) {
        let words: Vec<&str> = ["/bin/workload"].into_iter().chain(words.split(' ')).collect();
        assert_eq!(exec["argv"], json!(words));
        assert!(exec.get("truncated").is_none(), "{exec:#}");
    }
    let cut = &execs[3];
    assert_eq!(cut["truncated"], true, "{cut:#}");
    let kept: usize = whole(cut).iter().map(|word| word.as_str().unwrap().len() + 1).sum();
    assert_eq!(kept - 1, 512, "{cut:#}");
    assert_eq!(execs[4]["argv"], json!(["/bin/workload", "exit", "3"]));
    for exec in &execs[1..] {
        assert_eq!((&exec["parent"], &exec["parentName"]), (main, &json!("workload")), "{exec:#}");
    }
    assert_eq!(execs[0]["parent"], daemon.pid().as_raw(), "{:#}", execs[0]);

    let exits: Vec<&Value> = of_kind(&told, "exit").collect();
    let codes: Vec<&Value> = exits.iter().map(|exit| &exit["code"]).collect();
    assert_eq!(codes, [0, 0, 0, 3, 0]);
    // Each ends before the next begins, and the first one last.
    let pids = |events: &[&Value]| -> Vec<u64> {
        events.iter().map(|event| event["pid"].as_u64().unwrap()).collect()
    };
    let mut begun = pids(&execs);
    begun.rotate_left(1);
    assert_eq!(begun, pids(&exits));
    let times: Vec<Timestamp> =
        told.iter().map(|event| event["time"].as_str().unwrap().parse().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let slack = Duration::from_millis(20);
    assert!(times[0] + slack > began && times[9] < Timestamp::now() + slack, "{times:?}");

    let shown = daemon.podctl(&["events", "known", "--kind", "exec"]).success();
    assert!(shown.contains("/bin/workload print two words   (pid "), "{shown}");
    let unknown = daemon.podctl(&["events", "known", "--kind", "fork"]);
    assert_eq!(unknown.code, 1, "{unknown:?}");
    let failed = daemon.podctl(&["events", "nobody"]);
    assert!(failed.stderr.contains("not found"), "{failed:?}");
    daemon.stop();
}

#[test]
fn short_pods_are_each_told_once() {
    let daemon = Daemon::start(&["--probe-timing=always"]);
    if let Some(reason) = is_off(&daemon, "event_exec") {
        skip(&reason);
        return daemon.stop();
    }
    let count = if in_vm() { 20 } else { 100 };
    let listener = Listener::start(&daemon, &["events", "-f", "-o", "json"]);
    daemon.run(pod("heard").container("app", "pause"));
    eventually("somebody listens", seconds(10), || {
        listener.heard().iter().any(|event| event["pod"] == "heard").then_some(())
    });
    let before = daemon.metrics();
    for batch in 0..count / 10 {
        let names: Vec<String> = (0..10).map(|at| format!("short-{batch}-{at}")).collect();
        for name in &names {
            daemon.run(pod(name).container("app", "sleep-ms 5 , exit 0"));
        }
        for name in &names {
            daemon.wait_over(name);
            // Its slot is soon another's.
            daemon.delete(name);
        }
    }
    // Other tests may have used this daemon, and what they did is remembered.
    let heard = || -> Vec<Value> {
        let is_ours =
            |event: &Value| event["pod"].as_str().is_none_or(|pod| pod.starts_with("short-"));
        listener.heard().into_iter().filter(is_ours).collect()
    };
    eventually("all exits are told, or skipped by the kernel", seconds(10), || {
        let heard = heard();
        let told = of_kind(&heard, "exit").count() as u64;
        let told = told + lost(&heard, "exit") + lost(&heard, "slow_reader");
        let missed = || daemon.metrics().missed_by(&["event_exit"]);
        (told >= count || missed().is_some()).then_some(())
    });
    let heard = heard();
    let after = daemon.metrics();
    let missed = after.missed().is_some();
    for kind in ["exec", "exit"] {
        let mut pods: Vec<&str> =
            of_kind(&heard, kind).map(|event| event["pod"].as_str().unwrap()).collect();
        let told = pods.len() as u64;
        pods.sort_unstable();
        pods.dedup();
        assert_eq!(pods.len() as u64, told, "an {kind} was told twice");
        let counted = lost(&heard, kind) + lost(&heard, "slow_reader");
        assert!(told + counted == count || missed, "{told} of {count} {kind}, {counted} lost");
    }
    drop(listener);
    let name = [("program", "event_exec")];
    let difference = |metric| after.one(metric, &name) - before.one(metric, &name);
    let runs = difference("podscope_bpf_program_runs_total");
    let seconds = difference("podscope_bpf_program_seconds_total");
    let cost = seconds * 1e9;
    println!("COST event_exec: {cost:.0} ns for {runs} execs, of which {count} were of pods");
    daemon.stop();
}

#[test]
fn what_finds_no_room_is_counted() {
    let daemon = Daemon::start(&[]);
    if let Some(reason) = is_off(&daemon, "event_exec") {
        skip(&reason);
        return daemon.stop();
    }
    let count: u32 = if in_vm() { 1000 } else { 3000 };
    let steps = format!("print ready , wait-for /tmp/go , spawn {count}");
    daemon.run(pod("flood").container("app", &steps));
    daemon.run(pod("other").container("app", "print ready , pause"));
    daemon.wait_logged("flood", "", "ready");
    daemon.wait_logged("other", "", "ready");
    let listener = Listener::start(&daemon, &["events", "-f", "flood", "-o", "json"]);
    eventually("the first exec is told", seconds(10), || {
        (of_kind(&listener.heard(), "exec").count() == 1).then_some(())
    });
    let pid = daemon.pid_of(&daemon.pod("flood"), "app");
    // As if it were too busy to read.
    kill(daemon.pid(), Signal::SIGSTOP).unwrap();
    let_go(pid);
    eventually("the flood is over", seconds(60), || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    kill(daemon.pid(), Signal::SIGCONT).unwrap();
    daemon.wait_over("flood");
    let labels = [("pod", "flood"), ("container", "app")];
    let metrics = daemon.metrics();
    let execs = metrics.one("podscope_exec_total", &labels);
    assert_eq!(execs, f64::from(count) + 1.0);
    let told = eventually("all is told or counted", seconds(20), || {
        let heard = listener.heard();
        let sum = of_kind(&heard, "exec").count() as u64
            + of_kind(&heard, "exit").count() as u64
            + ["exec", "exit", "slow_reader"].map(|kind| lost(&heard, kind)).iter().sum::<u64>();
        (sum >= 2 * (u64::from(count) + 1)).then_some(heard)
    });
    let lost_execs = metrics.one("podscope_events_lost_total", &[("kind", "event_exec")]);
    assert!(lost_execs > 0.0, "{}", metrics.about("podscope_events_lost_total"));
    assert_eq!(lost(&told, "exec") as f64, lost_execs);
    println!("of {execs} execs in a flood {lost_execs} found no room");
    // Those who have nothing to do with it hear of it as a loss, and the rest goes on.
    let run = daemon.podctl(&["exec", "other", "--", "/bin/workload", "exit", "5"]);
    assert_eq!(run.code, 5);
    let exits = wait_for(&daemon, "other", "exit", 1);
    assert_eq!(exits[0]["code"], 5);
    drop(listener);
    daemon.stop();
}

#[test]
fn events_go_on_after_the_daemon_was_killed() {
    let mut daemon = Daemon::start(&[]);
    if let Some(reason) = is_off(&daemon, "event_exec") {
        skip(&reason);
        return daemon.stop();
    }
    let steps = "print ready , wait-for /tmp/go , run print away , print done , pause";
    daemon.run(pod("kept").container("app", steps));
    daemon.wait_logged("kept", "", "ready");
    wait_for(&daemon, "kept", "exec", 1);
    let pid = daemon.pid_of(&daemon.pod("kept"), "app");
    daemon.kill();
    let_go(pid);
    thread::sleep(seconds(1));
    daemon.restart();
    // What happened meanwhile, and what happens now, by the same programs.
    let adopted = daemon.metrics().one("podscope_probe_object_info", &[("origin", "adopted")]);
    assert_eq!(adopted, 1.0);
    let away = wait_for(&daemon, "kept", "exec", 1);
    assert_eq!(away[0]["argv"], json!(["/bin/workload", "print", "away"]));
    let run = daemon.podctl(&["exec", "kept", "--", "/bin/workload", "print", "now"]);
    assert_eq!(run.code, 0);
    let now = wait_for(&daemon, "kept", "exec", 2);
    assert_eq!(now[1]["argv"], json!(["/bin/workload", "print", "now"]));
    daemon.stop();
}

#[test]
fn a_failed_connect_is_told_and_explained() {
    let daemon = Daemon::start(&[]);
    daemon.run(pod("lonely").container("app", "connect 127.0.0.1:7 , exit 3"));
    daemon.wait_over("lonely");
    let told = wait_for(&daemon, "lonely", "connect-failure", 1);
    assert_eq!(told.len(), 1, "{told:#?}");
    let failed = &told[0];
    assert_eq!(failed["container"], "app");
    assert_eq!((&failed["address"], &failed["port"]), (&json!("127.0.0.1"), &json!(7)));
    assert_eq!(failed["error"], "ECONNREFUSED");
    let shown = daemon.podctl(&["explain", "lonely"]).success();
    for part in [
        "Error: exited with code 3",
        "to 127.0.0.1:7: ECONNREFUSED",
        "connect: ECONNREFUSED",
        "1 refused",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    daemon.stop();
}

#[test]
fn a_death_is_explained_after_the_pod_and_its_daemon_are_gone() {
    let mut daemon = Daemon::start(&[]);
    daemon.run(pod("failed").container("app", "print last words , run exit 0 , exit 7"));
    daemon.run(pod("killed").container("app", "print ready , pause"));
    daemon.wait_over("failed");
    daemon.wait_logged("killed", "", "ready");
    kill(daemon.pid_of(&daemon.pod("killed"), "app"), Signal::SIGKILL).unwrap();
    daemon.wait_over("killed");

    let check = |daemon: &Daemon, deleted: bool| {
        let report = explain(daemon, "failed");
        assert_eq!(report["deleted"].is_string(), deleted, "{report:#}");
        let app = &report["containers"][0];
        assert_eq!((&app["lastExit"]["code"], &app["execs"]), (&json!(7), &json!(2)), "{app:#}");
        assert_eq!(app["log"], json!(["last words"]));
        if is_off(daemon, "event_exec").is_none() {
            assert_eq!(of_kind(app["events"].as_array().unwrap(), "exec").count(), 2, "{app:#}");
        }
        let exit = explain(daemon, "killed")["containers"][0]["lastExit"].clone();
        assert_eq!((&exit["signal"], &exit["code"]), (&json!(9), &json!(137)), "{exit:#}");
        let shown = daemon.podctl(&["explain", "killed"]).success();
        assert!(shown.contains("killed by SIGKILL (code 137)"), "{shown}");
        println!("{}", daemon.podctl(&["explain", "failed"]).success());
    };
    wait_for(&daemon, "failed", "exit", 2);
    check(&daemon, false);
    for name in ["failed", "killed"] {
        daemon.delete(name);
    }
    check(&daemon, true);
    daemon.kill();
    daemon.restart();
    check(&daemon, true);
    let unknown = daemon.podctl(&["explain", "nobody"]);
    assert!(unknown.stderr.contains("not found"), "{unknown:?}");
    daemon.stop();
}

#[test]
fn a_death_for_want_of_memory_is_explained() {
    if !enforceable() {
        return skip("cgroup v2 has no cpu, memory and pids controllers here");
    }
    let daemon = Daemon::start(&[]);
    let fields = json!({"resources": {"limits": {"memory": "16Mi"}}});
    daemon.run(pod("hungry").container_with("app", "hold-memory 67108864", fields));
    daemon.wait_over("hungry");
    let report = explain(&daemon, "hungry");
    let app = &report["containers"][0];
    assert_eq!(app["lastExit"]["reason"], "OOMKilled", "{app:#}");
    assert_eq!(app["nearest"]["resource"], "memory", "{app:#}");
    assert_eq!(app["advice"][0]["better"], "24Mi", "{app:#}");
    if is_off(&daemon, "event_oom").is_none() {
        let victims = wait_for(&daemon, "hungry", "oom", 1);
        assert_eq!(victims[0]["name"], "workload", "{victims:#?}");
    }
    daemon.delete("hungry");
    let shown = daemon.podctl(&["explain", "hungry"]).success();
    println!("{shown}");
    for part in ["OOMKilled: killed by SIGKILL", "limits.memory: 16Mi -> 24Mi", "memory at "] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    daemon.stop();
}

/// How often the program ran that tells of opened files.
fn open_runs(daemon: &Daemon) -> f64 {
    daemon.metrics().one("podscope_bpf_program_runs_total", &[("program", "trace_open")])
}

#[test]
fn a_trace_tells_of_one_pod_and_leaves_nothing_attached() {
    let daemon = Daemon::start(&["--probe-timing=always"]);
    if let Some(reason) = is_off(&daemon, "trace_open") {
        skip(&reason);
        return daemon.stop();
    }
    let steps = "print ready , wait-for /tmp/go , look /bin/workload , look /nowhere , touch /made , \
                 wait-for-listener 8001 , run exit 4 , send 127.0.0.1:8001 100";
    for name in ["traced", "aside"] {
        daemon
            .run(pod(name).container("app", steps).container("server", "print ready , serve 8001"));
        daemon.wait_logged(name, "container=app", "ready");
        daemon.wait_logged(name, "container=server", "listening");
    }
    assert_eq!(open_runs(&daemon), 0.0, "somebody pays although nobody looks");
    let mut listener = Listener::start(&daemon, &["trace", "traced", "-o", "json"]);
    eventually("the trace has begun", seconds(10), || (open_runs(&daemon) > 0.0).then_some(()));
    for name in ["aside", "traced"] {
        let pid = daemon.pid_of(&daemon.pod(name), "app");
        let_go(pid);
        daemon.wait_logged(name, "container=app", "sent 100");
    }
    let heard = eventually("the trace has told of all", seconds(10), || {
        let heard = listener.heard();
        let all = ["open", "connect", "accept", "exit"];
        all.iter().all(|kind| of_kind(&heard, kind).next().is_some()).then_some(heard)
    });
    assert!(heard.iter().all(|event| event["pod"] == "traced"), "{heard:#?}");
    let opens: Vec<(&str, &str, Option<&str>)> = of_kind(&heard, "open")
        .filter(|event| event["name"] == "workload" && event["container"] == "app")
        .map(|event| {
            let text = |field: &str| event[field].as_str();
            (text("path").unwrap(), text("flags").unwrap(), text("error"))
        })
        .collect();
    for expected in [
        ("/bin/workload", "O_RDONLY", None),
        ("/nowhere", "O_RDONLY", Some("ENOENT")),
        ("/made", "O_WRONLY|O_CREAT|O_APPEND", None),
    ] {
        assert_eq!(opens.iter().filter(|open| **open == expected).count(), 1, "{opens:?}");
    }
    let connects: Vec<&Value> = of_kind(&heard, "connect").collect();
    assert_eq!(connects.len(), 1, "{connects:#?}");
    assert_eq!((&connects[0]["container"], &connects[0]["port"]), (&json!("app"), &json!(8001)));
    assert!(connects[0]["seconds"].as_f64().unwrap() > 0.0);
    let accepts: Vec<&Value> = of_kind(&heard, "accept").collect();
    assert_eq!(accepts.len(), 1, "{accepts:#?}");
    let from = (&accepts[0]["container"], &accepts[0]["address"]);
    assert_eq!(from, (&json!("server"), &json!("127.0.0.1")));
    if is_off(&daemon, "event_exec").is_none() {
        let execs: Vec<&Value> = of_kind(&heard, "exec").map(|event| &event["argv"]).collect();
        assert_eq!(execs, [&json!(["/bin/workload", "exit", "4"])]);
    }

    // A client that is killed ends its trace.
    program::end(&mut listener.child);
    eventually("the program is detached", seconds(10), || {
        let before = open_runs(&daemon);
        thread::sleep(Duration::from_millis(100));
        (open_runs(&daemon) == before).then_some(())
    });
    // And so does the time.
    let shown = daemon.podctl(&["trace", "traced", "--file", "--for", "1s"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let before = open_runs(&daemon);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(open_runs(&daemon), before);
    daemon.stop();
}

#[test]
fn a_trace_begins_with_what_happens_then() {
    let daemon = Daemon::start(&[]);
    if let Some(reason) = is_off(&daemon, "trace_open") {
        skip(&reason);
        return daemon.stop();
    }
    daemon.run(pod("restless").container("app", "look /nowhere , sleep-ms 1 , repeat"));
    daemon.wait_ready("restless");
    // Of the trace before there is something that nobody has read yet.
    for _ in 0..5 {
        let began = Timestamp::now();
        let path = format!("{BASE}/namespaces/default/pods/restless/trace?file=true&seconds=1");
        let told = lines(&daemon.api("GET", &path, None).body);
        let first = of_kind(&told, "open").next().expect("a trace tells of opens");
        let first: Timestamp = first["time"].as_str().unwrap().parse().unwrap();
        assert!(first + Duration::from_millis(5) > began, "{first} is before {began}");
    }
    daemon.stop();
}
