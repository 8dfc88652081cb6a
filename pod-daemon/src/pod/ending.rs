//! The end of a pod: its containers', and then its own.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    Command, Happening, Worker, blocking,
    container::{self, Container},
    ground::Ground,
    sandbox::{self, Sandbox},
};
use crate::{events::Ring, probes::ContainerProbe};

impl Worker {
    /// Kills all containers and takes note of how they ended.
    pub(super) async fn end_all(&mut self, sandbox: &Arc<Sandbox>) {
        let kill = || {
            let sandbox = Arc::clone(sandbox);
            blocking(move || sandbox.kill_containers())
        };
        kill().await;
        while self.containers.iter().any(Container::is_busy) {
            match self.happenings.1.recv().await {
                Some(Happening::Started(index, result)) => {
                    self.began(index, *result);
                    kill().await;
                }
                Some(Happening::Ended(index, ended)) => {
                    let policy = self.policy().to_owned();
                    self.containers[index].finish(*ended, &policy);
                    self.containers[index].retry_now();
                }
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Asks the containers to leave, and kills those that have not when `grace` is over.
    pub(super) async fn stop_containers(
        &mut self,
        grace: Duration,
        commands: &mut mpsc::Receiver<Box<Command>>,
    ) {
        self.stop.cancel();
        for container in &mut self.containers {
            container.signal_stop(&self.shared);
        }
        let mut deadline = tokio::time::Instant::now() + grace;
        let mut killing = false;
        while self.containers.iter().any(Container::is_busy) {
            tokio::select! {
                () = tokio::time::sleep_until(deadline), if !killing => {
                    killing = true;
                    self.kill_containers().await;
                }
                Some(command) = commands.recv() => match *command {
                    Command::Delete { grace_seconds } => {
                        deadline = deadline.min(tokio::time::Instant::now() + self.grace(grace_seconds));
                    }
                    Command::Exec { container, reply, .. } => {
                        reply.send(Err(container::not_running(&container))).ok();
                    }
                    // It ends already.
                    Command::Disrupt(_) | Command::Refresh | Command::LimitMet(_) => {}
                },
                Some(happening) = self.happenings.1.recv() => match happening {
                    Happening::Started(index, result) => {
                        self.began(index, *result);
                        self.containers[index].signal_stop(&self.shared);
                        if killing {
                            self.kill_containers().await;
                        }
                    }
                    Happening::Ended(index, ended) => {
                        self.containers[index].finish(*ended, "Never");
                        self.publish();
                    }
                    Happening::Due(_) | Happening::InfraEnded => {}
                },
            }
        }
    }

    pub(super) async fn kill_containers(&self) {
        if let Some(sandbox) = self.sandbox.clone() {
            blocking(move || sandbox.kill_containers()).await;
        }
    }

    /// Removes everything that the pod was made of, then the pod.
    pub(super) async fn tear_down(mut self) {
        let last = self.snapshot();
        let (shared, about) = (Arc::clone(&self.shared), Arc::clone(&self.about));
        self.shared.chronicle.settle(Ring::Events).await;
        let (sandbox, ground) = (self.sandbox.take(), self.ground.take());
        // The containers hold the ground and the sandbox, too.
        self.containers.clear();
        let removed = blocking(move || {
            // While there are still cgroups and logs to read.
            shared.keep_report(&last);
            if let Some(sandbox) = sandbox {
                sandbox.stop(&last);
            }
            // Before anything is removed: a daemon that finds the rest does not count it again.
            shared.hold(last);
            let ground = ground.and_then(Arc::into_inner);
            let probes = ground.map(Ground::remove).unwrap_or_default();
            sandbox::remove_traces(&shared, &about);
            probes
        });
        let probes = removed.await.unwrap_or_default();
        self.shared.retire(&self.about.key, &self.about.uid);
        // Nobody reads this pod's counters any more: others may have them.
        probes.into_iter().for_each(ContainerProbe::release);
    }

    pub(super) fn grace(&self, seconds: Option<u32>) -> Duration {
        let own = self.about.spec.termination_grace_period_seconds;
        let own = own.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(30);
        Duration::from_secs(seconds.map_or(own, u64::from))
    }
}
