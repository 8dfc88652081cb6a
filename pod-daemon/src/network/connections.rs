//! How many connections a pod may have: the table that the kernel keeps of them (conntrack) is the
//! whole node's, and who fills it cuts off everybody else.
//!
//! A connection is its beginner's. nftables counts those of each address that comes over the bridge,
//! and drops the first packet of every one beyond the limit. What an address was refused is counted
//! there, too, and read from time to time.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::Ipv4Addr,
    sync::{PoisonError, atomic::Ordering},
};

use serde::Deserialize;

use super::{
    Network,
    nft::{nft, nft_json},
};

/// The kernel's limit for the node.
const NODE_LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// One of the pods of a node may have one part of this many of the node's connections.
const SHARE: u32 = 4;

/// Connections that were refused, by address, as of the last [`Network::count_refused`].
pub(super) type Refused = HashMap<Ipv4Addr, u64>;

/// The chain and its sets. Sets keep a limit with each address, so they begin anew: connections that
/// a pod had before that do not count.
fn rules(table: &str, bridge: &str, limit: u32) -> String {
    let drops = match limit {
        0 => String::new(),
        limit => format!(
            "iifname \"{bridge}\" ct state new add @connections {{ ip saddr ct count over {limit} }} \
             update @refused {{ ip saddr }} drop"
        ),
    };
    format!(
        "table ip {table} {{\n \
         set connections {{ type ipv4_addr; size 65536; flags dynamic; }}\n \
         set refused {{ type ipv4_addr; size 65536; flags dynamic; counter; }}\n \
         chain connections {{ type filter hook prerouting priority mangle; policy accept; }}\n}}\n\
         flush chain ip {table} connections\nflush set ip {table} connections\n\
         table ip {table} {{\n chain connections {{\n {drops}\n }}\n}}\n"
    )
}

/// What a pod may have if nobody says anything else.
fn share_of_the_node() -> io::Result<u32> {
    let limit: u32 = fs::read_to_string(NODE_LIMIT)?.trim().parse().map_err(io::Error::other)?;
    Ok((limit / SHARE).max(1))
}

impl Network {
    /// Lets every pod have at most `limit` connections; 0 is as many as it likes, and `None` a share
    /// of what the node may have. Returns the limit that is in force.
    pub(super) fn limit_connections(&self, limit: Option<u32>) -> u32 {
        let set = || {
            let limit = limit.map_or_else(share_of_the_node, Ok)?;
            nft(&rules(&self.table, &self.bridge, limit)).map(|()| limit)
        };
        set().unwrap_or_else(|error| {
            tracing::warn!(%error, "pods may have any number of connections (nftables and the kernel need `ct count`)");
            0
        })
    }

    /// How many connections a pod may have; 0 is any number.
    #[must_use]
    pub fn connection_limit(&self) -> u32 {
        self.connection_limit
    }

    /// Reads what was refused. Blocks.
    pub fn count_refused(&self) -> io::Result<()> {
        if self.connection_limit == 0 {
            return Ok(());
        }
        let table = &self.table;
        let counted = parse(&nft_json(&["list", "set", "ip", table, "refused"])?)?;
        let leased: Vec<Ipv4Addr> = self.state().leases.values().copied().collect();
        // A pod does not begin with what was counted for an earlier one with its address.
        let (current, gone): (Refused, Refused) =
            counted.into_iter().partition(|(address, _)| leased.contains(address));
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = current;
        // Before the pods of an earlier daemon are taken over, their addresses are nobody's.
        if gone.is_empty() || !self.is_swept.load(Ordering::Relaxed) {
            return Ok(());
        }
        let gone: Vec<String> = gone.keys().map(Ipv4Addr::to_string).collect();
        nft(&format!("delete element ip {table} refused {{ {} }}\n", gone.join(", ")))
    }

    /// First packets of connections of each pod that were dropped, by uid.
    #[must_use]
    pub fn refused_connections(&self) -> BTreeMap<String, u64> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = self.state();
        let of = |(uid, address): (&String, &Ipv4Addr)| Some((uid.clone(), *refused.get(address)?));
        state.leases.iter().filter_map(of).collect()
    }
}

/// The counters of a set's elements, as `nft -j list set` shows them.
fn parse(text: &[u8]) -> io::Result<Refused> {
    #[derive(Deserialize)]
    struct Output {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        set: Option<Set>,
    }
    #[derive(Deserialize)]
    struct Set {
        #[serde(default)]
        elem: Vec<Element>,
    }
    #[derive(Deserialize)]
    struct Element {
        elem: Inner,
    }
    #[derive(Deserialize)]
    struct Inner {
        val: Ipv4Addr,
        counter: Counter,
    }
    #[derive(Deserialize)]
    struct Counter {
        packets: u64,
    }
    let output: Output = serde_json::from_slice(text)?;
    let sets = output.nftables.into_iter().filter_map(|item| item.set);
    let elements = sets.flat_map(|set| set.elem);
    Ok(elements.map(|Element { elem }| (elem.val, elem.counter.packets)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let text = br#"{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
            {"set": {"family": "ip", "name": "refused", "table": "podscope", "type": "ipv4_addr",
            "handle": 3, "size": 65535, "elem": [{"elem": {"val": "10.9.0.2",
            "counter": {"packets": 200, "bytes": 5800}}}], "stmt": [{"counter": null}]}}]}"#;
        assert_eq!(parse(text).unwrap(), Refused::from([([10, 9, 0, 2].into(), 200)]));
        let empty = br#"{"nftables": [{"set": {"family": "ip", "name": "refused"}}]}"#;
        assert!(parse(empty).unwrap().is_empty());
        parse(b"Error: No such file or directory").unwrap_err();
    }

    #[test]
    fn without_a_limit_nothing_is_dropped() {
        assert!(!rules("podscope", "podscope0", 0).contains("drop"));
        assert!(rules("podscope", "podscope0", 100).contains("ct count over 100"));
    }
}
