//! What has happened to pods, as `get events` and `describe pod` show it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};

use super::{columns::Cell, human, output::Tone};

/// Space between columns of a description, as kubectl has it.
const GAP: usize = 2;

/// The titles of `get events`; wide, or not.
pub(super) fn titles(wide: bool) -> &'static [&'static str] {
    if wide {
        &[
            "NAMESPACE",
            "LAST SEEN",
            "TYPE",
            "REASON",
            "OBJECT",
            "SUBOBJECT",
            "SOURCE",
            "MESSAGE",
            "FIRST SEEN",
            "COUNT",
            "NAME",
        ]
    } else {
        &["NAMESPACE", "LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
    }
}

/// A row of `get events`.
pub(super) fn row(event: &Event, wide: bool, now: Timestamp) -> Vec<Cell> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let about = &event.involved_object;
    let object = format!("{}/{}", text(&about.kind).to_lowercase(), text(&about.name));
    let message = text(&event.message).trim().to_owned();
    let tone = if is_warning(event) { Tone::Busy } else { Tone::Plain };
    let mut row: Vec<Cell> = vec![
        text(&event.metadata.namespace).into(),
        last_seen(event, now).into(),
        Cell::new(text(&event.type_), tone),
        text(&event.reason).into(),
        object.into(),
    ];
    if wide {
        row.push(text(&about.field_path).into());
        row.push(source(event, ", ").into());
        row.push(message.into());
        row.push(first_seen(event, now).into());
        row.push(count(event).to_string().into());
        row.push(text(&event.metadata.name).into());
    } else {
        row.push(message.into());
    }
    row
}

/// What has happened to a pod, the last at the end.
pub(super) fn of_pod<'a>(pod: &Pod, events: &'a [Event]) -> Vec<&'a Event> {
    let mut events: Vec<_> =
        events.iter().filter(|event| event.involved_object.uid == pod.metadata.uid).collect();
    events.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    events
}

/// The table in a pod's description.
pub(super) fn table(events: &[&Event], now: Timestamp) -> String {
    let titles = ["Type", "Reason", "Age", "From", "Message"];
    let rules = titles.map(|title| "-".repeat(title.len()));
    let rows = events.iter().map(|event| {
        [
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            last_seen(event, now),
            source(event, ", "),
            event.message.as_deref().unwrap_or_default().trim().to_owned(),
        ]
    });
    let rows: Vec<_> = [titles.map(str::to_owned), rules].into_iter().chain(rows).collect();
    let widths: [usize; 5] = std::array::from_fn(|at| {
        rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default()
    });
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{:GAP$}{cell:width$}", ""));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn is_warning(event: &Event) -> bool {
    event.type_.as_deref() == Some("Warning")
}

fn count(event: &Event) -> i32 {
    event.count.unwrap_or(1)
}

fn source(event: &Event, separator: &str) -> String {
    let source = event.source.as_ref();
    let parts = source.map(|source| [source.component.as_deref(), source.host.as_deref()]);
    parts.into_iter().flatten().flatten().collect::<Vec<_>>().join(separator)
}

fn first_seen(event: &Event, now: Timestamp) -> String {
    let first = event.first_timestamp.as_ref().or(event.last_timestamp.as_ref());
    first.map_or_else(|| "<unknown>".to_owned(), |first| human::age(first.0, now))
}

/// How long ago, and how often since when: `5s (x3 over 2m)`.
fn last_seen(event: &Event, now: Timestamp) -> String {
    let last = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref());
    let age = last.map_or_else(|| "<unknown>".to_owned(), |last| human::age(last.0, now));
    match count(event) {
        ..=1 => age,
        count => format!("{age} (x{count} over {})", first_seen(event, now)),
    }
}
