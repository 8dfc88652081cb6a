//! One container of a pod: its runs, their ends, and the commands in it.

use std::{fs, io, os::fd::AsFd as _, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container as Spec;
use tokio::{net::unix::pipe, sync::oneshot, task::JoinHandle};

use super::{
    About,
    backoff::Backoff,
    blocking, chain, command,
    ground::{Ground, Place},
    identity, logs, resources,
    sandbox::{self, Sandbox},
    volumes,
};
use crate::{
    image::{Image, Reference},
    node::{ContainerSnapshot, Error, Exec, Exit, Shared, State},
    pidfd::Pidfd,
    sandbox::{Command, ContainerSpec, Process, Rootfs, Stdio},
};

/// Exit code of a run whose program could not be started, as containerd reports it.
const NOT_STARTED: i32 = 128;

/// How long the last output may take to arrive after a container's last process has ended.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// A container and what has become of it.
pub(super) struct Container {
    index: usize,
    pub(super) spec: Spec,
    pub(super) state: State,
    pub(super) last_exit: Option<Exit>,
    pub(super) restarts: u32,
    pub(super) image_id: String,
    pub(super) container_id: String,
    /// Runs so far, whether their program was started or not.
    runs: u32,
    backoff: Backoff,
    image: Option<Arc<Image>>,
    running: Option<Arc<Process>>,
    /// The command of the current run; commands in the container share its settings.
    command: Option<Command>,
}

/// A run that is over, or that never began.
#[derive(Debug)]
pub(super) struct Ended {
    code: i32,
    signal: Option<i32>,
    finished: Timestamp,
    out_of_memory: bool,
    failure: Option<Failure>,
}

/// Why a run did not begin.
#[derive(Debug)]
struct Failure {
    reason: &'static str,
    message: String,
    /// The image is not there: a matter of waiting, not of the restart policy.
    image: bool,
}

/// A run that began, to be waited for.
pub(super) struct Run {
    ground: Arc<Ground>,
    index: usize,
    pidfd: Pidfd,
    logs: JoinHandle<()>,
    oom_kills: u64,
}

/// What starting a run leaves for later ones.
struct Started {
    image: Arc<Image>,
    command: Command,
    process: Process,
    logs: JoinHandle<()>,
    oom_kills: u64,
}

impl Container {
    pub(super) fn new(index: usize, spec: Spec, backoff: Duration) -> Self {
        let state =
            State::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() };
        Self {
            index,
            spec,
            state,
            last_exit: None,
            restarts: 0,
            image_id: String::new(),
            container_id: String::new(),
            runs: 0,
            backoff: Backoff::new(backoff),
            image: None,
            running: None,
            command: None,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether the container is to be started.
    pub(super) fn is_due(&self) -> bool {
        self.running.is_none() && matches!(self.state, State::Waiting { .. })
    }

    pub(super) fn wait(&mut self, reason: &str, message: &str) {
        self.state = State::Waiting { reason: reason.to_owned(), message: message.to_owned() };
    }

    /// Lets the container run in a new sandbox, unless it has ended for good.
    pub(super) fn retry_now(&mut self) {
        if matches!(self.state, State::Waiting { .. }) {
            self.wait("ContainerCreating", "");
        }
    }

    /// Starts the next run.
    pub(super) async fn start(
        &mut self,
        shared: Arc<Shared>,
        about: Arc<About>,
        sandbox: Arc<Sandbox>,
    ) -> Result<Run, Ended> {
        let (index, spec, run) = (self.index, self.spec.clone(), self.runs);
        let image = self.image.clone();
        let runtime = tokio::runtime::Handle::current();
        let ground = Arc::clone(&sandbox.ground);
        let started = blocking(move || {
            let _context = runtime.enter();
            start(&shared, &about, &sandbox, index, &spec, run, image)
        });
        let started = started.await.unwrap_or_else(|| Err(Failure::internal("the start panicked")));
        let Started { image, command, process, logs, oom_kills } = match started {
            Ok(started) => started,
            Err(failure) => return Err(Ended::failed(failure)),
        };
        let pidfd = match Pidfd::new(&process.pidfd) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                process.abandon();
                return Err(Ended::failed(Failure::internal(&error.to_string())));
            }
        };
        self.restarts = self.runs;
        self.runs += 1;
        self.image_id.clone_from(&image.id);
        self.image = Some(image);
        self.container_id = format!("podscope://{}", uuid::Uuid::new_v4().simple());
        self.command = Some(command);
        self.running = Some(Arc::new(process));
        self.state = State::Running { started: Timestamp::now() };
        Ok(Run { ground, index, pidfd, logs, oom_kills })
    }

    /// Takes note of the end of a run; returns the pause before the next one, if there is to be one.
    pub(super) fn finish(&mut self, ended: Ended, policy: &str) -> Option<Duration> {
        self.running = None;
        let started = match self.state {
            State::Running { started } => started,
            _ => ended.finished,
        };
        let ran = ended.finished.duration_since(started);
        let pause = self.backoff.pause(Duration::try_from(ran).unwrap_or_default());
        if let Some(failure) = &ended.failure
            && failure.image
        {
            let pause = pause.max(super::RETRY);
            self.wait(failure.reason, &failure.message);
            return Some(pause);
        }
        if ended.failure.is_some() {
            self.runs += 1;
            self.restarts = self.runs - 1;
        }
        let exit = ended.into_exit(started);
        let again = match policy {
            "Always" => true,
            "OnFailure" => exit.code != 0,
            _ => false,
        };
        let message = format!(
            "back-off {}s restarting failed container={}",
            pause.as_secs_f64(),
            self.spec.name
        );
        self.last_exit = Some(exit.clone());
        if again {
            self.wait("CrashLoopBackOff", &message);
            Some(pause)
        } else {
            self.state = State::Terminated(exit);
            None
        }
    }

    /// Asks the container's program to leave.
    pub(super) fn signal_stop(&self) {
        let Some(process) = &self.running else { return };
        let wanted = self.image.as_ref().and_then(|image| image.config.stop_signal.as_deref());
        let signal = wanted.and_then(command::signal_number).unwrap_or(libc::SIGTERM);
        // It may have ended just now.
        process.signal(signal).ok();
    }

    pub(super) fn snapshot(&self, place: Option<&Place>) -> ContainerSnapshot {
        ContainerSnapshot {
            name: self.spec.name.clone(),
            image: self.spec.image.clone().unwrap_or_default(),
            image_id: self.image_id.clone(),
            container_id: self.container_id.clone(),
            state: self.state.clone(),
            last_exit: self.last_exit.clone(),
            restarts: self.restarts,
            slot: place.map_or(pod_ebpf::NO_SLOT, |place| place.probe.slot()),
            cgroup: place.map(|place| place.cgroup.path().to_path_buf()),
            volumes: place.map(|place| place.probe.volumes()).unwrap_or_default(),
            limits: place
                .map(|place| place.limits)
                .or_else(|| resources::limits(&self.spec).ok())
                .unwrap_or_default(),
            requests: place.map(|place| place.requests).unwrap_or_default(),
        }
    }

    /// Runs a command in the container, and answers when it has been started.
    pub(super) fn exec(
        &self,
        shared: &Arc<Shared>,
        sandbox: &Arc<Sandbox>,
        arguments: Vec<String>,
        stdin: bool,
        reply: oneshot::Sender<Result<Exec, Error>>,
    ) {
        let (Some(process), Some(command)) = (self.running.clone(), self.command.clone()) else {
            reply.send(Err(not_running(&self.spec.name))).ok();
            return;
        };
        let (shared, sandbox, index) = (Arc::clone(shared), Arc::clone(sandbox), self.index);
        let name = self.spec.name.clone();
        let runtime = tokio::runtime::Handle::current();
        tokio::spawn(async move {
            let command = Command { arguments, ..command };
            let started = blocking(move || {
                let _context = runtime.enter();
                exec(&shared, &sandbox, index, &process, &command, stdin)
            });
            let result = match started.await {
                Some(Ok(exec)) => Ok(exec),
                Some(Err(error)) => Err(Error::Conflict {
                    message: format!("cannot run the command in container {name:?}: {error}"),
                }),
                None => {
                    Err(Error::Internal { message: "starting the command panicked".to_owned() })
                }
            };
            // The client may have gone; dropping the exec ends the command.
            drop(reply.send(result));
        });
    }
}

impl Run {
    /// Waits until every process of the run has ended and its output is on disk.
    pub(super) async fn ended(self) -> Ended {
        let Self { ground, index, pidfd, mut logs, oom_kills } = self;
        let status = pidfd.wait().await;
        let finished = Timestamp::now();
        let ground_for_kill = Arc::clone(&ground);
        let oom_kills_now = blocking(move || {
            // With a shared PID namespace, or in an exec, processes outlive the first one.
            ground_for_kill.kill_container(index);
            ground_for_kill.place(index).cgroup.oom_kills()
        });
        let out_of_memory = oom_kills_now.await.unwrap_or(oom_kills) > oom_kills;
        if tokio::time::timeout(LAST_OUTPUT, &mut logs).await.is_err() {
            // Somebody outside the container holds the other end.
            logs.abort();
        }
        let (code, signal) = status.unwrap_or_else(|error| {
            tracing::error!(%error, "the exit code of a container is not known");
            (255, None)
        });
        Ended { code, signal, finished, out_of_memory, failure: None }
    }
}

impl Ended {
    fn failed(failure: Failure) -> Self {
        Self {
            code: NOT_STARTED,
            signal: None,
            finished: Timestamp::now(),
            out_of_memory: false,
            failure: Some(failure),
        }
    }

    fn into_exit(self, started: Timestamp) -> Exit {
        let (reason, message) = match self.failure {
            Some(failure) => (failure.reason, failure.message),
            None if self.out_of_memory => ("OOMKilled", String::new()),
            None if self.code == 0 => ("Completed", String::new()),
            None => ("Error", String::new()),
        };
        Exit {
            code: self.code,
            signal: self.signal,
            reason: reason.to_owned(),
            message,
            started,
            finished: self.finished,
        }
    }
}

impl Failure {
    fn new(reason: &'static str, error: &dyn std::error::Error) -> Self {
        Self { reason, message: chain(error), image: false }
    }

    fn internal(message: &str) -> Self {
        Self { reason: "StartError", message: message.to_owned(), image: false }
    }
}

/// Starts a run; blocks.
fn start(
    shared: &Shared,
    about: &About,
    sandbox: &Sandbox,
    index: usize,
    spec: &Spec,
    run: u32,
    image: Option<Arc<Image>>,
) -> Result<Started, Failure> {
    let place = sandbox.ground.place(index);
    let image = match image {
        Some(image) => image,
        None => Arc::new(prepare_image(shared, spec)?),
    };
    let identity =
        identity::resolve(image.config.user.as_deref().unwrap_or_default(), &image.layers)
            .map_err(|error| Failure::new("CreateContainerConfigError", &error))?;
    let host_network = about.spec.host_network.unwrap_or(false);
    let hostname = volumes::hostname(about, host_network);
    let command = command::of(spec, &image, identity, &hostname)
        .map_err(|error| Failure::new("CreateContainerConfigError", &error))?;
    let failed = |error: &io::Error| Failure::new("CreateContainerError", error);
    let containers = sandbox::directory(shared, about).join("containers").join(&spec.name);
    let scratch = containers.join(run.to_string());
    for name in ["upper", "work"] {
        fs::create_dir_all(scratch.join(name)).map_err(|error| failed(&error))?;
    }
    let (output, output_writer) = crate::sandbox::pipe().map_err(|error| failed(&error))?;
    let (errors, error_writer) = crate::sandbox::pipe().map_err(|error| failed(&error))?;
    let directory = logs::directory(&shared.log_dir, &about.key, &about.uid).join(&spec.name);
    let logs = logs::copy(&directory, run, output, errors).map_err(|error| failed(&error))?;
    let stdio = Stdio { input: None, output: Some(output_writer), error: Some(error_writer) };

    let infra = sandbox.infra().ok_or_else(|| Failure::internal("the pod's sandbox is gone"))?;
    let oom_kills = place.cgroup.oom_kills();
    let rootfs = Rootfs { layers: image.layers.clone(), scratch };
    let binds = sandbox.volumes.binds(spec);
    let announce = |mounts: &[(usize, u32)]| {
        if let Err(error) = place.probe.set_mounts(mounts) {
            tracing::error!(error = chain(&error), "file operations count as `other`");
        }
    };
    let container = ContainerSpec {
        rootfs: &rootfs,
        binds: &binds,
        command: &command,
        stdio: &stdio,
        announce: &announce,
    };
    match shared.sandboxes.start_container(&infra, place.cgroup.as_fd(), &container) {
        Ok(process) => {
            // Not before the start: a restart should not wait for the disk.
            tokio::task::spawn_blocking(move || remove_earlier_runs(&containers, run));
            Ok(Started { image, command, process, logs, oom_kills })
        }
        Err(error) => {
            let message = command::explain(&command, &error);
            Err(Failure { reason: "StartError", message, image: false })
        }
    }
}

fn prepare_image(shared: &Shared, spec: &Spec) -> Result<Image, Failure> {
    let reference: Reference = spec.image.as_deref().unwrap_or_default().parse().map_err(
        |error: crate::image::Error| Failure {
            image: true,
            ..Failure::new("InvalidImageName", &error)
        },
    )?;
    shared
        .images
        .prepare(&reference)
        .map_err(|error| Failure { image: true, ..Failure::new("ErrImagePull", &error) })
}

/// Starts a command in a running container; blocks.
fn exec(
    shared: &Shared,
    sandbox: &Sandbox,
    index: usize,
    container: &Process,
    command: &Command,
    stdin: bool,
) -> Result<Exec, String> {
    let text = |error: io::Error| error.to_string();
    let cgroup = sandbox.ground.place(index).cgroup.as_fd();
    let (output, output_writer) = crate::sandbox::pipe().map_err(text)?;
    let (errors, error_writer) = crate::sandbox::pipe().map_err(text)?;
    let (input, input_writer) = if stdin {
        crate::sandbox::pipe().map(|(r, w)| (Some(r), Some(w))).map_err(text)?
    } else {
        (None, None)
    };
    let stdio = Stdio { input, output: Some(output_writer), error: Some(error_writer) };
    let process = shared
        .sandboxes
        .exec(container, cgroup, command, &stdio)
        .map_err(|error| command::explain(command, &error))?;
    drop(stdio);
    let pidfd = Pidfd::new(&process.pidfd).inspect_err(|_error| process.abandon()).map_err(text)?;
    let (report, status) = oneshot::channel();
    let (alive, gone) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let code = tokio::select! {
            status = pidfd.wait() => status,
            // The client has dropped its end.
            _ = gone => {
                process.signal(libc::SIGKILL).ok();
                pidfd.wait().await
            }
        };
        report.send(code.map_or(255, |(code, _)| code)).ok();
    });
    Ok(Exec {
        stdin: input_writer.map(pipe::Sender::from_owned_fd).transpose().map_err(text)?,
        stdout: pipe::Receiver::from_owned_fd(output).map_err(text)?,
        stderr: pipe::Receiver::from_owned_fd(errors).map_err(text)?,
        status,
        _alive: alive,
    })
}

/// The answer to a command for a container that does not run.
pub(super) fn not_running(container: &str) -> Error {
    Error::Conflict { message: format!("container {container:?} is not running") }
}

/// Removes what earlier runs of a container changed, which no later run sees. A later run may
/// have begun already.
fn remove_earlier_runs(containers: &Path, run: u32) {
    for entry in fs::read_dir(containers).into_iter().flatten().flatten() {
        let is_earlier = |name: &str| name.parse::<u32>().is_ok_and(|number| number < run);
        if entry.file_name().to_str().is_some_and(is_earlier)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            // The pod's removal takes what is left.
            tracing::debug!(path = %entry.path().display(), %error, "files of an earlier run stay");
        }
    }
}
