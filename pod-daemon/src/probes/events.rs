//! Reading what the probes tell one by one, and having them tell more.
//!
//! The rings are kept across daemons as the counters are, so programs that are taken over go on writing
//! where the next daemon reads, and it finds what was told meanwhile as far as there was room.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::maps::{Map, RingBuf};
use pod_ebpf::event::Event;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use super::{Data, Error, Probes, open, plan, sys};

/// As many are taken from a ring at a time.
const MOST: usize = 256;

/// One event as the probes wrote it.
#[derive(Clone, Debug)]
pub struct Record {
    /// What happened.
    pub event: Event,
    /// Arguments or a path, as far as they were kept.
    pub text: Vec<u8>,
}

/// A ring of events, of which each is read once.
pub struct EventReader {
    ring: AsyncFd<RingBuf<Data>>,
}

/// Keeps the program attached that tells of opened files. The kernel detaches it when the descriptor is
/// closed, however the daemon ends.
pub struct TraceLink {
    _link: OwnedFd,
}

impl Probes {
    /// The rare events of all pods. Needs a runtime.
    pub fn events(&self) -> Result<EventReader, Error> {
        self.ring("EVENTS")
    }

    /// What is told of pods that are traced. Needs a runtime.
    pub fn traces(&self) -> Result<EventReader, Error> {
        self.ring("TRACES")
    }

    fn ring(&self, name: &'static str) -> Result<EventReader, Error> {
        let ring: RingBuf<Data> = open(&self.pins.maps(), name, Map::RingBuf)?;
        // SAFETY: the ring owns its map's descriptor, and reading it neither closes nor replaces it.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| Error::Events(error.into_parts().1))?;
        Ok(EventReader { ring })
    }

    /// Has the probes tell of a slot, beside the usual, the kinds with these bits; if it still is this
    /// owner's.
    pub fn trace(&self, (slot, owner): (u32, u32), kinds: u32) -> Result<(), Error> {
        self.counters.watch(slot, owner, kinds)
    }

    /// Attaches what tells of opened files.
    pub fn attach_trace(&self) -> Result<TraceLink, Error> {
        let path = self.pins.programs(&self.id).join(plan::TRACE_OPEN);
        let link = sys::get(&path).and_then(|program| sys::attach_tracepoint(program.as_fd()));
        link.map(|link| TraceLink { _link: link }).map_err(Error::Trace)
    }
}

impl EventReader {
    /// Waits until it is worth looking: much has come together, or `pause` has passed. A look costs no
    /// system call.
    pub async fn wait(&mut self, pause: Duration) -> io::Result<()> {
        match timeout(pause, self.ring.readable_mut()).await {
            // Before reading: what comes later wakes again.
            Ok(ready) => ready?.clear_ready(),
            Err(_elapsed) => {}
        }
        Ok(())
    }

    /// Takes the oldest events, as many as are taken at a time; none if there are none.
    pub fn take(&mut self) -> Vec<Record> {
        let ring = self.ring.get_mut();
        let mut records = Vec::new();
        while records.len() < MOST
            && let Some(bytes) = ring.next()
        {
            if let Some((event, text)) = Event::parse(&bytes) {
                records.push(Record { event, text: text.to_vec() });
            }
        }
        records
    }
}
