//! What runs in the containers of the tests: a program that does, one after the other, the steps
//! that its arguments name, separated by commas.
//!
//! `workload write /data/file 4096 , exit 7` writes one block and leaves. Every step does as little
//! as it says, since the tests count what it does.
#![allow(clippy::print_stdout, reason = "containers' output is how the tests look inside")]
#![allow(clippy::exit, reason = "how a program ends is what it is for")]

#[path = "workload/attack.rs"]
mod attack;
#[path = "workload/cache.rs"]
mod cache;
#[path = "workload/exhaust.rs"]
mod exhaust;
#[path = "workload/fail.rs"]
mod fail;
#[path = "workload/files.rs"]
mod files;
#[path = "workload/tcp.rs"]
mod tcp;
#[path = "workload/traffic.rs"]
mod traffic;
#[path = "workload/uring.rs"]
mod uring;

use std::{
    env,
    ffi::CString,
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::Path,
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// As a shell says that a signal ended the program.
const TERMINATED: i32 = 128 + libc::SIGTERM;

fn main() {
    // The first process of a PID namespace has no default actions.
    on_term(leave as *const () as libc::sighandler_t);
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Err(error) = run(&arguments) {
        println!("workload: {error:#}");
        process::exit(1);
    }
}

extern "C" fn leave(_signal: libc::c_int) {
    // SAFETY: the call is async-signal-safe and does not return.
    unsafe { libc::_exit(TERMINATED) }
}

fn on_term(action: libc::sighandler_t) {
    // SAFETY: `leave` may run at any time, and SIG_IGN is no function.
    unsafe { libc::signal(libc::SIGTERM, action) };
}

fn run(arguments: &[String]) -> anyhow::Result<()> {
    'again: loop {
        for step in arguments.split(|word| word == ",") {
            let words: Vec<&str> = step.iter().map(String::as_str).collect();
            if words == ["repeat"] {
                continue 'again;
            }
            do_step(&words).with_context(|| format!("failed to {}", words.join(" ")))?;
        }
        return Ok(());
    }
}

fn do_step(words: &[&str]) -> anyhow::Result<()> {
    match *words {
        [] => {}
        ["exit", code] => process::exit(code.parse()?),
        ["exit-if", path, code] => {
            if Path::new(path).exists() {
                process::exit(code.parse()?);
            }
        }
        ["leave-child"] => {
            fork(|| thread::sleep(Duration::from_secs(3600)))?;
        }
        ["abort"] => process::abort(),
        // A signal that the first process sends itself does nothing; so a child does.
        ["end-child", number] => end_child(number.parse()?)?,
        ["ignore-term"] => on_term(libc::SIG_IGN),
        ["pause"] => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        ["sleep-ms", time] => thread::sleep(Duration::from_millis(time.parse()?)),
        ["wait-for", path] => {
            while !Path::new(path).exists() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        ["wait-for-listener", port] => {
            while !is_listening(port.parse()?) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        ["threads", count] => threads(count.parse()?),
        ["spawn", count] => spawn(count.parse()?)?,
        ["run", ref words @ ..] => {
            Command::new("/bin/workload").args(words).status()?;
        }
        ["fork", count] => fork_and_wait(count.parse()?)?,
        ["orphans", count] => orphans(count.parse()?)?,
        ["exec-nothing", count] => exec_nothing(count.parse()?),
        ["fail-to-exec", how, count] => fail::to_exec(how, count.parse()?)?,
        ["burn", count, time] => burn(count.parse()?, Duration::from_millis(time.parse()?))?,
        ["print", ref text @ ..] => println!("{}", text.join(" ")),
        ["chronicle", path, lines] => chronicle(path, lines.parse()?)?,
        ["log", lines] => (0..lines.parse::<u64>()?).for_each(|line| println!("line {line}")),
        ["cat", path] => print!("{}", String::from_utf8_lossy(&fs::read(path)?)),
        ["list", path] => list(path)?,
        ["mode", path] => mode(path)?,
        ["size", path] => size(path)?,
        ["await", path, text] => {
            while fs::read(path).ok().as_deref() != Some(text.as_bytes()) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        ["udp-echo", port] => udp_echo(("0.0.0.0", port.parse()?))?,
        ["udp-echo6", port] => udp_echo(("::", port.parse()?))?,
        ["fetch", address] => fetch(address),
        ["look", path] => look(path),
        ["touch", path] => touch(path),
        ["device", major, minor] => device(major.parse()?, minor.parse()?)?,
        ["id"] => println!("pid={} uid={}", process::id(), nix::unistd::getuid()),
        ["cwd"] => println!("{}", env::current_dir()?.display()),
        ["arguments"] => env::args().for_each(|argument| println!("{argument}")),
        ["env"] => env::vars().for_each(|(name, value)| println!("{name}={value}")),
        ["hostname"] => println!("{}", nix::unistd::gethostname()?.to_string_lossy()),
        ["fds"] => fds(),
        ["connect", address] => connect(address),
        ["greet", port, text] => greet(port.parse()?, text)?,
        ["serve", port] => serve(port.parse()?)?,
        ["send", address, bytes] => send(address, bytes.parse()?)?,
        [call, ref rest @ ..] => {
            let is_done = attack::step(words)?
                || cache::step(words)?
                || exhaust::step(words)?
                || files::step(words)?
                || tcp::step(words)?
                || traffic::step(words)?
                || uring::step(words)?;
            if !is_done {
                return transfer(call, rest);
            }
        }
    }
    Ok(())
}

/// Makes a character device, opens it, and says how that went.
fn device(major: u64, minor: u64) -> anyhow::Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let path = format!("/device-{major}-{minor}");
    mknod(path.as_str(), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
        .context("make a device")?;
    match File::open(&path) {
        Ok(_) => println!("device {major}:{minor} opened"),
        Err(error) => println!("device {major}:{minor} refused: {error}"),
    }
    Ok(())
}

/// One system call that moves bytes from or to a regular file.
fn transfer(call: &str, rest: &[&str]) -> anyhow::Result<()> {
    let (path, size) = match rest {
        [path, size] | [path, _, size] => (*path, size.parse::<usize>()?),
        _ => bail!("unknown step"),
    };
    let mut buffer = vec![b'x'; size];
    let done = match call {
        "write" => create(path)?.write(&buffer)?,
        "read" => File::open(path)?.read(&mut buffer)?,
        "pwrite" => create(path)?.write_at(&buffer, 0)?,
        "pread" => File::open(path)?.read_at(&mut buffer, 0)?,
        "writev" => {
            let (first, second) = buffer.split_at(size / 3);
            create(path)?.write_vectored(&[IoSlice::new(first), IoSlice::new(second)])?
        }
        "readv" => {
            let (first, second) = buffer.split_at_mut(size / 3);
            let mut slices = [IoSliceMut::new(first), IoSliceMut::new(second)];
            File::open(path)?.read_vectored(&mut slices)?
        }
        "sendfile" | "copy-range" => {
            let target = rest[1];
            let (from, to) = (File::open(path)?, create(target)?);
            let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
            let none = std::ptr::null_mut();
            // SAFETY: both descriptors are open, and no offsets are given.
            let moved = unsafe {
                if call == "sendfile" {
                    libc::sendfile(to, from, none, size)
                } else {
                    libc::copy_file_range(from, none, to, none, size, 0)
                }
            };
            usize::try_from(moved).map_err(|_negative| io::Error::last_os_error())?
        }
        _ => bail!("unknown step"),
    };
    if done != size {
        bail!("{done} bytes were moved");
    }
    Ok(())
}

fn create(path: &str) -> io::Result<File> {
    File::options().create(true).truncate(true).write(true).open(path)
}

/// Whether anybody listens on this port of IPv4, found out without a connection.
fn is_listening(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let local = format!(":{port:04X}");
    sockets.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(*fields, [_, address, _, LISTEN, ..] if address.ends_with(&local))
    })
}

fn threads(count: usize) {
    for _ in 0..count {
        thread::spawn(|| {
            loop {
                thread::park();
            }
        });
    }
}

/// Runs this program `count` times, one after the other.
fn spawn(count: usize) -> anyhow::Result<()> {
    for run in 0..count {
        let status = Command::new("/bin/workload").args(["exit", "0"]).status()?;
        if !status.success() {
            bail!("run {run} ended with {status}");
        }
    }
    Ok(())
}

/// Forks; the child does `child` and leaves.
fn fork(child: impl FnOnce()) -> io::Result<libc::pid_t> {
    // SAFETY: this program has one thread when it forks, so the child may do what it likes.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            child();
            // SAFETY: does not return.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(pid),
    }
}

fn wait_for(pid: libc::pid_t) {
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

fn fork_and_wait(count: usize) -> io::Result<()> {
    for _ in 0..count {
        wait_for(fork(|| {})?);
    }
    Ok(())
}

/// Forks; the signal ends the child.
fn end_child(signal: libc::c_int) -> io::Result<()> {
    wait_for(fork(|| {
        // SAFETY: plain numbers.
        unsafe { libc::raise(signal) };
    })?);
    Ok(())
}

/// Has `count` children use a CPU for `time` and then sleep for good; says so when all have done so.
fn burn(count: usize, time: Duration) -> anyhow::Result<()> {
    let (mut reader, writer) = io::pipe()?;
    for _ in 0..count {
        let mut writer = writer.try_clone()?;
        fork(|| {
            let end = Instant::now() + time;
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            if writer.write_all(&[1]).is_err() {
                process::abort();
            }
            // Whoever adds up what this process waited for a CPU does so when it gets one again; and
            // may need ever so long to compare that with what somebody else has added up.
            let mut pause = Duration::from_millis(500);
            loop {
                thread::sleep(pause);
                pause *= 2;
            }
        })?;
    }
    reader.read_exact(&mut vec![0; count])?;
    println!("burned");
    Ok(())
}

/// Makes processes whose parent ends before they do.
fn orphans(count: usize) -> io::Result<()> {
    for _ in 0..count {
        let child = fork(|| {
            if fork(|| thread::sleep(Duration::from_millis(20))).is_err() {
                process::abort();
            }
        })?;
        wait_for(child);
    }
    println!("orphans made");
    Ok(())
}

/// Numbers that go on from run to run: each is first written to a file and then to the output.
fn chronicle(path: &str, lines: u64) -> anyhow::Result<()> {
    let record = fs::read_to_string(path).unwrap_or_default();
    let last = record.lines().filter_map(|line| line.parse::<u64>().ok()).next_back();
    let mut file = File::options().create(true).append(true).open(path)?;
    writeln!(file, "run")?;
    let first = last.map_or(0, |last| last + 1);
    for number in first..first.saturating_add(lines) {
        // One system call each, so that neither is cut in two.
        file.write_all(format!("{number}\n").as_bytes())?;
        io::stdout().write_all(format!("{number}\n").as_bytes())?;
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Calls execve for a program that is not there.
fn exec_nothing(count: usize) {
    let path = CString::default();
    let arguments = [path.as_ptr(), std::ptr::null()];
    for _ in 0..count {
        // SAFETY: the path and the list end in a null; on success there is no way back, and the
        // empty path does not exist.
        unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
    }
}

fn list(path: &str) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    println!("{path}: {}", names.join(" "));
    Ok(())
}

/// Says the mode and the owner of a file.
fn mode(path: &str) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    println!("mode {path}: {mode:04o} of {owner}:{}", metadata.gid());
    Ok(())
}

/// Says the type and the size of the file system at a path.
fn size(path: &str) -> anyhow::Result<()> {
    let stat = nix::sys::statfs::statfs(path)?;
    let memory = stat.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC;
    let bytes = stat.blocks() * u64::try_from(stat.block_size())?;
    println!("size {path}: {bytes}{}", if memory { " in memory" } else { "" });
    Ok(())
}

/// Says how much can be read of a file, or why nothing.
fn look(path: &str) {
    match fs::read(path) {
        Ok(content) => println!("look {path}: {} bytes", content.len()),
        Err(error) => println!("look {path}: {}", name_of(&error)),
    }
}

/// Says whether a file can be opened for writing; it is made if it is not there.
fn touch(path: &str) {
    match File::options().create(true).append(true).open(path) {
        Ok(_) => println!("touch {path}: ok"),
        Err(error) => println!("touch {path}: {}", name_of(&error)),
    }
}

fn name_of(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| format!("{:?}", nix::errno::Errno::from_raw(number)),
    )
}

fn fds() {
    // SAFETY: asks about a number, whatever it stands for.
    let is_open = |fd: &i32| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1;
    let open: Vec<String> = (0..4096).filter(is_open).map(|fd| fd.to_string()).collect();
    println!("fds {}", open.join(" "));
}

fn connect(address: &str) {
    match TcpStream::connect(address) {
        Ok(_) => println!("connect: ok"),
        Err(error) => println!("connect: {}", name_of(&error)),
    }
}

/// Says what is told by whoever listens there.
fn fetch(address: &str) {
    let mut text = String::new();
    let result = TcpStream::connect(address).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.read_to_string(&mut text)
    });
    match result {
        Ok(_) => println!("fetch: {text}"),
        Err(error) => println!("fetch: {}", name_of(&error)),
    }
}

/// Sends every datagram back.
fn udp_echo(address: (&str, u16)) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("listening");
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], from)?;
    }
}

/// Tells whoever connects the same thing.
fn greet(port: u16, text: &str) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening");
    for stream in listener.incoming() {
        // A client that has gone is its own loss.
        stream?.write_all(text.as_bytes()).ok();
    }
    Ok(())
}

/// Takes as many bytes as the client says that it will send, acknowledges them with one, and keeps
/// the connection for as long as the client does.
fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        thread::spawn(move || -> io::Result<()> {
            let mut size = [0; 8];
            stream.read_exact(&mut size)?;
            let size = u64::from_be_bytes(size);
            let taken =
                io::copy(&mut io::Read::by_ref(&mut stream).take(size - 8), &mut io::sink())?;
            stream.write_all(&[1])?;
            println!("received {}", taken + 8);
            io::copy(&mut stream, &mut io::sink())?;
            Ok(())
        });
    }
    Ok(())
}

/// Sends that many bytes all in all, waits for the acknowledgement and keeps the connection.
fn send(address: &str, bytes: u64) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let mut data = vec![b'x'; usize::try_from(bytes)?];
    data[..8].copy_from_slice(&bytes.to_be_bytes());
    stream.write_all(&data)?;
    stream.read_exact(&mut [0])?;
    println!("sent {bytes}");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
