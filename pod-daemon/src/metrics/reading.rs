//! All numbers of one scrape, read once and close together in time.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    mem,
    num::NonZero,
    ops::Deref,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use pod_ebpf::{
    LAYOUT, NO_SLOT, block::BlockStats, dns::DnsStats, net::NetStats, process::ProcessStats,
    runqueue::RunQueueStats, tcp::TcpStats,
};

use super::{
    Build,
    archive::{Archive, Held, Others, Sums, View},
    base::Written,
    capacity::{Capacities, Capacity},
    cost::Attributed,
    exemplar::{Completion, Exemplar},
    family::{CONTAINER_LABELS, Family, POD_LABELS},
    file::Files,
    looks::{Look, Looks},
    netns::{self, Netns, Outside},
    other::Other,
    own::Own,
    reconcile::Traffic,
};
use crate::{
    cgroup::{
        file::Reader,
        stats::{self, Stats},
    },
    image::Totals,
    network::host_interface,
    node::{ContainerSnapshot, DiskUsage, Occupancy, PodSnapshot},
    pod::{Adopted, INFRA},
    probes::{Batches, Drops, Governed, MapFill, Origin, ProbeStatus, Probes, ProgramCost},
};

/// Most of a scrape is waiting for system calls on thousands of small files, which threads share
/// well; more than these would only get into the pods' way.
const MAX_THREADS: usize = 4;

const SIGKILL: usize = libc::SIGKILL as usize;

/// As many pods as are worth a thread.
const PODS_PER_THREAD: usize = 16;

/// What one scrape tells.
pub(super) struct Reading {
    pub(super) pods: Vec<Pod>,
    /// Pods that are gone and whose series are not.
    pub(super) held: Vec<Arc<Held>>,
    /// Pods that were held for less than their time.
    pub(super) folded_early: u64,
    /// Totals of pods that are held no longer.
    pub(super) completed: Arc<Sums>,
    /// Pods that have no series of their own, but for those that live.
    pub(super) others: Others,
    /// What all of those have come to.
    pub(super) other: Other,
    /// Series of pods on the page that was written last.
    pub(super) series: Cell<usize>,
    pub(super) images: Totals,
    pub(super) probes: Vec<ProbeStatus>,
    pub(super) governed: Governed,
    pub(super) origin: Origin,
    /// Version of the layout of the maps.
    pub(super) layout: String,
    pub(super) adopted: BTreeMap<Adopted, u64>,
    pub(super) costs: Vec<ProgramCost>,
    /// What of that is no living pod's doing.
    pub(super) attributed: Attributed,
    pub(super) maps: Vec<MapFill>,
    pub(super) lost: Vec<(&'static str, u64)>,
    pub(super) build: Build,
    pub(super) node: Node,
    pub(super) own: Own,
    pub(super) scrapes: Scrapes,
}

/// What the node has for pods.
pub(super) struct Node {
    pub(super) occupancy: Occupancy,
    /// Pods that were ended, and why.
    pub(super) disruptions: Vec<(&'static str, u64)>,
    /// Whether no pod may start for want of disk.
    pub(super) is_full: bool,
    /// Processes whose `oom_score_adj` the kernel refused.
    pub(super) oom_scores_refused: u64,
    /// Connections that a pod may have; 0 is any number.
    pub(super) connection_limit: u32,
}

/// The scrapes before this one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scrapes {
    pub(super) count: u64,
    pub(super) last: Option<Duration>,
}

/// One pod.
pub(super) struct Pod {
    pub(super) about: Arc<PodSnapshot>,
    /// Whose its series are.
    pub(super) labels: Written,
    /// Whether it has no series of its own.
    pub(super) is_other: bool,
    pub(super) containers: Vec<Container>,
    /// Controllers of its limits that the node cannot enforce.
    pub(super) unenforced: Vec<String>,
    /// What the kernel counts for its network namespace.
    pub(super) netns: Option<Netns>,
    /// What the last look at it has found, and then this one.
    pub(super) look: Look,
    /// Whether no thread of its containers has run since the last look.
    pub(super) is_idle: bool,
    /// Connections that it was refused, having as many as it may.
    pub(super) refused_connections: u64,
    /// How large its volumes are, by name; those whose file system has answered.
    pub(super) volumes: Vec<(String, Capacity)>,
    /// Run time of the probes that is its doing.
    pub(super) probe_seconds: Option<f64>,
    /// What its containers have on the disk, by name; those that were measured.
    pub(super) disk: Arc<HashMap<String, DiskUsage>>,
    /// When its last process was dead and it was read for the last time.
    pub(super) deleted: Option<Timestamp>,
    /// What the devices of its network passed.
    pub(super) traffic: Option<Traffic>,
}

/// A container among those of its pod's snapshot.
pub(super) struct About {
    pod: Arc<PodSnapshot>,
    index: usize,
}

/// One container and all that was counted for it.
pub(super) struct Container {
    pub(super) about: About,
    /// Whose its series are.
    pub(super) labels: Written,
    pub(super) process: ProcessStats,
    pub(super) net: NetStats,
    pub(super) dns: DnsStats,
    pub(super) tcp: TcpStats,
    pub(super) block: BlockStats,
    pub(super) drops: Drops,
    pub(super) runqueue: RunQueueStats,
    /// By name of the volume.
    pub(super) files: Vec<(Arc<str>, Files)>,
    pub(super) cgroup: Stats,
    /// What it has on the disk, once that was measured.
    pub(super) disk: Option<DiskUsage>,
    /// The first process of the current or last run.
    pub(super) first: Option<Exemplar>,
    /// The process of that run that the kernel ended for want of memory.
    pub(super) victim: Option<Exemplar>,
    /// The connection that took longest to be established lately.
    pub(super) slowest_connect: Option<Exemplar>,
    /// The query that took longest to be answered lately.
    pub(super) slowest_query: Option<Exemplar>,
}

/// Where a reading is taken from, beside the node.
pub(super) struct Sources<'a> {
    pub(super) probes: &'a Probes,
    pub(super) archive: &'a Archive,
    pub(super) capacities: &'a Capacities,
    pub(super) completion: &'a Completion,
    pub(super) looks: &'a Looks,
}

impl Reading {
    pub(super) fn take(
        node: &crate::node::Node,
        Sources { probes, archive, capacities, completion, looks }: Sources<'_>,
        build: Build,
        own: Own,
        scrapes: Scrapes,
    ) -> Self {
        let mut unenforced: HashMap<_, Vec<_>> = HashMap::new();
        for (namespace, pod, controller) in node.unenforced_limits() {
            unenforced.entry((namespace, pod)).or_default().push(controller);
        }
        let mut refused = node.network().refused_connections();
        let mut last = looks.last();
        let reading = archive.reading();
        let View { living, held, completed, early, others } = archive.view(|| node.snapshot());
        let pods = living.into_iter().map(|(about, is_other)| {
            let key = (about.namespace.clone(), about.name.clone());
            let mut pod = Pod::new(about);
            pod.is_other = is_other;
            pod.look = last.remove(&pod.about.uid).unwrap_or_default();
            pod.refused_connections = refused.remove(&pod.about.uid).unwrap_or(0);
            pod.disk = node.disk_usage(&pod.about.uid).unwrap_or_default();
            pod.unenforced = unenforced.remove(&key).unwrap_or_default();
            pod
        });
        let mut pods: Vec<Pod> = pods.collect();
        // Before the counters: what is not counted by now is not on the page.
        let status = probes.status();
        let many = pods.len() > PODS_PER_THREAD;
        let mut by_slot: Vec<&mut Pod> = pods.iter_mut().collect();
        by_slot.sort_by_key(|pod| pod.about.containers.first().map(|first| first.slot));
        for_each(
            &mut by_slot,
            // Behind the view: no slot that it has is cleared any more.
            || (Batches::new(probes, &status, many), Reader::new()),
            |(counters, reader), pod| pod.read(counters, reader),
        );
        // Behind the counters: what passes meanwhile is the kernel's.
        let outside = Outside::read();
        for_each(&mut pods, Reader::new, |reader, pod| {
            pod.read_netns(&outside, reader);
            pod.netns = pod.netns.or_else(|| archive.last_netns(&pod.about.uid));
        });
        drop(reading);
        completion.complete(&mut pods);
        let found = |pod: &mut Pod| (pod.about.uid.clone(), mem::take(&mut pod.look));
        looks.keep(pods.iter_mut().map(found).collect());
        let volumes = pods.iter().flat_map(|pod| &pod.about.volumes);
        let capacities = capacities.read(&volumes.map(|(_, path)| path.clone()).collect());
        for pod in &mut pods {
            let known = pod.about.volumes.iter();
            let known =
                known.filter_map(|(name, path)| Some((name.clone(), *capacities.get(path)?)));
            pod.volumes = known.collect();
        }
        let (costs, mut lost) = (probes.costs(), probes.lost());
        lost.push(("missed", costs.iter().map(|cost| cost.missed).sum()));
        Self {
            pods,
            held,
            folded_early: early,
            completed,
            others,
            other: Other::default(),
            series: Cell::default(),
            images: node.images().totals(),
            probes: status,
            governed: probes.governed(),
            origin: probes.origin(),
            layout: LAYOUT.to_string(),
            adopted: node.adopted_pods(),
            costs,
            attributed: Attributed::default(),
            maps: probes.maps(),
            lost,
            build,
            node: Node {
                occupancy: node.admission().occupancy(),
                disruptions: node.admission().disruptions(),
                is_full: node.admission().pressure().is_some(),
                oom_scores_refused: node.oom_scores_refused(),
                connection_limit: node.network().connection_limit(),
            },
            own,
            scrapes,
        }
    }

    /// Whether everything that counts `family` is on.
    pub(super) fn has(&self, family: &Family) -> bool {
        has(&self.probes, family)
    }
}

/// Whether all of `probes` are on that count `family`.
pub(super) fn has(probes: &[ProbeStatus], family: &Family) -> bool {
    let is_off = |status: &ProbeStatus| !status.is_attached();
    !probes.iter().any(|probe| is_off(probe) && family.probes.contains(&&*probe.probe))
}

impl Pod {
    /// A pod whose counters are not read yet.
    pub(super) fn new(about: Arc<PodSnapshot>) -> Self {
        let labels = Written::names(&POD_LABELS, &[&about.namespace, &about.name]);
        Self {
            about,
            labels,
            is_other: false,
            containers: Vec::new(),
            unenforced: Vec::new(),
            netns: None,
            look: Look::default(),
            is_idle: false,
            refused_connections: 0,
            volumes: Vec::new(),
            probe_seconds: None,
            disk: Arc::default(),
            deleted: None,
            traffic: None,
        }
    }

    /// Reads what was counted.
    pub(super) fn read(&mut self, counters: &mut Batches<'_>, reader: &mut Reader) {
        let last = mem::take(&mut self.look.cgroups);
        self.containers.reserve_exact(self.about.containers.len());
        self.look.cgroups.reserve_exact(self.about.containers.len());
        self.is_idle = true;
        // Before its containers: what these use meanwhile is seen the next time. For one container it would
        // be no less to read.
        let whole = self.about.cgroup.as_deref().filter(|_| self.about.containers.len() > 1);
        let used = whole.and_then(|cgroup| stats::Used::read(cgroup, reader));
        let above_is_idle = used.is_some() && used == self.look.used;
        self.look.used = used;
        for about in About::each(&self.about) {
            let disk = self.disk.get(&about.name).copied();
            let cgroup = about.cgroup.as_deref().map(|cgroup| {
                let last = last.get(about.index).and_then(Option::as_ref);
                let (turn, now) = (about.slot, Instant::now());
                let read = stats::Last::read(cgroup, reader, last, turn, now, above_is_idle);
                let cpu = last.and_then(|last| last.stats.cpu);
                self.is_idle &= cpu.is_some() && cpu == read.stats.cpu;
                read
            });
            let stats = cgroup.map_or_else(Stats::default, |cgroup| cgroup.stats);
            let container = Container::read(about, counters, stats);
            self.containers.push(Container { disk, ..container });
            self.look.cgroups.push(cgroup);
        }
    }

    /// Everybody who is named.
    pub(super) fn exemplars(&mut self) -> impl Iterator<Item = &mut Exemplar> {
        self.containers.iter_mut().flat_map(Container::exemplars)
    }

    /// Reads what the kernel counts for the pod's network namespace, if its infra process is there.
    pub(super) fn read_netns(&mut self, outside: &Outside, reader: &mut Reader) {
        if self.about.host_network {
            return;
        }
        let Some(cgroup) = &self.about.cgroup else { return };
        let outside = outside.of(&host_interface(&self.about.uid));
        let last = self.look.netns.take();
        let cgroup = cgroup.path().join(INFRA);
        self.look.netns = netns::Look::take(&cgroup, reader, outside, self.is_idle, last);
        let Some(look) = &self.look.netns else { return };
        self.traffic = look.traffic;
        self.netns = Some(look.netns);
    }
}

impl About {
    /// Each of a pod's containers.
    pub(super) fn each(pod: &Arc<PodSnapshot>) -> impl Iterator<Item = Self> {
        (0..pod.containers.len()).map(|index| Self { pod: Arc::clone(pod), index })
    }

    /// Whose its series are.
    pub(super) fn labels(&self) -> Written {
        let values = [&*self.pod.namespace, &*self.pod.name, &*self.name];
        Written::names(&CONTAINER_LABELS, &values)
    }
}

impl Deref for About {
    type Target = ContainerSnapshot;

    fn deref(&self) -> &ContainerSnapshot {
        &self.pod.containers[self.index]
    }
}

impl Container {
    fn read(about: About, counters: &mut Batches<'_>, cgroup: Stats) -> Self {
        let mut files: Vec<(Arc<str>, Files)> = Vec::with_capacity(about.volumes.len());
        for (volume, cell) in &*about.volumes {
            // Cell 0 is everybody else's.
            let stats =
                if *cell == NO_SLOT { Files::default() } else { Files::read(counters, *cell) };
            // A volume that is called like one of ours shares its series with it: two series of
            // the same labels would make Prometheus refuse the whole scrape.
            match files.iter_mut().find(|(name, _)| name == volume) {
                Some((_, sum)) => sum.add(stats),
                None => files.push((Arc::clone(volume), stats)),
            }
        }
        // A container has series from its birth on, and no slot before it is first started.
        let slot = about.slot;
        let is_there = slot != NO_SLOT;
        let process = if is_there { counters.process(slot) } else { ProcessStats::ZERO };
        let tcp = if is_there { counters.tcp(slot) } else { TcpStats::ZERO };
        let dns = if is_there { counters.dns(slot) } else { DnsStats::ZERO };
        let run = is_there.then(|| counters.run(slot));
        // Most containers have none of what is looked for from here on, and each look costs.
        let was_killed = process.signals[SIGKILL] > 0;
        let alone = counters.alone();
        let victim = run.filter(|_| was_killed).and_then(|run| alone.victim(slot, run.number));
        Self {
            slowest_connect: Exemplar::slowest(&tcp.connect_latency, || {
                alone.slowest_connect(slot)
            }),
            slowest_query: Exemplar::slowest(&dns.duration, || alone.slowest_query(slot)),
            process,
            tcp,
            dns,
            net: if is_there { counters.net(slot) } else { NetStats::ZERO },
            block: if is_there && cgroup.io.is_some() {
                counters.block(slot)
            } else {
                BlockStats::ZERO
            },
            drops: if is_there { counters.drops(slot) } else { Drops::default() },
            runqueue: if is_there { counters.runqueue(slot) } else { RunQueueStats::ZERO },
            labels: about.labels(),
            about,
            files,
            cgroup,
            disk: None,
            first: run.and_then(|run| Exemplar::counted(run.tgid)),
            victim: victim.and_then(|victim| Exemplar::counted(victim.tgid)),
        }
    }

    /// Everybody who is named.
    pub(super) fn exemplars(&mut self) -> impl Iterator<Item = &mut Exemplar> {
        let own =
            [&mut self.first, &mut self.victim, &mut self.slowest_connect, &mut self.slowest_query];
        let files = self.files.iter_mut().flat_map(|(_, files)| &mut files.slowest);
        own.into_iter().flatten().chain(files.map(|(_, exemplar)| exemplar))
    }
}

/// Reads something for each of `pods`, on several threads if there are many; each has what `begin`
/// makes.
pub(super) fn for_each<T: Send, S>(
    pods: &mut [T],
    begin: impl Fn() -> S + Sync,
    read: impl Fn(&mut S, &mut T) + Sync,
) {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let share = pods.len().div_ceil(threads).max(PODS_PER_THREAD);
    thread::scope(|scope| {
        for pods in pods.chunks_mut(share) {
            scope.spawn(|| {
                let mut state = begin();
                pods.iter_mut().for_each(|pod| read(&mut state, pod));
            });
        }
    });
}
