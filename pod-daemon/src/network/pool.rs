//! The addresses that pods get.

use std::{
    collections::{HashSet, VecDeque},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

/// Free addresses of a range. An address that was given back is handed out last, so that a peer's
/// neighbour table and open connections do not meet a new pod at an old address.
#[derive(Debug)]
pub(super) struct Pool {
    gateway: Ipv4Addr,
    last: u32,
    next: u32,
    used: HashSet<Ipv4Addr>,
    returned: VecDeque<Ipv4Addr>,
}

impl Pool {
    /// The first host of the range is the gateway, the others are for pods.
    pub(super) fn new(range: Ipv4Net) -> Self {
        let first = u32::from(range.network()) + 1;
        Self {
            gateway: Ipv4Addr::from(first),
            last: u32::from(range.broadcast()).saturating_sub(1),
            next: first + 1,
            used: HashSet::new(),
            returned: VecDeque::new(),
        }
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    pub(super) fn take(&mut self) -> Option<Ipv4Addr> {
        loop {
            let address = if self.next <= self.last {
                self.next += 1;
                Ipv4Addr::from(self.next - 1)
            } else {
                self.returned.pop_front()?
            };
            // What was reserved is passed over.
            if self.used.insert(address) {
                return Some(address);
            }
        }
    }

    /// Keeps an address from being handed out until it is given back.
    pub(super) fn reserve(&mut self, address: Ipv4Addr) {
        self.used.insert(address);
    }

    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        // A reserved one may be of another range, or its turn may be still to come.
        let had_its_turn = (u32::from(self.gateway) + 1..self.next).contains(&u32::from(address));
        if self.used.remove(&address) && had_its_turn {
            self.returned.push_back(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_handed_out_once_and_the_oldest_again_first() {
        let mut pool = Pool::new("10.0.0.0/29".parse().unwrap());
        assert_eq!(pool.gateway(), Ipv4Addr::new(10, 0, 0, 1));
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), 5);
        assert_eq!(all.last(), Some(&Ipv4Addr::new(10, 0, 0, 6)));
        pool.give_back(all[3]);
        pool.give_back(all[1]);
        assert_eq!(pool.take(), Some(all[3]));
        assert_eq!(pool.take(), Some(all[1]));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn a_reserved_address_is_handed_out_after_it_was_given_back_and_once() {
        let mut pool = Pool::new("10.0.0.0/29".parse().unwrap());
        let reserved = Ipv4Addr::new(10, 0, 0, 3);
        pool.reserve(reserved);
        pool.reserve(Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 0, 0, 4)));
        pool.give_back(reserved);
        pool.give_back(Ipv4Addr::new(192, 168, 0, 1));
        let rest: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(rest, [5, 6, 3].map(|last| Ipv4Addr::new(10, 0, 0, last)));
    }
}
