//! More detail about one pod, for as long as somebody looks.
//!
//! The kernel tells it of that pod's slots only, and what tells of files is attached only meanwhile. A
//! daemon that is killed leaves nothing attached, and the next one resets the slots.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pod_ebpf::event::Kind;

use crate::probes::{self, Probes, TraceLink};

/// What is to be told, beside what is told anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Every file that is opened.
    pub files: bool,
    /// Every connection.
    pub connections: bool,
}

impl Detail {
    fn kinds(self) -> u32 {
        let files = if self.files { Kind::Open.bit() } else { 0 };
        let connections = Kind::Connect.bit() | Kind::Accept.bit();
        files | if self.connections { connections } else { 0 }
    }
}

/// A container's slot, and who has it: once it is another's, it is none of ours.
type Place = (u32, u32);

/// The traces that there are.
#[derive(Default)]
pub struct Traces(Mutex<Running>);

#[derive(Default)]
struct Running {
    /// For each place the kinds that each trace of it wants.
    wanted: HashMap<Place, Vec<u32>>,
    files: usize,
    link: Option<TraceLink>,
}

/// A trace; dropping it ends it.
pub struct Trace {
    traces: Arc<Traces>,
    probes: Arc<Probes>,
    places: Vec<Place>,
    detail: Detail,
}

impl Traces {
    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to trace the containers with these slots.
    pub fn begin(
        self: &Arc<Self>,
        probes: &Arc<Probes>,
        slots: &[u32],
        detail: Detail,
    ) -> Result<Trace, probes::Error> {
        let mut running = self.running();
        if detail.files {
            if running.link.is_none() {
                running.link = Some(probes.attach_trace()?);
            }
            running.files += 1;
        }
        let places: Vec<Place> = slots.iter().map(|slot| (*slot, probes.owner(*slot))).collect();
        for place in &places {
            running.wanted.entry(*place).or_default().push(detail.kinds());
            running.apply(probes, *place);
        }
        drop(running);
        Ok(Trace { traces: Arc::clone(self), probes: Arc::clone(probes), places, detail })
    }
}

impl Running {
    fn apply(&self, probes: &Probes, place: Place) {
        let all = self.wanted.get(&place).into_iter().flatten();
        let kinds = all.fold(0, |kinds, more| kinds | more);
        if let Err(error) = probes.trace(place, kinds) {
            tracing::error!(%error, "what is told of a container stays as it was");
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let mut running = self.traces.running();
        for place in &self.places {
            if let Some(all) = running.wanted.get_mut(place) {
                if let Some(at) = all.iter().position(|kinds| *kinds == self.detail.kinds()) {
                    all.swap_remove(at);
                }
                if all.is_empty() {
                    running.wanted.remove(place);
                }
            }
            running.apply(&self.probes, *place);
        }
        if self.detail.files {
            running.files -= 1;
            if running.files == 0 {
                running.link = None;
            }
        }
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("detail", &self.detail).finish_non_exhaustive()
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("files", &self.running().files).finish_non_exhaustive()
    }
}
