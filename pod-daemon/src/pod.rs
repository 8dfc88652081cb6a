//! One pod's life: admitted, started, kept as its restart policy says, and removed without a trace.
//!
//! Each pod has a worker task that owns everything the pod is made of, and is the only place that
//! orders cgroups, probes, network, sandbox and containers. What blocks runs on blocking threads.

mod admission;
mod adopt;
mod backoff;
mod beginning;
mod command;
mod container;
mod ending;
mod environment;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod ground;
mod identity;
mod image;
mod key;
pub mod logs;
mod oom;
mod ownership;
mod publish;
mod pull_secrets;
pub mod record;
mod resources;
mod sandbox;
mod security;
mod status;
mod volumes;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub(crate) use self::environment::TRACEPARENT;
pub use self::{
    admission::Disruption,
    adopt::Adopted,
    ground::INFRA,
    key::Key,
    resources::{io_limits, unenforceable},
    status::LimitMet,
};
use self::{
    container::{Container, Ended, Started},
    ground::Ground,
    record::Journal,
    sandbox::Sandbox,
};
use crate::node::{Error, Exec, Shared, State, Ticket};

/// Pause before what a pod waits for (a config map, an image) is looked for again.
const RETRY: Duration = Duration::from_secs(1);

/// What a worker is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Run a command in a container.
    Exec {
        /// The container.
        container: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Whether it gets a standard input.
        stdin: bool,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<Exec, Error>>,
    },
    /// Look again at what the volumes show of config maps and secrets.
    Refresh,
    /// Remove the pod.
    Delete {
        /// Seconds that its containers get; the manifest's own if `None`.
        grace_seconds: Option<u32>,
    },
    /// End the pod, or let it be known why it is about to end.
    Disrupt(Disruption),
    /// Let it be known that the pod was refused something.
    LimitMet(LimitMet),
}

/// What happens to a pod by itself. Small: a channel has room for 32 of them from the start.
#[derive(Debug)]
enum Happening {
    /// A container's next run has begun, or has not.
    Started(usize, Box<Result<Started, Ended>>),
    /// A container's first process has ended.
    Ended(usize, Box<Ended>),
    /// A container's pause before its next start is over.
    Due(usize),
    /// The infra process has ended.
    InfraEnded,
}

/// A pod and everything that it is made of.
pub struct Worker {
    shared: Arc<Shared>,
    about: Arc<About>,
    ground: Option<Arc<Ground>>,
    sandbox: Option<Arc<Sandbox>>,
    containers: Vec<Container>,
    started: Option<Timestamp>,
    /// Since when all that its containers do is counted.
    counted_from: Option<Timestamp>,
    /// By when it is to be gone, if an earlier daemon was asked to delete it.
    deletion: Option<Timestamp>,
    happenings: (mpsc::UnboundedSender<Happening>, mpsc::UnboundedReceiver<Happening>),
    /// Cancelled when the pod is to go: nobody waits for an image any more.
    stop: CancellationToken,
    /// Why the pod has no place on the node yet.
    unschedulable: Option<String>,
    /// Why the pod ends against its will.
    disruption: Option<Disruption>,
    /// The last limit that hindered it.
    limit: Option<LimitMet>,
    journal: Journal,
    /// The pod's place on the node. Declared last: others may have it when the rest is gone.
    ticket: Option<Ticket>,
}

/// What does not change in a pod's life.
#[derive(Debug)]
struct About {
    key: Key,
    uid: String,
    spec: Arc<PodSpec>,
    created: Timestamp,
}

impl About {
    fn restart_policy(&self) -> &str {
        self.spec.restart_policy.as_deref().unwrap_or("Always")
    }
}

impl Worker {
    /// A worker for a pod that nothing has been made of yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, key: Key, metadata: &ObjectMeta, spec: Arc<PodSpec>) -> Self {
        let created = metadata.creation_timestamp.as_ref();
        let created = created.map_or_else(Timestamp::now, |time| time.0);
        let uid = metadata.uid.clone().unwrap_or_default();
        let base = shared.settings.restart_backoff;
        let about = Arc::new(About { key, uid, spec, created });
        let containers = (0..about.spec.containers.len())
            .map(|index| Container::new(Arc::clone(&about), index, base))
            .collect();
        Self {
            shared,
            about,
            ground: None,
            sandbox: None,
            containers,
            started: None,
            counted_from: None,
            deletion: None,
            happenings: mpsc::unbounded_channel(),
            stop: CancellationToken::new(),
            unschedulable: None,
            disruption: None,
            limit: None,
            journal: Journal::default(),
            ticket: None,
        }
    }

    /// Lives the pod's life. Returns when the pod is gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Box<Command>>) {
        self.shared.chronicle.begin(&self.about.uid);
        let directory = sandbox::directory(&self.shared, &self.about);
        if let Err(error) = std::fs::create_dir_all(&directory) {
            tracing::error!(path = %directory.display(), %error, "the pod has no directory");
        }
        if self.ground.is_some() {
            // Taking it over may have changed what the next daemon has to know.
            self.record();
        }
        let grace = match self.deletion {
            Some(deadline) => until(deadline),
            None => match self.begin(&mut commands).await {
                Some(grace) => grace,
                None => self.live(&mut commands).await,
            },
        };
        self.stop_containers(grace, &mut commands).await;
        self.tear_down().await;
    }

    /// Keeps the pod as its restart policy says; returns the grace period when it is to go.
    async fn live(&mut self, commands: &mut mpsc::Receiver<Box<Command>>) -> Duration {
        loop {
            tokio::select! {
                command = commands.recv() => match command.map(|command| *command) {
                    Some(Command::Delete { grace_seconds }) => return self.grace(grace_seconds),
                    Some(Command::Exec { container, command, stdin, reply }) => {
                        self.exec(&container, command, stdin, reply);
                    }
                    Some(Command::Disrupt(why)) => self.disrupt(why).await,
                    Some(Command::Refresh) => self.refresh().await,
                    Some(Command::LimitMet(limit)) => {
                        self.limit = Some(limit);
                        self.publish();
                    }
                    None => return Duration::ZERO,
                },
                Some(happening) = self.happenings.1.recv() => match happening {
                    Happening::Started(index, result) => {
                        self.began(index, *result);
                        if self.is_evicted() {
                            self.kill_containers().await;
                        }
                        self.publish();
                    }
                    Happening::Ended(index, ended) => self.ended(index, *ended).await,
                    Happening::Due(index) => {
                        let container = &self.containers[index];
                        let is_due = container.is_due() && container.pause().is_zero();
                        if is_due && !self.is_evicted() {
                            self.start(index);
                        }
                    }
                    Happening::InfraEnded => {
                        if let Some(grace) = self.replace_sandbox(commands).await {
                            return grace;
                        }
                    }
                },
            }
        }
    }

    /// Brings the volumes that show config maps and secrets up to date.
    async fn refresh(&self) {
        let (shared, about) = (Arc::clone(&self.shared), Arc::clone(&self.about));
        blocking(move || volumes::refresh(&shared, &about)).await;
    }

    /// A container's run is over: start it again, now or later, or leave it.
    async fn ended(&mut self, index: usize, ended: Ended) {
        let policy = self.policy().to_owned();
        let pause = self.containers[index].finish(ended, &policy);
        match pause {
            Some(Duration::ZERO) => self.start(index),
            Some(pause) => self.schedule(index, pause),
            None => {}
        }
        self.publish();
        self.end_if_over().await;
    }

    async fn stop_sandbox(&self) {
        if let Some(sandbox) = self.sandbox.clone() {
            let last = self.snapshot();
            blocking(move || sandbox.stop(&last)).await;
        }
    }

    fn schedule(&self, index: usize, pause: Duration) {
        let happenings = self.happenings.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            // The worker may be gone by then.
            happenings.send(Happening::Due(index)).ok();
        });
    }

    /// Whether every container has ended for good.
    fn is_over(&self) -> bool {
        let busy = self.containers.iter().any(Container::is_busy);
        self.is_evicted() && !busy
            || self
                .containers
                .iter()
                .all(|container| matches!(container.state, State::Terminated(_)))
    }

    /// Begins a container's next run; the worker goes on meanwhile.
    fn start(&mut self, index: usize) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        let starting = self.containers[index].begin(shared, sandbox, stop);
        // Should the daemon be killed meanwhile, the next one looks for what has been started.
        self.record();
        let happenings = self.happenings.0.clone();
        tokio::spawn(async move {
            let result = starting.await;
            happenings.send(Happening::Started(index, Box::new(result))).ok();
        });
    }

    /// A container's run has begun, or has not.
    fn began(&mut self, index: usize, result: Result<Started, Ended>) {
        let Some(ground) = self.ground.clone() else { return };
        match result.and_then(|started| self.containers[index].began(ground, started)) {
            Ok(run) => self.watch_run(index, run),
            Err(ended) => {
                // The next step is that of any other end.
                self.happenings.0.send(Happening::Ended(index, Box::new(ended))).ok();
            }
        }
    }

    fn watch_run(&self, index: usize, run: container::Run) {
        let happenings = self.happenings.0.clone();
        tokio::spawn(async move {
            let ended = run.ended().await;
            happenings.send(Happening::Ended(index, Box::new(ended))).ok();
        });
    }

    fn exec(
        &self,
        container: &str,
        command: Vec<String>,
        stdin: bool,
        reply: oneshot::Sender<Result<Exec, Error>>,
    ) {
        let found = self.containers.iter().find(|candidate| candidate.spec().name == container);
        match (found, &self.sandbox) {
            (Some(container), Some(sandbox)) => {
                container.exec((&self.shared, sandbox), command, stdin, reply);
            }
            _ => drop(reply.send(Err(container::not_running(container)))),
        }
    }
}

/// What is left until `deadline`.
fn until(deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default()
}

/// Why a pod or container does not run yet.
#[derive(Clone, Debug)]
struct Waiting {
    /// As kubelet names it.
    reason: &'static str,
    /// For people.
    message: String,
}

impl Waiting {
    fn new(reason: &'static str, error: &dyn std::error::Error) -> Self {
        Self { reason, message: chain(error) }
    }

    fn internal(message: &str) -> Self {
        Self { reason: "FailedCreatePodSandBox", message: message.to_owned() }
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Runs what blocks on a thread that may; `None` if it panicked.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work)
        .await
        .inspect_err(|error| tracing::error!(%error, "a blocking operation panicked"))
        .ok()
}
