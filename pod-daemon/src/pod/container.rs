//! One container of a pod: its runs, their ends, and the commands in it.

mod ended;
mod start;

use std::{io, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container as Spec;
use pod_ebpf::process::RunState;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

pub(super) use self::ended::Ended;
use self::{
    ended::Failure,
    start::{exec, resolve, start},
};
use super::{
    About,
    backoff::Backoff,
    blocking, command, environment,
    ground::{self, Ground, Place},
    image,
    logs::{self, Copy},
    oom,
    pull_secrets::pull_secrets,
    record::{ContainerRecord, ProcessRecord, RunRecord},
    resources,
    sandbox::Sandbox,
};
use crate::{
    cgroup,
    image::Image,
    node::{ContainerSnapshot, Error, Exec, Exit, Shared, State},
    pidfd::Pidfd,
    sandbox::{Command, Process},
};

/// A container and what has become of it.
pub(super) struct Container {
    about: Arc<About>,
    index: usize,
    pub(super) state: State,
    pub(super) last_exit: Option<Exit>,
    pub(super) restarts: u32,
    pub(super) image_id: String,
    pub(super) container_id: String,
    /// Runs that ended for want of memory: the container's, the pod's, or the node's.
    ooms: [u64; oom::LIMITS],
    /// Runs so far, whether their program was started or not.
    runs: u32,
    backoff: Backoff,
    /// When the pause before the next start is over.
    due: Option<Due>,
    image: Option<Arc<Image>>,
    /// The run that is being started or runs.
    run: Option<RunRecord>,
    running: Option<Arc<Process>>,
    /// The command of the current run; commands in the container share its settings. `None` if an
    /// earlier daemon has started it.
    command: Option<Command>,
}

/// When something is due.
#[derive(Clone, Copy, Debug)]
struct Due {
    /// For who reads it later.
    at: Timestamp,
    /// By a clock that nobody sets.
    instant: Instant,
}

impl Due {
    fn after(pause: Duration) -> Option<Self> {
        let at = Timestamp::now().checked_add(pause).ok()?;
        Some(Self { at, instant: Instant::now() + pause })
    }

    /// At a time that was noted before, by a clock that may have been set since: within `most` from now.
    fn noted(at: Timestamp, most: Duration) -> Option<Self> {
        let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
        Self::after(left.min(most))
    }
}

/// A run that began, to be waited for.
pub(super) struct Run {
    ground: Arc<Ground>,
    index: usize,
    record: RunRecord,
    /// `None` if it has ended while there was no daemon.
    pidfd: Option<Pidfd>,
    output: Copy,
}

/// A run that has just been started.
#[derive(Debug)]
pub(super) struct Started {
    image: Arc<Image>,
    command: Command,
    process: Process,
    output: Copy,
}

impl Container {
    pub(super) fn new(about: Arc<About>, index: usize, backoff: Duration) -> Self {
        let state =
            State::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() };
        Self {
            about,
            index,
            state,
            last_exit: None,
            restarts: 0,
            image_id: String::new(),
            container_id: String::new(),
            ooms: [0; oom::LIMITS],
            runs: 0,
            backoff: Backoff::new(backoff),
            due: None,
            image: None,
            run: None,
            running: None,
            command: None,
        }
    }

    /// As an earlier daemon left it.
    pub(super) fn adopt(self, record: ContainerRecord, base: Duration) -> Self {
        let backoff = Backoff::resume(base, Duration::from_millis(record.backoff_ms));
        Self {
            state: record.state,
            last_exit: record.last_exit,
            restarts: record.restarts,
            ooms: record.ooms,
            runs: record.runs,
            image_id: record.image_id,
            container_id: record.container_id,
            due: record.due.and_then(|at| Due::noted(at, backoff.longest())),
            backoff,
            run: record.run,
            ..self
        }
    }

    /// What a later daemon needs to go on.
    pub(super) fn record(&self) -> ContainerRecord {
        ContainerRecord {
            state: self.state.clone(),
            last_exit: self.last_exit.clone(),
            restarts: self.restarts,
            ooms: self.ooms,
            runs: self.runs,
            image_id: self.image_id.clone(),
            container_id: self.container_id.clone(),
            backoff_ms: u64::try_from(self.backoff.next().as_millis()).unwrap_or(u64::MAX),
            due: self.due.map(|due| due.at),
            run: self.run.clone(),
        }
    }

    /// What the manifest says of it.
    pub(super) fn spec(&self) -> &Spec {
        &self.about.spec.containers[self.index]
    }

    /// Whether it runs or is being started.
    pub(super) fn is_busy(&self) -> bool {
        self.run.is_some()
    }

    /// Whether the container is to be started, now or when its pause is over.
    pub(super) fn is_due(&self) -> bool {
        self.run.is_none() && matches!(self.state, State::Waiting { .. })
    }

    /// What is left of the pause before the next start.
    pub(super) fn pause(&self) -> Duration {
        let left = self.due.map(|due| due.instant.saturating_duration_since(Instant::now()));
        left.unwrap_or_default()
    }

    /// Whether it waits for that already.
    pub(super) fn waits_for(&self, reason: &str, message: &str) -> bool {
        matches!(&self.state, State::Waiting { reason: known, message: text } if known == reason && text == message)
    }

    pub(super) fn wait(&mut self, reason: &str, message: &str) {
        self.state = State::Waiting { reason: reason.to_owned(), message: message.to_owned() };
    }

    /// Lets the container run in a new sandbox, unless it has ended for good.
    pub(super) fn retry_now(&mut self) {
        if matches!(self.state, State::Waiting { .. }) {
            self.wait("ContainerCreating", "");
            self.due = None;
        }
    }

    /// Begins the next run: takes note of it, and returns what starts it.
    pub(super) fn begin(
        &mut self,
        shared: Arc<Shared>,
        sandbox: Arc<Sandbox>,
        cancelled: CancellationToken,
    ) -> impl Future<Output = Result<Started, Ended>> + use<> {
        let (about, index) = (Arc::clone(&self.about), self.index);
        let kept = self.image.clone().filter(|_| image::is_kept(self.spec()));
        let run = self.runs;
        let oom = oom::Watch::begin(&sandbox.ground, index);
        self.run = Some(RunRecord { number: run, oom, process: None });
        self.due = None;
        async move {
            let image = match kept {
                Some(image) => image,
                None => {
                    let secrets = pull_secrets(&shared, &about);
                    let spec = &about.spec.containers[index];
                    let prepared = image::prepare(&shared, spec, &secrets);
                    match cancelled.run_until_cancelled(prepared).await {
                        Some(Ok(image)) => image,
                        Some(Err(error)) => return Err(Ended::failed(Failure::image(error))),
                        None => return Err(Ended::failed(Failure::internal("the pod is deleted"))),
                    }
                }
            };
            let runtime = tokio::runtime::Handle::current();
            let started = blocking(move || {
                let _context = runtime.enter();
                start(&shared, &about, &sandbox, index, run, image)
            });
            let started =
                started.await.unwrap_or_else(|| Err(Failure::internal("the start panicked")));
            started.map_err(Ended::failed)
        }
    }

    /// Takes note that the run has begun; returns what waits for its end.
    pub(super) fn began(&mut self, ground: Arc<Ground>, started: Started) -> Result<Run, Ended> {
        let Started { image, command, process, output } = started;
        let pidfd = match Pidfd::new(&process.pidfd) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                process.abandon();
                return Err(Ended::failed(Failure::internal(&error.to_string())));
            }
        };
        let number = self.runs;
        let oom = self.run.take().map(|run| run.oom).unwrap_or_default();
        let oom = oom.of(command.arguments.first().map_or("", String::as_str));
        let record = RunRecord { number, oom, process: ProcessRecord::of(process.pid) };
        self.restarts = self.runs;
        self.runs = self.runs.saturating_add(1);
        self.image_id.clone_from(&image.id);
        self.image = Some(image);
        self.container_id = format!("podscope://{}", uuid::Uuid::new_v4().simple());
        self.command = Some(command);
        self.run = Some(record.clone());
        self.running = Some(Arc::new(process));
        self.state = State::Running { started: Timestamp::now() };
        Ok(Run { ground, index: self.index, record, pidfd: Some(pidfd), output })
    }

    /// Goes on with a run that an earlier daemon has begun: returns what waits for its end, or has
    /// found it. `None` if there was no run, or none that really began.
    pub(super) fn resume(&mut self, shared: &Shared, sandbox: &Sandbox) -> Option<io::Result<Run>> {
        let place = sandbox.ground.place(self.index);
        let mut record = self.run.clone()?;
        if record.process.is_none() {
            // The daemon was killed while it started this run.
            let seen = place.probe.run();
            let oldest = cgroup::processes(place.cgroup.path())
                .into_iter()
                .min_by_key(|pid| crate::sandbox::start_time(*pid).unwrap_or(u64::MAX));
            let began = seen.number == record.number && seen.state >= RunState::Running as u32;
            if oldest.is_none() && !began {
                self.run = None;
                return None;
            }
            record.process = oldest.and_then(ProcessRecord::of);
            self.restarts = self.runs;
            self.runs = self.runs.saturating_add(1);
            self.container_id = format!("podscope://{}", uuid::Uuid::new_v4().simple());
            self.state = State::Running { started: Timestamp::now() };
        }
        let process = record
            .process
            .and_then(|process| Process::adopt(process.pid(), process.start()).ok().flatten());
        self.run = Some(record.clone());
        let resume = || {
            let pidfd = process.as_ref().map(|process| Pidfd::new(&process.pidfd)).transpose()?;
            let about = &self.about;
            let directory = logs::directory(&shared.settings.log_dir, &about.key, &about.uid);
            let output = sandbox.output(self.index).copy(
                &directory.join(&self.spec().name),
                record.number,
                shared.settings.log_limits,
            )?;
            let ground = Arc::clone(&sandbox.ground);
            Ok(Run { ground, index: self.index, record, pidfd, output })
        };
        let run = resume();
        self.running = process.map(Arc::new);
        Some(run)
    }

    /// A run of an earlier daemon has ended in a way that nobody has seen.
    pub(super) fn lost(&mut self) -> Option<Ended> {
        let record = self.run.as_ref()?;
        if record.process.is_none() {
            // Perhaps it never began; it begins now.
            self.run = None;
            return None;
        }
        Some(Ended::unknown())
    }

    /// Takes note of the end of a run; returns the pause before the next one, if there is to be one.
    pub(super) fn finish(&mut self, ended: Ended, policy: &str) -> Option<Duration> {
        if let Some(process) = self.running.take() {
            // Its mounts go with it, which takes a while.
            tokio::task::spawn_blocking(move || drop(process));
        }
        self.run = None;
        let started = match self.state {
            State::Running { started } => started,
            _ => ended.finished,
        };
        let ran = ended.finished.duration_since(started);
        if let Some(failure) = &ended.failure
            && failure.image
        {
            // The image has a back-off of its own.
            self.wait(failure.reason, &failure.message);
            return Some(self.set_due(super::RETRY));
        }
        let pause = self.backoff.pause(Duration::try_from(ran).unwrap_or_default());
        if ended.failure.is_some() {
            self.runs = self.runs.saturating_add(1);
            self.restarts = self.runs.saturating_sub(1);
        }
        if let Some(oom) = &ended.oom {
            self.ooms[oom.limit as usize] += 1;
        }
        let exit = ended.into_exit(started);
        let again = match policy {
            "Always" => true,
            "OnFailure" => exit.code != 0,
            _ => false,
        };
        self.last_exit = Some(exit.clone());
        if !again {
            self.state = State::Terminated(exit);
            return None;
        }
        if pause.is_zero() {
            self.wait("ContainerCreating", "");
        } else {
            let (seconds, name) = (pause.as_secs_f64(), &self.spec().name);
            let message = format!("back-off {seconds}s restarting failed container={name}");
            self.wait("CrashLoopBackOff", &message);
        }
        Some(self.set_due(pause))
    }

    fn set_due(&mut self, pause: Duration) -> Duration {
        self.due = Due::after(pause);
        pause
    }

    /// Asks the container's program to leave.
    pub(super) fn signal_stop(&mut self, shared: &Shared) {
        let Some(process) = self.running.clone() else { return };
        if self.image.is_none() {
            // An earlier daemon has started it; without its image, it is as if that said nothing.
            self.image = image::again(shared, self.spec(), &self.image_id).ok().map(Arc::new);
        }
        let wanted = self.image.as_ref().and_then(|image| image.config.stop_signal.as_deref());
        let signal = wanted.and_then(command::signal_number).unwrap_or(libc::SIGTERM);
        // It may have ended just now.
        process.signal(signal).ok();
    }

    pub(super) fn snapshot(&self, place: Option<&Place>) -> ContainerSnapshot {
        ContainerSnapshot {
            name: self.spec().name.clone(),
            image: self.spec().image.clone().unwrap_or_default(),
            image_id: self.image_id.clone(),
            container_id: self.container_id.clone(),
            state: self.state.clone(),
            last_exit: self.last_exit.clone(),
            restarts: self.restarts,
            slot: place.map_or(pod_ebpf::NO_SLOT, |place| place.probe.slot()),
            cgroup: place.map(|place| Arc::clone(&place.cgroup)),
            volumes: place.map(|place| place.probe.volumes()).unwrap_or_default(),
            volume_count: ground::volume_count(self.spec()),
            limits: place
                .map(|place| place.limits)
                .unwrap_or_else(|| resources::limits(self.spec())),
            requests: place
                .map(|place| place.requests)
                .unwrap_or_else(|| resources::requests(self.spec())),
            ooms: self.ooms,
            traceparent: environment::traceparent(self.spec()),
        }
    }

    /// Runs a command in the container, and answers when it has been started.
    pub(super) fn exec(
        &self,
        (shared, sandbox): (&Arc<Shared>, &Arc<Sandbox>),
        arguments: Vec<String>,
        stdin: bool,
        reply: oneshot::Sender<Result<Exec, Error>>,
    ) {
        let Some(process) = self.running.clone() else {
            reply.send(Err(not_running(&self.spec().name))).ok();
            return;
        };
        let (shared, sandbox) = (Arc::clone(shared), Arc::clone(sandbox));
        let (about, index) = (Arc::clone(&self.about), self.index);
        let (command, image_id) = (self.command.clone(), self.image_id.clone());
        let name = self.spec().name.clone();
        let runtime = tokio::runtime::Handle::current();
        tokio::spawn(async move {
            let started = blocking(move || {
                let _context = runtime.enter();
                let own = match command {
                    Some(command) => command,
                    None => image::again(&shared, &about.spec.containers[index], &image_id)
                        .map_err(Failure::image)
                        .and_then(|image| resolve(&shared, &about, &sandbox, index, &image))
                        .map(|(command, _)| command)
                        .map_err(|failure| failure.message)?,
                };
                let command = Command { arguments, ..own };
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
        let Self { ground, index, record, pidfd, output } = self;
        let status = match pidfd {
            Some(pidfd) => pidfd.wait().await.unwrap_or_else(|error| {
                tracing::error!(%error, "a container cannot be waited for");
                None
            }),
            None => None,
        };
        let finished = Timestamp::now();
        let ended = blocking(move || {
            // With a shared PID namespace, or in an exec, processes outlive the first one.
            ground.kill_container(index);
            let seen = ground.place(index).probe.run();
            let ended = match status {
                Some((code, signal)) => {
                    Ended { code, signal, finished, ..Ended::unknown() }.known()
                }
                // Not this daemon's child: the probes have seen its end.
                None if seen.number == record.number && seen.state == RunState::Ended as u32 => {
                    Ended::seen(&seen)
                }
                None => Ended::unknown(),
            };
            let pid = record.process.map(|process| process.pid().as_raw());
            let main = oom::Main { run: record.number, pid, signal: ended.signal };
            Ended { oom: record.oom.end(&ground, index, main), ..ended }
        });
        let ended = ended.await.unwrap_or_else(Ended::unknown);
        output.finish().await;
        ended
    }
}

/// The answer to a command for a container that does not run.
pub(super) fn not_running(container: &str) -> Error {
    Error::Conflict { message: format!("container {container:?} is not running") }
}
