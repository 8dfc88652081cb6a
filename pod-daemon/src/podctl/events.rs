//! `podctl events`: what happens in pods, one by one.

use jiff::{Timestamp, tz::TimeZone};
use serde_json::Value;

use super::{
    Error, Global, Output,
    client::{Chunks, Client, Path},
    columns::{Cell, Columns},
    output::Tone,
    resource,
};

/// Where Podscope's own part of the API is.
const BASE: [&str; 3] = ["apis", "podscope.dev", "v1"];

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// NAME or pod/NAME [default: all pods of the namespace]
    pod: Option<String>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only of this container
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Only these: exec, exit, oom, connect-failure, limit, lifecycle
    #[arg(long, value_name = "KIND,...", value_delimiter = ',')]
    kind: Vec<String>,
    /// As lines of JSON
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    Json,
}

/// The path of something that is Podscope's own about a pod.
pub(super) fn pod_path(namespace: &str, name: &str) -> Path {
    Path::new(&BASE).below("namespaces").below(namespace).below("pods").below(name)
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    let base = match &options.pod {
        Some(_) if options.all_namespaces => {
            return Err(Error::Usage("choose either a pod or -A".to_owned()));
        }
        Some(pod) => pod_path(global.namespace(), resource::pod_name(pod)?),
        None if options.all_namespaces => Path::new(&BASE),
        None => Path::new(&BASE).below("namespaces").below(global.namespace()),
    };
    let path = base
        .below("events")
        .with_some("follow", options.follow.then_some(true))
        .with_some("container", options.container.as_deref())
        .with_some("kind", (!options.kind.is_empty()).then(|| options.kind.join(",")));
    let chunks = client.stream(&path).await?;
    print(chunks, options.output, output).await?;
    Ok(0)
}

/// Prints events until there are no more.
pub(super) async fn print(
    mut chunks: Chunks,
    format: Option<Format>,
    output: &mut Output,
) -> Result<(), Error> {
    let mut columns = Columns::new(&["TIME", "KIND", "POD", "CONTAINER", "WHAT"]);
    // So that few rows are wider than those before them.
    columns.reserve(&[12, 15, 20, 9]);
    let mut any = false;
    while let Some(event) = chunks.next_line().await? {
        match format {
            Some(Format::Json) => output.line(&event)?,
            None => columns.print(vec![row(&event)], output)?,
        }
        any = true;
    }
    if !any && format.is_none() {
        output.note("No events found")?;
    }
    Ok(())
}

fn row(event: &Value) -> Vec<Cell> {
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let kind = text("kind");
    let tone = match &*kind {
        "oom" | "lost" => Tone::Bad,
        "connect_failure" | "limit" => Tone::Busy,
        "exit" if event["code"] != 0 => Tone::Busy,
        "lifecycle" if event["type"] == "Warning" => Tone::Busy,
        _ => Tone::Plain,
    };
    vec![
        time(&text("time")).into(),
        Cell::new(kind.replace('_', "-"), tone),
        text("pod").into(),
        text("container").into(),
        what(event).into(),
    ]
}

/// The time of the day, to the millisecond.
fn time(text: &str) -> String {
    let Ok(time) = text.parse::<Timestamp>() else { return text.to_owned() };
    let zone = TimeZone::try_system().unwrap_or(TimeZone::UTC);
    time.to_zoned(zone).strftime("%H:%M:%S%.3f").to_string()
}

/// What an event says, in one line.
pub(super) fn what(event: &Value) -> String {
    printable(&told(event))
}

/// A text of a container's, which must not tell the terminal what to do.
pub(super) fn printable(text: &str) -> String {
    let visible = |c: char| c == '\t' || !c.is_control();
    text.chars().map(|c| if visible(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

fn told(event: &Value) -> String {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let number = |field: &str| event[field].as_u64().unwrap_or_default();
    let pid = number("pid");
    let seconds = || duration(event["seconds"].as_f64().unwrap_or_default());
    let peer = || {
        let (address, port) = (text("address"), number("port"));
        if address.contains(':') {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        }
    };
    match text("kind") {
        "exec" => {
            let (parent, parent_name) = (number("parent"), text("parentName"));
            let uid = match number("uid") {
                0 => String::new(),
                uid => format!(", uid {uid}"),
            };
            format!("{}   (pid {pid} of {parent_name}[{parent}]{uid})", command(event))
        }
        "exit" => {
            let how = match event["signal"].as_u64() {
                Some(signal) => format!("by {}", signal_name(signal)),
                None => format!("with code {}", number("code")),
            };
            format!("{}[{pid}] {how} after {}", text("name"), seconds())
        }
        "oom" => match text("name") {
            "" => format!("the kernel kills pid {pid} for want of memory"),
            name => format!("the kernel kills {name}[{pid}] for want of memory"),
        },
        "connect_failure" => format!("to {}: {} after {}", peer(), text("error"), seconds()),
        "connect" => format!("to {} in {}", peer(), seconds()),
        "accept" => format!("from {}", peer()),
        "open" => {
            let result = match text("error") {
                "" => String::new(),
                error => format!(": {error}"),
            };
            format!("{}[{pid}] {} {}{result}", text("name"), text("path"), text("flags"))
        }
        "lost" => {
            let counts = event["lost"].as_object().into_iter().flatten();
            let counts: Vec<_> =
                counts.map(|(kind, count)| format!("{count} {}", kind.replace('_', " "))).collect();
            format!("not told: {}", counts.join(", "))
        }
        _ => {
            let count = match number("count") {
                0 | 1 => String::new(),
                count => format!(" (x{count})"),
            };
            format!("{}: {}{count}", text("reason"), text("message"))
        }
    }
}

/// The arguments of an exec, as a shell would take them.
pub(super) fn command(event: &Value) -> String {
    let words = event["argv"].as_array().into_iter().flatten();
    let mut words: Vec<String> = words.filter_map(|word| word.as_str().map(quote)).collect();
    if event["truncated"] == true {
        words.push("...".to_owned());
    }
    if words.is_empty() { "<no arguments>".to_owned() } else { words.join(" ") }
}

/// A word in quotes, if a shell would take it for something else, on one line.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./,:=@%+".contains(c);
    let word = printable(word);
    if !word.is_empty() && word.chars().all(is_plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A length of time with two or three digits.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 0.001 {
        format!("{:.0}us", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.1}ms", seconds * 1e3)
    } else if seconds < 100.0 {
        format!("{seconds:.1}s")
    } else {
        format!("{seconds:.0}s")
    }
}

/// A signal as `kill -l` has it.
pub(super) fn signal_name(number: u64) -> String {
    let signal = i32::try_from(number).ok();
    let signal = signal.and_then(|number| nix::sys::signal::Signal::try_from(number).ok());
    signal.map_or_else(|| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_in_a_line_each() {
        for (event, expected) in [
            (
                json!({"kind": "exec", "pid": 7, "parent": 3, "parentName": "sh", "uid": 33,
                       "argv": ["/bin/echo", "it's", "", "a\nb"], "truncated": true}),
                "/bin/echo 'it'\\''s' '' 'a\u{fffd}b' ...   (pid 7 of sh[3], uid 33)",
            ),
            (
                json!({"kind": "exit", "pid": 7, "name": "echo", "code": 1, "seconds": 0.0123}),
                "echo[7] with code 1 after 12.3ms",
            ),
            (
                json!({"kind": "exit", "pid": 7, "name": "echo", "signal": 9, "seconds": 62.0}),
                "echo[7] by SIGKILL after 62.0s",
            ),
            (
                json!({"kind": "oom", "pid": 7, "name": "java"}),
                "the kernel kills java[7] for want of memory",
            ),
            (
                json!({"kind": "connect_failure", "address": "::1", "port": 80,
                       "error": "ECONNREFUSED", "seconds": 0.000_05}),
                "to [::1]:80: ECONNREFUSED after 50us",
            ),
            (
                json!({"kind": "open", "pid": 7, "name": "cat", "path": "/x", "flags": "O_RDONLY",
                       "error": "ENOENT"}),
                "cat[7] /x O_RDONLY: ENOENT",
            ),
            (
                json!({"kind": "lost", "lost": {"exec": 5, "slow_reader": 2}}),
                "not told: 5 exec, 2 slow reader",
            ),
            (
                json!({"kind": "limit", "reason": "PidsLimit", "message": "too many", "count": 3}),
                "PidsLimit: too many (x3)",
            ),
        ] {
            assert_eq!(what(&event), expected);
        }
    }
}
