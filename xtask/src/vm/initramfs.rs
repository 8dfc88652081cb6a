//! The VM's root file system: an uncompressed cpio archive that the kernel unpacks into memory.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    build::Artifacts,
    process::{exec, which},
    vm::fetch::Kernel,
};

/// Programs of this machine that tests and daemon call; the last is there if it is installed.
const TOOLS: [&str; 4] = ["nft", "ip", "apparmor_parser", "busybox"];

/// Our programs in the guest; the harness finds them through `PODSCOPE_BIN_DIR`.
const PROGRAMS: [&str; 3] = ["pod-daemon", "podctl", "workload"];

/// Files that programs expect on any machine.
const ETC: [(&str, &str); 3] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\npodscope:x:990:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
];

/// What goes into every VM, whatever its kernel: path in the guest, file here.
pub(super) struct Payload {
    files: Vec<(String, PathBuf)>,
    limit: Duration,
}

impl Payload {
    /// Gathers programs and libraries; stripped copies of ours are put into `dir`.
    pub(super) fn new(artifacts: &Artifacts, dir: &Path, limit: Duration) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).context("create the VMs' folder")?;
        let mut files = Vec::new();
        let mut add = |guest: String, name: &str, program: &Path, strip: &str| {
            let stripped = dir.join(name);
            files.push((guest, stripped.clone()));
            exec(Command::new("strip").args([strip, "-o"]).arg(stripped).arg(program))
        };
        let bin_dir = &artifacts.bin_dir;
        add("init".to_owned(), "guest-init", &bin_dir.join("guest-init"), "--strip-all")?;
        for name in PROGRAMS {
            add(format!("bin/podscope/{name}"), name, &bin_dir.join(name), "--strip-all")?;
        }
        // Symbols stay where backtraces are read.
        let kernel = "bin/podscope/kernel".to_owned();
        add(kernel, "kernel", &artifacts.kernel_test, "--strip-debug")?;

        let mut libraries = BTreeSet::new();
        for tool in TOOLS {
            match which(tool) {
                Some(program) => {
                    libraries.extend(needed_libraries(&program)?);
                    files.push((format!("bin/{tool}"), program));
                }
                None if tool == "busybox" => {}
                None => anyhow::bail!("{tool} is not installed"),
            }
        }
        for library in libraries {
            files.push((library.trim_start_matches('/').to_owned(), PathBuf::from(library)));
        }
        Ok(Self { files, limit })
    }

    /// Writes the archive for one kernel and the tests' arguments there, and returns its size.
    pub(super) fn write(
        &self,
        kernel: &Kernel,
        arguments: &[String],
        path: &Path,
    ) -> anyhow::Result<u64> {
        let file = File::create(path).context("create the initramfs")?;
        let mut cpio = Cpio { out: BufWriter::new(file), dirs: BTreeSet::new(), inode: 0 };
        // The kernel opens it before the init has mounted anything.
        cpio.node("dev/console", 5, 1).context("write the initramfs")?;
        for (name, text) in ETC {
            cpio.file(name, 0o644, text.as_bytes()).context("write the initramfs")?;
        }
        cpio.file("etc/kernel-test/arguments", 0o644, arguments.join("\n").as_bytes())?;
        cpio.file("etc/kernel-test/limit", 0o644, self.limit.as_secs().to_string().as_bytes())?;
        if self.files.iter().any(|(guest, _)| guest == "bin/busybox") {
            cpio.link("bin/sh", "busybox").context("write the initramfs")?;
        }
        for (guest, here) in &self.files {
            let bytes = fs::read(here).with_context(|| format!("read {}", here.display()))?;
            cpio.file(guest, 0o755, &bytes).context("write the initramfs")?;
        }
        let order =
            fs::read_to_string(kernel.dir.join("modules.load")).context("read modules.load")?;
        for name in order.lines() {
            let module = kernel.dir.join("modules").join(format!("{name}.ko"));
            let bytes = fs::read(module).context("read a module")?;
            cpio.file(&format!("lib/modules/{name}.ko"), 0o644, &bytes)?;
        }
        cpio.file("lib/modules/load", 0o644, order.as_bytes()).context("write the initramfs")?;
        cpio.finish().context("write the initramfs")?;
        Ok(fs::metadata(path).context("stat the initramfs")?.len())
    }
}

/// Absolute paths of the libraries that a program loads, the loader included.
fn needed_libraries(program: &Path) -> anyhow::Result<Vec<String>> {
    let ldd = Command::new("ldd").arg(program).output().context("run ldd")?;
    // It fails for a program that is linked statically.
    let text = String::from_utf8_lossy(&ldd.stdout);
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .filter(|path| Path::new(path).is_absolute() && Path::new(path).exists())
        .map(str::to_owned)
        .collect())
}

/// Writes the "newc" format: for each file a header of numbers in hex, its name, its bytes.
struct Cpio<W> {
    out: W,
    dirs: BTreeSet<String>,
    inode: u32,
}

impl<W: Write> Cpio<W> {
    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.parents(name)?;
        self.entry(name, 0o100_000 | mode, bytes, (0, 0))
    }

    fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.parents(name)?;
        self.entry(name, 0o120_777, target.as_bytes(), (0, 0))
    }

    fn node(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.parents(name)?;
        self.entry(name, 0o020_600, &[], (major, minor))
    }

    fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[], (0, 0))?;
        self.out.flush()
    }

    /// The kernel creates no folders by itself.
    fn parents(&mut self, name: &str) -> io::Result<()> {
        for (end, _) in name.match_indices('/') {
            let dir = &name[..end];
            if !self.dirs.contains(dir) {
                self.dirs.insert(dir.to_owned());
                self.entry(dir, 0o040_755, &[], (0, 0))?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        bytes: &[u8],
        (major, minor): (u32, u32),
    ) -> io::Result<()> {
        self.inode += 1;
        let inode = self.inode;
        let size = bytes.len();
        let name_size = name.len() + 1;
        write!(self.out, "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}", 0, 0, 1, 0)?;
        write!(self.out, "{size:08x}{:08x}{:08x}{major:08x}{minor:08x}", 0, 0)?;
        write!(self.out, "{name_size:08x}{:08x}{name}\0", 0)?;
        self.pad(110 + name_size)?;
        self.out.write_all(bytes)?;
        self.pad(size)
    }

    /// Name and bytes each end at a multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}
