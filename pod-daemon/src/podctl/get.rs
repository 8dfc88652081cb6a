//! `podctl get`: tables, names and whole objects.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    Error, Global, Output,
    client::Client,
    columns::{Cell, Columns},
    event, human,
    resource::{self, Kind, Resources},
    status,
};

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// KIND [NAME...] or KIND/NAME...; kinds are pods (po), configmaps (cm), secrets
    /// and events (ev)
    #[arg(required = true, value_name = "RESOURCE")]
    what: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to show it
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// Go on and show what changes
    #[arg(short, long)]
    watch: bool,
    /// Only what has these labels, like app=web,tier!=test
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Only what has these fields, like involvedObject.name=web,type!=Normal
    #[arg(long)]
    field_selector: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Format {
    Wide,
    Json,
    Yaml,
    Name,
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    let resources = resource::parse(&options.what)?;
    let named = resources.iter().any(|resources| !resources.names.is_empty());
    if named && options.all_namespaces {
        return Err(Error::Usage("names are of one namespace, -A is all of them".to_owned()));
    }
    if named && (options.selector.is_some() || options.field_selector.is_some()) {
        return Err(Error::Usage("choose either by name or with a selector".to_owned()));
    }
    let namespace = (!options.all_namespaces).then(|| global.namespace());
    if options.watch {
        return watch(client, namespace, &resources, &options, output).await;
    }
    let mut failed = false;
    let mut all = Vec::new();
    for resources in &resources {
        let (objects, errors) = fetch(client, namespace, resources, &options).await?;
        for error in &errors {
            output.error(error)?;
        }
        failed |= !errors.is_empty();
        all.push((resources.kind, objects));
    }
    // One object by its name is shown as itself, everything else as a list.
    let single =
        named && resources.iter().map(|resources| resources.names.len()).sum::<usize>() == 1;
    show(all, options.output, single, namespace, output)?;
    Ok(u8::from(failed))
}

/// The objects that exist, and why others could not be had.
async fn fetch(
    client: &Client,
    namespace: Option<&str>,
    resources: &Resources,
    options: &Options,
) -> Result<(Vec<Value>, Vec<Error>), Error> {
    let Resources { kind, names } = resources;
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    if names.is_empty() {
        let path = kind.list_path(namespace);
        let path = path
            .with_some("labelSelector", options.selector.as_ref())
            .with_some("fieldSelector", options.field_selector.as_ref());
        let mut list: Value = client.get(&path).await?;
        if let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) {
            objects = items;
        }
    }
    for name in names {
        match client.get(&kind.path(namespace.unwrap_or_default(), name)).await {
            Ok(object) => objects.push(object),
            Err(error) if error.is_not_found() => errors.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok((objects, errors))
}

fn show(
    all: Vec<(Kind, Vec<Value>)>,
    format: Option<Format>,
    single: bool,
    namespace: Option<&str>,
    output: &mut Output,
) -> Result<(), Error> {
    let objects = all.iter().flat_map(|(_, objects)| objects);
    match format {
        Some(Format::Json | Format::Yaml) => {
            let items: Vec<_> = objects.cloned().collect();
            match <[Value; 1]>::try_from(items) {
                Ok([object]) if single => whole(&object, format, output),
                // Asked for by name and not there: that was said already.
                Err(items) if single && items.is_empty() => Ok(()),
                items => {
                    let items = items.map_or_else(|items| items, Vec::from);
                    let list = json!({
                        "apiVersion": "v1", "kind": "List", "metadata": {}, "items": items,
                    });
                    whole(&list, format, output)
                }
            }
        }
        Some(Format::Name) => {
            for (kind, objects) in &all {
                for object in objects {
                    output.line(format_args!("{kind}/{}", name(object)))?;
                }
            }
            Ok(())
        }
        None | Some(Format::Wide) => {
            let mut shown = 0;
            for (kind, objects) in all.iter().filter(|(_, objects)| !objects.is_empty()) {
                if shown > 0 {
                    output.line("")?;
                }
                shown += 1;
                let rows = rows(*kind, objects, format)?;
                Columns::new(titles(*kind, format)).print(rows, output)?;
            }
            match namespace {
                _ if shown > 0 || single => Ok(()),
                Some(namespace) => {
                    output.note(format_args!("No resources found in {namespace} namespace."))
                }
                None => output.note("No resources found."),
            }
        }
    }
}

/// Prints whole objects.
fn whole(object: &Value, format: Option<Format>, output: &mut Output) -> Result<(), Error> {
    let text = if format == Some(Format::Json) {
        serde_json::to_string_pretty(object).map(|json| json + "\n").map_err(|e| e.to_string())
    } else {
        let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
        serde_saphyr::to_string_with_options(object, options).map_err(|e| e.to_string())
    };
    output.text(&text.map_err(Error::Other)?)
}

fn titles(kind: Kind, format: Option<Format>) -> &'static [&'static str] {
    match (kind, format) {
        (Kind::Pod, Some(Format::Wide)) => {
            &["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "IMAGES"]
        }
        (Kind::Pod, _) => &["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP"],
        (Kind::ConfigMap, _) => &["NAMESPACE", "NAME", "DATA", "AGE"],
        (Kind::Secret, _) => &["NAMESPACE", "NAME", "TYPE", "DATA", "AGE"],
        (Kind::Event, format) => event::titles(format == Some(Format::Wide)),
    }
}

fn rows(kind: Kind, objects: &[Value], format: Option<Format>) -> Result<Vec<Vec<Cell>>, Error> {
    let now = Timestamp::now();
    let row = |object: &Value| match kind {
        Kind::Pod => Ok(pod_row(&typed(object)?, format, now)),
        Kind::ConfigMap => Ok(config_map_row(&typed(object)?, now)),
        Kind::Secret => Ok(secret_row(&typed(object)?, now)),
        Kind::Event => Ok(event::row(&typed(object)?, format == Some(Format::Wide), now)),
    };
    objects.iter().map(row).collect()
}

fn pod_row(pod: &Pod, format: Option<Format>, now: Timestamp) -> Vec<Cell> {
    let summary = status::summary(pod, now);
    let tone = status::tone(&summary.status);
    let or_none =
        |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or("<none>").to_owned();
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    let mut row: Vec<Cell> = vec![
        or_none(pod.metadata.namespace.as_deref()).into(),
        or_none(pod.metadata.name.as_deref()).into(),
        summary.ready.into(),
        Cell::new(summary.status, tone),
        summary.restarts.into(),
        age(&pod.metadata, now).into(),
        or_none(ip).into(),
    ];
    if format == Some(Format::Wide) {
        let spec = pod.spec.as_ref();
        row.push(or_none(spec.and_then(|spec| spec.node_name.as_deref())).into());
        let images = spec.iter().flat_map(|spec| &spec.containers);
        let images: Vec<_> = images.filter_map(|container| container.image.as_deref()).collect();
        row.push(images.join(",").into());
    }
    row
}

fn config_map_row(map: &ConfigMap, now: Timestamp) -> Vec<Cell> {
    let entries = map.data.as_ref().map_or(0, |data| data.len())
        + map.binary_data.as_ref().map_or(0, |data| data.len());
    vec![
        map.metadata.namespace.clone().unwrap_or_default().into(),
        map.metadata.name.clone().unwrap_or_default().into(),
        entries.to_string().into(),
        age(&map.metadata, now).into(),
    ]
}

/// How many entries there are, and nothing of what they say.
fn secret_row(secret: &Secret, now: Timestamp) -> Vec<Cell> {
    vec![
        secret.metadata.namespace.clone().unwrap_or_default().into(),
        secret.metadata.name.clone().unwrap_or_default().into(),
        secret.type_.clone().unwrap_or_default().into(),
        secret.data.as_ref().map_or(0, |data| data.len()).to_string().into(),
        age(&secret.metadata, now).into(),
    ]
}

fn age(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    now: Timestamp,
) -> String {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or_else(|| "<unknown>".to_owned(), |created| human::age(created.0, now))
}

fn name(object: &Value) -> &str {
    object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn typed<T: DeserializeOwned>(object: &Value) -> Result<T, Error> {
    T::deserialize(object).map_err(|error| {
        Error::Other(format!("the daemon's object `{}` cannot be read: {error}", name(object)))
    })
}

/// Shows pods or events and then every change, until interrupted or until the daemon ends.
async fn watch(
    client: &Client,
    namespace: Option<&str>,
    resources: &[Resources],
    options: &Options,
    output: &mut Output,
) -> Result<u8, Error> {
    let [Resources { kind: kind @ (Kind::Pod | Kind::Event), names }] = resources else {
        return Err(Error::Usage("pods can be watched, or events; nothing else".to_owned()));
    };
    let kind = *kind;
    if names.len() > 1 {
        return Err(Error::Usage(format!(
            "one {kind} can be watched, or all; not several by name"
        )));
    }
    let named = names.first().map(|name| format!("metadata.name={name}"));
    let fields = named.as_ref().or(options.field_selector.as_ref());
    if let Some(name) = names.first() {
        // Says so if there is none.
        client.get::<Value>(&kind.path(namespace.unwrap_or_default(), name)).await?;
    }
    let path = kind
        .list_path(namespace)
        .with("watch", true)
        .with("sendInitialEvents", true)
        .with_some("labelSelector", options.selector.as_ref())
        .with_some("fieldSelector", fields);
    let mut columns = Columns::new(titles(kind, options.output));
    let mut known = false;
    // After a restart of the daemon or a fall behind, the state is shown again.
    let mut initial = Vec::new();
    let mut events = client.stream(&path).await?;
    while let Some(mut event) = events.next_line().await? {
        let object = event["object"].take();
        match event["type"].as_str() {
            Some("BOOKMARK") => {
                known = true;
                let initial = std::mem::take(&mut initial);
                changed(kind, initial, options.output, &mut columns, output)?;
            }
            Some("ERROR") => {
                // Too slow: what was missed is in the state that a new watch begins with.
                events = client.stream(&path).await?;
                known = false;
            }
            // An event that is forgotten has not happened again.
            Some("DELETED") if kind == Kind::Event => {}
            _ if known => changed(kind, vec![object], options.output, &mut columns, output)?,
            _ => initial.push(object),
        }
    }
    Ok(0)
}

fn changed(
    kind: Kind,
    objects: Vec<Value>,
    format: Option<Format>,
    columns: &mut Columns,
    output: &mut Output,
) -> Result<(), Error> {
    match format {
        None | Some(Format::Wide) if objects.is_empty() => Ok(()),
        None | Some(Format::Wide) => columns.print(rows(kind, &objects, format)?, output),
        Some(Format::Name) => objects
            .iter()
            .try_for_each(|object| output.line(format_args!("{kind}/{}", name(object)))),
        Some(Format::Json) => objects.iter().try_for_each(|object| whole(object, format, output)),
        Some(Format::Yaml) => objects.iter().try_for_each(|object| {
            output.line("---")?;
            whole(object, format, output)
        }),
    }
}
