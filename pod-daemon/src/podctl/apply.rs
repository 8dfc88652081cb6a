//! `podctl apply`: makes the node have what manifests describe.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path as FilePath, PathBuf},
};

use hyper::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::Deserialize as _;
use serde_json::Value;

use super::{
    Error, Global, Output,
    client::{Client, Path},
    resource::Kind,
};
use crate::manifest::{self, Unsupported};

const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// File, folder of *.yaml, *.yml and *.json files, or - for standard input; repeatable
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
    /// What to do about fields that Podscope does not support [default: the daemon's way]
    #[arg(long, value_name = "deny|warn", value_enum)]
    unsupported: Option<OnUnsupported>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum OnUnsupported {
    Deny,
    Warn,
}

/// One object of a manifest.
pub(super) struct Document {
    /// Where it stands.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    value: Value,
}

impl Document {
    fn new(path: &FilePath, value: Value, global: &Global) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Other(format!("{}: {problem}", path.display()));
        let word = manifest::kind(&value)
            .ok_or_else(|| wrong("a document does not say its `kind`".to_owned()))?;
        let kind = match word {
            "Pod" => Kind::Pod,
            "ConfigMap" => Kind::ConfigMap,
            "Secret" => Kind::Secret,
            _ => {
                return Err(wrong(format!(
                    "kind `{word}` is not supported, only Pod, ConfigMap and Secret"
                )));
            }
        };
        let name = manifest::name(&value)
            .ok_or_else(|| wrong(format!("a {kind} has no `metadata.name`")))?
            .to_owned();
        let own = value.pointer("/metadata/namespace").and_then(Value::as_str);
        let namespace = match (own, global.namespace.as_deref()) {
            (Some(own), Some(asked)) if own != asked => {
                return Err(wrong(format!(
                    "{kind} `{name}` is for namespace `{own}`, the command line says `{asked}`"
                )));
            }
            (Some(own), _) => own,
            (None, _) => global.namespace(),
        };
        let namespace = namespace.to_owned();
        Ok(Self { path: path.to_owned(), kind, namespace, name, value })
    }
}

/// What became of an object.
enum Outcome {
    Created,
    Configured,
    Unchanged,
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    let (mut documents, errors) = read(&options.filename, global);
    for error in &errors {
        output.error(error)?;
    }
    let mut failed = !errors.is_empty();
    // Pods use config maps and secrets, so those come first; otherwise the order is the manifests'.
    documents.sort_by_key(|document| document.kind == Kind::Pod);
    for document in documents {
        match apply(client, &document, options.unsupported, output).await {
            Ok(outcome) => {
                let word = match outcome {
                    Outcome::Created => "created",
                    Outcome::Configured => "configured",
                    Outcome::Unchanged => "unchanged",
                };
                output.line(format_args!("{}/{} {word}", document.kind, document.name))?;
            }
            // Without a daemon it will not go better for the others.
            Err(error @ (Error::NoDaemon { .. } | Error::NotAllowed { .. } | Error::Output(_))) => {
                return Err(error);
            }
            Err(error) => {
                output.error(&format_args!("{}: {error}", document.path.display()))?;
                failed = true;
            }
        }
    }
    Ok(u8::from(failed))
}

/// Reads the documents of all files, as far as they can be read.
pub(super) fn read(paths: &[PathBuf], global: &Global) -> (Vec<Document>, Vec<Error>) {
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    for path in paths {
        let files = files(path).unwrap_or_else(|error| {
            errors.push(error);
            Vec::new()
        });
        for path in files {
            let values = values(&path).unwrap_or_else(|error| {
                errors.push(error);
                Vec::new()
            });
            for value in values {
                match Document::new(&path, value, global) {
                    Ok(document) => documents.push(document),
                    Err(error) => errors.push(error),
                }
            }
        }
    }
    (documents, errors)
}

/// The files at a path: itself, or the manifests of a folder by name.
fn files(path: &FilePath) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Error::Other(format!("{}: there are no manifests", path.display())));
    }
    paths.sort_unstable();
    Ok(paths)
}

/// The objects in a file, or in standard input if the file is `-`.
fn values(path: &FilePath) -> Result<Vec<Value>, Error> {
    let text = if path == FilePath::new("-") {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(path)
    };
    let text = text.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let values = manifest::documents(&text)
        .map_err(|error| Error::Manifest { path: path.to_owned(), error })?;
    if values.is_empty() {
        return Err(Error::Other(format!("{}: there is no object", path.display())));
    }
    Ok(values)
}

async fn apply(
    client: &Client,
    document: &Document,
    unsupported: Option<OnUnsupported>,
    output: &mut Output,
) -> Result<Outcome, Error> {
    let Document { kind, namespace, name, value, .. } = document;
    let strict = |path: Path| {
        path.with_some(
            "fieldValidation",
            unsupported.map(|unsupported| match unsupported {
                OnUnsupported::Deny => "Strict",
                OnUnsupported::Warn => "Warn",
            }),
        )
    };
    let path = kind.path(namespace, name);
    let existing = match client.get::<Value>(&path).await {
        Ok(existing) => existing,
        Err(error) if error.is_not_found() => {
            let list = strict(kind.list_path(Some(namespace)));
            let (_, warnings) = client.call::<Value>(Method::POST, &list, Some(value)).await?;
            warn(document, &warnings, output)?;
            return Ok(Outcome::Created);
        }
        Err(error) => return Err(error),
    };
    match kind {
        Kind::Pod => pod_stays(document, existing),
        Kind::ConfigMap if config_map_stays(value.clone(), &existing) => Ok(Outcome::Unchanged),
        Kind::Secret if secret_stays(value.clone(), &existing) => Ok(Outcome::Unchanged),
        Kind::ConfigMap | Kind::Secret | Kind::Event => {
            let (_, warnings) =
                client.call::<Value>(Method::PUT, &strict(path), Some(value)).await?;
            warn(document, &warnings, output)?;
            Ok(Outcome::Configured)
        }
    }
}

fn warn(document: &Document, warnings: &[String], output: &mut Output) -> Result<(), Error> {
    let Document { kind, name, .. } = document;
    warnings
        .iter()
        .try_for_each(|warning| output.note(format_args!("warning: {kind}/{name}: {warning}")))
}

/// A pod that exists cannot be changed, so it must be what the manifest describes.
fn pod_stays(document: &Document, existing: Value) -> Result<Outcome, Error> {
    let Document { namespace, name, path, value, .. } = document;
    let (wanted, _) = manifest::parse_pod(value.clone(), Unsupported::Warn)
        .map_err(|error| Error::Manifest { path: path.clone(), error })?;
    let existing: Pod = serde_json::from_value(existing)
        .map_err(|error| Error::Other(format!("pod `{name}` cannot be read: {error}")))?;
    if existing.metadata.deletion_timestamp.is_some() {
        return Err(Error::Other(format!(
            "pod `{name}` is being deleted; apply again when it is gone"
        )));
    }
    let differences = pod_differences(&wanted, &existing);
    if differences.is_empty() {
        return Ok(Outcome::Unchanged);
    }
    Err(Error::Other(format!(
        "pod `{name}` exists and cannot be changed in {}; delete it first: podctl delete pod \
         {name} -n {namespace}",
        differences.join(", ")
    )))
}

/// Paths of the fields in which the pods differ.
fn pod_differences(wanted: &Pod, existing: &Pod) -> Vec<String> {
    let mut existing = existing.clone();
    if let (Some(wanted), Some(existing)) = (&wanted.spec, &mut existing.spec) {
        // The daemon says where the pod runs; the manifest need not.
        if wanted.node_name.is_none() {
            existing.node_name = None;
        }
    }
    let mut found = Vec::new();
    let text = |map: &Option<BTreeMap<_, _>>| serde_json::to_value(map.clone().unwrap_or_default());
    let labels = |pod: &Pod| text(&pod.metadata.labels);
    let annotations = |pod: &Pod| text(&pod.metadata.annotations);
    let spec = |pod: &Pod| serde_json::to_value(&pod.spec);
    let pairs = [
        ("metadata.labels", labels(wanted), labels(&existing)),
        ("metadata.annotations", annotations(wanted), annotations(&existing)),
        ("spec", spec(wanted), spec(&existing)),
    ];
    for (path, wanted, existing) in pairs {
        // These types always serialise; were they not to, they would not be equal.
        match (wanted, existing) {
            (Ok(wanted), Ok(existing)) => differences(path, &wanted, &existing, &mut found),
            _ => found.push(path.to_owned()),
        }
    }
    found
}

fn differences(path: &str, wanted: &Value, existing: &Value, found: &mut Vec<String>) {
    match (wanted, existing) {
        (Value::Object(wanted), Value::Object(existing)) => {
            let more = existing.keys().filter(|key| !wanted.contains_key(*key));
            for key in wanted.keys().chain(more) {
                let of = |object: &serde_json::Map<String, Value>| {
                    object.get(key).cloned().unwrap_or_default()
                };
                differences(&format!("{path}.{key}"), &of(wanted), &of(existing), found);
            }
        }
        (Value::Array(wanted), Value::Array(existing)) => {
            for index in 0..wanted.len().max(existing.len()) {
                let of = |list: &[Value]| list.get(index).cloned().unwrap_or_default();
                differences(&format!("{path}[{index}]"), &of(wanted), &of(existing), found);
            }
        }
        (wanted, existing) if wanted != existing => found.push(path.to_owned()),
        _ => {}
    }
}

/// Whether the config map is already what the manifest describes.
fn config_map_stays(value: Value, existing: &Value) -> bool {
    let Ok((wanted, _)) = manifest::parse_config_map(value, Unsupported::Warn) else {
        return false;
    };
    ConfigMap::deserialize(existing).is_ok_and(|existing| {
        wanted.data.unwrap_or_default() == existing.data.unwrap_or_default()
            && wanted.binary_data.unwrap_or_default() == existing.binary_data.unwrap_or_default()
            && wanted.immutable.unwrap_or_default() == existing.immutable.unwrap_or_default()
            && wanted.metadata.labels.unwrap_or_default()
                == existing.metadata.labels.unwrap_or_default()
            && wanted.metadata.annotations.unwrap_or_default()
                == existing.metadata.annotations.unwrap_or_default()
    })
}

/// Whether the secret is already what the manifest describes.
fn secret_stays(value: Value, existing: &Value) -> bool {
    let Ok((wanted, _)) = manifest::parse_secret(value, Unsupported::Warn) else {
        return false;
    };
    Secret::deserialize(existing).is_ok_and(|existing| {
        wanted.data.unwrap_or_default() == existing.data.unwrap_or_default()
            && wanted.type_ == existing.type_
            && wanted.immutable.unwrap_or_default() == existing.immutable.unwrap_or_default()
            && wanted.metadata.labels.unwrap_or_default()
                == existing.metadata.labels.unwrap_or_default()
            && wanted.metadata.annotations.unwrap_or_default()
                == existing.metadata.annotations.unwrap_or_default()
    })
}
