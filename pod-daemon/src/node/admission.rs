//! Which pods have a place on this node.
//!
//! A pod gets everything that it asks for or nothing at all. What does not fit waits, and is looked
//! at again whenever room may have appeared: the highest priority first, then the oldest. Knows
//! amounts, priorities and the order of arrival; what a pod is made of is its worker's business.

mod capacity;
mod preemption;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use k8s_openapi::api::core::v1::PodSpec;
use tokio::sync::{mpsc, watch};

pub use self::capacity::{Reserve, capacity};
use self::preemption::Candidate;
use crate::{
    manifest::{
        Demand,
        demand::{HostPort, RESOURCES, Totals, display},
    },
    pod::Key,
};

/// Decides which pods may run.
#[derive(Debug)]
pub struct Admission {
    capacity: Totals,
    allocatable: Totals,
    contents: Mutex<Contents>,
    preemptions: mpsc::UnboundedSender<Preemption>,
    disruptions: [AtomicU64; DISRUPTIONS.len()],
}

/// Why pods are ended that nobody deleted.
pub const DISRUPTIONS: [&str; 2] = ["Preempted", "Evicted"];

/// What a pod brings when it asks for a place.
#[derive(Clone, Debug)]
pub struct Ask {
    key: Key,
    demand: Demand,
    priority: i32,
    /// Whether it may push out pods of lower priority.
    preempts: bool,
}

/// A pod's place in the queue, and then on the node; dropping it gives the place to others.
#[derive(Debug)]
pub struct Ticket {
    admission: Arc<Admission>,
    id: u64,
    verdict: watch::Receiver<Verdict>,
}

/// What was decided about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has its place.
    Admitted,
    /// It waits, and this is why.
    Waiting(String),
}

/// A pod has to leave for another one.
#[derive(Clone, Debug)]
pub struct Preemption {
    /// Who has to leave.
    pub victim: Key,
    /// Why, for people.
    pub message: String,
}

/// What is there, and what of it is taken.
#[derive(Clone, Debug)]
pub struct Occupancy {
    /// What the node has.
    pub capacity: Totals,
    /// What of that is for pods.
    pub allocatable: Totals,
    /// What pods asked for that were admitted.
    pub requested: Totals,
    /// Pods that wait, by what they lack; a pod that lacks several things counts for each.
    pub waiting: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Contents {
    /// By order of arrival.
    entries: BTreeMap<u64, Entry>,
    next: u64,
    used: Totals,
    /// Why nobody may start now, whatever room there is.
    pressure: Option<String>,
}

#[derive(Debug)]
struct Entry {
    ask: Ask,
    state: State,
    /// What a waiting pod lacks.
    lacks: Vec<&'static str>,
    verdict: watch::Sender<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Admitted,
    /// Still there, and on its way out.
    Leaving,
}

impl Ask {
    /// What the pod `key` asks for.
    #[must_use]
    pub fn of(key: &Key, spec: &PodSpec) -> Self {
        Self {
            key: key.clone(),
            demand: Demand::of(spec),
            priority: spec.priority.unwrap_or(0),
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
        }
    }
}

impl Admission {
    /// A node that has `capacity`, of which pods get `allocatable`. Who has to leave for somebody
    /// else is told to the other end of the channel.
    #[must_use]
    pub fn new(
        capacity: Totals,
        allocatable: Totals,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Preemption>) {
        let (preemptions, receiver) = mpsc::unbounded_channel();
        let admission = Self {
            capacity,
            allocatable,
            contents: Mutex::default(),
            preemptions,
            disruptions: Default::default(),
        };
        (Arc::new(admission), receiver)
    }

    /// Never held across an await.
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a pod into the queue; it may have its place at once.
    #[must_use]
    pub fn ask(self: &Arc<Self>, ask: Ask) -> Ticket {
        let mut contents = self.contents();
        let ticket = self.enter(&mut contents, ask, State::Waiting);
        self.decide(&mut contents);
        ticket
    }

    /// Gives a place to a pod that runs already, whatever that leaves to others.
    #[must_use]
    pub fn admit_running(self: &Arc<Self>, ask: Ask) -> Ticket {
        let mut contents = self.contents();
        contents.used += ask.demand.totals;
        self.enter(&mut contents, ask, State::Admitted)
    }

    fn enter(self: &Arc<Self>, contents: &mut Contents, ask: Ask, state: State) -> Ticket {
        let first = match state {
            State::Waiting => Verdict::Waiting(String::new()),
            State::Admitted | State::Leaving => Verdict::Admitted,
        };
        let (sender, verdict) = watch::channel(first);
        let id = contents.next;
        contents.next += 1;
        contents.entries.insert(id, Entry { ask, state, lacks: Vec::new(), verdict: sender });
        Ticket { admission: Arc::clone(self), id, verdict }
    }

    /// Takes note that a pod is being deleted, so that nobody else has to leave for the room that
    /// it will leave.
    pub fn leaving(&self, key: &Key) {
        let mut contents = self.contents();
        let entries = contents.entries.values_mut();
        for entry in entries.filter(|entry| entry.ask.key == *key) {
            if entry.state == State::Admitted {
                entry.state = State::Leaving;
            }
        }
    }

    /// Stops pods from starting while there is a reason to, and lets them start when it is gone.
    pub fn set_pressure(&self, reason: Option<String>) {
        let mut contents = self.contents();
        if contents.pressure != reason {
            contents.pressure = reason;
            self.decide(&mut contents);
        }
    }

    /// Why nobody may start now.
    #[must_use]
    pub fn pressure(&self) -> Option<String> {
        self.contents().pressure.clone()
    }

    /// Counts a pod that was ended; see [`DISRUPTIONS`].
    pub fn count_disruption(&self, reason: &str) {
        if let Some(at) = DISRUPTIONS.iter().position(|known| *known == reason) {
            self.disruptions[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many pods were ended, and why.
    #[must_use]
    pub fn disruptions(&self) -> Vec<(&'static str, u64)> {
        let counts = self.disruptions.iter().map(|count| count.load(Ordering::Relaxed));
        DISRUPTIONS.into_iter().zip(counts).collect()
    }

    /// What is there, and what of it is taken.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let contents = self.contents();
        let mut waiting = BTreeMap::new();
        for entry in contents.entries.values().filter(|entry| entry.state == State::Waiting) {
            for lack in &entry.lacks {
                *waiting.entry((*lack).to_owned()).or_default() += 1;
            }
        }
        Occupancy {
            capacity: self.capacity,
            allocatable: self.allocatable,
            requested: contents.used,
            waiting,
        }
    }

    /// Looks at all that wait, in their order.
    fn decide(&self, contents: &mut Contents) {
        let mut waiting: Vec<(Reverse<i32>, u64)> = contents
            .entries
            .iter()
            .filter(|(_, entry)| entry.state == State::Waiting)
            .map(|(id, entry)| (Reverse(entry.ask.priority), *id))
            .collect();
        waiting.sort_unstable();
        // What those before have been promised once others have left.
        let mut promised = Demand::default();
        for (_, id) in waiting {
            let Some(entry) = contents.entries.get(&id) else { continue };
            let ask = entry.ask.clone();
            match self.obstacles(contents, &ask, &promised) {
                None => contents.admit(id),
                Some(obstacles) => {
                    let Obstacles { lacks, mut message } = obstacles;
                    if contents.pressure.is_none()
                        && ask.preempts
                        && let Some(count) = self.make_room(contents, &ask, &promised)
                    {
                        message =
                            format!("{message} preemption: waiting for {count} pod(s) to leave");
                        promised.totals += ask.demand.totals;
                        promised.host_ports.extend(ask.demand.host_ports);
                    }
                    contents.refuse(id, lacks, message);
                }
            }
        }
    }

    /// Why the pod cannot start now; nothing if it can.
    fn obstacles(&self, contents: &Contents, ask: &Ask, promised: &Demand) -> Option<Obstacles> {
        let mut lacks = Vec::new();
        let mut reasons = Vec::new();
        if let Some(pressure) = &contents.pressure {
            lacks.push("disk-pressure");
            reasons.push(format!("1 node(s) had disk pressure ({pressure})"));
        }
        let free = self.allocatable.less(contents.used).less(promised.totals);
        for at in ask.demand.totals.beyond(free) {
            let resource = RESOURCES[at];
            let show = |totals: Totals| display(totals[at], resource.unit);
            lacks.push(resource.name);
            reasons.push(format!(
                "1 Insufficient {} (asked {}, free {} of {})",
                resource.name,
                show(ask.demand.totals),
                show(free),
                show(self.allocatable)
            ));
        }
        let conflict = contents.ports_taken(promised).find_map(|(taken, by)| {
            let wanted = ask.demand.host_ports.iter().find(|wanted| wanted.conflicts(taken))?;
            Some(match by {
                Some(by) => format!("{wanted} is taken by {by}"),
                None => format!("{wanted} is promised to another pod"),
            })
        });
        if let Some(conflict) = conflict {
            lacks.push("host-ports");
            reasons.push(format!(
                "1 node(s) didn't have free ports for the requested pod ports ({conflict})"
            ));
        }
        let message = format!("0/1 nodes are available: {}.", reasons.join(", "));
        (!lacks.is_empty()).then_some(Obstacles { lacks, message })
    }

    /// Sends away as few pods of lower priority as make room for this one; says how many are on
    /// their way out then. Nothing if that would not help.
    fn make_room(&self, contents: &mut Contents, ask: &Ask, promised: &Demand) -> Option<usize> {
        let mut free = self.allocatable.less(promised.totals);
        let mut ports: Vec<HostPort> = promised.host_ports.iter().cloned().collect();
        let (mut candidates, mut leaving) = (Vec::new(), 0);
        let mut kept = Totals::default();
        for (id, entry) in &contents.entries {
            let Ask { demand, priority, .. } = &entry.ask;
            match entry.state {
                State::Waiting => {}
                State::Leaving => leaving += 1,
                State::Admitted if *priority < ask.priority => candidates.push(Candidate {
                    id: *id,
                    priority: *priority,
                    demand: demand.clone(),
                }),
                State::Admitted => {
                    kept += demand.totals;
                    ports.extend(demand.host_ports.iter().cloned());
                }
            }
        }
        free = free.less(kept);
        let victims = preemption::victims(&ask.demand, free, &ports, candidates)?;
        if victims.is_empty() && leaving == 0 {
            return None;
        }
        for id in &victims {
            let Some(entry) = contents.entries.get_mut(id) else { continue };
            entry.state = State::Leaving;
            let message = format!(
                "Preempted in order to admit {} (priority {} is higher than {})",
                ask.key, ask.priority, entry.ask.priority
            );
            tracing::warn!(victim = %entry.ask.key, by = %ask.key, "a pod has to leave for another");
            self.count_disruption("Preempted");
            // Nobody listens when the daemon ends, and then all pods leave.
            self.preemptions.send(Preemption { victim: entry.ask.key.clone(), message }).ok();
        }
        Some(victims.len() + leaving)
    }
}

/// Why a pod cannot start now.
struct Obstacles {
    lacks: Vec<&'static str>,
    message: String,
}

impl Contents {
    fn admit(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.state = State::Admitted;
        entry.lacks.clear();
        self.used += entry.ask.demand.totals;
        entry.verdict.send_replace(Verdict::Admitted);
    }

    fn refuse(&mut self, id: u64, lacks: Vec<&'static str>, message: String) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.lacks = lacks;
        let verdict = Verdict::Waiting(message);
        entry.verdict.send_if_modified(|old| {
            let changed = *old != verdict;
            *old = verdict;
            changed
        });
    }

    /// Ports that are taken and by whom, or promised.
    fn ports_taken<'a>(
        &'a self,
        promised: &'a Demand,
    ) -> impl Iterator<Item = (&'a HostPort, Option<&'a Key>)> {
        let there = self.entries.values().filter(|entry| entry.state != State::Waiting);
        let taken = there.flat_map(|entry| {
            entry.ask.demand.host_ports.iter().map(|port| (port, Some(&entry.ask.key)))
        });
        taken.chain(promised.host_ports.iter().map(|port| (port, None)))
    }
}

impl Ticket {
    /// What was decided.
    #[must_use]
    pub fn verdict(&mut self) -> Verdict {
        self.verdict.borrow_and_update().clone()
    }

    /// Completes when something else is decided.
    pub async fn changed(&mut self) {
        if self.verdict.changed().await.is_err() {
            // The entry is there for as long as the ticket is.
            std::future::pending::<()>().await;
        }
    }

    /// Gives back what a pod whose containers have ended for good no longer needs.
    pub fn settle(&self) {
        let mut contents = self.admission.contents();
        let Contents { entries, used, .. } = &mut *contents;
        let Some(entry) = entries.get_mut(&self.id) else { return };
        if entry.state == State::Waiting {
            return;
        }
        let rest = entry.ask.demand.of_the_ended();
        *used = used.less(entry.ask.demand.totals).plus(rest.totals);
        entry.ask.demand = rest;
        self.admission.decide(&mut contents);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut contents = self.admission.contents();
        let Some(entry) = contents.entries.remove(&self.id) else { return };
        if entry.state != State::Waiting {
            contents.used = contents.used.less(entry.ask.demand.totals);
        }
        // Even one that waited may have kept others out, by what it was promised.
        self.admission.decide(&mut contents);
    }
}

#[cfg(test)]
mod tests;
