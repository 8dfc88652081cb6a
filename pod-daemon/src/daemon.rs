//! The daemon: start, serve, stop.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::{
    api,
    cgroup::{self, Hierarchy},
    config::{Config, OnStop},
    events, fault,
    image::{self, Images, Store, Usage},
    metrics::{self, Archive, Metrics},
    network::Network,
    node::{self, Node, Settings, Shared},
    probes::{self, Probes},
    sandbox::{self, Memory, Sandboxes, remove_all},
};

/// Name of the API socket in the run directory.
pub const SOCKET: &str = "api.sock";

/// The group whose members may use the API, if the node has it.
const GROUP: &str = "podscope";

/// How long the processes of an earlier daemon's pods may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long what a killed daemon was about to start may keep its lock: longer than that waits for its
/// daemon.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// The daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory is not to be had.
    #[error("failed to {action} `{}`", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another daemon uses the same directory.
    #[error("another daemon runs with the run directory `{}`; stop it, or start this one with --run-dir, --data-dir, --network and --metrics-address of its own", .0.display())]
    Running(PathBuf),
    /// The metrics address is taken or not to be had.
    #[error("failed to listen on {address} for /metrics; choose another with --metrics-address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The cgroup tree cannot be prepared.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The network cannot be prepared.
    #[error(transparent)]
    Network(#[from] crate::network::Error),
    /// The probes cannot be loaded.
    #[error(transparent)]
    Probes(#[from] probes::Error),
    /// The image store cannot be opened.
    #[error(transparent)]
    Images(#[from] image::Error),
    /// Sandboxes cannot be made.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The metrics cannot be set up.
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
}

/// Runs until `shutdown`. The pods run on after it, or are ended and removed, as the settings say.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    harden();
    make_directory(&config.data_dir, 0o700)?;
    make_directory(&config.run_dir, 0o755)?;
    make_directory(&config.log_dir, 0o755)?;
    let _lock = lock(&config.run_dir)?;
    fault::watch(&config.run_dir);
    let address = config.metrics_address;
    let listener =
        TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;

    let hierarchy = Hierarchy::prepare(&config.cgroup_root)?;
    let network = Network::prepare(config.network, &config.instance(), config.pod_connections)?;
    let memory = Memory::open(&config.run_dir)?;
    let (node, archive) = make_node(&config, hierarchy.clone(), network, memory)?;
    let pods = node.adopt();
    sweep(&config, &hierarchy, &node, &pods)?;
    events::start(&node)?;
    let socket = config.run_dir.join(SOCKET);
    let api = listen(&socket)?;

    let build = metrics::Build { version: env!("CARGO_PKG_VERSION"), ..metrics::Build::default() };
    let metrics = Metrics::new(node.clone(), Arc::clone(node.probes()), archive, build)?;
    metrics.mark_ready();
    let stop = shutdown.clone();
    let metrics_server = axum::serve(listener, metrics::router(metrics))
        .with_graceful_shutdown(async move { stop.cancelled().await });
    let metrics_server = tokio::spawn(metrics_server.into_future());
    // The API goes on until the pods are gone, so that clients see them go.
    let api_stop = CancellationToken::new();
    let api_server =
        tokio::spawn(api::serve(api, node.clone(), config.unsupported_fields, api_stop.clone()));
    tracing::info!(socket = %socket.display(), metrics = %format!("http://{address}/metrics"), "ready");

    let collector = tokio::spawn(collect_images(config.clone(), node.clone()));
    let probes = Arc::clone(node.probes());
    let meter = tokio::spawn(async move { probes.measure().await });

    shutdown.cancelled().await;
    collector.abort();
    meter.abort();
    if config.on_stop == OnStop::Keep {
        // As if it were killed, which the pods survive.
        tracing::info!("stopping: the pods run on");
        fs::remove_file(&socket).ok();
        return Ok(());
    }
    tracing::info!("stopping: ending all pods");
    node.shut_down(config.stop_seconds).await;
    api_stop.cancel();
    for server in [metrics_server.abort_handle(), api_server.abort_handle()] {
        server.abort();
    }
    drop(node);
    fs::remove_file(&socket).ok();
    if let Err(error) = hierarchy.remove() {
        tracing::debug!(%error, "the cgroup root stays");
    }
    Ok(())
}

fn make_node(
    config: &Config,
    hierarchy: Hierarchy,
    network: Network,
    memory: Memory,
) -> Result<(Node, Arc<Archive>), Error> {
    let locked_memory = lift_locked_memory();
    let probes = Arc::new(load_probes(config, &hierarchy, &network)?);
    let told = Arc::clone(&probes);
    network.watch_addresses(move |addresses| {
        if let Err(error) = told.set_node_addresses(addresses) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the probes know old addresses"
            );
        }
    })?;
    let images = image::Settings {
        registries: config.registries.clone(),
        backoff: config.image_pull_backoff,
    };
    let images = Images::new(Store::open(&config.data_dir.join("images"))?, images);
    let sandboxes = Sandboxes::new(
        &config.data_dir,
        &config.run_dir,
        sandbox::Settings { locked_memory, first_user_id: config.first_user_id },
    )?;
    let capacity = node::capacity(&config.data_dir, network.capacity())
        .map_err(failed_to("learn what the node has from", &config.data_dir))?;
    let settings = Settings {
        name: config.node_name.clone(),
        data_dir: config.data_dir.clone(),
        log_dir: config.log_dir.clone(),
        log_limits: config.log_limits,
        restart_backoff: config.restart_backoff,
        unenforced_limits: config.unenforced_limits,
        capacity,
        reserve: config.reserve,
        usage_interval: config.usage_interval,
    };
    let archive = Arc::new(Archive::open(&config.data_dir, config.hold, Arc::clone(&probes)));
    let counts = (probes, Arc::clone(&archive) as Arc<dyn node::Keeper>);
    let shared = Shared::new(settings, images, sandboxes, hierarchy, network, counts, memory);
    Ok((Node::new(shared), archive))
}

/// How early the kernel may kill the daemon when the node has no memory left: as the kubelet, after
/// all pods, each of which gets a score of its own.
const OOM_SCORE_ADJ: &str = "-999";

/// Keeps workloads out of the daemon's memory and binary, makes room for many pods, and lets the
/// daemon outlive them when memory runs out.
fn harden() {
    // Not even a process with the same capabilities may trace it or open its /proc/PID/exe, unless
    // it may trace everything on the node.
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the daemon can be traced");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        tracing::debug!(%error, "the daemon keeps its oom_score_adj");
    }
    let files = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: files.maximum, maximum: files.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "open files stay limited");
    }
}

fn load_probes(config: &Config, hierarchy: &Hierarchy, network: &Network) -> Result<Probes, Error> {
    Ok(Probes::open(&probes::Settings {
        bpffs: &config.bpffs_dir,
        run: &config.run_dir,
        container_level: hierarchy.container_level(),
        pods: network.range(),
        log: config.probe_log,
        floor: config.probe_floor,
        runqueue: config.probe_runqueue,
        budget: config.probe_budget,
        timing: config.probe_timing,
    })?)
}

/// Kernels before 5.11 charge eBPF maps, and what is attached, to the limit of locked memory: the daemon
/// goes without. Returns the limit that was, for what the daemon starts.
fn lift_locked_memory() -> Rlimit {
    let before = rustix::process::getrlimit(Resource::Memlock);
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(error) = rustix::process::setrlimit(Resource::Memlock, unlimited) {
        tracing::debug!(%error, "locked memory stays limited");
    }
    before
}

/// Makes room on the disk with the images, now and then.
async fn collect_images(config: Config, node: Node) {
    loop {
        tokio::time::sleep(config.image_gc_interval).await;
        let (node, place) = (node.clone(), config.data_dir.clone());
        let thresholds = config.image_thresholds;
        let collected = tokio::task::spawn_blocking(move || {
            let usage = Usage::of(&place).map_err(failed_to("measure the disk of", &place))?;
            node.images().collect(usage, thresholds, &node.images_in_use()).map_err(Error::Images)
        });
        if let Ok(Err(error)) = collected.await {
            tracing::error!(error = &error as &dyn std::error::Error, "no room is made for images");
        }
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed_to("make", path))
}

/// One daemon per run directory; the kernel lets go of the lock however the daemon ends.
fn lock(run_dir: &Path) -> Result<File, Error> {
    let path = run_dir.join("lock");
    let file = File::create(&path).map_err(failed_to("create", &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A process that a killed daemon was about to start holds the lock until its exec.
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => return Err(Error::Running(run_dir.to_path_buf())),
            Err(TryLockError::Error(source)) => return Err(failed_to("lock", &path)(source)),
        }
    }
}

fn listen(socket: &Path) -> Result<UnixListener, Error> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed_to("remove the old socket", socket)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed_to("listen on", socket))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))
        .map_err(failed_to("set the mode of", socket))?;
    if let Some(group) = fs::read_to_string("/etc/group").ok().and_then(|text| group_id(&text)) {
        std::os::unix::fs::chown(socket, None, Some(group))
            .map_err(failed_to("set the group of", socket))?;
    }
    Ok(listener)
}

/// The id of the API's group. Read from the file: the C library's look-up loads plug-ins, which a
/// statically linked program cannot.
fn group_id(groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == GROUP).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// Removes what earlier daemons have left of pods other than `living`: half made, or half removed.
fn sweep(
    config: &Config,
    hierarchy: &Hierarchy,
    node: &Node,
    living: &[String],
) -> Result<(), Error> {
    let living: Vec<&str> = living.iter().map(String::as_str).collect();
    let is_left = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Directories of logs end in the uid.
        !living.iter().any(|uid| name.ends_with(uid))
    };
    let mut left = 0;
    for path in cgroup::children(hierarchy.root()).iter().filter(|path| is_left(path)) {
        cgroup::kill_all(path, PATIENCE)?;
        cgroup::remove_tree(path)?;
        left += 1;
    }
    left += node.sweep(&living)?;
    for directory in [config.data_dir.join("pods"), config.log_dir.clone()] {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if is_left(&entry.path()) && looks_ours(&entry.file_name().to_string_lossy()) {
                remove(&entry.path());
                left += 1;
            }
        }
    }
    if left > 0 {
        tracing::warn!(left, "removed what an earlier daemon had half made or half removed");
    }
    Ok(())
}

/// Whether a file is named after a pod: other agents may keep logs beside these.
fn looks_ours(name: &str) -> bool {
    name.rsplit('_').next().is_some_and(|uid| uuid::Uuid::parse_str(uid).is_ok())
}

fn remove(path: &Path) {
    if let Err(error) = remove_all(path) {
        tracing::warn!(path = %path.display(), %error, "left-over files stay");
    }
}

fn failed_to(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_the_socket_is_found_by_name() {
        assert_eq!(group_id("root:x:0:\npodscope:x:990:alice\n"), Some(990));
        assert_eq!(group_id("root:x:0:\npodscopes:x:990:\n"), None);
    }
}
