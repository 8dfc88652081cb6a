//! The infra program, as the daemon embeds it: how small it is, when it leaves, what it reaps.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::process::ExitStatusExt as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
    },
    unistd::{Pid, geteuid},
};
use pod_daemon::sandbox::PAUSE;

#[path = "../build/pause.rs"]
#[expect(dead_code, clippy::print_stdout, reason = "the build script's part")]
mod build;

const MAX_BYTES: usize = 2048;
const MAX_RESIDENT_KB: u64 = 16;

/// The embedded program as something to execute.
///
/// A memfd, not a file: writing a file while another test forks makes `exec` fail with `ETXTBSY`.
static PROGRAM: LazyLock<File> = LazyLock::new(|| {
    let fd = memfd_create("pause", MFdFlags::MFD_CLOEXEC).expect("memfd_create");
    let mut file = File::from(fd);
    file.write_all(PAUSE).expect("write the program");
    file
});

#[test]
fn it_is_small_and_nothing_is_writable_and_executable() {
    check_elf(PAUSE, if cfg!(target_arch = "x86_64") { X86_64 } else { AARCH64 });
}

#[test]
fn it_builds_for_the_other_architecture() {
    let (arch, machine) =
        if cfg!(target_arch = "x86_64") { ("aarch64", AARCH64) } else { ("x86_64", X86_64) };
    // Building `core` takes half a minute, once per target directory.
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pause");
    let target = format!("{arch}-unknown-linux-gnu");
    let program = build::compile(&target, &target_dir, &["-Z", "build-std=core"]).unwrap();

    check_elf(&fs::read(&program).unwrap(), machine);

    let emulator = format!("qemu-{arch}-static");
    match Command::new(&emulator).arg(&program).spawn() {
        Ok(child) => assert_eq!(Infra(child).ended_by(Signal::SIGTERM).code(), Some(0)),
        Err(error) => skip(
            "it_builds_for_the_other_architecture",
            &format!("it builds, but cannot run: {emulator}: {error}"),
        ),
    }
}

#[test]
fn it_stays_within_its_memory() {
    // The stack begins at a random offset, so that one start has a page more than another.
    let infras: Vec<_> = (0..32).map(|_| Infra::start()).collect();
    for infra in &infras {
        infra.wait_until_idle();
        let resident = infra.resident_kb();
        assert!(resident <= MAX_RESIDENT_KB, "{resident} KiB resident");
    }
}

#[test]
fn sigterm_and_sigint_end_it_with_status_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        assert_eq!(Infra::start().ended_by(signal).code(), Some(0), "{signal}");
    }
}

#[test]
fn an_interrupted_wait_goes_on() {
    let infra = Infra::start();
    infra.wait_until_idle();
    // Continuing a stopped process makes its rt_sigtimedwait fail with EINTR.
    for _ in 0..10 {
        infra.signal(Signal::SIGSTOP);
        eventually("stopped", || infra.state() == Some('T'));
        infra.signal(Signal::SIGCONT);
        infra.wait_until_idle();
    }
    assert_eq!(infra.ended_by(Signal::SIGTERM).code(), Some(0));
}

#[test]
fn as_pid_1_it_leaves_when_told() {
    if !is_root("as_pid_1_it_leaves_when_told") {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        assert_eq!(Infra::start_as_pid_1().ended_by(signal).code(), Some(0), "{signal}");
    }
}

#[test]
fn as_pid_1_it_reaps_a_thousand_orphans() {
    if !is_root("as_pid_1_it_reaps_a_thousand_orphans") {
        return;
    }
    let infra = Infra::start_as_pid_1();
    infra.wait_until_idle();

    // Every subshell is orphaned at once, and lives until the pipe is closed.
    let mut shell = infra.spawn_inside(
        Command::new("sh")
            .args(["-c", "exec 3<&0; for i in $(seq 1000); do (read _ <&3 &); done"])
            .stdin(Stdio::piped()),
    );
    let pipe = shell.stdin.take().expect("stdin is a pipe");
    assert!(shell.wait().unwrap().success());
    eventually("1,000 orphans are its children", || infra.children().len() == 1000);

    // All die at once: a thousand deaths and far fewer signals.
    drop(pipe);
    eventually("no child is left, dead or alive", || infra.children().is_empty());
    assert_eq!(infra.ended_by(Signal::SIGTERM).code(), Some(0));
}

/// A running infra program; killed when dropped.
struct Infra(Child);

impl Infra {
    fn start() -> Self {
        let path = format!("/proc/self/fd/{}", PROGRAM.as_raw_fd());
        Self(Command::new(path).env_clear().spawn().expect("start the infra program"))
    }

    fn start_as_pid_1() -> Self {
        // A thread of its own: the namespace is for all children the thread has from now on.
        let start = || {
            unshare(CloneFlags::CLONE_NEWPID).expect("unshare the PID namespace");
            Self::start()
        };
        thread::spawn(start).join().expect("the thread starts the infra program")
    }

    /// Starts `command` in the PID namespace.
    fn spawn_inside(&self, command: &mut Command) -> Child {
        let namespace = File::open(format!("/proc/{}/ns/pid", self.0.id())).expect("open ns/pid");
        let spawn = || {
            setns(namespace, CloneFlags::CLONE_NEWPID).expect("enter the PID namespace");
            command.spawn().expect("start the command")
        };
        thread::scope(|scope| scope.spawn(spawn).join().expect("the thread starts the command"))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().try_into().expect("a pid fits pid_t"))
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("send the signal");
    }

    /// Sends `signal` once the program is ready for it, and waits for its end.
    fn ended_by(mut self, signal: Signal) -> ExitStatus {
        self.wait_until_idle();
        self.signal(signal);
        let mut status = None;
        eventually("ended", || {
            status = self.0.try_wait().expect("wait for the infra program");
            status.is_some()
        });
        status.unwrap_or_else(|| ExitStatus::from_raw(-1))
    }

    fn wait_until_idle(&self) {
        let waiting = format!("{} ", libc::SYS_rt_sigtimedwait);
        let path = format!("/proc/{}/syscall", self.0.id());
        eventually("it sleeps in rt_sigtimedwait", || {
            self.state() == Some('S')
                && fs::read_to_string(&path).expect("read syscall").starts_with(&waiting)
        });
    }

    fn resident_kb(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("read status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|size| size.trim().strip_suffix(" kB"));
        resident.expect("VmRSS is there").parse().expect("VmRSS is a number")
    }

    fn state(&self) -> Option<char> {
        stat(&self.0.id().to_string()).map(|(state, _)| state)
    }

    /// The states of the program's children, zombies included.
    fn children(&self) -> Vec<char> {
        let mut children = Vec::new();
        for entry in fs::read_dir("/proc").expect("list /proc") {
            let name = entry.expect("list /proc").file_name();
            let Some((state, parent)) = name.to_str().and_then(stat) else { continue };
            if parent == self.0.id() {
                children.push(state);
            }
        }
        children
    }
}

impl Drop for Infra {
    fn drop(&mut self) {
        // Fails when the process has ended already, which is what was wanted.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// State and parent of a process; none if `pid` names no process.
fn stat(pid: &str) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

const X86_64: u16 = 62;
const AARCH64: u16 = 183;

/// Checks size, machine, and the permissions of every segment, among them the stack's.
fn check_elf(program: &[u8], machine: u16) {
    const PROGRAM_HEADER_BYTES: usize = 56;
    const PT_GNU_STACK: u32 = 0x6474_e551;
    const EXECUTABLE: u32 = 1;
    const WRITABLE: u32 = 2;

    assert!(program.len() <= MAX_BYTES, "{} bytes", program.len());
    let u16_at = |at| u16::from_le_bytes([program[at], program[at + 1]]);
    let u32_at = |at| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    assert_eq!(program[..5], *b"\x7fELF\x02");
    assert_eq!(u16_at(18), machine);

    let first = usize::try_from(u32_at(32)).expect("an offset in a small file");
    let mut segments = Vec::new();
    for number in 0..usize::from(u16_at(56)) {
        let header = first + number * PROGRAM_HEADER_BYTES;
        segments.push((u32_at(header), u32_at(header + 4)));
    }
    for (kind, flags) in &segments {
        assert_ne!(flags & (WRITABLE | EXECUTABLE), WRITABLE | EXECUTABLE, "segment {kind:#x}");
    }
    assert!(segments.iter().any(|&(kind, _)| kind == PT_GNU_STACK), "the stack is not declared");
}

fn is_root(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        skip(test, "a PID namespace needs root");
    }
    root
}

/// Tells xtask's table. Not with `println!`, which libtest shows for failed tests only.
fn skip(test: &str, reason: &str) {
    writeln!(io::stdout(), "SKIP {test}: {reason}").expect("write to stdout");
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
