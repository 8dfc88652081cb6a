//! `podctl logs`: what a container has written.

use k8s_openapi::api::core::v1::Pod;

use super::{
    Error, Global, Output,
    client::{Client, Path},
    human,
    resource::{self, Kind},
};

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// NAME or pod/NAME
    pod: String,
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Of the container's last run that has ended
    #[arg(short, long)]
    previous: bool,
    /// The container [default: the first one]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Only the last N lines; -1 means all
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = -1)]
    tail: i64,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Only what is not older, like 90s, 5m or 1h30m
    #[arg(long, value_name = "TIME", value_parser = human::parse_seconds)]
    since: Option<u64>,
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    let name = resource::pod_name(&options.pod)?;
    let path = |container: Option<&str>| {
        Kind::Pod
            .path(global.namespace(), name)
            .below("log")
            .with_some("container", container)
            .with_some("follow", options.follow.then_some(true))
            .with_some("previous", options.previous.then_some(true))
            .with_some("timestamps", options.timestamps.then_some(true))
            .with_some("tailLines", u64::try_from(options.tail).ok())
            .with_some("sinceSeconds", options.since)
    };
    let mut chunks = match client.stream(&path(options.container.as_deref())).await {
        Err(error) if options.container.is_none() && error.is_about("container") => {
            let container = default_container(client, global, name, output).await?;
            client.stream(&path(Some(&container))).await?
        }
        chunks => chunks?,
    };
    while let Some(chunk) = chunks.next().await? {
        output.bytes(&chunk)?;
    }
    Ok(0)
}

/// The container that is meant if none was named and there are several: the first, and says so.
pub(super) async fn default_container(
    client: &Client,
    global: &Global,
    pod: &str,
    output: &mut Output,
) -> Result<String, Error> {
    let path: Path = Kind::Pod.path(global.namespace(), pod);
    let pod: Pod = client.get(&path).await?;
    let containers = pod.spec.map(|spec| spec.containers).unwrap_or_default();
    let names: Vec<_> = containers.iter().map(|container| container.name.as_str()).collect();
    let annotations = pod.metadata.annotations.unwrap_or_default();
    let chosen = annotations.get("kubectl.kubernetes.io/default-container");
    let chosen = chosen.map(String::as_str).filter(|chosen| names.contains(chosen));
    let first = chosen
        .or_else(|| names.first().copied())
        .ok_or_else(|| Error::Other("the pod has no containers".to_owned()))?;
    output.note(format_args!("Defaulted container \"{first}\" out of: {}", names.join(", ")))?;
    Ok(first.to_owned())
}
