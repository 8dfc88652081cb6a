//! `podctl image`: the images of the node.

mod bars;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use self::bars::Bars;
use super::{
    Error, Output,
    client::{Chunks, Client, Path},
    columns::{Cell, Columns},
    human,
};

#[derive(Args, Debug)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pull an image from its registry
    Pull {
        /// The image, like nginx:1.27 or registry.example:5000/team/app@sha256:...
        image: String,
    },
    /// Take images from an archive of `docker save`, or from an OCI image layout in a tar
    Load {
        /// The archive
        #[arg(short, long, value_name = "FILE")]
        input: PathBuf,
        /// What its only image is to be called, if it has no name there
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Show the images
    #[command(visible_alias = "ls")]
    List {
        /// How to show them
        #[arg(short, long, value_enum, value_name = "FORMAT")]
        output: Option<Format>,
    },
    /// Show an image in detail, as JSON
    Inspect {
        /// Its name, its id or the beginning of that
        image: String,
    },
    /// Remove images that no pod uses
    #[command(visible_alias = "rm")]
    Remove {
        /// Their names, ids or the beginnings of those
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images whose name leads to another one by now, and what is left of broken pulls
    Prune {
        /// Remove every image that no pod uses
        #[arg(short, long)]
        all: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// With digests and pods
    Wide,
    /// All there is
    Json,
    /// Names alone
    Name,
}

/// An image, as the daemon has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    name: String,
    replaced: bool,
    id: String,
    digests: Vec<String>,
    bytes: u64,
    created: Option<Timestamp>,
    last_used: Option<Timestamp>,
    pods: Vec<String>,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Image>,
}

#[derive(Deserialize)]
struct Pruned {
    images: u64,
    bytes: u64,
}

pub(super) async fn run(
    client: &Client,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    match options.command {
        Command::Pull { image } => {
            let lines = client.start(&path().below(&image)).await?;
            let end = follow(lines, &mut Bars::new(output), output).await?;
            output.line(end["image"]["name"].as_str().unwrap_or(&image))?;
        }
        Command::Load { input, name } => load(client, input, name, output).await?,
        Command::List { output: format } => list(client, format, output).await?,
        Command::Inspect { image } => {
            let value: Value = client.get(&path().below(&image)).await.map_err(explain)?;
            output.line(format_args!("{value:#}"))?;
        }
        Command::Remove { images } => return remove(client, &images, output).await,
        Command::Prune { all } => {
            let path = if all { path().with("all", true) } else { path() };
            let (pruned, _) = client.call::<Pruned>(Method::DELETE, &path, None).await?;
            let (images, bytes) = (pruned.images, human::bytes(pruned.bytes));
            let plural = if images == 1 { "image" } else { "images" };
            output.line(format_args!("{images} {plural} removed, {bytes} freed"))?;
        }
    }
    Ok(0)
}

fn path() -> Path {
    Path::new(&["podscope", "v1", "images"])
}

async fn load(
    client: &Client,
    input: PathBuf,
    name: Option<String>,
    output: &mut Output,
) -> Result<(), Error> {
    let cannot_read = |source| Error::Read { path: input.clone(), source };
    let file = tokio::fs::File::open(&input).await.map_err(cannot_read)?;
    let size = file.metadata().await.map_err(cannot_read)?.len();
    let mut bars = Bars::new(output);
    let sent = bars.upload(size);
    let lines = client.upload(&path().with_some("name", name), file, sent).await?;
    let end = follow(lines, &mut bars, output).await?;
    for name in end["images"].as_array().into_iter().flatten() {
        output.line(format_args!("loaded {}", name.as_str().unwrap_or_default()))?;
    }
    Ok(())
}

/// Shows what happens until the end, which is returned.
async fn follow(mut lines: Chunks, bars: &mut Bars, output: &mut Output) -> Result<Value, Error> {
    while let Some(line) = lines.next_line().await? {
        if let Some(layers) = line["layers"].as_array() {
            bars.show(layers, output)?;
            continue;
        }
        bars.finish();
        if let Some(message) = line["error"]["message"].as_str() {
            let reason = line["error"]["reason"].as_str().unwrap_or("error");
            return Err(Error::Other(format!("{reason}: {message}")));
        }
        return Ok(line);
    }
    bars.finish();
    Err(Error::Other("the daemon went away; what was pulled so far is kept, try again".to_owned()))
}

async fn list(client: &Client, format: Option<Format>, output: &mut Output) -> Result<(), Error> {
    if format == Some(Format::Json) {
        let value: Value = client.get(&path()).await?;
        return output.line(format_args!("{value:#}"));
    }
    let List { items } = client.get(&path()).await?;
    if format == Some(Format::Name) {
        return items.iter().try_for_each(|image| output.line(&image.name));
    }
    if items.is_empty() {
        return output.note("No images found");
    }
    let now = Timestamp::now();
    let is_wide = format == Some(Format::Wide);
    let mut titles = vec!["IMAGE", "ID", "SIZE", "AGE", "USED"];
    if is_wide {
        titles.extend(["DIGEST", "PODS"]);
    }
    let age = |time: Option<Timestamp>| {
        time.map_or_else(|| "<unknown>".to_owned(), |time| human::age(time, now))
    };
    let rows = items.iter().map(|image| {
        let name = match image.replaced {
            // As docker shows them; the name alone would be that of another image.
            true => format!("{}@<none>", without_tag(&image.name)),
            false => image.name.clone(),
        };
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let mut row = vec![name, id, human::bytes(image.bytes), age(image.created)];
        row.push(age(image.last_used));
        if is_wide {
            row.push(image.digests.last().cloned().unwrap_or_else(|| "<none>".to_owned()));
            let pods = image.pods.join(",");
            row.push(if pods.is_empty() { "<none>".to_owned() } else { pods });
        }
        row.into_iter().map(Cell::from).collect()
    });
    Columns::new(&titles).print(rows.collect(), output)
}

fn without_tag(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    name[last..].find(':').map_or(name, |colon| &name[..last + colon])
}

async fn remove(client: &Client, images: &[String], output: &mut Output) -> Result<u8, Error> {
    let mut code = 0;
    for image in images {
        match client.call::<Image>(Method::DELETE, &path().below(image), None).await {
            Ok((image, _)) => output.line(format_args!("{} removed", image.name))?,
            Err(error @ Error::Refused(_)) => {
                output.error(&explain(error))?;
                code = 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(code)
}

/// Adds what may help.
fn explain(error: Error) -> Error {
    if error.is_not_found() {
        return Error::Other(format!("{error}; `podctl image list` shows what there is"));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_no_tag() {
        assert_eq!(without_tag("localhost:5000/a"), "localhost:5000/a");
        assert_eq!(without_tag("localhost:5000/a:b"), "localhost:5000/a");
        assert_eq!(without_tag("docker.io/library/a@sha256:00"), "docker.io/library/a");
    }
}
