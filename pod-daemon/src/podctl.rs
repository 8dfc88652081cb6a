//! The command line: kubectl's verbs and flags over the daemon's socket.
//!
//! Everything is printed through [`Output`]; everything else about the terminal and the process is
//! left to the binary.

mod apply;
mod client;
mod columns;
mod delete;
mod describe;
mod error;
mod event;
mod events;
mod exec;
mod explain;
mod get;
mod human;
mod image;
mod logs;
mod node;
mod output;
mod resource;
mod status;
mod top;
mod trace;
mod version;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use self::client::Client;
pub use self::{error::Error, output::Output};

/// Where the daemon listens unless it is told otherwise.
const DEFAULT_SOCKET: &str = "/run/podscope/api.sock";

/// Controls the pods of this node.
#[derive(Debug, Parser)]
#[command(name = "podctl", version)]
#[command(arg_required_else_help = true, subcommand_required = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug)]
struct Global {
    /// The daemon's socket
    #[arg(long, global = true, value_name = "PATH")]
    #[arg(env = "PODSCOPE_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Namespace of what is named [default: default]
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
}

impl Global {
    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create what manifests describe, or change it to that
    Apply(apply::Options),
    /// Show pods or config maps
    Get(get::Options),
    /// Show pods or the node in detail
    Describe(describe::Options),
    /// Print what a container has written
    Logs(logs::Options),
    /// Delete pods or config maps
    Delete(delete::Options),
    /// Run a command in a container
    Exec(exec::Options),
    /// Show what happens in pods: execs, exits, OOM kills, failed connects, limits
    Events(events::Options),
    /// Explain how a pod lives, or has lived and died
    Explain(explain::Options),
    /// Show every exec, opened file and connection of a pod, for a while
    Trace(trace::Options),
    /// Show what pods use
    Top(top::Options),
    /// Pull, load, list, inspect and remove images
    Image(image::Options),
    /// Show the versions of this program and of the daemon
    Version(version::Options),
}

/// Runs one command line, program name first, and returns the exit code.
pub async fn run<I, T>(arguments: I, output: &mut Output) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let result = match Cli::try_parse_from(arguments) {
        Ok(cli) => dispatch(cli, output).await,
        Err(error) => output.usage(&error),
    };
    match result {
        Ok(code) => code,
        // Whoever read this has read enough.
        Err(error) if error.is_broken_pipe() => 0,
        Err(error) => {
            // There is nowhere left to say that this could not be said.
            output.error(&error).ok();
            error.exit_code()
        }
    }
}

async fn dispatch(cli: Cli, output: &mut Output) -> Result<u8, Error> {
    let client = Client::new(cli.global.socket.clone());
    let global = &cli.global;
    match cli.command {
        Command::Apply(options) => apply::run(&client, global, options, output).await,
        Command::Get(options) => get::run(&client, global, options, output).await,
        Command::Describe(options) => describe::run(&client, global, options, output).await,
        Command::Logs(options) => logs::run(&client, global, options, output).await,
        Command::Delete(options) => delete::run(&client, global, options, output).await,
        Command::Exec(options) => exec::run(&client, global, options, output).await,
        Command::Events(options) => events::run(&client, global, options, output).await,
        Command::Explain(options) => explain::run(&client, global, options, output).await,
        Command::Trace(options) => trace::run(&client, global, options, output).await,
        Command::Top(options) => top::run(&client, global, options, output).await,
        Command::Image(options) => image::run(&client, options, output).await,
        Command::Version(options) => version::run(&client, options, output).await,
    }
}

#[cfg(test)]
mod tests;
