//! /metrics: every number of every pod, read when it is asked for.
//!
//! Nothing is sampled between two scrapes: a scrape reads the probes' maps and the cgroups' files, and
//! writes them out. What is kept is of pods that are gone (`archive`), the account of what the probes
//! cost (`cost`), and the last look at each pod (`looks`). /metrics/cadvisor is a page of
//! its own, for those who know the kubelet's. Only these modules know the `prometheus` crate; how a number
//! is counted is the business of the probes, and what a pod is that of the node.

mod archive;
mod base;
mod bound;
mod cadvisor;
mod capacity;
mod ceiling;
mod completed;
mod cost;
mod daemon;
#[cfg(test)]
mod dashboards;
mod dns;
mod document;
mod drops;
mod exemplar;
mod family;
mod file;
mod format;
mod governor;
mod image;
mod looks;
mod net;
mod netns;
mod node;
mod other;
mod own;
mod patience;
mod pod;
mod process;
mod reading;
mod reconcile;
mod resource;
mod runqueue;
#[cfg(test)]
mod sample;
mod sheet;
mod tcp;
#[cfg(test)]
mod tests;
mod trace;
mod volume;

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt as _, stream};
use prometheus::{
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    time::timeout,
};

pub use self::{
    archive::{Archive, Hold},
    cadvisor::documentation as cadvisor_documentation,
    document::documentation,
};
use self::{
    archive::{completed_help, completed_name, write_totals},
    capacity::Capacities,
    cost::Ledger,
    exemplar::Completion,
    family::{Domain, Family},
    format::{Collected, Format, GZIP, Gzip, Page, Protobuf, Text, accepts_gzip},
    looks::Looks,
    other::Other,
    own::Own,
    reading::{Reading, Scrapes, Sources},
    sheet::{Counted, Sink},
};
use crate::{node::Node, probes::Probes};

/// Scrapes that are served at a time: those of two servers do not wait for each other, and of more the
/// memory is bounded.
const SCRAPERS: usize = 2;

/// How long a client may leave what it is sent before the scrape ends.
const PATIENCE: Duration = Duration::from_secs(10);

static DOMAINS: [Domain; 24] = [
    pod::DOMAIN,
    process::DOMAIN,
    runqueue::DOMAIN,
    net::NETWORK,
    tcp::DOMAIN,
    dns::DOMAIN,
    netns::DOMAIN,
    drops::DOMAIN,
    file::DOMAIN,
    volume::DOMAIN,
    resource::CPU,
    resource::MEMORY,
    resource::PIDS,
    resource::IO,
    resource::PRESSURE,
    reconcile::DOMAIN,
    completed::DOMAIN,
    image::DOMAIN,
    node::DOMAIN,
    daemon::DOMAIN,
    governor::DOMAIN,
    cost::DOMAIN,
    own::DOMAIN,
    // Behind all that it counts.
    ceiling::DOMAIN,
];

/// Collects the metrics of a node and of the daemon; clones share one state.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    probes: Arc<Probes>,
    archive: Arc<Archive>,
    build: Build,
    start_seconds: f64,
    descriptors: Vec<Desc>,
    capacities: Capacities,
    completion: Completion,
    looks: Looks,
    is_ready: AtomicBool,
    /// What a scrape holds from its beginning to its end.
    places: Arc<Semaphore>,
    scrapes: Mutex<Scrapes>,
    ledger: Mutex<Ledger>,
}

/// Takes a page in pieces, and says whether anybody wants more.
type Taker<'a> = &'a mut dyn FnMut(Vec<u8>) -> bool;

/// What was built, for `podscope_build_info`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Build {
    /// Version of the crate.
    pub version: &'static str,
    /// Commit; empty if unknown.
    pub revision: &'static str,
    /// Compiler; empty if unknown.
    pub rustc: &'static str,
}

/// The `prometheus` crate refused a metric.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} metrics")]
pub struct Error {
    action: &'static str,
    source: prometheus::Error,
}

impl Metrics {
    /// Metrics of what `node` runs and `probes` count, and of the pods in `archive`.
    pub fn new(
        node: Node,
        probes: Arc<Probes>,
        archive: Arc<Archive>,
        build: Build,
    ) -> Result<Self, Error> {
        let descriptors = descriptors().map_err(|source| Error { action: "describe", source })?;
        let inner = Inner {
            node,
            probes,
            archive,
            build,
            start_seconds: own::start_seconds(),
            descriptors,
            capacities: Capacities::default(),
            completion: Completion::default(),
            looks: Looks::default(),
            is_ready: AtomicBool::new(false),
            places: Arc::new(Semaphore::new(SCRAPERS)),
            scrapes: Mutex::default(),
            ledger: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Lets /readyz say so: the node takes pods now.
    pub fn mark_ready(&self) {
        self.inner.is_ready.store(true, Ordering::Relaxed);
    }

    /// Writes everything; says whether everything was wanted.
    fn write(&self, format: Format, send: Taker<'_>) -> bool {
        let start = Instant::now();
        let reading = self.inner.read();
        let is_whole = write(format, send, |sink| fill(&reading, sink));
        if is_whole {
            self.inner.archive.shown(&reading.held);
        }
        let mut scrapes = self.inner.scrapes();
        scrapes.count += 1;
        scrapes.last = Some(start.elapsed());
        is_whole
    }

    /// Writes what cAdvisor would say.
    fn write_cadvisor(&self, format: Format, send: Taker<'_>) -> bool {
        let reading = cadvisor::Reading::take(&self.inner.node);
        write(format, send, |sink| sheet::fill(of_domains(&cadvisor::DOMAINS), &reading, sink))
    }
}

impl Inner {
    fn scrapes(&self) -> MutexGuard<'_, Scrapes> {
        self.scrapes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Reading {
        let own = Own::read(self.start_seconds);
        let scrapes = *self.scrapes();
        let sources = Sources {
            probes: &self.probes,
            archive: &self.archive,
            capacities: &self.capacities,
            completion: &self.completion,
            looks: &self.looks,
        };
        let mut reading = Reading::take(&self.node, sources, self.build, own, scrapes);
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).enter(&mut reading);
        reading.other = Other::of(&reading);
        reading
    }
}

/// For programs that gather Podscope's metrics together with their own.
impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.inner.descriptors.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let reading = self.inner.read();
        let families = collect(&reading);
        self.inner.archive.shown(&reading.held);
        families
    }
}

/// Reads what an earlier daemon may have stored of pods that are gone.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn stored(data_dir: &std::path::Path) -> impl Sized {
    archive::stored(data_dir)
}

/// Routes of the metrics address.
pub fn router(metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", get(own_page))
        .route("/metrics/cadvisor", get(cadvisor_page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(metrics)
}

async fn own_page(State(metrics): State<Metrics>, headers: HeaderMap) -> Response {
    scrape(metrics, headers, Metrics::write).await
}

async fn cadvisor_page(State(metrics): State<Metrics>, headers: HeaderMap) -> Response {
    scrape(metrics, headers, Metrics::write_cadvisor).await
}

async fn scrape(
    metrics: Metrics,
    headers: HeaderMap,
    write: fn(&Metrics, Format, Taker<'_>) -> bool,
) -> Response {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(header(ACCEPT));
    let is_compressed = accepts_gzip(header(ACCEPT_ENCODING));
    // Never closed.
    let place = Arc::clone(&metrics.inner.places).acquire_owned().await.ok();
    let (pieces, mut received) = mpsc::channel::<Vec<u8>>(2);
    // Thousands of small files are read: not on a thread that serves sockets.
    let writing = tokio::task::spawn_blocking(move || {
        let runtime = Handle::current();
        let send: Taker<'_> = &mut |piece| {
            matches!(runtime.block_on(timeout(PATIENCE, pieces.send(piece))), Ok(Ok(())))
        };
        let is_whole = if is_compressed {
            let mut gzip = Gzip::new(send);
            write(&metrics, format, &mut |piece| gzip.take(&piece)) && gzip.finish()
        } else {
            write(&metrics, format, send)
        };
        drop(place);
        // Not before the end of the answer.
        tokio::task::spawn_blocking(give_back);
        is_whole
    });
    // An answer that has begun cannot become an error: so not before there is something to say.
    let Some(first) = received.recv().await else {
        let error = writing.await.err();
        tracing::error!(?error, "a scrape failed");
        return (StatusCode::INTERNAL_SERVER_ERROR, "the scrape failed\n").into_response();
    };
    let rest = stream::unfold(received, async |mut received| {
        received.recv().await.map(|piece| (Ok(piece), received))
    });
    // Half a page must not look like a whole one.
    let end = stream::once(writing).filter_map(async |ended| match ended {
        Ok(true) => None,
        Ok(false) => Some(Err(io::Error::from(io::ErrorKind::TimedOut))),
        Err(error) => Some(Err(io::Error::other(error))),
    });
    let pieces = stream::once(async { Ok(first) }).chain(rest).chain(end);
    let headers = [(CONTENT_TYPE, format.content_type()), (VARY, "Accept, Accept-Encoding")];
    let encoding = is_compressed.then_some([(CONTENT_ENCODING, GZIP)]);
    (headers, encoding, Body::from_stream(pieces)).into_response()
}

/// Gives the memory of a scrape back to the kernel: of many small pieces the C library would keep all for the
/// next one.
fn give_back() {
    // SAFETY: the allocator guards its own state.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

async fn ready(State(metrics): State<Metrics>) -> (StatusCode, &'static str) {
    if metrics.inner.is_ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the node is still starting\n")
    }
}

fn descriptors() -> Result<Vec<Desc>, prometheus::Error> {
    let describe = |name: &str, help: &str, labels: Vec<&str>| {
        let labels = labels.into_iter().map(str::to_owned).collect();
        Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
    };
    let own = of_domains(&DOMAINS)
        .map(|family| describe(family.name, family.help, family.label_names().collect()));
    let totals = of_domains(&DOMAINS).filter(|family| archive::is_summed(family)).map(|family| {
        let labels = archive::summed_labels(family).map(|label| label.name);
        let labels = std::iter::once("namespace").chain(labels).collect();
        describe(&completed_name(family.name), &completed_help(family.name), labels)
    });
    own.chain(totals).collect()
}

/// Writes the families whose counters there are.
fn fill(reading: &Reading, sink: &mut dyn Sink) {
    let families = of_domains(&DOMAINS).filter(|family| reading.has(family));
    sheet::fill(families, reading, &mut Counted::new(sink, &reading.series));
    write_totals(reading, sink);
}

fn of_domains<S>(domains: &'static [Domain<S>]) -> impl Iterator<Item = &'static Family<S>> {
    domains.iter().flat_map(|domain| domain.families)
}

/// Writes a page; says whether everything was wanted.
fn write(format: Format, send: Taker<'_>, fill: impl FnOnce(&mut dyn Sink)) -> bool {
    let page = Page::new(send);
    match format {
        Format::Text | Format::OpenMetrics => {
            let is_open = format == Format::OpenMetrics;
            let mut text = if is_open { Text::open_metrics(page) } else { Text::new(page) };
            fill(&mut text);
            text.finish()
        }
        Format::Protobuf => {
            let mut messages = Protobuf::new(page);
            fill(&mut messages);
            messages.finish()
        }
    }
}

fn collect(reading: &Reading) -> Vec<MetricFamily> {
    let mut collected = Collected::default();
    fill(reading, &mut collected);
    collected.families
}
