//! The programs in the benchmarks' root file system: one static binary, named by what it does.
//!
//! Compiled by `cargo xtask bench` with rustc alone, so that it is small and depends on nothing.

use std::{
    env,
    error::Error,
    fs::{self, File, OpenOptions},
    hint::black_box,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Bytes of a file operation and of a network message.
const BLOCK: usize = 4096;

fn main() -> ExitCode {
    // First, since `stamp` tells when it came to life.
    let now = SystemTime::now();
    let mut arguments = env::args();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<_> = arguments.collect();
    let result = match name.rsplit('/').next() {
        Some("true") => return ExitCode::SUCCESS,
        Some("stamp") => return stamp(now, &arguments),
        Some("sleep") => loop {
            thread::sleep(Duration::from_secs(86_400));
        },
        _ => load(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `stamp FILE N`: appends the time, in nanoseconds; succeeds when there are N of them.
fn stamp(now: SystemTime, arguments: &[String]) -> ExitCode {
    let nanos = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let append = || -> Result<bool, Box<dyn Error>> {
        let [file, wanted] = arguments else { return Err("expected FILE N".into()) };
        let mut file = OpenOptions::new().append(true).create(true).open(file)?;
        file.write_all(&nanos.to_le_bytes())?;
        Ok(file.metadata()?.len() >= 8 * wanted.parse::<u64>()?)
    };
    match append() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) => ExitCode::from(2),
    }
}

/// `load KIND N DIR WHAT`: does something N times and writes the nanoseconds to DIR/KIND. WHAT is the
/// program to start or the address to ask; `serve` answers on port N, for ever.
fn load(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [kind, count, directory, program] = arguments else {
        return Err("expected KIND N DIR TRUE".into());
    };
    let count: u32 = count.parse()?;
    let took = match kind.as_str() {
        "serve" => return serve(count),
        "request" => request(count, program)?,
        "exec" => exec(count, program)?,
        "file" => file(count, directory)?,
        "tcp" => tcp(count)?,
        "syscall" => syscall(count)?,
        other => return Err(format!("no such load: {other}").into()),
    };
    let result = format!("{directory}/{kind}");
    fs::write(format!("{result}.new"), took.as_nanos().to_string())?;
    fs::rename(format!("{result}.new"), result)?;
    Ok(())
}

/// Starts a program and waits for it.
fn exec(count: u32, program: &str) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    for _ in 0..count {
        if !Command::new(program).status()?.success() {
            return Err("the program failed".into());
        }
    }
    Ok(start.elapsed())
}

/// Writes a block of a file and reads it.
fn file(count: u32, directory: &str) -> Result<Duration, Box<dyn Error>> {
    let path = format!("{directory}/data");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    let mut block = [7; BLOCK];
    let start = Instant::now();
    for _ in 0..count {
        file.write_all_at(&block, 0)?;
        file.read_exact_at(&mut block, 0)?;
    }
    let took = start.elapsed();
    fs::remove_file(path)?;
    Ok(took)
}

/// Sends a block to itself and back over one connection.
fn tcp(count: u32) -> Result<Duration, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    // In one thread, so that the scheduler's moods are not measured.
    let mut block = [7; BLOCK];
    let start = Instant::now();
    for _ in 0..count {
        near.write_all(&block)?;
        far.read_exact(&mut block)?;
        far.write_all(&block)?;
        near.read_exact(&mut block)?;
    }
    Ok(start.elapsed())
}

/// Bytes of a request; it is answered with a block.
const REQUEST: usize = 200;

/// Requests over one connection, as a browser or a client with a pool makes them.
const PER_CONNECTION: u32 = 50;

/// Answers requests.
fn serve(port: u32) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(("0.0.0.0", u16::try_from(port)?))?;
    loop {
        let (mut client, _) = listener.accept()?;
        client.set_nodelay(true)?;
        let mut request = [0; REQUEST];
        while client.read_exact(&mut request).is_ok() {
            client.write_all(&[7; BLOCK])?;
        }
    }
}

/// Asks the server at an address.
fn request(count: u32, address: &str) -> Result<Duration, Box<dyn Error>> {
    let mut block = [0; BLOCK];
    let start = Instant::now();
    for _ in 0..count.div_ceil(PER_CONNECTION) {
        let mut server = TcpStream::connect(address)?;
        server.set_nodelay(true)?;
        for _ in 0..PER_CONNECTION {
            server.write_all(&[7; REQUEST])?;
            server.read_exact(&mut block)?;
        }
    }
    black_box(block);
    Ok(start.elapsed())
}

/// Calls the kernel for something that no probe counts: reading from a device.
fn syscall(count: u32) -> Result<Duration, Box<dyn Error>> {
    let mut zero = File::open("/dev/zero")?;
    let mut byte = [0; 1];
    let start = Instant::now();
    for _ in 0..count {
        zero.read_exact(&mut byte)?;
    }
    black_box(byte);
    Ok(start.elapsed())
}
