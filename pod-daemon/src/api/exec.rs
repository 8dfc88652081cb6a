//! Commands in containers over WebSocket, in the channel protocols that kubectl speaks.
//!
//! The first byte of a message is its channel. `v5.channel.k8s.io` differs from v4 in that the
//! client can close its end of standard input alone.

use std::{pin::pin, time::Duration};

use axum::{
    body::Bytes,
    extract::{
        State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    response::Response,
};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::oneshot,
    time::{Instant, interval_at, sleep, timeout},
};

use super::{
    Api, Failure, Operations,
    params::{Names, Params},
    status,
};
use crate::node::Exec;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// In v5, says that the channel in the next byte has ended.
const CLOSE: u8 = 255;

const CHUNK: usize = 32 << 10;
const MAX_MESSAGE: usize = 4 << 20;

/// How long output may pause, after the command has ended, while a process that it left behind
/// holds its end open.
const QUIET: Duration = Duration::from_millis(200);

/// How often something is sent: a client that has left while the command does not read what it has sent is
/// not noticed by reading more.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long the client may take to answer our close.
const GOODBYE: Duration = Duration::from_secs(1);

/// Runs the command and connects it with the client.
pub(super) async fn upgrade<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
    params: Params,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let Names { namespace, name } = names;
    // First, since a pod that does not exist matters more than how one asked for it.
    api.node.pod(&namespace, &name)?;
    let upgrade = upgrade.map_err(|rejection| no_web_socket(&rejection.body_text()))?;
    let upgrade = upgrade.protocols([V5, V4]).max_message_size(MAX_MESSAGE);
    let Some(protocol) = upgrade.selected_protocol() else {
        return Err(no_web_socket(&format!("no common protocol, offered are {V5} and {V4}")));
    };
    let half_close = protocol == V5;

    let command: Vec<String> = params.all("command").map(str::to_owned).collect();
    if command.is_empty() {
        return Err(Failure::bad_request("command: is required"));
    }
    if params.flag("tty")? {
        return Err(Failure::bad_request("tty: terminals are not supported yet"));
    }
    let (stdin, stdout) = (params.flag("stdin")?, params.flag("stdout")?);
    let stderr = params.flag("stderr")?;
    if !(stdin || stdout || stderr) {
        return Err(Failure::bad_request("one of stdin, stdout and stderr must be true"));
    }
    // Before the upgrade, so that a refusal is an HTTP answer that says why.
    let container = params.text("container");
    let exec = api.node.exec(&namespace, &name, container, command, stdin).await?;
    Ok(upgrade.on_upgrade(move |socket| async move {
        let shutdown = api.shutdown.cancelled_owned();
        // Ending the session drops the command, and thereby kills it if it still runs.
        tokio::select! {
            () = session(socket, exec, Streams { half_close, stdout, stderr }) => {}
            () = shutdown => {}
        }
    }))
}

/// Answers requests that cannot become a WebSocket, like those of older clients.
pub(super) async fn refuse<N: Operations>(
    State(api): State<Api<N>>,
    names: Names,
) -> Result<Response, Failure> {
    api.node.pod(&names.namespace, &names.name)?;
    Err(no_web_socket("this request uses another method"))
}

fn no_web_socket(reason: &str) -> Failure {
    Failure::bad_request(format!("exec needs a WebSocket (GET with an upgrade): {reason}"))
}

/// What the client asked for.
struct Streams {
    half_close: bool,
    stdout: bool,
    stderr: bool,
}

async fn session(socket: WebSocket, mut exec: Exec, streams: Streams) {
    let (mut sink, stream) = socket.split();
    let mut input = pin!(forward_input(stream, exec.stdin.take(), streams.half_close));
    let output = async {
        let Ok(code) = forward_output(
            &mut sink,
            (&mut exec.stdout, streams.stdout),
            (&mut exec.stderr, streams.stderr),
            &mut exec.status,
        )
        .await
        else {
            return;
        };
        let status = match code {
            Some(code) => status::of_exit_code(code),
            None => Failure::internal("the command's exit code was lost").into_status(),
        };
        // A client that has gone away does not need to hear it.
        farewell(&mut sink, &status).await.ok();
    };
    tokio::select! {
        () = &mut input => return,
        () = output => {}
    }
    // Closing a socket that still has data to be read would reset it, so the client goes first.
    timeout(GOODBYE, input).await.ok();
}

async fn farewell(sink: &mut Sink, status: &Status) -> Result<(), axum::Error> {
    let mut message = vec![ERROR];
    serde_json::to_writer(&mut message, status).map_err(axum::Error::new)?;
    sink.send(Message::Binary(message.into())).await?;
    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    sink.send(Message::Close(Some(frame))).await
}

/// Passes on what the client sends, until it leaves.
async fn forward_input(
    mut stream: SplitStream<WebSocket>,
    mut stdin: Option<pipe::Sender>,
    half_close: bool,
) {
    while let Some(Ok(message)) = stream.next().await {
        let Message::Binary(message) = message else {
            continue;
        };
        match (message.split_first(), &mut stdin) {
            (Some((&STDIN, data)), Some(pipe)) => {
                if pipe.write_all(data).await.is_err() {
                    // The command does not read any more; it may have ended.
                    stdin = None;
                }
            }
            (Some((&CLOSE, &[STDIN])), _) if half_close => stdin = None,
            _ => {}
        }
    }
}

type Sink = SplitSink<WebSocket, Message>;

/// Passes on what the command writes until it has ended and is read; then tells its exit code.
async fn forward_output(
    sink: &mut Sink,
    (stdout, send_stdout): (&mut pipe::Receiver, bool),
    (stderr, send_stderr): (&mut pipe::Receiver, bool),
    status: &mut oneshot::Receiver<i32>,
) -> Result<Option<i32>, axum::Error> {
    // Tells the client that the command runs, as kubelet does.
    let first = match (send_stdout, send_stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => ERROR,
    };
    sink.send(Message::Binary(vec![first].into())).await?;

    let mut buffers = (vec![STDOUT; CHUNK + 1], vec![STDERR; CHUNK + 1]);
    let (mut stdout_open, mut stderr_open) = (true, true);
    let mut ended = None;
    let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    while ended.is_none() || stdout_open || stderr_open {
        let (message, length, send) = tokio::select! {
            read = stdout.read(&mut buffers.0[1..]), if stdout_open => {
                let length = read.unwrap_or(0);
                stdout_open = length > 0;
                (&buffers.0, length, send_stdout)
            }
            read = stderr.read(&mut buffers.1[1..]), if stderr_open => {
                let length = read.unwrap_or(0);
                stderr_open = length > 0;
                (&buffers.1, length, send_stderr)
            }
            code = &mut *status, if ended.is_none() => {
                ended = Some(code.ok());
                continue;
            }
            () = sleep(QUIET), if ended.is_some() => break,
            _ = heartbeat.tick(), if ended.is_none() => {
                sink.send(Message::Ping(Bytes::new())).await?;
                continue;
            }
        };
        if send && length > 0 {
            sink.send(Message::Binary(message[..=length].to_vec().into())).await?;
        }
    }
    Ok(ended.flatten())
}
