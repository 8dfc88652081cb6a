//! The pods' network: one bridge on the node, and for each pod an address and a veth pair.
//!
//! IPv4 for now. Everything that is made carries the daemon's own names, so that several daemons
//! can live on one node and a later start finds what a crash left behind.

mod addresses;
mod connections;
mod netlink;
mod nft;
mod pool;
mod ports;

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::BorrowedFd,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ipnet::Ipv4Net;

pub use self::ports::{Port, Protocol};
use self::{
    connections::Refused,
    netlink::Netlink,
    nft::{nft, nft_json},
    pool::Pool,
    ports::Published,
};
use crate::fault;

/// The bridge of a daemon with the default run directory.
const DEFAULT_BRIDGE: &str = "podscope0";

/// As many digits of a uid have room in the name of an interface.
const DIGITS: usize = 11;

/// The interface of every pod.
pub(crate) const POD_INTERFACE: &str = "eth0";

/// The pods' network on this node.
#[derive(Debug)]
pub struct Network {
    range: Ipv4Net,
    bridge: String,
    table: String,
    state: Mutex<State>,
    /// Also keeps one change of the nftables maps from meeting another.
    published: Mutex<Published>,
    /// Whether nftables has the rules, as far as this daemon knows. Held while they are made anew or
    /// removed for good.
    has_rules: Mutex<bool>,
    connection_limit: u32,
    refused: Mutex<Refused>,
    /// Whether all pods of an earlier daemon have been taken over.
    is_swept: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// A socket in the host's network namespace.
    host: Netlink,
    bridge_index: u32,
    pool: Pool,
    /// Pod uid to its address.
    leases: HashMap<String, Ipv4Addr>,
}

/// The network cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct Error {
    action: String,
    source: io::Error,
}

impl Network {
    /// Makes the bridge and the masquerading for pods with addresses in `range`.
    ///
    /// `instance` tells this daemon's names from another's on the same node; empty for the default.
    /// Every pod may have `connections` at most: 0 is any number, `None` a share of the node's.
    pub fn prepare(
        range: Ipv4Net,
        instance: &str,
        connections: Option<u32>,
    ) -> Result<Self, Error> {
        let bridge =
            if instance.is_empty() { DEFAULT_BRIDGE.to_owned() } else { format!("ps-{instance}") };
        let table = if instance.is_empty() {
            "podscope".to_owned()
        } else {
            format!("podscope_{instance}")
        };
        let mut host = Netlink::open().map_err(failed_to("open a netlink socket"))?;
        let pool = Pool::new(range);
        let bridge_index = host
            .ensure_bridge(&bridge, pool.gateway(), range.prefix_len())
            .map_err(failed_to(format!("set up the bridge `{bridge}`")))?;
        let mut network = Self {
            range,
            bridge,
            table,
            state: Mutex::new(State { host, bridge_index, pool, leases: HashMap::new() }),
            published: Mutex::default(),
            has_rules: Mutex::default(),
            connection_limit: 0,
            refused: Mutex::default(),
            is_swept: AtomicBool::new(false),
        };
        network.has_rules = Mutex::new(network.forward());
        network.connection_limit = network.limit_connections(connections);
        Ok(network)
    }

    /// Lets pods reach what is behind the node. A node that cannot still runs pods, which reach
    /// each other and the node. Says whether nftables has the rules.
    fn forward(&self) -> bool {
        if let Err(error) = fs::write("/proc/sys/net/ipv4/ip_forward", "1") {
            tracing::warn!(%error, "IP forwarding is off; pods cannot reach beyond this node");
        }
        let Self { table, bridge, range, .. } = self;
        let rules = ports::rules(table, bridge, range);
        // What an earlier version has left may not fit.
        let anew = || nft(&format!("table ip {table}\ndelete table ip {table}\n{rules}"));
        let done = nft(&rules).or_else(|_other| anew());
        if let Err(error) = &done {
            tracing::warn!(%error, "no masquerading (is nftables installed?); pods cannot reach beyond this node");
        }
        done.is_ok()
    }

    /// Makes the rules anew if somebody has removed them, as who flushes all of the node's does.
    pub fn restore(&self) {
        let table = &self.table;
        let has_rules = self.has_rules.lock().unwrap_or_else(PoisonError::into_inner);
        // Without that chain there are none at all.
        if !*has_rules || nft_json(&["list", "chain", "ip", table, "postrouting"]).is_ok() {
            return;
        }
        tracing::warn!(table, "somebody has removed the nftables rules of the pods; made anew");
        self.forward();
        if let Err(error) = self.republish() {
            tracing::warn!(error = %error, "host ports are not what they should be");
        }
        self.limit_connections(Some(self.connection_limit));
    }

    /// How many pods can have an address.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        let (first, last) = (u32::from(self.range.network()), u32::from(self.range.broadcast()));
        // Neither these two nor the bridge's.
        u64::from(last - first).saturating_sub(2)
    }

    /// Reserves an address for the pod `uid`; the same one if it has one already.
    pub fn allocate(&self, uid: &str) -> Result<Ipv4Addr, Error> {
        let mut state = self.state();
        if let Some(address) = state.leases.get(uid) {
            return Ok(*address);
        }
        let address = state.pool.take().ok_or_else(|| {
            failed_to(format!("find a free address in {} for another pod", self.range))(
                io::ErrorKind::AddrNotAvailable.into(),
            )
        })?;
        state.leases.insert(uid.to_owned(), address);
        Ok(address)
    }

    /// Connects the network namespace `namespace`, which the calling thread must be in, to the
    /// bridge, with the address that the pod `uid` has.
    pub fn connect(&self, uid: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut inside = Netlink::open()?;
        fault::at("veth")?;
        let published = self.published().contains_key(uid);
        let (address, gateway) = {
            let mut state = self.state();
            let address = *state.leases.get(uid).ok_or(io::ErrorKind::AddrNotAvailable)?;
            let bridge_index = state.bridge_index;
            let name = host_interface(uid);
            state.host.add_veth(&name, bridge_index, (POD_INTERFACE, address), namespace)?;
            // Where br_netfilter is on, the bridge itself translates addresses, and a pod that uses
            // a port of the node that leads to it is at both ends of one port of the bridge.
            if published {
                state.host.reflect(&name)?;
            }
            (address, state.pool.gateway())
        };
        fault::at("interface")?;
        inside.configure(POD_INTERFACE, address, self.range.prefix_len(), gateway)
    }

    /// Takes a pod off the bridge, and its ports off the node. Its veth may be gone already.
    pub fn disconnect(&self, uid: &str) -> Result<(), Error> {
        let unpublished = self.unpublish(uid);
        let name = host_interface(uid);
        let result = self.state().host.remove_link(&name);
        result.map_err(failed_to(format!("remove the interface `{name}`"))).and(unpublished)
    }

    /// The node's address on the bridge, by which pods reach it.
    #[must_use]
    pub fn node_address(&self) -> Ipv4Addr {
        self.state().pool.gateway()
    }

    /// The addresses that pods get, and the node's among them.
    #[must_use]
    pub fn range(&self) -> (Ipv4Net, Ipv4Addr) {
        (self.range, self.node_address())
    }

    /// Calls `tell` with all addresses of the node, now and whenever they have changed, for as long as
    /// this process lives.
    pub fn watch_addresses(&self, tell: impl Fn(&[IpAddr]) + Send + 'static) -> Result<(), Error> {
        addresses::watch(tell).map_err(failed_to("watch the node's addresses"))
    }

    /// Gives a pod's address back, and its ports if it still has some.
    pub fn release(&self, uid: &str) {
        if let Err(error) = self.unpublish(uid) {
            tracing::warn!(uid, %error, "host ports are left behind; the next start removes them");
        }
        let mut state = self.state();
        if let Some(address) = state.leases.remove(uid) {
            state.pool.give_back(address);
        }
    }

    /// Takes over the address of a pod of an earlier daemon, and the ports that lead to it.
    pub fn adopt(&self, uid: &str, address: Ipv4Addr, ports: &[Port]) {
        if !ports.is_empty() {
            self.published().insert(uid.to_owned(), (address, ports.to_vec()));
        }
        let mut state = self.state();
        state.pool.reserve(address);
        state.leases.insert(uid.to_owned(), address);
    }

    /// Removes the interfaces and the host ports of pods other than `living`, which have been taken
    /// over; says how many interfaces there were.
    pub fn sweep(&self, living: &[&str]) -> Result<usize, Error> {
        if let Err(error) = self.republish() {
            tracing::warn!(error = %error, "host ports are not what they should be");
        }
        self.is_swept.store(true, Ordering::Relaxed);
        let needed: Vec<String> = living.iter().map(|uid| host_interface(uid)).collect();
        let mut state = self.state();
        let index = state.bridge_index;
        state
            .host
            .remove_ports(index, |name| is_of_a_pod(name) && !needed.iter().any(|one| one == name))
            .map_err(failed_to("remove left-over interfaces"))
    }

    /// Removes the bridge and the masquerading.
    pub fn remove(&self) -> Result<(), Error> {
        let Self { table, bridge, .. } = self;
        let mut has_rules = self.has_rules.lock().unwrap_or_else(PoisonError::into_inner);
        *has_rules = false;
        // Declared first, so that a table that was never made is no error.
        if let Err(error) = nft(&format!("table ip {table}\ndelete table ip {table}\n")) {
            tracing::debug!(%error, "no masquerading to remove");
        }
        let result = self.state().host.remove_link(bridge);
        result.map_err(failed_to(format!("remove the bridge `{bridge}`")))
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's end of a pod's veth pair, named after the pod's uid.
pub(crate) fn host_interface(uid: &str) -> String {
    let digits: String = uid.chars().filter(char::is_ascii_hexdigit).take(DIGITS).collect();
    format!("veth{digits}")
}

/// Whether an interface is called like a pod's: the bridge may have others.
fn is_of_a_pod(name: &str) -> bool {
    let digits = name.strip_prefix("veth");
    digits.is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// `resolv.conf` for pods with a network of their own: a resolver on the host's loopback is out of
/// their reach, so the list behind systemd's stub is taken where there is one.
pub fn resolv_conf() -> String {
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if !only_loopback(&host) {
        return host;
    }
    fs::read_to_string(Path::new("/run/systemd/resolve/resolv.conf")).unwrap_or(host)
}

fn only_loopback(resolv_conf: &str) -> bool {
    let mut servers = resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .map(str::trim)
        .peekable();
    servers.peek().is_some() && servers.all(|server| server.starts_with("127.") || server == "::1")
}

fn failed_to(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_fits_the_kernel() {
        let name = host_interface("0f9d6c3e-1a2b-4c5d-8e6f-a1b2c3d4e5f6");
        assert_eq!(name, "veth0f9d6c3e1a2");
        assert!(name.len() < 16);
        assert!(is_of_a_pod(&name));
        for other in ["vethernet", "tap0", "eth0", "veth0f9d6c3e1a", "veth0f9d6c3e1ag"] {
            assert!(!is_of_a_pod(other), "{other}");
        }
    }

    #[test]
    fn a_stub_resolver_is_recognised() {
        assert!(only_loopback("nameserver 127.0.0.53\noptions edns0\n"));
        assert!(!only_loopback("nameserver 127.0.0.53\nnameserver 9.9.9.9\n"));
        assert!(!only_loopback(""));
    }
}
