//! /metrics: every number of every pod, read when it is asked for.
//!
//! Nothing is sampled, and nothing is kept between two scrapes but the account of what the probes
//! cost (`cost`): a scrape reads the probes' maps and the cgroups' files, and writes them out.
//! /metrics/cadvisor is a page of its own, for those who know the kubelet's. Only these modules
//! know the `prometheus` crate; how a number is counted is the business of the probes, and what a
//! pod is that of the node.

mod cadvisor;
mod capacity;
mod completed;
mod cost;
mod daemon;
#[cfg(test)]
mod dashboards;
mod dns;
mod document;
mod family;
mod file;
mod governor;
mod image;
mod net;
mod netns;
mod node;
mod own;
mod pod;
mod process;
mod reading;
mod resource;
mod runqueue;
#[cfg(test)]
mod sample;
mod sheet;
mod tcp;
#[cfg(test)]
mod tests;
mod volume;

use std::{
    slice,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{
    Encoder, TextEncoder,
    core::{Collector, Desc},
    proto::MetricFamily,
};

pub use self::{cadvisor::documentation as cadvisor_documentation, document::documentation};
use self::{
    capacity::Capacities,
    cost::Ledger,
    family::{Domain, Family, Origin},
    own::Own,
    reading::{Reading, Scrapes},
};
use crate::{node::Node, probes::Probes};

static DOMAINS: [Domain; 21] = [
    pod::DOMAIN,
    process::DOMAIN,
    runqueue::DOMAIN,
    net::NETWORK,
    tcp::DOMAIN,
    dns::DOMAIN,
    netns::DOMAIN,
    file::DOMAIN,
    volume::DOMAIN,
    resource::CPU,
    resource::MEMORY,
    resource::PIDS,
    resource::IO,
    resource::PRESSURE,
    completed::DOMAIN,
    image::DOMAIN,
    node::DOMAIN,
    daemon::DOMAIN,
    governor::DOMAIN,
    cost::DOMAIN,
    own::DOMAIN,
];

/// Collects the metrics of a node and of the daemon; clones share one state.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    node: Node,
    probes: Arc<Probes>,
    build: Build,
    start_seconds: f64,
    descriptors: Vec<Desc>,
    capacities: Capacities,
    is_ready: AtomicBool,
    /// Held for a whole scrape, so that several scrapers at once take no more memory than one.
    scrapes: Mutex<Scrapes>,
    ledger: Mutex<Ledger>,
    /// Length of the last page of /metrics/cadvisor, and held in the same way.
    cadvisor_bytes: Mutex<usize>,
}

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
    /// Metrics of what `node` runs and `probes` count.
    pub fn new(node: Node, probes: Arc<Probes>, build: Build) -> Result<Self, Error> {
        let descriptors = descriptors().map_err(failed_to("describe"))?;
        let inner = Inner {
            node,
            probes,
            build,
            start_seconds: own::start_seconds(),
            descriptors,
            capacities: Capacities::default(),
            is_ready: AtomicBool::new(false),
            scrapes: Mutex::default(),
            ledger: Mutex::default(),
            cadvisor_bytes: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Lets /readyz say so: the node takes pods now.
    pub fn mark_ready(&self) {
        self.inner.is_ready.store(true, Ordering::Relaxed);
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self) -> Result<String, Error> {
        let mut scrapes = self.inner.scrapes.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let reading = self.inner.read(*scrapes);
        // Not through a `Registry`, which would hold all families at once: see `sheet`.
        let text = render(families(&reading), &reading, scrapes.bytes)?;
        scrapes.count += 1;
        scrapes.bytes = text.len();
        scrapes.last = Some(start.elapsed());
        Ok(text)
    }

    /// What cAdvisor would say, in the same format.
    pub fn render_cadvisor(&self) -> Result<String, Error> {
        let bytes = &self.inner.cadvisor_bytes;
        let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = cadvisor::Reading::take(&self.inner.node);
        let text = render(of_domains(&cadvisor::DOMAINS), &reading, *bytes)?;
        *bytes = text.len();
        Ok(text)
    }
}

impl Inner {
    fn read(&self, scrapes: Scrapes) -> Reading {
        let own = Own::read(self.start_seconds);
        let capacities = &self.capacities;
        let mut reading =
            Reading::take(&self.node, &self.probes, self.build, own, scrapes, capacities);
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).enter(&mut reading);
        reading
    }
}

/// For programs that gather Podscope's metrics together with their own.
impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.inner.descriptors.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let scrapes = *self.inner.scrapes.lock().unwrap_or_else(PoisonError::into_inner);
        collect(&self.inner.read(scrapes))
    }
}

/// Routes of the metrics address.
pub fn router(metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", get(async |metrics| scrape(metrics, Metrics::render).await))
        .route(
            "/metrics/cadvisor",
            get(async |metrics| scrape(metrics, Metrics::render_cadvisor).await),
        )
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(metrics)
}

async fn scrape(
    State(metrics): State<Metrics>,
    render: fn(&Metrics) -> Result<String, Error>,
) -> Response {
    // Thousands of small files are read: not on a thread that serves sockets.
    match tokio::task::spawn_blocking(move || render(&metrics)).await {
        Ok(Ok(text)) => {
            ([(CONTENT_TYPE, TextEncoder.format_type().to_owned())], text).into_response()
        }
        Ok(Err(error)) => failure(&error),
        Err(error) => failure(&error),
    }
}

fn failure(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error, "a scrape failed");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

async fn ready(State(metrics): State<Metrics>) -> (StatusCode, &'static str) {
    if metrics.inner.is_ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the node is still starting\n")
    }
}

fn descriptors() -> Result<Vec<Desc>, prometheus::Error> {
    let desc = of_domains(&DOMAINS).map(|family| {
        let labels = family.label_names().map(str::to_owned).collect();
        Desc::new(family.name.to_owned(), family.help.to_owned(), labels, Default::default())
    });
    desc.collect()
}

/// Families whose counters there are.
fn families(reading: &Reading) -> impl Iterator<Item = &'static Family> {
    of_domains(&DOMAINS).filter(|family| reading.has(family))
}

fn of_domains<S>(domains: &'static [Domain<S>]) -> impl Iterator<Item = &'static Family<S>> {
    domains.iter().flat_map(|domain| domain.families)
}

fn render<S: Origin>(
    families: impl Iterator<Item = &'static Family<S>>,
    reading: &S::Reading,
    expected_bytes: usize,
) -> Result<String, Error> {
    // A little more than the last time: doubling a buffer of megabytes costs as much again.
    let mut text = String::with_capacity(expected_bytes + expected_bytes / 16);
    sheet::fill(families, reading, |family| {
        TextEncoder.encode_utf8(slice::from_ref(family), &mut text)
    })
    .map_err(failed_to("encode"))?;
    Ok(text)
}

fn collect(reading: &Reading) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    let Ok(()) = sheet::fill(self::families(reading), reading, |family| {
        families.push(family.clone());
        Ok::<(), std::convert::Infallible>(())
    });
    families
}

fn failed_to(action: &'static str) -> impl FnOnce(prometheus::Error) -> Error {
    move |source| Error { action, source }
}
