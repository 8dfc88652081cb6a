//! As much of HTTP/1.1 as it takes to talk to the daemon and to Prometheus.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

/// How long a peer may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that stays open from one request to the next.
pub(crate) struct Client<S: Read + Write> {
    stream: BufReader<S>,
}

/// An answer.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Client<UnixStream> {
    /// Connects with the daemon's API.
    pub(crate) fn unix(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect with {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE)).context("limit reading")?;
        Ok(Self { stream: BufReader::new(stream) })
    }
}

impl Client<TcpStream> {
    /// Connects with a web server.
    pub(crate) fn tcp(address: SocketAddr) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("connect with {address}"))?;
        stream.set_read_timeout(Some(PATIENCE)).context("limit reading")?;
        stream.set_nodelay(true).context("send at once")?;
        Ok(Self { stream: BufReader::new(stream) })
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends a request and waits for the whole answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Response> {
        let content = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
        };
        self.send(&format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{content}\r\n{body}"))?;
        let (status, headers) = self.head()?;
        let header = |name: &str| {
            headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
        };
        let body = if header("transfer-encoding") == Some("chunked") {
            self.chunks()?
        } else {
            let length = header("content-length").unwrap_or("0");
            self.exactly(length.parse().context("read an answer's length")?)?
        };
        Ok(Response { status, body })
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes()).context("send a request")
    }

    /// Reads an answer up to its body: the status, and headers with names in lower case.
    pub(crate) fn head(&mut self) -> anyhow::Result<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("read the status in {first:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                return Ok((status, headers));
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads so many bytes.
    pub(crate) fn exactly(&mut self, length: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).context("read an answer")?;
        Ok(bytes)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line).context("read an answer")?;
        ensure!(length > 0, "the peer closed the connection");
        Ok(line.trim_end().to_owned())
    }

    fn chunks(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let length = usize::from_str_radix(&self.line()?, 16).context("read a chunk")?;
            body.extend(self.exactly(length)?);
            self.line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
}

impl Response {
    /// The body as text; any status but 2xx is an error that says what the peer said.
    pub(crate) fn text(self) -> anyhow::Result<String> {
        let text = String::from_utf8(self.body).context("read an answer as text")?;
        if !(200..300).contains(&self.status) {
            bail!("the answer was {}: {}", self.status, text.trim());
        }
        Ok(text)
    }
}
