//! `podctl top`: what pods use, and what the probes saw them do.

use std::ops::AddAssign;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;

use super::{
    Error, Global, Output,
    client::{Client, Path},
    columns::Columns,
    human,
    resource::{self, Kind},
};
use crate::manifest;

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// pods [NAME] or pod/NAME
    #[arg(required = true, value_name = "RESOURCE")]
    what: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Each container by itself
    #[arg(long)]
    containers: bool,
    /// Only pods that have these labels, like app=web,tier!=test
    #[arg(short = 'l', long)]
    selector: Option<String>,
}

#[derive(Deserialize)]
struct List {
    items: Vec<PodMetrics>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Metadata,
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: Usage,
    #[serde(default)]
    podscope: Counters,
}

#[derive(Deserialize)]
struct Usage {
    cpu: Quantity,
    memory: Option<Quantity>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Counters {
    execs: u64,
    received_bytes: u64,
    transmitted_bytes: u64,
    read_bytes: u64,
    written_bytes: u64,
}

/// What a row sums up.
#[derive(Default)]
struct Sum {
    millicores: u64,
    memory: Option<u64>,
    counters: Counters,
}

impl AddAssign<&ContainerMetrics> for Sum {
    fn add_assign(&mut self, container: &ContainerMetrics) {
        self.millicores += manifest::millicores(&container.usage.cpu).unwrap_or_default();
        let memory = container.usage.memory.as_ref().and_then(|q| manifest::bytes(q).ok());
        if let Some(bytes) = memory {
            *self.memory.get_or_insert(0) += bytes;
        }
        let (sum, more) = (&mut self.counters, container.podscope);
        sum.execs += more.execs;
        sum.received_bytes += more.received_bytes;
        sum.transmitted_bytes += more.transmitted_bytes;
        sum.read_bytes += more.read_bytes;
        sum.written_bytes += more.written_bytes;
    }
}

impl Sum {
    fn cells(&self) -> [String; 7] {
        let Counters { execs, received_bytes, transmitted_bytes, read_bytes, written_bytes } =
            self.counters;
        [
            format!("{}m", self.millicores),
            // The node may not be able to tell.
            self.memory.map_or_else(|| "<unknown>".to_owned(), |b| format!("{}Mi", b >> 20)),
            execs.to_string(),
            human::bytes(received_bytes),
            human::bytes(transmitted_bytes),
            human::bytes(read_bytes),
            human::bytes(written_bytes),
        ]
    }
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    let pods = metrics(client, global, &options).await?;
    if pods.is_empty() {
        output.note("No resources found")?;
        return Ok(0);
    }
    let titles: &[_] = if options.containers {
        &[
            "NAMESPACE",
            "POD",
            "NAME",
            "CPU(cores)",
            "MEMORY(bytes)",
            "EXECS",
            "RX",
            "TX",
            "READ",
            "WRITTEN",
        ]
    } else {
        &[
            "NAMESPACE",
            "NAME",
            "CPU(cores)",
            "MEMORY(bytes)",
            "EXECS",
            "RX",
            "TX",
            "READ",
            "WRITTEN",
        ]
    };
    let mut rows = Vec::new();
    for PodMetrics { metadata: Metadata { name, namespace }, containers } in pods {
        let row = |names: Vec<String>, containers: &[ContainerMetrics]| {
            let mut sum = Sum::default();
            containers.iter().for_each(|container| sum += container);
            names.into_iter().chain(sum.cells()).map(Into::into).collect()
        };
        if options.containers {
            for container in containers.chunks(1) {
                let own = container.iter().map(|container| container.name.clone());
                let names = [namespace.clone(), name.clone()].into_iter().chain(own).collect();
                rows.push(row(names, container));
            }
        } else {
            rows.push(row(vec![namespace, name], &containers));
        }
    }
    Columns::new(titles).print(rows, output)?;
    Ok(0)
}

async fn metrics(
    client: &Client,
    global: &Global,
    options: &Options,
) -> Result<Vec<PodMetrics>, Error> {
    let mut names = Vec::new();
    for resources in resource::parse(&options.what)? {
        if resources.kind != Kind::Pod {
            return Err(Error::Usage(format!(
                "there are no metrics of {}",
                resources.kind.plural()
            )));
        }
        names.extend(resources.names);
    }
    let base = ["apis", "metrics.k8s.io", "v1beta1"];
    let of_namespace = Path::new(&base).below("namespaces").below(global.namespace()).below("pods");
    if names.is_empty() {
        let all = options.all_namespaces;
        let path = if all { Path::new(&base).below("pods") } else { of_namespace };
        let path = path.with_some("labelSelector", options.selector.as_ref());
        return Ok(client.get::<List>(&path).await?.items);
    }
    if options.all_namespaces || options.selector.is_some() {
        return Err(Error::Usage("choose either by name or with -A and -l".to_owned()));
    }
    let mut pods = Vec::new();
    for name in names {
        pods.push(client.get(&of_namespace.clone().below(&name)).await?);
    }
    Ok(pods)
}
