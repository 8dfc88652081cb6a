//! The first process of a test VM: makes the machine usable, runs the kernel tests, powers off.
//!
//! Everything it and the tests say goes to the second serial port, where the kernel writes nothing.
//! `cargo xtask vm-test` reads it there; see xtask/src/vm.rs for what it makes of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::Path,
    process::{self, Command},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, wait},
    },
    unistd::{Pid, chdir, chroot, sethostname},
};

/// Where results go.
const RESULTS: &str = "/dev/ttyS1";

/// File systems of an ordinary machine: type, place.
const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("mqueue", "/dev/mqueue"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("sysfs", "/sys"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
    ("debugfs", "/sys/kernel/debug"),
    ("securityfs", "/sys/kernel/security"),
];

/// The VM's disk, and where it is mounted.
const DISK: (&str, &str) = ("/dev/vda", "/disk");

/// Pages of 2 MiB that are set aside.
const HUGE_PAGES: &str = "8";

/// Controllers that the tests may use; those a kernel lacks are left out.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

fn main() {
    if process::id() != 1 {
        // Anywhere else it would mount over a living system.
        process::abort();
    }
    let code = match run() {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            // The console, since it may have been the results' port that failed.
            if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
                drop(writeln!(console, "guest-init: {error:#}"));
            }
            2
        }
    };
    power_off(code);
}

/// Whether the tests passed.
fn run() -> anyhow::Result<bool> {
    leave_rootfs().context("leave the initramfs's own mount")?;
    for (kind, place) in MOUNTS {
        mount_one(kind, place).with_context(|| format!("mount {place}"))?;
    }
    let mut results = OpenOptions::new()
        .read(true)
        .write(true)
        .open(RESULTS)
        .context("open the results' port")?;
    make_raw(&results).context("make the results' port raw")?;
    let kernel = fs::read_to_string("/proc/version").context("read the kernel's version")?;
    writeln!(results, "KERNEL {}", kernel.trim())?;

    load_modules(&mut results)?;
    mount_disk().context("mount the disk")?;
    fs::write("/proc/sys/vm/nr_hugepages", HUGE_PAGES).context("set huge pages aside")?;
    sethostname("guest").context("set the host name")?;
    delegate_controllers().context("delegate controllers")?;
    let lo = Command::new("/bin/ip").args(["link", "set", "lo", "up"]).status();
    if !lo.context("run ip")?.success() {
        bail!("the loopback device does not come up");
    }
    run_tests(&mut results)
}

/// Gives the root a mount that has a parent: `pivot_root` refuses to leave the kernel's rootfs.
fn leave_rootfs() -> anyhow::Result<()> {
    let no_text = None::<&str>;
    fs::create_dir_all("/newroot")?;
    mount(Some("/"), "/newroot", no_text, MsFlags::MS_BIND, no_text)?;
    chdir("/newroot")?;
    mount(Some("."), "/", no_text, MsFlags::MS_MOVE, no_text)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

fn mount_disk() -> io::Result<()> {
    let (device, place) = DISK;
    fs::create_dir_all(place)?;
    let began = Instant::now();
    // Its driver may still be at it.
    while !Path::new(device).exists() && began.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(mount(Some(device), place, Some("ext4"), MsFlags::empty(), None::<&str>)?)
}

fn mount_one(kind: &str, place: &str) -> anyhow::Result<()> {
    fs::create_dir_all(place)?;
    let options = (place == "/tmp" || place == "/dev/shm").then_some("mode=1777");
    match mount(Some(kind), place, Some(kind), MsFlags::empty(), options) {
        // This kernel does without: a test that needs it will say so.
        Err(nix::Error::ENODEV) => Ok(()),
        result => Ok(result?),
    }
}

/// Stops the terminal layer from turning every line's end into two characters.
fn make_raw(port: &File) -> io::Result<()> {
    // SAFETY: a termios is plain numbers, for which zero is a value; the kernel fills it in.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open as long as `port` lives, and `settings` is ours.
    if unsafe { libc::tcgetattr(port.as_raw_fd(), &raw mut settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    unsafe { libc::cfmakeraw(&raw mut settings) };
    // SAFETY: as above.
    if unsafe { libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &raw const settings) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Loads what modules.load names, in its order. One that fails is told and costs its tests.
fn load_modules(results: &mut File) -> anyhow::Result<()> {
    let order = fs::read_to_string("/lib/modules/load").context("read the modules' order")?;
    for name in order.lines() {
        if let Err(error) = load_module(name) {
            writeln!(results, "guest-init: module {name}: {error}")?;
        }
    }
    Ok(())
}

fn load_module(name: &str) -> io::Result<()> {
    let module = File::open(format!("/lib/modules/{name}.ko"))?;
    // SAFETY: the descriptor is open, the parameters are an empty string, and there are no flags.
    match unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the cgroup root to the tests: its controllers are on, and no process is in it that a
/// kernel would count as its own.
fn delegate_controllers() -> anyhow::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let there = fs::read_to_string(root.join("cgroup.controllers"))?;
    let on: Vec<_> = there
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    fs::write(root.join("cgroup.subtree_control"), on.join(" "))?;
    fs::create_dir(root.join("tests"))?;
    Ok(())
}

fn run_tests(results: &mut File) -> anyhow::Result<bool> {
    let arguments = fs::read_to_string("/etc/kernel-test/arguments").context("read arguments")?;
    let limit = fs::read_to_string("/etc/kernel-test/limit").context("read the time limit")?;
    let limit = Duration::from_secs(limit.trim().parse().context("parse the time limit")?);

    let mut command = Command::new("/bin/podscope/kernel");
    command.args(arguments.lines()).current_dir("/tmp").process_group(0);
    command.env_clear().envs([
        ("HOME", "/"),
        ("PATH", "/bin"),
        ("PODSCOPE_BIN_DIR", "/bin/podscope"),
        ("PODSCOPE_DISK", DISK.1),
        ("PODSCOPE_IN_VM", "1"),
        // For the option of libtest's that tells how long each test takes.
        ("RUSTC_BOOTSTRAP", "1"),
        ("RUST_BACKTRACE", "1"),
        ("TMPDIR", "/tmp"),
    ]);
    command.stdin(File::open("/dev/null").context("open /dev/null")?);
    command.stdout(results.try_clone()?).stderr(results.try_clone()?);
    // SAFETY: between fork and exec only open, write and close are called.
    unsafe {
        // Zero is "the process that writes this".
        command.pre_exec(|| fs::write("/sys/fs/cgroup/tests/cgroup.procs", "0"));
    }
    let child = command.spawn().context("start the tests")?;
    let tests = Pid::from_raw(i32::try_from(child.id()).context("convert a pid")?);

    static TOO_LONG: AtomicBool = AtomicBool::new(false);
    thread::spawn(move || {
        thread::sleep(limit);
        TOO_LONG.store(true, Ordering::SeqCst);
        // It may have ended this moment; then the VM is about to end too.
        kill(Pid::from_raw(-tests.as_raw()), Signal::SIGKILL).ok();
    });

    // As the first process we are the parent of every orphan, too.
    let outcome = loop {
        match wait().context("wait for the tests")? {
            WaitStatus::Exited(pid, code) if pid == tests => break code.to_string(),
            WaitStatus::Signaled(pid, ..) if pid == tests && TOO_LONG.load(Ordering::SeqCst) => {
                break "timeout".to_owned();
            }
            WaitStatus::Signaled(pid, signal, _) if pid == tests => break signal.to_string(),
            _ => {}
        }
    };
    // A test that broke off has left a line without an end.
    write!(results, "\nRESULT kernel {outcome}\n")?;
    // SAFETY: the descriptor is open as long as `results` lives.
    unsafe { libc::tcdrain(results.as_raw_fd()) };
    Ok(outcome == "0")
}

/// Ends QEMU with status `2 * code + 1`, through its isa-debug-exit device.
fn power_off(code: u32) -> ! {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the port belongs to that device, and nothing comes after it.
    unsafe {
        if libc::iopl(3) == 0 {
            std::arch::asm!("out dx, eax", in("dx") 0xf4_u16, in("eax") code);
        }
    }
    // Not reached in a VM that has the device; without it the status is 0, which is a failure.
    let _ = code;
    // SAFETY: takes no pointers.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    loop {
        thread::park();
    }
}
