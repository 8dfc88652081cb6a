//! Commands over WebSocket, as kubectl's and podctl's ends see them.

use std::{fs, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::UnixStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest as _},
};

use super::{PODS, Served, call, get, serve};

type Socket = WebSocketStream<UnixStream>;

async fn exec(served: &Served, protocols: &str, query: &str) -> Result<Socket, (u16, Value)> {
    let stream = UnixStream::connect(&served.socket).await.unwrap();
    let url = format!("ws://x{PODS}/web/exec?{query}");
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            let body = answer.body().as_deref().unwrap();
            Err((answer.status().as_u16(), serde_json::from_slice(body).unwrap()))
        }
        Err(error) => panic!("{error}"),
    }
}

/// Everything that comes on each channel, until the server closes.
async fn finish(mut socket: Socket) -> [String; 4] {
    let mut channels = [const { String::new() }; 4];
    while let Some(message) = timeout(Duration::from_secs(20), socket.next()).await.unwrap() {
        match message.unwrap() {
            Message::Binary(message) => {
                channels[usize::from(message[0])].push_str(str::from_utf8(&message[1..]).unwrap());
            }
            Message::Close(frame) => assert_eq!(u16::from(frame.unwrap().code), 1000),
            _ => {}
        }
    }
    channels
}

#[tokio::test]
async fn commands_speak_kubectls_protocol() {
    let served = serve();
    served.node.change("default", "web", |_| {});
    const V5: &str = "v5.channel.k8s.io";
    const SH: &str = "stdout=true&stderr=true&command=sh&command=-c&command=";

    for protocol in ["v4.channel.k8s.io", V5, "v5.channel.k8s.io, v4.channel.k8s.io"] {
        let query = format!("{SH}echo%20out;echo%20err%20%3E%262;exit%207");
        let socket = exec(&served, protocol, &query).await.unwrap();
        let [_, stdout, stderr, status] = finish(socket).await;
        assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "7"}]));
    }
    let socket = exec(&served, V5, "stdout=true&command=true").await.unwrap();
    let [.., status] = finish(socket).await;
    assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["status"], "Success");

    // Standard input is passed on and closed by itself, and output is not cut.
    let mut socket = exec(&served, V5, "stdin=true&stdout=true&command=cat").await.unwrap();
    let line = "x".repeat(100_000);
    for part in [b"\0".as_slice(), line.as_bytes(), line.as_bytes()] {
        let message = [b"\0", part].concat();
        socket.send(Message::Binary(message.into())).await.unwrap();
    }
    socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    let [_, stdout, ..] = finish(socket).await;
    assert_eq!(stdout.len(), 200_001);

    // A process that stays behind does not hold the answer up.
    let socket = exec(&served, V5, &format!("{SH}sleep%20100%20%26%20echo%20done")).await.unwrap();
    let [_, stdout, ..] = timeout(Duration::from_secs(10), finish(socket)).await.unwrap();
    assert_eq!(stdout, "done\n");

    // Whoever leaves ends the command.
    let file = served.dir.path().join("alive");
    let script = format!("{SH}while%20:;do%20echo%20%3E{};sleep%200.01;done", file.display());
    let exists = async |expected| {
        for _ in 0..500 {
            if file.exists() == expected {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    };
    for input in ["", "&stdin=true"] {
        let mut socket = exec(&served, V5, &format!("{script}{input}")).await.unwrap();
        assert!(exists(true).await);
        if !input.is_empty() {
            // More than anybody takes who does not read.
            let message = Message::Binary([b"\0", line.as_bytes()].concat().into());
            let much = async { while socket.send(message.clone()).await.is_ok() {} };
            timeout(Duration::from_secs(1), much).await.unwrap_err();
        }
        drop(socket);
        // The last write may be under way; so remove the file until it stays away.
        let mut stayed_away = false;
        for _ in 0..100 {
            fs::remove_file(&file).ok();
            tokio::time::sleep(Duration::from_millis(100)).await;
            stayed_away = !file.exists();
            if stayed_away {
                break;
            }
        }
        assert!(stayed_away, "{input}");
    }
}

#[tokio::test]
async fn commands_that_cannot_run_are_refused() {
    let served = serve();
    let v5 = "v5.channel.k8s.io";
    let refused =
        async |protocol: &str, query: &str| exec(&served, protocol, query).await.err().unwrap();
    let (code, _) = refused(v5, "stdout=1&command=true").await;
    assert_eq!(code, 404);
    served.node.change("default", "web", |_| {});
    for (protocol, query, expected) in [
        (v5, "stdout=1", "command: is required"),
        (v5, "command=true", "one of stdin, stdout and stderr must be true"),
        (v5, "stdout=1&tty=1&command=true", "tty: terminals are not supported yet"),
        (
            "v1.channel.k8s.io",
            "stdout=1&command=true",
            "exec needs a WebSocket (GET with an upgrade): no common protocol, offered are \
             v5.channel.k8s.io and v4.channel.k8s.io",
        ),
    ] {
        let (code, status) = refused(protocol, query).await;
        assert_eq!((code, &status["message"]), (400, &json!(expected)));
    }
    let (code, status) = refused(v5, "stdout=1&command=/no/such/program").await;
    assert_eq!((code, &status["reason"]), (500, &json!("InternalError")));
    let (code, _) =
        call(&served, "POST", &format!("{PODS}/web/exec?command=true"), Value::Null).await;
    assert_eq!(code, 400);
    let (code, _) = get(&served, &format!("{PODS}/web/exec?command=true")).await;
    assert_eq!(code, 400);
}
