//! `podctl exec`: a command in a container, with its output, input and exit code.

use std::{
    future::pending,
    io::{self, Read},
    pin::pin,
    thread,
};

use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio::{net::UnixStream, sync::mpsc};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::{
    Error, Global, Output,
    client::Client,
    logs,
    resource::{self, Kind},
};

const PROTOCOL: &str = "v5.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const CLOSE: u8 = 255;

const CHUNK: usize = 32 << 10;

#[derive(clap::Args, Debug)]
pub(super) struct Options {
    /// NAME or pod/NAME
    pod: String,
    /// The container [default: the first one]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Not supported yet
    #[arg(short = 't', long)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(
    client: &Client,
    global: &Global,
    options: Options,
    output: &mut Output,
) -> Result<u8, Error> {
    if options.tty {
        return Err(Error::Usage("terminals are not supported yet: leave out -t".to_owned()));
    }
    let name = resource::pod_name(&options.pod)?;
    let path = |container: Option<&str>| {
        let path = Kind::Pod
            .path(global.namespace(), name)
            .below("exec")
            .with_some("container", container)
            .with_some("stdin", options.stdin.then_some(true))
            .with("stdout", true)
            .with("stderr", true);
        options.command.iter().fold(path, |path, word| path.with("command", word))
    };
    let socket = match client.web_socket(&path(options.container.as_deref()), PROTOCOL).await {
        Err(error) if options.container.is_none() && error.is_about("container") => {
            let container = logs::default_container(client, global, name, output).await?;
            client.web_socket(&path(Some(&container)), PROTOCOL).await?
        }
        socket => socket?,
    };
    let stdin = options.stdin.then(|| Box::new(io::stdin()) as Input);
    session(socket, stdin, output).await
}

type Input = Box<dyn Read + Send>;
type Socket = WebSocketStream<UnixStream>;

async fn session(socket: Socket, stdin: Option<Input>, output: &mut Output) -> Result<u8, Error> {
    let (sink, mut stream) = socket.split();
    // Input must not wait for output nor output for input: the command may wait for either.
    let mut input = pin!(async {
        if let Some(stdin) = stdin {
            forward_stdin(stdin, sink).await;
        }
        pending::<()>().await;
    });
    let mut code = None;
    loop {
        let message = tokio::select! {
            message = stream.next() => message,
            () = &mut input => continue,
        };
        match message {
            Some(Ok(Message::Binary(message))) => match message.split_first() {
                Some((&STDOUT, data)) => output.bytes(data)?,
                Some((&STDERR, data)) => output.error_bytes(data)?,
                Some((&ERROR, data)) if !data.is_empty() => code = Some(exit_code(data)?),
                _ => {}
            },
            Some(Ok(Message::Close(_))) | None => break,
            Some(Ok(_)) => {}
            // The connection is gone; if the exit code is known, so be it.
            Some(Err(_)) if code.is_some() => break,
            Some(Err(error)) => return Err(lost(&error.to_string())),
        }
    }
    code.ok_or_else(|| lost("the connection was closed"))
}

/// Sends standard input, and at its end that there will be no more.
async fn forward_stdin(stdin: Input, mut sink: SplitSink<Socket, Message>) {
    let mut input = read(stdin);
    loop {
        let data = input.recv().await;
        let message = match &data {
            Some(data) => [&[STDIN], data.as_slice()].concat(),
            None => vec![CLOSE, STDIN],
        };
        // The command may end without reading all of its input: its exit code counts.
        if sink.send(Message::Binary(message.into())).await.is_err() || data.is_none() {
            return;
        }
    }
}

fn lost(reason: &str) -> Error {
    Error::Other(format!("the command's exit code is not known: {reason}"))
}

/// Reads standard input on a thread of its own, since a read of a terminal cannot be given up; the
/// thread ends with the process.
fn read(mut stdin: Input) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match stdin.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

/// The exit code in the daemon's last word.
fn exit_code(status: &[u8]) -> Result<u8, Error> {
    let status: Status =
        serde_json::from_slice(status).map_err(|error| lost(&error.to_string()))?;
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status.details.as_ref().and_then(|details| details.causes.as_ref());
    let cause =
        causes.into_iter().flatten().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    match cause.and_then(|cause| cause.message.as_ref()?.parse().ok()) {
        Some(code) => Ok(code),
        None => Err(Error::Refused(Box::new(status))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::serve;

    #[tokio::test]
    async fn input_and_output_do_not_wait_for_each_other() {
        let served = serve();
        served.node.change("default", "web", |_| {});
        let client = Client::new(served.socket.clone());
        let path = Kind::Pod.path("default", "web").below("exec");
        let path = path.with("stdin", true).with("stdout", true).with("command", "cat");
        // More than all buffers on the way can hold.
        let sent = vec![b'x'; 8 << 20];
        let received = tempfile::NamedTempFile::new().unwrap();
        let mut output = Output::new(received.reopen().unwrap(), io::sink());

        let socket = client.web_socket(&path, PROTOCOL).await.unwrap();
        let stdin: Input = Box::new(io::Cursor::new(sent.clone()));
        let code = session(socket, Some(stdin), &mut output).await.unwrap();

        assert_eq!(code, 0);
        assert!(std::fs::read(received.path()).unwrap() == sent);
    }

    #[tokio::test]
    async fn a_command_may_end_before_its_input() {
        let served = serve();
        served.node.change("default", "web", |_| {});
        let client = Client::new(served.socket.clone());
        let path = Kind::Pod.path("default", "web").below("exec");
        let path = path.with("stdin", true).with("stdout", true);
        let path = ["head", "-c", "3"].iter().fold(path, |path, word| path.with("command", word));
        let mut output = Output::new(io::sink(), io::sink());

        let socket = client.web_socket(&path, PROTOCOL).await.unwrap();
        let code = session(socket, Some(Box::new(io::repeat(b'x'))), &mut output).await;

        assert_eq!(code.unwrap(), 0);
    }

    #[test]
    fn the_exit_code_is_in_the_status() {
        let code = |status: &str| exit_code(status.as_bytes()).ok();
        assert_eq!(code(r#"{"apiVersion":"v1","kind":"Status","status":"Success"}"#), Some(0));
        assert_eq!(
            code(
                r#"{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"NonZeroExitCode",
                "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#
            ),
            Some(7)
        );
        assert_eq!(
            code(r#"{"apiVersion":"v1","kind":"Status","status":"Failure","message":"x"}"#),
            None
        );
        assert_eq!(code("nonsense"), None);
    }
}
