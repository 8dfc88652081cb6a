//! A daemon of the test's own, from its start to its end.

mod requests;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{self, Child, Command},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    binary, eventually, http, in_vm, program, seconds,
    state::{self, State},
};

/// Pause before a second restart, in milliseconds, unless a test says otherwise.
pub const BACKOFF_MS: u64 = 50;

/// A daemon without special options that a test is done with. Starting one takes seconds where
/// instructions are emulated, and a VM needs no tidying up: there the next test gets it.
static IDLE: Mutex<Option<Daemon>> = Mutex::new(None);

/// A running daemon with folders, a cgroup root and an address of its own.
///
/// A test ends it with [`Daemon::stop`], which checks that nothing is left. Dropping it, as a test
/// that fails does, removes everything without complaint.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    options: Vec<String>,
    folder: PathBuf,
    cgroups: PathBuf,
    metrics: SocketAddr,
    /// How often the kernel had skipped each program when the test began.
    skipped: BTreeMap<String, f64>,
    before: State,
    /// The node with this daemon and no pods, if another test may have the daemon.
    idle: Option<State>,
    stopped: bool,
}

impl Daemon {
    /// Starts a daemon with these options beside the necessary ones, and waits until it is ready.
    #[track_caller]
    #[must_use]
    pub fn start(options: &[&str]) -> Self {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).take();
        match idle {
            // Two daemons at a time would use the same addresses.
            Some(mut daemon) if !options.is_empty() => {
                daemon.idle = None;
                daemon.stop();
                Self::start_new(options)
            }
            Some(daemon) => daemon,
            None => Self::start_new(options),
        }
    }

    #[track_caller]
    fn start_new(options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let before = State::capture();
        let name =
            format!("{}{}-{}", state::CGROUP, process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(&name);
        let rootfs = folder.join("rootfs/bin");
        fs::create_dir_all(&rootfs).expect("create the image");
        fs::copy(binary("workload"), rootfs.join("workload")).expect("copy the workload");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind to a free port");
        let metrics = listener.local_addr().expect("ask for the free port");
        drop(listener);
        let cgroups = state::cgroup_mount().join(&name);
        let usual = [
            format!("--data-dir={}", folder.join("data").display()),
            format!("--run-dir={}", folder.join("run").display()),
            format!("--log-dir={}", folder.join("logs").display()),
            format!("--bpffs-dir={}", folder.join("bpf").display()),
            format!("--cgroup-root={}", cgroups.display()),
            format!("--metrics-address={metrics}"),
            format!("--restart-backoff-ms={BACKOFF_MS}"),
            // Most tests look at what is added up when a pod is gone.
            "--hold-seconds=0".to_owned(),
            "--on-stop=end".to_owned(),
        ];
        let name = |option: &str| option.split('=').next().map(str::to_owned);
        let is_given = |usual: &String| options.iter().any(|option| name(option) == name(usual));
        let mut all: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        all.extend(usual.into_iter().filter(|usual| !is_given(usual)));
        let began = Instant::now();
        let child = spawn(&all, &folder);
        let idle = None;
        let mut daemon = Self {
            child,
            options: all,
            folder,
            cgroups,
            metrics,
            skipped: BTreeMap::new(),
            before,
            idle,
            stopped: false,
        };
        daemon.wait_until_ready();
        println!("the daemon was ready in {:.1} s", began.elapsed().as_secs_f64());
        if in_vm() && options.is_empty() {
            daemon.idle = Some(State::capture());
        }
        daemon
    }

    /// Starts the daemon again, after [`Daemon::kill`].
    #[track_caller]
    pub fn restart(&mut self) {
        self.restart_soon();
        self.wait_until_ready();
    }

    /// As [`Daemon::restart`], without waiting until the daemon is ready.
    #[track_caller]
    pub fn restart_soon(&mut self) {
        self.child = spawn(&self.options, &self.folder);
    }

    /// Starts the daemon again with one option more, or in another way, after [`Daemon::kill`].
    #[track_caller]
    pub fn restart_with(&mut self, option: &str) {
        let name = option.split('=').next();
        self.options.retain(|old| old.split('=').next() != name);
        self.options.push(option.to_owned());
        self.restart();
    }

    /// Does to the node what a reboot does, after [`Daemon::kill`]: nothing runs, and of the daemon's
    /// folders only those that are on disk survive.
    #[track_caller]
    pub fn reboot(&mut self) {
        self.before.restore(&self.cgroups);
        fs::remove_dir_all(self.folder.join("run")).expect("empty /run");
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        let socket = self.socket();
        eventually("the daemon is ready", seconds(30), || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            let api = http::unix(&socket, "GET", "/readyz", "").ok()?;
            let metrics = http::tcp(self.metrics, "/readyz").ok()?;
            (api.status == 200 && metrics.status == 200).then_some(())
        });
    }

    /// Stops the daemon in order, and checks that the node is as it was before it started; or
    /// deletes its pods, and checks that the node is as it was before them.
    #[track_caller]
    pub fn stop(mut self) {
        let metrics = self.metrics();
        if let Some(missed) = metrics.missed() {
            println!("{missed}");
        }
        self.skipped = metrics.skipped();
        if let Some(idle) = &self.idle {
            self.delete_all();
            State::capture().assert_same(idle);
            self.assert_no_files();
            *IDLE.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
            return;
        }
        // They would stay in memory for the next daemon.
        self.delete_secrets();
        self.stopped = true;
        kill(self.pid(), Signal::SIGTERM).expect("signal the daemon");
        let code = program::wait(&mut self.child, seconds(40));
        assert_eq!(code, Some(0), "the daemon stops in order:\n{}", self.log());
        let processes = state::processes_below(&self.cgroups);
        assert!(processes.is_empty(), "processes are left behind: {processes:?}");
        State::capture().assert_same(&self.before);
        self.assert_no_files();
        drop(fs::remove_dir_all(&self.folder));
    }

    #[track_caller]
    fn delete_all(&self) {
        for kind in ["pods", "configmaps", "secrets"] {
            let list = self.api("GET", &format!("/api/v1/namespaces/default/{kind}"), None).json();
            let names = list["items"].as_array().into_iter().flatten();
            let names: Vec<_> = names
                .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
                .collect();
            let path = |name: &String| {
                format!("/api/v1/namespaces/default/{kind}/{name}?gracePeriodSeconds=1")
            };
            for name in &names {
                let answer = self.api("DELETE", &path(name), None);
                assert!(answer.status < 300, "{}", answer.body);
            }
            for name in &names {
                eventually(&format!("{kind} {name} is gone"), seconds(20), || {
                    (self.api("GET", &path(name), None).status == 404).then_some(())
                });
            }
        }
    }

    #[track_caller]
    fn delete_secrets(&self) {
        let list = self.api("GET", "/api/v1/secrets", None).json();
        for item in list["items"].as_array().into_iter().flatten() {
            let metadata = &item["metadata"];
            let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str());
            let path = format!(
                "/api/v1/namespaces/{}/secrets/{}",
                namespace.unwrap_or_default(),
                name.unwrap_or_default()
            );
            assert!(self.api("DELETE", &path, None).status < 300);
        }
    }

    /// Checks that pods that are gone have left no files.
    #[track_caller]
    pub fn assert_no_files(&self) {
        for place in ["data/pods", "logs", "run/memory/pods"] {
            let left = state::entries(&self.folder.join(place));
            assert!(left.is_empty(), "files are left behind: {left:?}");
        }
    }

    /// Ends the daemon as a crash does.
    #[track_caller]
    pub fn kill(&mut self) {
        self.idle = None;
        program::end(&mut self.child);
    }

    /// The daemon's process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("pids are positive"))
    }

    /// The options that it was started with.
    #[must_use]
    pub fn options(&self) -> &[String] {
        &self.options
    }

    /// What it has logged since it was first started.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("daemon.log")).unwrap_or_default()
    }

    /// The file that it logs to.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }

    /// Its folder in which a test may put files of its own.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its cgroup root.
    #[must_use]
    pub fn cgroups(&self) -> &Path {
        &self.cgroups
    }

    /// Where it serves /metrics.
    #[must_use]
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// The image whose only file is the workload.
    #[must_use]
    pub fn image(&self) -> String {
        format!("dir:{}", self.folder.join("rootfs").display())
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("run/api.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        program::end(&mut self.child);
        if self.stopped && !thread::panicking() {
            return;
        }
        println!("the daemon's log:\n{}", self.log());
        self.before.restore(&self.cgroups);
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn spawn(options: &[String], folder: &Path) -> Child {
    let log = File::options().create(true).append(true).open(folder.join("daemon.log"));
    let log = log.expect("open the daemon's log");
    Command::new(binary("pod-daemon"))
        .args(options)
        .env_remove("PODSCOPE_LOG")
        .stdout(log.try_clone().expect("copy a descriptor"))
        .stderr(log)
        .spawn()
        .expect("start the daemon")
}
