//! HTTP and WebSocket over the daemon's unix socket.

use std::{fmt, path::PathBuf};

use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Frame, Incoming},
    header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, WARNING},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, client::IntoClientRequest as _, http::header::SEC_WEBSOCKET_PROTOCOL},
};
use tokio_util::io::ReaderStream;

use super::Error;

/// A socket has no host name, but HTTP wants one.
const AUTHORITY: &str = "podscope";

/// The daemon, through its socket.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

/// The path and the query of a request.
#[derive(Clone, Debug)]
pub(super) struct Path(String);

impl Path {
    pub(super) fn new(segments: &[&str]) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            encode(segment, &mut path);
        }
        Self(path)
    }

    /// The path of something below this one.
    pub(super) fn below(mut self, segment: &str) -> Self {
        self.0.push('/');
        encode(segment, &mut self.0);
        self
    }

    pub(super) fn with(mut self, parameter: &str, value: impl fmt::Display) -> Self {
        self.0.push(if self.0.contains('?') { '&' } else { '?' });
        self.0.push_str(parameter);
        self.0.push('=');
        encode(&value.to_string(), &mut self.0);
        self
    }

    pub(super) fn with_some(self, parameter: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(parameter, value),
            None => self,
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Appends the text with everything encoded that means something in a URL.
fn encode(text: &str, url: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Reads an object.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<T, Error> {
        Ok(self.call(Method::GET, path, None).await?.0)
    }

    /// Sends a request, and returns the answer with the warnings that came along.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &Path,
        body: Option<&Value>,
    ) -> Result<(T, Vec<String>), Error> {
        let answer = self.send(method, path, body).await?;
        let warnings = warnings(answer.headers());
        let body = answer.into_body().collect().await.map_err(unusable(path))?.to_bytes();
        let object = serde_json::from_slice(&body).map_err(unusable(path))?;
        Ok((object, warnings))
    }

    /// Reads a stream.
    pub(super) async fn stream(&self, path: &Path) -> Result<Chunks, Error> {
        let answer = self.send(Method::GET, path, None).await?;
        Ok(Chunks { body: answer.into_body(), path: path.clone(), buffer: Vec::new() })
    }

    /// Starts something, and reads what comes of it.
    pub(super) async fn start(&self, path: &Path) -> Result<Chunks, Error> {
        let answer = self.send(Method::POST, path, None).await?;
        Ok(Chunks { body: answer.into_body(), path: path.clone(), buffer: Vec::new() })
    }

    /// Sends a file, and reads what comes of it. `sent` is told how much has gone.
    pub(super) async fn upload(
        &self,
        path: &Path,
        file: tokio::fs::File,
        mut sent: impl FnMut(u64) + Send + 'static,
    ) -> Result<Chunks, Error> {
        let mut count = 0;
        let pieces = ReaderStream::with_capacity(file, 256 * 1024);
        let frames = pieces.map(move |piece| {
            let piece: Bytes = piece?;
            count += piece.len() as u64;
            sent(count);
            Ok::<_, std::io::Error>(Frame::data(piece))
        });
        let answer = self.send_body(Method::POST, path, StreamBody::new(frames)).await?;
        Ok(Chunks { body: answer.into_body(), path: path.clone(), buffer: Vec::new() })
    }

    async fn send(
        &self,
        method: Method,
        path: &Path,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, Error> {
        let body = body.map(Value::to_string).unwrap_or_default();
        self.send_body(method, path, Full::<Bytes>::from(body)).await
    }

    async fn send_body<B>(
        &self,
        method: Method,
        path: &Path,
        body: B,
    ) -> Result<Response<Incoming>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(unusable(path))?;
        // It ends with the answer's body; whatever goes wrong shows there.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(&path.0)
            .header(HOST, AUTHORITY)
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(unusable(path))?;
        let answer = sender.send_request(request).await.map_err(unusable(path))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status();
        let body = answer.into_body().collect().await.map_err(unusable(path))?.to_bytes();
        Err(refusal(path, code, &body))
    }

    /// Opens a WebSocket with the first of the protocols that the daemon speaks.
    pub(super) async fn web_socket(
        &self,
        path: &Path,
        protocols: &'static str,
    ) -> Result<WebSocketStream<UnixStream>, Error> {
        let stream = self.connect().await?;
        let url = format!("ws://{AUTHORITY}{path}");
        let mut request = url.into_client_request().map_err(unusable(path))?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
        match client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                Err(refusal(path, answer.status(), body))
            }
            Err(error) => Err(unusable(path)(error)),
        }
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            match source.kind() {
                std::io::ErrorKind::PermissionDenied => Error::NotAllowed { socket },
                _ => Error::NoDaemon { socket, source },
            }
        })
    }
}

/// The body of an answer, piece by piece.
pub(super) struct Chunks {
    body: Incoming,
    path: Path,
    /// The beginning of a line whose end has not come yet.
    buffer: Vec<u8>,
}

impl Chunks {
    /// The next bytes, as they come.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(unusable(&self.path))?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The next line as JSON.
    pub(super) async fn next_line(&mut self) -> Result<Option<Value>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = serde_json::from_slice(&self.buffer[..end]);
                self.buffer.drain(..=end);
                return line.map(Some).map_err(unusable(&self.path));
            }
            match self.next().await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None => return Ok(None),
            }
        }
    }
}

fn refusal(path: &Path, code: StatusCode, body: &[u8]) -> Error {
    match serde_json::from_slice::<Status>(body) {
        Ok(status) => Error::Refused(Box::new(status)),
        Err(_) => Error::Answer { request: path.to_string(), problem: format!("HTTP {code}") },
    }
}

fn unusable<E: std::error::Error>(path: &Path) -> impl FnOnce(E) -> Error {
    let request = path.to_string();
    move |error| {
        let mut problem = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            problem = format!("{problem}: {error}");
            source = error.source();
        }
        Error::Answer { request, problem }
    }
}

/// The texts of `Warning` headers, like `299 - "text"`.
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let text = |value: &HeaderValue| {
        let (_, quoted) = value.to_str().ok()?.split_once('"')?;
        Some(quoted.strip_suffix('"')?.replace("\\\"", "\"").replace("\\\\", "\\"))
    };
    headers.get_all(WARNING).iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded() {
        let path = Path::new(&["api", "a/b"]).with("l", "a=b,c").with("k", "ü ~");
        assert_eq!(path.to_string(), "/api/a%2Fb?l=a%3Db%2Cc&k=%C3%BC%20~");
    }
}
