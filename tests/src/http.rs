//! As much of an HTTP client as the tests need: one request, one connection, one answer.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::Value;

use crate::seconds;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status, like 200.
    pub status: u16,
    /// What it is about.
    pub body: String,
}

impl Answer {
    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// Asks a server on a unix socket.
pub fn unix(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(seconds(30)))?;
    ask(stream, method, path, body)
}

/// Asks a server on a TCP port.
pub fn tcp(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(seconds(30)))?;
    ask(stream, "GET", path, "")
}

/// Asks a server on a TCP port, with this header more; returns the head of the answer and its body.
pub fn bytes(address: SocketAddr, path: &str, header: &str) -> io::Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(seconds(30)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    split(&bytes).ok_or_else(|| io::Error::other("not an HTTP answer"))
}

/// Escapes a text for the query of a URL.
#[must_use]
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

fn ask(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| {
        io::Error::other(format!("not an HTTP answer: {:?}", String::from_utf8_lossy(&bytes)))
    })
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let (head, body) = split(bytes)?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// Head and body of an answer.
fn split(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let body = &bytes[end + 4..];
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunk(body)? } else { body.to_vec() };
    Some((head, body))
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = find(bytes, b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        bytes = bytes.get(end + 2..)?;
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
