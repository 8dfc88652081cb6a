//! One QEMU process: its command line, its time limit, and what it left behind.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::{prctl::set_pdeathsig, signal::Signal};

use crate::{
    process::{exec, wait_until},
    report::Tally,
    vm::fetch::Kernel,
};

/// The kernel's command line. `lsm=` because 5.10 does not have bpf in its default list.
const APPEND: &str = "console=ttyS0 quiet panic=-1 oops=panic tsc=reliable no_timer_check \
                      cryptomgr.notests lsm=landlock,lockdown,yama,integrity,apparmor,bpf";

/// An initramfs above this needs a guest with more memory, since it is unpacked into it.
const BIG: u64 = 100 << 20;

/// Lines shown of a failed VM's output, and of its console.
const SHOWN: (usize, usize) = (200, 40);

/// Bytes of the disk, which is a file with holes.
const DISK: u64 = 512 << 20;

/// A VM that has ended.
pub(super) struct Boot {
    /// QEMU's exit status; none if it was killed at its time limit.
    pub(super) status: Option<i32>,
    /// What the init and the tests wrote, on a line of their own where printk cannot interleave.
    pub(super) results: String,
    console: String,
    pub(super) took: Duration,
}

/// Boots the kernel and waits until it powers off.
pub(super) fn boot(
    kernel: &Kernel,
    dir: &Path,
    initramfs: &Path,
    initramfs_size: u64,
    timeout: Duration,
) -> anyhow::Result<Boot> {
    let [console, results, errors, disk] =
        ["console.log", "results.log", "qemu.log", "disk.img"].map(|name| dir.join(name));
    for log in [&console, &results, &errors] {
        File::create(log).context("empty a log")?;
    }

    File::create(&disk).and_then(|disk| disk.set_len(DISK)).context("make a disk")?;
    exec(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk))?;

    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(accelerator()).args(["-smp", "2"]);
    qemu.args(["-m", if initramfs_size > BIG { "2G" } else { "1G" }]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"]);
    qemu.arg("-no-reboot");
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    qemu.arg("-serial").arg(format!("file:{}", results.display()));
    qemu.arg("-drive").arg(format!("file={},if=none,id=disk,format=raw", disk.display()));
    qemu.args(["-device", "virtio-blk-pci,drive=disk"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]);
    qemu.arg("-kernel").arg(kernel.dir.join("vmlinuz")).arg("-initrd").arg(initramfs);
    qemu.args(["-append", APPEND]);
    qemu.stdin(Stdio::null()).stdout(Stdio::null());
    qemu.stderr(File::create(&errors).context("create qemu.log")?);
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        // A VM that hangs must not outlive the command that would have killed it.
        qemu.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from));
    }

    let began = Instant::now();
    let mut child = qemu.spawn().context("start QEMU")?;
    let status = wait_until(&mut child, began + timeout).context("wait for QEMU")?;
    fs::remove_file(&disk).context("remove the disk")?;
    let read =
        |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Boot {
        status: status.map(|status| status.code().unwrap_or(-1)),
        results: read(&results).context("read results.log")?,
        console: read(&console).context("read console.log")? + &read(&errors)?,
        took: began.elapsed(),
    })
}

impl Boot {
    /// What libtest said.
    pub(super) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.results.lines().for_each(|line| tally.read(line));
        tally
    }

    /// Prints what someone needs who has only this terminal's output.
    pub(super) fn show_failure(&self, runner: &str) {
        let mut out = io::stdout().lock();
        let mut show = |title: &str, text: &str, most: usize| -> io::Result<()> {
            let lines: Vec<_> = text.lines().collect();
            let left_out = lines.len().saturating_sub(most);
            writeln!(out, "---- {runner}: {title} ({left_out} lines left out)")?;
            lines[left_out..].iter().try_for_each(|line| writeln!(out, "{line}"))
        };
        let shown = show("output", self.failing_part(), SHOWN.0)
            .and_then(|()| show("console", &self.console, SHOWN.1));
        if let Err(error) = shown {
            eprintln!("vm-test: the output could not be shown: {error}");
        }
    }

    /// From where libtest lists the failures; all of it if it did not come to that.
    fn failing_part(&self) -> &str {
        self.results.find("\nfailures:\n").map_or(&*self.results, |start| &self.results[start..])
    }
}

/// KVM only where the CPU says so: elsewhere the device may open and the guest then hangs.
fn accelerator() -> [&'static str; 4] {
    let virtualizes = fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|text| text.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    if virtualizes && File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        ["-accel", "kvm", "-cpu", "host"]
    } else {
        // One thread: QEMU's multi-threaded emulation corrupts live code patching, which attaching
        // a probe is. `-smp 2` still gives the guest two CPUs.
        ["-accel", "tcg,thread=single", "-cpu", "max"]
    }
}
