//! `podctl version`: this program's and the daemon's.

use serde_json::Value;

use super::{
    Error, Output,
    client::{Client, Path},
};

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// Do not ask the daemon
    #[arg(long)]
    client: bool,
}

pub(super) async fn run(
    client: &Client,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    output.line(format_args!("Client Version: v{}", env!("CARGO_PKG_VERSION")))?;
    if !options.client {
        let version: Value = client.get(&Path::new(&["version"])).await?;
        let version = version.get("gitVersion").and_then(Value::as_str).unwrap_or("unknown");
        output.line(format_args!("Server Version: {version}"))?;
    }
    Ok(0)
}
