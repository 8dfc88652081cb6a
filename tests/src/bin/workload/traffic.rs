//! Steps that send a known number of packets.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::name_of;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer is waited for that does not come.
const SILENCE: Duration = Duration::from_millis(500);

/// Bytes of a message before its question.
const HEADER: usize = 12;

/// What names ask for, and the code of the answer.
const CODES: [(&str, u8); 5] =
    [("noerror", 0), ("servfail", 2), ("nxdomain", 3), ("notimp", 4), ("refused", 5)];

/// Does the step, if it is one of these.
pub(crate) fn step(words: &[&str]) -> anyhow::Result<bool> {
    match *words {
        ["udp-call", address, count, bytes] => udp_call(address, count.parse()?, bytes.parse()?)?,
        ["udp-send", address, count, bytes] => udp_send(address, count.parse()?, bytes.parse()?)?,
        ["udp-overflow", count] => udp_overflow(count.parse()?)?,
        ["listen-overflow", count] => listen_overflow(count.parse()?)?,
        ["dns-serve", delay] => dns_serve(Duration::from_millis(delay.parse()?))?,
        ["dns-ask", server, "udp", name] => dns_ask_udp(server, name)?,
        ["dns-ask", server, "tcp", name] => dns_ask_tcp(server, name, send)?,
        ["dns-ask", server, "tcp-in-two", name] => dns_ask_tcp(server, name, send_in_two)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn udp(address: &str) -> io::Result<UdpSocket> {
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    Ok(socket)
}

/// Sends datagrams to whoever sends them back, one after the other.
fn udp_call(address: &str, count: usize, bytes: usize) -> anyhow::Result<()> {
    let socket = udp(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 2048];
    for _ in 0..count {
        socket.send(&vec![b'x'; bytes])?;
        if socket.recv(&mut buffer).context("wait for the datagram")? != bytes {
            bail!("another datagram came back");
        }
    }
    println!("called {address}");
    Ok(())
}

/// Sends datagrams that nobody answers.
fn udp_send(address: &str, count: usize, bytes: usize) -> io::Result<()> {
    let socket = udp(address)?;
    for _ in 0..count {
        socket.send(&vec![b'x'; bytes])?;
    }
    println!("sent to {address}");
    Ok(())
}

/// Sends itself more datagrams than it has room for, and says how many there were.
fn udp_overflow(count: usize) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..count {
        socket.send_to(&[b'x'; 1024], socket.local_addr()?)?;
    }
    socket.set_nonblocking(true)?;
    let mut kept = 0;
    while socket.recv(&mut [0; 1024]).is_ok() {
        kept += 1;
    }
    println!("kept {kept}");
    Ok(())
}

/// Tries to have more connections than its listener takes.
fn listen_overflow(count: usize) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // SAFETY: the descriptor is that of a listener, whose queue becomes shorter.
    if unsafe { libc::listen(listener.as_raw_fd(), 1) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let address = listener.local_addr()?;
    let connect = |_| TcpStream::connect_timeout(&address, SILENCE);
    let streams: Vec<_> = (0..count).map(connect).collect();
    println!("connected {}", streams.iter().filter(|stream| stream.is_ok()).count());
    Ok(())
}

/// Answers queries over UDP and TCP, after a while, with what their names say, and others not at all.
fn dns_serve(delay: Duration) -> anyhow::Result<()> {
    let (udp, tcp) = (UdpSocket::bind("0.0.0.0:53")?, TcpListener::bind("0.0.0.0:53")?);
    println!("listening");
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; 512];
        loop {
            let (length, from) = udp.recv_from(&mut buffer)?;
            if let Some(answer) = answer(&buffer[..length]) {
                thread::sleep(delay);
                udp.send_to(&answer, from)?;
            }
        }
    });
    for stream in tcp.incoming() {
        let mut stream = stream?;
        let query = receive(&mut stream)?;
        if let Some(answer) = answer(&query) {
            thread::sleep(delay);
            send(&mut stream, &answer)?;
        }
    }
    Ok(())
}

/// A query with another name has another id.
fn query(name: &str) -> Vec<u8> {
    let id = name.bytes().fold(1_u16, |id, byte| id.wrapping_mul(31).wrapping_add(byte.into()));
    let mut query = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.push(u8::try_from(name.len()).unwrap_or(0));
    query.extend(name.bytes());
    // The root; an address; of the internet.
    query.extend([0, 0, 1, 0, 1]);
    query
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(*query.get(HEADER)?);
    let name = str::from_utf8(query.get(HEADER + 1..HEADER + 1 + length)?).ok()?;
    let (_, code) = CODES.into_iter().find(|(known, _)| *known == name)?;
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80 | code;
    Some(answer)
}

fn tell(name: &str, answer: io::Result<Vec<u8>>) {
    match answer.as_deref() {
        Ok([_, _, _, code, ..]) => println!("dns {name}: {}", code & 0xf),
        Ok(_) => println!("dns {name}: nothing"),
        Err(error) => println!("dns {name}: {}", name_of(error)),
    }
}

fn dns_ask_udp(server: &str, name: &str) -> io::Result<()> {
    let socket = udp(&format!("{server}:53"))?;
    let patience = if name == "silent" { SILENCE } else { PATIENCE };
    socket.set_read_timeout(Some(patience))?;
    socket.send(&query(name))?;
    let mut buffer = [0; 512];
    tell(name, socket.recv(&mut buffer).map(|length| buffer[..length].to_vec()));
    Ok(())
}

fn dns_ask_tcp(
    server: &str,
    name: &str,
    send: fn(&mut TcpStream, &[u8]) -> io::Result<()>,
) -> anyhow::Result<()> {
    let server: SocketAddr = format!("{server}:53").parse()?;
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    send(&mut stream, &query(name))?;
    tell(name, receive(&mut stream));
    Ok(())
}

/// Sends a message as it goes over TCP, in one piece.
fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

/// The same in two packets, the first of which has only the length.
fn send_in_two(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.set_nodelay(true)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(message)
}

fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}
