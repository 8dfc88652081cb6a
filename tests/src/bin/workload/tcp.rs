//! Steps that make TCP connections and end them in all the ways there are.

use std::{
    io::{self, Read as _, Write as _},
    mem,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use nix::{
    errno::Errno,
    sys::socket::{SockaddrStorage, connect},
};

use super::{exhaust::keep, fork, name_of};

/// `TCP_CLOSE` of the kernel.
const CLOSED: u8 = 7;

/// Does the step, if it is one of these.
pub(crate) fn step(words: &[&str]) -> anyhow::Result<bool> {
    match *words {
        ["echo", port] => echo(port.parse()?)?,
        ["hoard", port] => hoard(port.parse()?)?,
        ["fetch-many", address, count] => fetch_many(address, count.parse()?)?,
        ["dial", address, count] => dial(address, count.parse()?)?,
        ["cut", address, count] => cut(address, count.parse()?)?,
        ["leave-unread", address] => leave_unread(address)?,
        ["bequeath", address, milliseconds] => bequeath(address, milliseconds.parse()?)?,
        ["send-within", address, milliseconds] => send_within(address, milliseconds.parse()?)?,
        ["attempt", how, address, count] => attempt(how, address.parse()?, count.parse()?)?,
        ["measure", address, pings] => measure(address, pings.parse()?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Sends back what comes in, until there is no more.
fn echo(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        thread::spawn(move || io::copy(&mut stream.try_clone()?, &mut stream));
    }
    Ok(())
}

/// Keeps every connection, and neither reads nor closes it.
fn hoard(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening");
    for stream in listener.incoming() {
        keep(stream?);
    }
    Ok(())
}

/// Has something told and closes, so many times, one after the other, and says how long that took.
fn fetch_many(address: &str, count: u32) -> anyhow::Result<()> {
    let began = Instant::now();
    for _ in 0..count {
        let mut text = String::new();
        TcpStream::connect(address)?.read_to_string(&mut text)?;
    }
    println!("fetched {count} in {} us", began.elapsed().as_micros());
    Ok(())
}

/// Makes so many connections, and keeps them.
fn dial(address: &str, count: u32) -> anyhow::Result<()> {
    for _ in 0..count {
        keep(TcpStream::connect(address)?);
    }
    println!("dialed {count}");
    Ok(())
}

/// Makes so many connections, and resets each.
fn cut(address: &str, count: u32) -> anyhow::Result<()> {
    for _ in 0..count {
        let stream = TcpStream::connect(address)?;
        // A reset that overtakes the last acknowledgement would end an attempt, not a connection.
        thread::sleep(Duration::from_millis(20));
        set(&stream, libc::SOL_SOCKET, libc::SO_LINGER, libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    println!("cut {count}");
    Ok(())
}

/// Closes a connection whose peer has told something that is not read.
fn leave_unread(address: &str) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.peek(&mut [0])?;
    drop(stream);
    println!("left unread");
    Ok(())
}

/// Makes a connection and closes it, while a child keeps it a little longer.
fn bequeath(address: &str, milliseconds: u64) -> anyhow::Result<()> {
    let _stream = TcpStream::connect(address)?;
    fork(|| thread::sleep(Duration::from_millis(milliseconds)))?;
    println!("bequeathed");
    Ok(())
}

/// Sends something, gives up after that time without an acknowledgement, and says how it ended.
fn send_within(address: &str, milliseconds: u32) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    set(&stream, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, milliseconds)?;
    stream.write_all(&[b'x'; 1000])?;
    match stream.read(&mut [0]) {
        Ok(bytes) => println!("send-within: {bytes} bytes"),
        Err(error) => println!("send-within: {}", name_of(&error)),
    }
    Ok(())
}

/// Calls `connect` so many times, each for a socket of its own, and says how the last one ended. Who does not
/// wait may ask by further calls how the first has ended (`again`).
fn attempt(how: &str, address: SocketAddr, count: u32) -> anyhow::Result<()> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (kind, protocol) = match how {
        "blocking" => (libc::SOCK_STREAM, 0),
        "nonblocking" | "again" => (libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0),
        "mptcp" => (libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        "udp" => (libc::SOCK_DGRAM, 0),
        _ => bail!("unknown step"),
    };
    let address = SockaddrStorage::from(address);
    let mut result = Ok(());
    for _ in 0..count {
        // SAFETY: plain numbers.
        let socket = match Errno::result(unsafe { libc::socket(family, kind, protocol) }) {
            // SAFETY: it was just made, and nobody else has it.
            Ok(socket) => unsafe { OwnedFd::from_raw_fd(socket) },
            // Not every kernel has MPTCP.
            Err(error) => {
                println!("attempt {how}: no socket: {error}");
                return Ok(());
            }
        };
        result = loop {
            match connect(socket.as_raw_fd(), &address) {
                Err(Errno::EINPROGRESS | Errno::EALREADY) if how == "again" => {
                    thread::sleep(Duration::from_millis(1));
                }
                result => break result,
            }
        };
    }
    println!("attempt {how}: {result:?}");
    Ok(())
}

/// Sends so many bytes, each after the last has come back, closes, and says what the kernel's
/// smoothed round-trip times add up to: one of the handshake, one of each byte, one of the end; and
/// the first and the last of them, and the least that was measured.
fn measure(address: &str, pings: u32) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let first = told(&stream)?.tcpi_rtt;
    let mut sum = u64::from(first);
    for _ in 0..pings {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        sum += u64::from(told(&stream)?.tcpi_rtt);
    }
    stream.shutdown(Shutdown::Write)?;
    if stream.read(&mut [0])? > 0 {
        bail!("more came back than was sent");
    }
    while told(&stream)?.tcpi_state != CLOSED {
        thread::sleep(Duration::from_millis(1));
    }
    let last = told(&stream)?;
    sum += u64::from(last.tcpi_rtt);
    println!("measured {sum} {first} {} {}", last.tcpi_rtt, last.tcpi_min_rtt);
    Ok(())
}

/// The head of the kernel's `struct tcp_info`.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpInfo {
    tcpi_state: u8,
    _flags: [u8; 7],
    _before_rtt: [u32; 15],
    tcpi_rtt: u32,
    _before_pacing: [u32; 8],
    _before_segments: [u64; 4],
    _before_min_rtt: [u32; 3],
    tcpi_min_rtt: u32,
}

const _: () = assert!(mem::offset_of!(TcpInfo, tcpi_rtt) == 68);
const _: () = assert!(mem::offset_of!(TcpInfo, tcpi_min_rtt) == 148);

/// What the kernel tells of a connection.
fn told(stream: &TcpStream) -> io::Result<TcpInfo> {
    // SAFETY: integers, for which zeros are valid.
    let mut info: TcpInfo = unsafe { mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of::<TcpInfo>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes.
    let result = unsafe {
        let info = (&raw mut info).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info, &raw mut size)
    };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

fn set<T>(stream: &TcpStream, level: i32, option: i32, value: T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the kernel reads `size` bytes of the value.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), level, option, (&raw const value).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
