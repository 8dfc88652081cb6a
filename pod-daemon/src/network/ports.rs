//! Ports of the node that lead to pods: one nftables table with a map for each kind of address.
//!
//! The rules are the same however many pods there are; what a pod adds and removes are elements of
//! the maps, in one transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
};

use super::{Error, Network, failed_to, nft};

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the node that leads to one of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// The node's address; all of them if `None`.
    pub host_ip: Option<Ipv4Addr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub pod_port: u16,
}

/// What is published, by pod.
pub(super) type Published = BTreeMap<String, (Ipv4Addr, Vec<Port>)>;

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(ip) => write!(f, "{ip}:{}/{}", self.host_port, self.protocol),
            None => write!(f, "{}/{}", self.host_port, self.protocol),
        }
    }
}

impl Port {
    /// Whether both cannot be published at a time.
    fn conflicts_with(&self, other: &Self) -> bool {
        let same_address = match (self.host_ip, other.host_ip) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        };
        same_address && (self.protocol, self.host_port) == (other.protocol, other.host_port)
    }

    /// Map and element.
    fn element(&self, ip: Ipv4Addr) -> (&'static str, String) {
        let Self { protocol, host_ip, host_port, pod_port } = self;
        match host_ip {
            None => ("ports", format!("{protocol} . {host_port} : {ip} . {pod_port}")),
            Some(host) => (
                "addressed_ports",
                format!("{host} . {protocol} . {host_port} : {ip} . {pod_port}"),
            ),
        }
    }

    /// Whether a process of the node has the port. Packets would no longer reach it.
    fn taken(&self) -> bool {
        let address =
            SocketAddrV4::new(self.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED), self.host_port);
        let result = match self.protocol {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
            // Nothing that is at hand speaks it.
            Protocol::Sctp => Ok(()),
        };
        result.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    }
}

/// The whole table but for the elements of its maps, which stay as they are if it is there already.
///
/// What the node itself sends to 127.0.0.1 goes by `output`. What comes from a neighbour is not for that
/// address, whatever it says, and would be let in if it were translated before the kernel looks.
pub(super) fn rules(table: &str, bridge: &str, range: impl fmt::Display) -> String {
    format!(
        "table ip {table} {{\n \
         map ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}\n \
         map addressed_ports {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}\n \
         chain guard {{ type filter hook prerouting priority raw; policy accept; }}\n \
         chain hostports {{ }}\n \
         chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}\n \
         chain output {{ type nat hook output priority -100; policy accept; }}\n \
         chain postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}\n}}\n\
         flush chain ip {table} guard\nflush chain ip {table} hostports\n\
         flush chain ip {table} prerouting\nflush chain ip {table} output\n\
         flush chain ip {table} postrouting\n\
         table ip {table} {{\n \
         chain guard {{\n \
         iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n \
         iifname \"{bridge}\" ip saddr 127.0.0.0/8 drop\n }}\n \
         chain hostports {{\n \
         dnat ip to ip daddr . meta l4proto . th dport map @addressed_ports\n \
         dnat ip to meta l4proto . th dport map @ports\n }}\n \
         chain prerouting {{\n ip daddr != 127.0.0.0/8 fib daddr type local jump hostports\n }}\n \
         chain output {{\n fib daddr type local jump hostports\n }}\n \
         chain postrouting {{\n \
         ip saddr {range} oifname != \"{bridge}\" masquerade\n \
         oifname \"{bridge}\" ct status dnat ip saddr {range} masquerade\n \
         oifname \"{bridge}\" ct status dnat ip saddr 127.0.0.0/8 masquerade\n }}\n}}\n"
    )
}

impl Network {
    /// Lets ports of the node lead to the pod `uid` at `ip`, and no others. May be called again.
    pub fn publish(&self, uid: &str, ip: Ipv4Addr, ports: &[Port]) -> Result<(), Error> {
        let mut published = self.published();
        if published.get(uid).is_some_and(|(old, had)| *old == ip && had == ports) {
            return Ok(());
        }
        for port in ports {
            let taken = published
                .iter()
                .filter(|(other, _)| *other != uid)
                .find(|(_, (_, had))| had.iter().any(|had| had.conflicts_with(port)));
            if let Some((other, _)) = taken {
                return Err(in_use(port, format!("another pod has it (uid {other})")));
            }
        }
        let old = published.remove(uid);
        if let Some((ip, ports)) = &old {
            self.change(&published, "delete", *ip, ports)?;
        }
        if ports.is_empty() {
            return Ok(());
        }
        if let Some(port) = ports.iter().find(|port| port.taken()) {
            return Err(in_use(port, "a process of the node listens on it".to_owned()));
        }
        self.change(&published, "add", ip, ports)?;
        self.reach_from_loopback();
        published.insert(uid.to_owned(), (ip, ports.to_vec()));
        Ok(())
    }

    /// Takes the ports of the pod `uid` back, if it has any.
    pub fn unpublish(&self, uid: &str) -> Result<(), Error> {
        let mut published = self.published();
        let Some((ip, ports)) = published.remove(uid) else { return Ok(()) };
        self.change(&published, "delete", ip, &ports)
    }

    /// Lets ports lead to the pods that have some now, and to no others: what an earlier daemon has
    /// published for pods that are gone is taken back, and what it has published for pods that were
    /// taken over stays without a gap.
    pub(super) fn republish(&self) -> Result<(), Error> {
        let published = self.published();
        self.write_all(&published)?;
        if !published.is_empty() {
            self.reach_from_loopback();
        }
        Ok(())
    }

    /// Adds or deletes elements. Where somebody else has changed the maps meanwhile, they are
    /// written anew.
    fn change(
        &self,
        rest: &Published,
        action: &str,
        ip: Ipv4Addr,
        ports: &[Port],
    ) -> Result<(), Error> {
        let script = elements(&self.table, action, ports.iter().map(|port| port.element(ip)));
        let Err(error) = nft(&script) else { return Ok(()) };
        tracing::debug!(%error, "the maps of ports are written anew");
        let mut all = rest.clone();
        if action == "add" {
            // Under a name that no pod has: it is for this transaction only.
            all.insert(String::new(), (ip, ports.to_vec()));
        }
        self.write_all(&all)
    }

    /// Makes the table's rules and maps what they should be, in one transaction.
    fn write_all(&self, published: &Published) -> Result<(), Error> {
        let table = &self.table;
        let mut script = rules(table, &self.bridge, self.range);
        // Writing to a string does not fail.
        writeln!(script, "flush map ip {table} ports\nflush map ip {table} addressed_ports").ok();
        let all = published.values().flat_map(|(ip, ports)| ports.iter().map(|p| p.element(*ip)));
        script.push_str(&elements(table, "add", all));
        nft(&script).map_err(failed_to("publish host ports with nft (is nftables installed?)"))
    }

    /// Lets connections to 127.0.0.1 leave for the bridge. The kernel then takes packets from
    /// 127.0.0.0/8 and for it on the bridge as well, which the chain `guard` drops before anything
    /// sees them; so this comes after the rules.
    fn reach_from_loopback(&self) {
        let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", self.bridge);
        if let Err(error) = std::fs::write(&path, "1") {
            tracing::warn!(path, %error, "host ports are not reached by way of 127.0.0.1");
        }
    }
}

fn elements(
    table: &str,
    action: &str,
    elements: impl Iterator<Item = (&'static str, String)>,
) -> String {
    let mut by_map: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for (map, element) in elements {
        by_map.entry(map).or_default().insert(element);
    }
    let line = |(map, elements): (&str, BTreeSet<String>)| {
        let elements: Vec<_> = elements.into_iter().collect();
        format!("{action} element ip {table} {map} {{ {} }}\n", elements.join(", "))
    };
    by_map.into_iter().map(line).collect()
}

fn in_use(port: &Port, why: String) -> Error {
    failed_to(format!("publish the host port {port}"))(std::io::Error::new(
        std::io::ErrorKind::AddrInUse,
        why,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<&str>, host_port: u16) -> Port {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        Port { protocol: Protocol::Tcp, host_ip, host_port, pod_port: 80 }
    }

    #[test]
    fn ports_conflict_where_their_addresses_meet() {
        let all = port(None, 8080);
        let (one, other) = (port(Some("10.0.0.1"), 8080), port(Some("10.0.0.2"), 8080));
        assert!(all.conflicts_with(&all) && all.conflicts_with(&one) && one.conflicts_with(&all));
        assert!(!one.conflicts_with(&other));
        assert!(!all.conflicts_with(&port(None, 8081)));
        assert!(!all.conflicts_with(&Port { protocol: Protocol::Udp, ..all }));
    }

    #[test]
    fn a_port_of_a_process_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        assert!(port(None, number).taken());
        assert!(port(Some("127.0.0.1"), number).taken());
        assert!(!port(Some("127.0.0.2"), number).taken());
        drop(listener);
        assert!(!port(None, number).taken());
    }

    #[test]
    fn elements_are_one_line_for_each_map() {
        let ip = Ipv4Addr::new(10, 77, 0, 2);
        let ports = [port(None, 1), port(Some("10.0.0.1"), 2), port(None, 3)];
        assert_eq!(
            elements("t", "add", ports.iter().map(|port| port.element(ip))),
            "add element ip t addressed_ports { 10.0.0.1 . tcp . 2 : 10.77.0.2 . 80 }\n\
             add element ip t ports { tcp . 1 : 10.77.0.2 . 80, tcp . 3 : 10.77.0.2 . 80 }\n"
        );
    }
}
