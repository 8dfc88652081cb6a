//! The beginning of a pod: its place, what it is made of, and its containers' first runs; and of
//! another one when its infra process is gone.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{
    Command, Happening, RETRY, Waiting, Worker, blocking,
    container::{self, Container},
    ground::Ground,
    sandbox::Sandbox,
};

impl Worker {
    /// Brings the pod to where its containers run, unless they have ended for good; returns the grace
    /// period if it is to be deleted meanwhile.
    pub(super) async fn begin(
        &mut self,
        commands: &mut mpsc::Receiver<Box<Command>>,
    ) -> Option<Duration> {
        if self.ticket.is_none()
            && let Some(grace) = self.admit(commands).await
        {
            return Some(grace);
        }
        if self.is_over() {
            self.end_if_over().await;
            return None;
        }
        if self.sandbox.is_none() {
            return self.set_up(commands).await;
        }
        self.start_due();
        None
    }

    /// Makes the sandbox and starts the containers; tries again until that works or the pod is to
    /// be deleted, in which case the grace period is returned.
    async fn set_up(&mut self, commands: &mut mpsc::Receiver<Box<Command>>) -> Option<Duration> {
        loop {
            if self.is_evicted() {
                return None;
            }
            match self.make_sandbox().await {
                Ok(sandbox) => {
                    self.watch_infra(&sandbox);
                    self.sandbox = Some(Arc::new(sandbox));
                    self.started.get_or_insert_with(Timestamp::now);
                    break;
                }
                Err(failure) => {
                    let is_new = |container: &Container| {
                        !container.waits_for(failure.reason, &failure.message)
                    };
                    if self.containers.iter().any(is_new) {
                        tracing::warn!(pod = %self.about.key, reason = failure.reason, message = %failure.message, "pod waits");
                    }
                    for container in &mut self.containers {
                        container.wait(failure.reason, &failure.message);
                    }
                    self.publish();
                }
            }
            if let Some(grace) = self.pause(RETRY, commands).await {
                return Some(grace);
            }
        }
        self.start_due();
        self.publish();
        None
    }

    /// Starts what is to be started, now or when its pause is over.
    pub(super) fn start_due(&mut self) {
        for index in 0..self.containers.len() {
            if self.containers[index].is_due() {
                match self.containers[index].pause() {
                    Duration::ZERO => self.start(index),
                    pause => self.schedule(index, pause),
                }
            }
        }
    }

    /// Waits, refusing what a pod without a sandbox cannot do.
    async fn pause(
        &mut self,
        duration: Duration,
        commands: &mut mpsc::Receiver<Box<Command>>,
    ) -> Option<Duration> {
        let deadline = tokio::time::Instant::now() + duration;
        loop {
            match tokio::time::timeout_at(deadline, commands.recv()).await {
                Err(_elapsed) => return None,
                Ok(Some(command)) => match *command {
                    Command::Delete { grace_seconds } => return Some(self.grace(grace_seconds)),
                    Command::Exec { container, reply, .. } => {
                        reply.send(Err(container::not_running(&container))).ok();
                    }
                    Command::Disrupt(why) => self.disrupt(why).await,
                    // The next try will do that.
                    Command::Refresh | Command::LimitMet(_) => {}
                },
                Ok(None) => return Some(Duration::ZERO),
            }
        }
    }

    /// The infra process is gone, and with it the pod's namespaces: all containers start anew in
    /// new ones. Returns the grace period if the pod is to be deleted meanwhile.
    pub(super) async fn replace_sandbox(
        &mut self,
        commands: &mut mpsc::Receiver<Box<Command>>,
    ) -> Option<Duration> {
        if self.is_over() {
            return None;
        }
        tracing::warn!(pod = %self.about.key, "the infra process died; the pod starts anew");
        if let Some(sandbox) = self.sandbox.take() {
            self.end_all(&sandbox).await;
            let last = self.snapshot();
            blocking(move || sandbox.stop(&last)).await;
        }
        if self.is_over() {
            self.end_if_over().await;
            return None;
        }
        self.publish();
        self.set_up(commands).await
    }

    pub(super) fn watch_infra(&self, sandbox: &Sandbox) {
        let happenings = self.happenings.0.clone();
        let Some(ended) = sandbox.infra_ended() else { return };
        tokio::spawn(async move {
            ended.await;
            happenings.send(Happening::InfraEnded).ok();
        });
    }

    async fn make_sandbox(&mut self) -> Result<Sandbox, Waiting> {
        let (shared, about) = (Arc::clone(&self.shared), Arc::clone(&self.about));
        let ground = self.ground.clone();
        let result = blocking(move || {
            let ground = match ground {
                Some(ground) => ground,
                None => Arc::new(Ground::make(&shared, &about)?),
            };
            Ok((Arc::clone(&ground), Sandbox::make(shared, about, ground)))
        });
        let panicked = || Err(Waiting::internal("the worker panicked"));
        let (ground, sandbox) = result.await.unwrap_or_else(panicked)?;
        if self.ground.replace(ground).is_none() {
            self.counted_from = Some(Timestamp::now());
        }
        sandbox
    }
}
