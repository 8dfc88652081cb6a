//! The tasks that read what the probes and the node tell, and pass it on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{broadcast::error::RecvError, mpsc, oneshot},
    time::MissedTickBehavior,
};

use super::{Chronicle, Event, Ring, event::Boot};
use crate::{
    node::{ChangeKind, Node},
    probes::{self, EventReader, Probes, Record},
};

/// How long events may wait before somebody looks, while anybody is told of them.
const PAUSE: Duration = Duration::from_millis(50);

/// And while nobody is. Who begins to listen asks for what there is, or is told of it so late once.
const QUIET: Duration = Duration::from_millis(500);

/// How often losses are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// What the kinds of losses begin with that are of events.
const LOST: &str = "event_";

/// Begins to read, once all pods are known. Needs a runtime.
pub(crate) fn start(node: &Node) -> Result<(), probes::Error> {
    let (probes, chronicle) = (node.probes(), node.chronicle());
    let (events, traces) = (probes.events()?, probes.traces()?);
    let own = Arc::clone(chronicle);
    let requests = chronicle.requests(Ring::Events);
    let is_heard = Chronicle::is_heard;
    tokio::spawn(read(events, Arc::clone(chronicle), requests, is_heard, move |uid, event| {
        own.tell(uid, event);
    }));
    let own = Arc::clone(chronicle);
    let requests = chronicle.requests(Ring::Traces);
    let is_heard = Chronicle::is_tracing;
    tokio::spawn(read(traces, Arc::clone(chronicle), requests, is_heard, move |_, event| {
        own.tell_traced(event);
    }));
    tokio::spawn(look_for_losses(Arc::clone(probes), Arc::clone(chronicle)));
    tokio::spawn(repeat_node(node.clone()));
    Ok(())
}

/// Reads a ring for good, seldom unless it `is_heard`. Who asks is answered when all is passed on that was
/// told before.
async fn read(
    mut ring: EventReader,
    chronicle: Arc<Chronicle>,
    mut requests: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    is_heard: fn(&Chronicle) -> bool,
    tell: impl Fn(&str, Event) + Send + 'static,
) {
    loop {
        let pause = if is_heard(&chronicle) { PAUSE } else { QUIET };
        let asked = tokio::select! {
            result = ring.wait(pause) => match result {
                Ok(()) => None,
                Err(error) => {
                    tracing::error!(%error, "events are not told any more");
                    return;
                }
            },
            Some(asked) = requests.recv() => Some(asked),
        };
        loop {
            let records = ring.take();
            if records.is_empty() {
                break;
            }
            let boot = Boot::now();
            for record in &records {
                pass_on(record, &chronicle, boot, &tell);
            }
            // There may be many more, and others have work, too.
            tokio::task::yield_now().await;
        }
        if let Some(asked) = asked {
            asked.send(()).ok();
        }
    }
}

fn pass_on(record: &Record, chronicle: &Chronicle, boot: Boot, tell: &impl Fn(&str, Event)) {
    // Of a pod of an earlier daemon that is gone there is nobody to tell.
    let Some(whose) = chronicle.whose(record.event.owner) else { return };
    if let Some(mut event) = Event::read(record, &whose, boot) {
        chronicle.name(&whose.uid, &mut event.what);
        tell(&whose.uid, event);
    }
}

/// Tells how many events the kernel had no room for.
async fn look_for_losses(probes: Arc<Probes>, chronicle: Arc<Chronicle>) {
    let mut before = lost(&probes);
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = lost(&probes);
        let more = |(kind, count): (&&'static str, &u64)| {
            let more = count - before.get(kind).copied().unwrap_or(0).min(*count);
            (more > 0).then_some((*kind, more))
        };
        let more: BTreeMap<_, _> = now.iter().filter_map(more).collect();
        if !more.is_empty() {
            tracing::warn!(?more, "events were lost: there was no room for them");
            chronicle.tell_lost(more);
        }
        before = now;
    }
}

/// Events that were lost so far, by kind.
fn lost(probes: &Probes) -> BTreeMap<&'static str, u64> {
    let all = probes.lost().into_iter();
    all.filter_map(|(kind, count)| Some((kind.strip_prefix(LOST)?, count))).collect()
}

/// Makes the node's own events part of the story.
async fn repeat_node(node: Node) {
    let mut changes = node.watch_events();
    loop {
        match changes.recv().await {
            Ok(change) if change.kind == ChangeKind::Deleted => {}
            Ok(change) => {
                if let Some((uid, event)) = Event::of_node(&change.object) {
                    node.chronicle().tell(&uid, event);
                }
            }
            Err(RecvError::Lagged(count)) => {
                tracing::debug!(count, "events of the node are missing from the story");
            }
            Err(RecvError::Closed) => return,
        }
    }
}
