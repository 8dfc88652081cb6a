//! `podctl explain`: how a pod lives, or has lived and died.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Error, Global, Output,
    client::Client,
    describe::Sheet,
    events::{self, Format, duration, pod_path, signal_name},
    human, resource,
};

/// Execs and failed connects that are shown.
const SHOWN: usize = 5;

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// NAME or pod/NAME; it may be gone for an hour
    pod: String,
    /// Only this container
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// All that is known, as JSON
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    let name = resource::pod_name(&options.pod)?;
    let mut report: Value =
        client.get(&pod_path(global.namespace(), name).below("explain")).await?;
    if let Some(wanted) = &options.container
        && let Some(containers) = report["containers"].as_array_mut()
    {
        let names: Vec<String> =
            containers.iter().map(|one| text(one, "name").to_owned()).collect();
        containers.retain(|one| text(one, "name") == wanted);
        if containers.is_empty() {
            return Err(Error::Usage(format!(
                "pod {name} has no container `{wanted}`; it has: {}",
                names.join(", ")
            )));
        }
    }
    match options.output {
        Some(Format::Json) => {
            output.line(serde_json::to_string_pretty(&report).unwrap_or_default())?;
        }
        None => output.text(&render(&report))?,
    }
    Ok(0)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

fn bytes(value: &Value) -> Option<String> {
    value.as_u64().map(human::bytes)
}

fn seconds_between(from: Timestamp, to: Timestamp) -> String {
    duration(to.duration_since(from).as_secs_f64())
}

/// The report for people.
fn render(report: &Value) -> String {
    let mut sheet = Sheet::default();
    let made = time(&report["made"]).unwrap_or(Timestamp::UNIX_EPOCH);
    sheet.field("Pod", &format!("{}/{}", text(report, "namespace"), text(report, "name")));
    sheet.field("Status", &status(report));
    let began = time(&report["started"]).or_else(|| time(&report["created"]));
    sheet.some("Started", began.map(human::time));
    if let Some(deleted) = time(&report["deleted"]) {
        let life = began.map_or_else(String::new, |began| {
            format!(", after {}", seconds_between(began, deleted))
        });
        sheet.field("Deleted", &format!("{}{life}", human::time(deleted)));
    }
    let connections = &report["connections"];
    if connections.is_object() {
        sheet.field("Connections", &self::connections(connections));
    }
    for container in report["containers"].as_array().into_iter().flatten() {
        let title = format!("Container {}", text(container, "name"));
        sheet.section(&title, |sheet| self::container(container, made, sheet));
    }
    let happened = report["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told: Vec<String> = happened
        .iter()
        .filter(|event| event["kind"] == "limit" || event["type"] == "Warning")
        .map(|event| ago(event, made, &events::what(event)))
        .collect();
    sheet.some_list("Trouble", told);
    sheet.finish()
}

fn status(report: &Value) -> String {
    let phase = text(report, "phase");
    if report["deleted"].is_string() { format!("{phase}, and deleted") } else { phase.to_owned() }
}

/// A line that says how long before the report something was.
fn ago(event: &Value, made: Timestamp, line: &str) -> String {
    let then = time(&event["time"]).unwrap_or(made);
    format!("{:>6} before: {line}", seconds_between(then, made))
}

fn connections(connections: &Value) -> String {
    let established = connections["established"].as_u64().unwrap_or_default();
    let mut text = format!("{established} open");
    let peers = connections["peers"].as_array().into_iter().flatten();
    let peers: Vec<String> = peers
        .filter_map(|peer| match (peer[0].as_str()?, peer[1].as_u64()?) {
            (address, 1) => Some(address.to_owned()),
            (address, count) => Some(format!("{address} (x{count})")),
        })
        .collect();
    if !peers.is_empty() {
        text.push_str(&format!(", with {}", peers.join(", ")));
    }
    let ports = connections["listening"].as_array().into_iter().flatten();
    let ports: Vec<String> = ports.map(Value::to_string).collect();
    if !ports.is_empty() {
        text.push_str(&format!("; listens on {}", ports.join(", ")));
    }
    text
}

fn container(container: &Value, made: Timestamp, sheet: &mut Sheet) {
    sheet.field("State", &state(container, made));
    let exit = &container["lastExit"];
    if exit.is_object() {
        sheet.list("Last end", end(exit));
    }
    if let Some(restarts) = container["restarts"].as_u64().filter(|count| *count > 0) {
        sheet.field("Restarts", &restarts.to_string());
    }
    let nearest = &container["nearest"];
    sheet.field(
        "Nearest limit",
        &match nearest["share"].as_f64() {
            Some(share) => format!(
                "{} at {:.0} %: {}",
                text(nearest, "resource"),
                share * 100.0,
                text(nearest, "text")
            ),
            None => "none that can be told".to_owned(),
        },
    );
    usage(&container["usage"], sheet);
    sheet.some("Network", network(container));
    let volumes = container["volumes"].as_array().into_iter().flatten();
    let volumes = volumes.filter(|one| one["readBytes"] != 0 || one["writtenBytes"] != 0);
    let volumes = volumes.map(|one| {
        let [read, written] = ["readBytes", "writtenBytes"].map(|field| bytes(&one[field]));
        let (read, written) = (read.unwrap_or_default(), written.unwrap_or_default());
        format!("{}: {read} read, {written} written", text(one, "name"))
    });
    sheet.some_list("Volumes", volumes.collect());
    sheet
        .field("Processes", &format!("{} execs, {} ended", container["execs"], container["exits"]));
    let told = |kind: &str, line: &dyn Fn(&Value) -> String| -> Vec<String> {
        let all = container["events"].as_array().into_iter().flatten();
        // The same over and over is said once, with the time of the last.
        let mut lines: Vec<(&Value, String, usize)> = Vec::new();
        for event in all.filter(|event| event["kind"] == kind) {
            let text = line(event);
            match lines.last_mut() {
                Some((last, same, count)) if *same == text => (*last, *count) = (event, *count + 1),
                _ => lines.push((event, text, 1)),
            }
        }
        let last = lines.split_off(lines.len().saturating_sub(SHOWN)).into_iter();
        last.map(|(event, text, count)| match count {
            1 => ago(event, made, &text),
            _ => ago(event, made, &format!("{text} (x{count})")),
        })
        .collect()
    };
    sheet.some_list("Last execs", told("exec", &events::command));
    let bad = container["events"].as_array().into_iter().flatten();
    let bad: Vec<&Value> =
        bad.filter(|event| event["kind"] == "exit" && event["code"] != 0).collect();
    let last = bad.iter().skip(bad.len().saturating_sub(SHOWN));
    sheet.some_list("Bad ends", last.map(|event| ago(event, made, &events::what(event))).collect());
    sheet.some_list("Out of memory", told("oom", &events::what));
    sheet.some_list("Failed connects", told("connect_failure", &events::what));
    let log = container["log"].as_array().into_iter().flatten();
    sheet.some_list(
        "Last output",
        log.filter_map(|line| line.as_str().map(events::printable)).collect(),
    );
    let advice = container["advice"].as_array().into_iter().flatten();
    let advice = advice.map(|one| {
        let now = one["now"].as_str().map_or_else(|| "unset".to_owned(), str::to_owned);
        format!(
            "{}: {now} -> {}, since {}",
            text(one, "field"),
            text(one, "better"),
            text(one, "why")
        )
    });
    sheet.some_list("Better limits", advice.collect());
}

fn state(container: &Value, made: Timestamp) -> String {
    match text(container, "state") {
        "running" => match time(&container["since"]) {
            Some(since) => format!("running for {}", seconds_between(since, made)),
            None => "running".to_owned(),
        },
        "waiting" => {
            let words = [text(container, "reason"), text(container, "message")];
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            format!("waits: {}", words.join(": "))
        }
        _ => "ended for good".to_owned(),
    }
}

/// How a run ended, and why.
fn end(exit: &Value) -> Vec<String> {
    let how = match exit["signal"].as_u64() {
        Some(signal) => format!("killed by {} (code {})", signal_name(signal), exit["code"]),
        None => format!("exited with code {}", exit["code"]),
    };
    let life = time(&exit["started"]).zip(time(&exit["finished"]));
    let life =
        life.map_or_else(String::new, |(from, to)| format!(" after {}", seconds_between(from, to)));
    let mut lines = vec![format!("{}: {how}{life}", text(exit, "reason"))];
    lines.extend(exit["message"].as_str().filter(|text| !text.is_empty()).map(str::to_owned));
    lines
}

fn usage(usage: &Value, sheet: &mut Sheet) {
    let number = |field: &str| usage[field].as_f64();
    if let Some(cpu) = number("cpuSeconds") {
        let life = number("lifeSeconds").filter(|life| *life > 0.0);
        let mut line = format!("{} of CPU time", duration(cpu));
        if let Some(life) = life {
            line.push_str(&format!(", {:.3} CPUs on average", cpu / life));
        }
        let periods = number("cpuPeriods").filter(|periods| *periods > 0.0);
        if let (Some(periods), Some(held)) = (periods, number("cpuThrottledPeriods")) {
            let seconds = number("cpuThrottledSeconds").unwrap_or_default();
            line.push_str(&format!(
                ", held back in {:.0} % of the periods for {}",
                held / periods * 100.0,
                duration(seconds)
            ));
        }
        sheet.field("CPU", &with_limit(line, number("cpuLimit").map(|cpus| cpus.to_string())));
    }
    let memory = [("memoryBytes", "now"), ("memoryPeak", "at most")].into_iter();
    let memory: Vec<String> = memory
        .filter_map(|(field, when)| Some(format!("{} {when}", bytes(&usage[field])?)))
        .collect();
    if !memory.is_empty() {
        sheet.field("Memory", &with_limit(memory.join(", "), bytes(&usage["memoryLimit"])));
    }
    let pids = [("pids", "now"), ("pidsPeak", "at most")].into_iter();
    let pids: Vec<String> = pids
        .filter_map(|(field, when)| Some(format!("{} {when}", usage[field].as_u64()?)))
        .collect();
    if !pids.is_empty() {
        let limit = usage["pidsLimit"].as_u64().map(|limit| limit.to_string());
        sheet.field("Tasks", &with_limit(pids.join(", "), limit));
    }
    let disk = [("ioReadBytes", "read"), ("ioWrittenBytes", "written")].into_iter();
    let disk: Vec<String> = disk
        .filter_map(|(field, what)| Some(format!("{} {what}", bytes(&usage[field])?)))
        .collect();
    sheet.some("Disk", Some(disk.join(", ")));
    let waits = ["CPU", "memory", "disks"].into_iter().enumerate();
    let waits: Vec<String> = waits
        .filter_map(|(at, what)| {
            let seconds = usage["pressureSeconds"][at].as_f64().filter(|seconds| *seconds > 0.0)?;
            Some(format!("{} for {what}", duration(seconds)))
        })
        .collect();
    sheet.some("Waited", Some(waits.join(", ")));
}

fn with_limit(line: String, limit: Option<String>) -> String {
    match limit {
        Some(limit) => format!("{line}; limit {limit}"),
        None => line,
    }
}

fn network(container: &Value) -> Option<String> {
    let [received, sent] =
        ["receivedBytes", "transmittedBytes"].map(|field| bytes(&container[field]));
    let mut text = format!("{} received, {} sent", received?, sent?);
    let results = container["connects"].as_object().into_iter().flatten();
    let results: Vec<String> =
        results.map(|(result, count)| format!("{count} {}", result.replace('_', " "))).collect();
    if !results.is_empty() {
        text.push_str(&format!("; connects: {}", results.join(", ")));
    }
    if let Some(accepts) = container["accepts"].as_u64().filter(|count| *count > 0) {
        text.push_str(&format!("; {accepts} accepted"));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_death_is_explained() {
        let report = json!({
            "made": "2026-01-01T00:01:00Z", "namespace": "default", "name": "hungry",
            "phase": "Failed", "created": "2026-01-01T00:00:00Z",
            "connections": null,
            "containers": [{
                "name": "app", "state": "terminated", "restarts": 0,
                "lastExit": {
                    "code": 137, "signal": 9, "reason": "OOMKilled",
                    "message": "the container met its memory limit of 16Mi",
                    "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:02Z",
                },
                "nearest": {"resource": "memory", "share": 1.0, "text": "at most 16Mi of 16Mi"},
                "usage": {
                    "lifeSeconds": 2.0, "cpuSeconds": 0.5, "memoryPeak": 16_777_216,
                    "memoryLimit": 16_777_216, "pressureSeconds": [null, 0.25, null],
                },
                "receivedBytes": 0, "transmittedBytes": 2048, "connects": {"refused": 1},
                "volumes": [{"name": "data", "readBytes": 0, "writtenBytes": 4096},
                            {"name": "other", "readBytes": 0, "writtenBytes": 0}],
                "execs": 1, "exits": 1,
                "events": [
                    {"kind": "exec", "time": "2026-01-01T00:00:00Z", "argv": ["/bin/app", "-x"]},
                    {"kind": "exec", "time": "2026-01-01T00:00:01Z", "argv": ["/bin/app", "-x"]},
                    {"kind": "oom", "time": "2026-01-01T00:00:02Z", "pid": 7, "name": "app"},
                ],
                "log": ["holding"],
                "advice": [{"field": "limits.memory", "now": "16Mi", "better": "24Mi",
                            "why": "it died at 16Mi"}],
            }],
            "events": [],
        });
        let shown = render(&report);
        let shown: Vec<&str> = shown.lines().filter(|line| !line.starts_with("Started")).collect();
        assert_eq!(
            shown.join("\n"),
            "\
Pod:      default/hungry
Status:   Failed
Container app:
  State:          ended for good
  Last end:       OOMKilled: killed by SIGKILL (code 137) after 2.0s
                  the container met its memory limit of 16Mi
  Nearest limit:  memory at 100 %: at most 16Mi of 16Mi
  CPU:            500.0ms of CPU time, 0.250 CPUs on average
  Memory:         16Mi at most; limit 16Mi
  Waited:         250.0ms for memory
  Network:        0 received, 2.0Ki sent; connects: 1 refused
  Volumes:        data: 0 read, 4.0Ki written
  Processes:      1 execs, 1 ended
  Last execs:      59.0s before: /bin/app -x (x2)
  Out of memory:   58.0s before: the kernel kills app[7] for want of memory
  Last output:    holding
  Better limits:  limits.memory: 16Mi -> 24Mi, since it died at 16Mi"
        );
    }
}
