//! `podctl trace`: every exec, opened file and connection of one pod, for a while.

use super::{
    Error, Global, Output,
    client::Client,
    events::{self, Format, pod_path},
    human, resource,
};

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// NAME or pod/NAME
    pod: String,
    /// Only this container
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Execs with their arguments, and exits [default: with --file and --net]
    #[arg(long)]
    exec: bool,
    /// Files that are opened, and those that could not be
    #[arg(long)]
    file: bool,
    /// TCP connections: to whom, from whom, how long it took
    #[arg(long)]
    net: bool,
    /// How long, like 90s or 5m; Ctrl-C ends it at any time
    #[arg(long = "for", value_name = "TIME", value_parser = human::parse_seconds)]
    #[arg(default_value = "60s")]
    time: u64,
    /// As lines of JSON
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
    let path = pod_path(global.namespace(), name)
        .below("trace")
        .with("seconds", options.time)
        .with_some("container", options.container.as_deref())
        .with_some("exec", options.exec.then_some(true))
        .with_some("file", options.file.then_some(true))
        .with_some("net", options.net.then_some(true));
    let chunks = client.stream(&path).await?;
    events::print(chunks, options.output, output).await?;
    Ok(0)
}
