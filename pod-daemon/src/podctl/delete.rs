//! `podctl delete`: ends pods and waits until they are gone.

use std::path::PathBuf;

use hyper::Method;
use serde_json::{Value, json};

use super::{
    Error, Global, Output, apply,
    client::Client,
    resource::{self, Kind},
};

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// KIND NAME... or KIND/NAME...; kinds are pods (po), configmaps (cm) and secrets
    #[arg(value_name = "RESOURCE", required_unless_present = "filename")]
    what: Vec<String>,
    /// What a file, folder or standard input (-) describes; repeatable
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", conflicts_with = "what")]
    filename: Vec<PathBuf>,
    /// Everything of that kind in the namespace
    #[arg(long, conflicts_with = "filename")]
    all: bool,
    /// Seconds that containers get to end by themselves [default: the pod's own]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    #[arg(default_value_t = -1, hide_default_value = true)]
    grace_period: i64,
    /// Give containers one second only
    #[arg(long, conflicts_with = "grace_period")]
    now: bool,
    /// Return when they are gone
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1)]
    #[arg(default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// What does not exist is no failure
    #[arg(long)]
    ignore_not_found: bool,
}

/// An object that is to go.
struct Victim {
    kind: Kind,
    namespace: String,
    name: String,
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    let (victims, errors) = victims(client, global, &options).await?;
    for error in &errors {
        output.error(error)?;
    }
    let mut failed = !errors.is_empty();
    if victims.is_empty() && !failed {
        output.note("No resources found")?;
    }
    // All are told before the first is waited for, so that they leave at the same time.
    let mut leaving = Vec::new();
    for victim in victims {
        match delete(client, &victim, &options).await {
            Ok(uid) => leaving.push((victim, uid)),
            // Of all, those that have gone by themselves are gone.
            Err(error) if error.is_not_found() && (options.ignore_not_found || options.all) => {}
            Err(error @ (Error::NoDaemon { .. } | Error::NotAllowed { .. })) => return Err(error),
            Err(error) => {
                output.error(&error)?;
                failed = true;
            }
        }
    }
    for (Victim { kind, namespace, name }, uid) in leaving {
        if options.wait && kind == Kind::Pod {
            until_gone(client, &namespace, &name, &uid).await?;
        }
        output.line(format_args!("{kind}/{name} deleted"))?;
    }
    Ok(u8::from(failed))
}

async fn victims(
    client: &Client,
    global: &Global,
    options: &Options,
) -> Result<(Vec<Victim>, Vec<Error>), Error> {
    if !options.filename.is_empty() {
        let (mut documents, errors) = apply::read(&options.filename, global);
        // The other way round than apply: pods use config maps.
        documents.sort_by_key(|document| document.kind != Kind::Pod);
        let victim = |document: apply::Document| Victim {
            kind: document.kind,
            namespace: document.namespace,
            name: document.name,
        };
        return Ok((documents.into_iter().map(victim).collect(), errors));
    }
    let mut victims = Vec::new();
    for mut resources in resource::parse(&options.what)? {
        let kind = resources.kind;
        if resources.names.is_empty() {
            if !options.all {
                return Err(Error::Usage(format!("name the {}, or say --all", kind.plural())));
            }
            let list: Value = client.get(&kind.list_path(Some(global.namespace()))).await?;
            let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
            let names = items.filter_map(|item| item.pointer("/metadata/name")?.as_str());
            resources.names = names.map(str::to_owned).collect();
        }
        let namespace = global.namespace();
        let victim = |name| Victim { kind, namespace: namespace.to_owned(), name };
        victims.extend(resources.names.into_iter().map(victim));
    }
    Ok((victims, Vec::new()))
}

/// Tells the object to go; returns its uid.
async fn delete(client: &Client, victim: &Victim, options: &Options) -> Result<String, Error> {
    let grace = if options.now { 1 } else { options.grace_period };
    let body = u64::try_from(grace).ok().map(
        |grace| json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace}),
    );
    let path = victim.kind.path(&victim.namespace, &victim.name);
    let (object, _) = client.call::<Value>(Method::DELETE, &path, body.as_ref()).await?;
    Ok(uid(&object).to_owned())
}

/// Returns when the pod of this uid does not exist any more.
async fn until_gone(client: &Client, namespace: &str, name: &str, gone: &str) -> Result<(), Error> {
    let path = Kind::Pod
        .list_path(Some(namespace))
        .with("watch", true)
        .with("sendInitialEvents", true)
        .with("fieldSelector", format!("metadata.name={name}"));
    // A watch may end early, when its client falls behind; then it begins anew.
    loop {
        let mut events = client.stream(&path).await?;
        let mut there = false;
        while let Some(event) = events.next_line().await? {
            let this = uid(&event["object"]) == gone;
            match event["type"].as_str() {
                Some("BOOKMARK") if !there => return Ok(()),
                Some("DELETED") if this => return Ok(()),
                Some("ERROR") => break,
                _ => there |= this,
            }
        }
    }
}

fn uid(object: &Value) -> &str {
    object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default()
}
