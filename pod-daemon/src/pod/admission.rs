//! A pod's wait for its place on the node, and its end against its will.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{Command, Worker, container};
use crate::node::{Ask, Verdict};

/// Why a pod ends although nobody deleted it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disruption {
    /// `Preempted` or `Evicted`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Whether its containers are killed at once, and it stays for its owner to see.
    pub evicted: bool,
}

impl Worker {
    /// Waits until the pod has its place; the grace period if it is to be deleted before.
    pub(super) async fn admit(
        &mut self,
        commands: &mut mpsc::Receiver<Box<Command>>,
    ) -> Option<Duration> {
        let ask = Ask::of(&self.about.key, &self.about.spec);
        let mut ticket = self.shared.admission.ask(ask);
        let grace = loop {
            match ticket.verdict() {
                Verdict::Admitted => break None,
                Verdict::Waiting(message) => {
                    tracing::info!(pod = %self.about.key, %message, "pod waits for room");
                    self.unschedulable = Some(message);
                    self.publish();
                }
            }
            tokio::select! {
                () = ticket.changed() => {}
                command = commands.recv() => match command.map(|command| *command) {
                    Some(Command::Delete { grace_seconds }) => break Some(self.grace(grace_seconds)),
                    Some(Command::Exec { container, reply, .. }) => {
                        reply.send(Err(container::not_running(&container))).ok();
                    }
                    // It has nothing that it could be asked to give up, or to bring up to date.
                    Some(Command::Disrupt(_) | Command::Refresh | Command::LimitMet(_)) => {}
                    None => break Some(Duration::ZERO),
                },
            }
        };
        self.ticket = Some(ticket);
        if grace.is_none() && self.unschedulable.take().is_some() {
            self.publish();
        }
        grace
    }

    /// Gives the pod the place that it had under an earlier daemon, whatever that leaves to others.
    pub(super) fn keep_place(&mut self) {
        let ask = Ask::of(&self.about.key, &self.about.spec);
        self.ticket = Some(self.shared.admission.admit_running(ask));
    }

    /// Takes note that the pod has to end; kills its containers if it has to at once.
    pub(super) async fn disrupt(&mut self, why: Disruption) {
        let evicted = why.evicted;
        // The first reason is the one that counts.
        self.disruption.get_or_insert(why);
        self.publish();
        if !evicted {
            return;
        }
        self.kill_containers().await;
        self.end_if_over().await;
    }

    /// Whether the pod's containers may not run again, whatever its restart policy.
    pub(super) fn is_evicted(&self) -> bool {
        self.disruption.as_ref().is_some_and(|why| why.evicted)
    }

    /// Lets go of what a pod that will not run again does not need.
    pub(super) async fn end_if_over(&mut self) {
        if !self.is_over() {
            return;
        }
        // As kubelet does: such a pod has no processes and no interface.
        self.stop_sandbox().await;
        if let Some(ticket) = &self.ticket {
            ticket.settle();
        }
        self.publish();
    }

    /// The restart policy that holds now.
    pub(super) fn policy(&self) -> &str {
        if self.is_evicted() {
            return "Never";
        }
        self.about.restart_policy()
    }
}
