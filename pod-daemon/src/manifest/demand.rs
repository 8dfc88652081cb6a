//! What a pod takes of its node, as the scheduler of Kubernetes counts it.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr},
    ops::{AddAssign, Index, IndexMut},
};

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

use super::amounts::{Amounts, EPHEMERAL_STORAGE, HUGE_PAGES, PIDS};

/// How amounts of a resource are counted and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Thousandths of a CPU.
    Millicores,
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

/// Something that a node has a limited amount of.
#[derive(Clone, Copy, Debug)]
pub struct Resource {
    /// As Kubernetes names it.
    pub name: &'static str,
    /// How it is counted.
    pub unit: Unit,
}

const fn resource(name: &'static str, unit: Unit) -> Resource {
    Resource { name, unit }
}

/// The resources that pods are admitted by.
pub static RESOURCES: [Resource; 11] = [
    resource("cpu", Unit::Millicores),
    resource("memory", Unit::Bytes),
    resource(EPHEMERAL_STORAGE, Unit::Bytes),
    resource(PIDS, Unit::Count),
    resource(HUGE_PAGES[0].resource, Unit::Bytes),
    resource(HUGE_PAGES[1].resource, Unit::Bytes),
    resource(HUGE_PAGES[2].resource, Unit::Bytes),
    resource(HUGE_PAGES[3].resource, Unit::Bytes),
    resource("podscope.dev/containers", Unit::Count),
    resource("podscope.dev/volumes", Unit::Count),
    resource("podscope.dev/addresses", Unit::Count),
];

/// Positions in [`RESOURCES`].
pub const CPU: usize = 0;
/// See [`CPU`].
pub const MEMORY: usize = 1;
/// See [`CPU`].
pub const STORAGE: usize = 2;
/// See [`CPU`].
pub const PROCESSES: usize = 3;
/// See [`CPU`]: the first of the sizes of huge pages.
pub const HUGE: usize = 4;
/// See [`CPU`].
pub const CONTAINERS: usize = 8;
/// See [`CPU`].
pub const VOLUMES: usize = 9;
/// See [`CPU`].
pub const ADDRESSES: usize = 10;

/// An amount of each resource, in the order of [`RESOURCES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([u64; RESOURCES.len()]);

/// A port of the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The node's address; unspecified for all of them.
    pub address: IpAddr,
    /// The number.
    pub port: i32,
}

/// What a pod takes of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Of each resource.
    pub totals: Totals,
    /// Ports that nobody else may have.
    pub host_ports: BTreeSet<HostPort>,
}

impl Index<usize> for Totals {
    type Output = u64;

    fn index(&self, resource: usize) -> &u64 {
        &self.0[resource]
    }
}

impl IndexMut<usize> for Totals {
    fn index_mut(&mut self, resource: usize) -> &mut u64 {
        &mut self.0[resource]
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(more);
        }
    }
}

impl Totals {
    /// What is left without `other`; nothing where that is more.
    #[must_use]
    pub fn less(mut self, other: Self) -> Self {
        for (left, taken) in self.0.iter_mut().zip(other.0) {
            *left = left.saturating_sub(taken);
        }
        self
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        self += other;
        self
    }

    /// Positions of the resources of which this is more than `room`.
    pub fn beyond(self, room: Self) -> impl Iterator<Item = usize> {
        (0..RESOURCES.len()).filter(move |&at| self.0[at] > room.0[at])
    }
}

impl HostPort {
    /// Whether two pods cannot have both.
    #[must_use]
    pub fn conflicts(&self, other: &Self) -> bool {
        let everywhere = self.address.is_unspecified() || other.address.is_unspecified();
        self.port == other.port
            && self.protocol == other.protocol
            && (everywhere || self.address == other.address)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)?;
        if self.address.is_unspecified() { Ok(()) } else { write!(f, " on {}", self.address) }
    }
}

impl Demand {
    /// What the pod takes.
    #[must_use]
    pub fn of(spec: &PodSpec) -> Self {
        let requests = requests(spec);
        let mut totals = Totals::default();
        totals[CPU] = requests.cpu_millicores.unwrap_or(0);
        totals[MEMORY] = requests.memory_bytes.unwrap_or(0);
        totals[STORAGE] = requests.ephemeral_bytes.unwrap_or(0);
        totals[PROCESSES] = requests.pids.unwrap_or(0);
        for (size, bytes) in requests.huge_pages.into_iter().enumerate() {
            totals[HUGE + size] = bytes.unwrap_or(0);
        }
        totals[CONTAINERS] = spec.containers.len() as u64;
        totals[VOLUMES] = spec.containers.iter().map(cells).sum();
        let host_network = spec.host_network.unwrap_or(false);
        totals[ADDRESSES] = u64::from(!host_network);
        Self { totals, host_ports: host_ports(spec, host_network) }
    }

    /// What a pod still takes when its containers have ended for good: its counters, until it is
    /// deleted.
    #[must_use]
    pub fn of_the_ended(&self) -> Self {
        let mut totals = Totals::default();
        for kept in [STORAGE, CONTAINERS, VOLUMES, ADDRESSES] {
            totals[kept] = self.totals[kept];
        }
        Self { totals, host_ports: BTreeSet::new() }
    }
}

/// What a container asks for: without a request, as much as it may use.
#[must_use]
pub fn container_requests(container: &Container) -> Amounts {
    amounts(container.resources.as_ref())
}

/// What a pod asks for: by itself, or with its containers together, or as much as it may use.
#[must_use]
pub fn requests(spec: &PodSpec) -> Amounts {
    let containers = spec.containers.iter().map(container_requests);
    let sum = containers.fold(Amounts::default(), Amounts::plus);
    let own = spec.resources.as_ref();
    read(own.and_then(|own| own.requests.as_ref()))
        .or(sum)
        .or(read(own.and_then(|own| own.limits.as_ref())))
}

/// What a pod may use: by itself, or else with its containers together where each has a limit.
#[must_use]
pub fn limits(spec: &PodSpec) -> Amounts {
    let own = read(spec.resources.as_ref().and_then(|own| own.limits.as_ref()));
    let containers = spec.containers.iter().map(container_limits);
    let sum = containers.reduce(Amounts::plus_limits).unwrap_or_default();
    // A container that does not mention huge pages has none, instead of all.
    Amounts { huge_pages: requests(spec).huge_pages, ..own.or(sum) }
}

/// What a container may use.
#[must_use]
pub fn container_limits(container: &Container) -> Amounts {
    read(container.resources.as_ref().and_then(|resources| resources.limits.as_ref()))
}

fn amounts(resources: Option<&ResourceRequirements>) -> Amounts {
    read(resources.and_then(|resources| resources.requests.as_ref()))
        .or(read(resources.and_then(|resources| resources.limits.as_ref())))
}

/// What does not parse was refused with the manifest.
fn read(
    quantities: Option<
        &std::collections::BTreeMap<
            String,
            k8s_openapi::apimachinery::pkg::api::resource::Quantity,
        >,
    >,
) -> Amounts {
    Amounts::read(quantities).unwrap_or_default()
}

/// Counters of volumes: the container's root is one.
fn cells(container: &Container) -> u64 {
    let mounts = container.volume_mounts.iter().flatten();
    let names: BTreeSet<&str> = mounts.map(|mount| mount.name.as_str()).collect();
    names.len() as u64 + 1
}

/// With the host's network, every port of a container is one of the node.
fn host_ports(spec: &PodSpec, host_network: bool) -> BTreeSet<HostPort> {
    let all = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    all.filter_map(|port| {
        let own = port.host_port.filter(|port| *port != 0);
        let address = port.host_ip.as_deref().and_then(|address| address.parse().ok());
        Some(HostPort {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            address: address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            port: own.or_else(|| host_network.then_some(port.container_port))?,
        })
    })
    .collect()
}

/// An amount as Kubernetes writes it.
#[must_use]
pub fn display(amount: u64, unit: Unit) -> String {
    match unit {
        Unit::Count => amount.to_string(),
        Unit::Millicores if amount.is_multiple_of(1000) => (amount / 1000).to_string(),
        Unit::Millicores => format!("{amount}m"),
        Unit::Bytes => {
            // Exact where that is short, else in a unit that leaves three digits or more.
            let shift = |exact: bool| {
                [(30, "Gi"), (20, "Mi"), (10, "Ki")].into_iter().find(|(shift, _)| {
                    if exact {
                        amount > 0 && amount.is_multiple_of(1 << shift)
                    } else {
                        amount >> shift >= 100
                    }
                })
            };
            match shift(true).or_else(|| shift(false)) {
                Some((shift, unit)) => format!("{}{unit}", amount >> shift),
                None => amount.to_string(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn with(resources: Value) -> Value {
        json!({"name": "c", "resources": resources})
    }

    #[test]
    fn requests_are_summed_and_default_to_limits() {
        let spec = spec(json!({"containers": [
            with(json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "1", "memory": "1Mi"}})),
            with(json!({"limits": {"cpu": "1", "podscope.dev/pids": 7}})),
            with(json!({})),
        ]}));
        let demand = Demand::of(&spec).totals;
        assert_eq!((demand[CPU], demand[MEMORY], demand[PROCESSES]), (1250, 1 << 20, 7));
        assert_eq!((demand[CONTAINERS], demand[VOLUMES], demand[ADDRESSES]), (3, 3, 1));
    }

    #[test]
    fn a_pods_own_request_is_what_counts() {
        let pod = |resources: Value| {
            let containers = [with(json!({"requests": {"cpu": "100m"}})), with(json!({}))];
            Demand::of(&spec(json!({"containers": containers, "resources": resources}))).totals
        };
        assert_eq!(pod(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}))[CPU], 2000);
        assert_eq!(pod(json!({"limits": {"cpu": "3", "memory": "1Gi"}}))[CPU], 100);
        assert_eq!(pod(json!({"limits": {"cpu": "3", "memory": "1Gi"}}))[MEMORY], 1 << 30);
    }

    #[test]
    fn a_pods_own_limit_wins_over_the_sum_of_its_containers() {
        let containers = [
            with(json!({"limits": {"cpu": "1", "memory": "1Mi"}})),
            with(json!({"limits": {"cpu": "1"}})),
        ];
        let limits = limits(&spec(json!({
            "containers": containers, "resources": {"limits": {"memory": "3Mi"}},
        })));
        assert_eq!((limits.cpu_millicores, limits.memory_bytes), (Some(2000), Some(3 << 20)));
    }

    #[test]
    fn a_container_without_huge_pages_takes_none_from_the_others() {
        let containers =
            [with(json!({"limits": {"hugepages-2Mi": "4Mi", "memory": "1Mi"}})), with(json!({}))];
        let limits = limits(&spec(json!({"containers": containers})));
        assert_eq!(limits.huge_pages[1], Some(4 << 20));
        assert_eq!(limits.memory_bytes, None);
    }

    #[test]
    fn ports_of_the_node_are_asked_for() {
        let ports = |host_network: bool, ports: Value| {
            let containers = [json!({"name": "c", "ports": ports})];
            let demand =
                Demand::of(&spec(json!({"hostNetwork": host_network, "containers": containers})));
            demand.host_ports.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let all = json!([
            {"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"},
            {"containerPort": 53, "protocol": "UDP"},
        ]);
        assert_eq!(ports(false, all.clone()), ["8080/TCP on 127.0.0.1"]);
        assert_eq!(ports(true, all), ["8080/TCP on 127.0.0.1", "53/UDP"]);
    }

    #[test]
    fn a_port_on_all_addresses_conflicts_with_the_same_on_one() {
        let port = |protocol: &str, address: &str, port| HostPort {
            protocol: protocol.to_owned(),
            address: address.parse().unwrap(),
            port,
        };
        let all = port("TCP", "0.0.0.0", 80);
        let one = port("TCP", "10.0.0.1", 80);
        assert!(all.conflicts(&one) && one.conflicts(&all) && one.conflicts(&one));
        for other in
            [port("TCP", "10.0.0.2", 80), port("UDP", "10.0.0.1", 80), port("TCP", "10.0.0.1", 81)]
        {
            assert!(!one.conflicts(&other), "{other}");
        }
    }

    #[test]
    fn amounts_are_shown_in_kubernetes_units() {
        for (amount, unit, text) in [
            (1500, Unit::Millicores, "1500m"),
            (4000, Unit::Millicores, "4"),
            (0, Unit::Bytes, "0"),
            (1 << 30, Unit::Bytes, "1Gi"),
            (64 << 20, Unit::Bytes, "64Mi"),
            ((64 << 20) + 1, Unit::Bytes, "65536Ki"),
            ((7 << 30) + 12345, Unit::Bytes, "7168Mi"),
            (77, Unit::Bytes, "77"),
            (3, Unit::Count, "3"),
        ] {
            assert_eq!(display(amount, unit), text);
        }
    }
}
