//! The node's own addresses, as the probes look them up.

use std::{collections::HashSet, net::IpAddr, path::Path};

use aya::maps::HashMap;
use pod_ebpf::net::{Address, MAX_ADDRESSES};

use super::{Data, Error, open};

/// The map of them.
pub(super) struct Addresses(HashMap<Data, Address, u32>);

impl Addresses {
    /// Opens the map, which may hold what an earlier daemon has told.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        Ok(Self(open(folder, "ADDRESSES", aya::maps::Map::HashMap)?))
    }

    /// Makes these all that there are. What does not fit counts as somebody else's.
    pub(super) fn set(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let failed = |source| Error::Map { action: "store the node's addresses", source };
        let wanted: HashSet<Address> = addresses.iter().map(key).collect();
        let known: HashSet<Address> = self.0.keys().filter_map(Result::ok).collect();
        for gone in known.difference(&wanted) {
            self.0.remove(gone).map_err(failed)?;
        }
        let room = MAX_ADDRESSES as usize - known.intersection(&wanted).count();
        for new in wanted.difference(&known).take(room) {
            self.0.insert(new, &1, 0).map_err(failed)?;
        }
        if wanted.len() > MAX_ADDRESSES as usize {
            tracing::warn!(addresses = wanted.len(), "too many addresses of the node's own");
        }
        Ok(())
    }
}

fn key(address: &IpAddr) -> Address {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => *address,
    };
    let octets = address.octets();
    let (words, _) = octets.as_chunks();
    std::array::from_fn(|index| u32::from_ne_bytes(words[index]))
}

#[cfg(test)]
mod tests {
    use pod_ebpf::net::MAPPED;

    use super::*;

    #[test]
    fn an_ipv4_address_is_that_which_is_mapped_to_ipv6() {
        let address = u32::from_ne_bytes([10, 88, 0, 1]);
        assert_eq!(key(&"10.88.0.1".parse().unwrap()), [0, 0, MAPPED, address]);
    }
}
