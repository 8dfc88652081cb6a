//! rtnetlink, one request at a time, on a socket that belongs to one network namespace.
//!
//! Synchronous: a pod's namespace is configured by a thread that lives in it, and a request is
//! answered before `send` returns.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `RT_TABLE_MAIN`
const MAIN_TABLE: u8 = 254;

/// Index of the loopback interface in every network namespace.
const LOOPBACK: u32 = 1;

/// A netlink socket in the network namespace of the thread that opened it.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Netlink").finish_non_exhaustive()
    }
}

/// The address of the link that has this one: none that anybody has bought. Whoever gets the address again
/// is not looked for by the neighbours where it was before.
fn of_link(address: Ipv4Addr) -> LinkAttribute {
    LinkAttribute::Address([&[0x0a, 0x58][..], &address.octets()].concat())
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes the bridge if it is absent, brings it up, gives it `address`; returns its index.
    pub(super) fn ensure_bridge(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix: u8,
    ) -> io::Result<u32> {
        let mut bridge = LinkMessage::default();
        bridge.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
            // Else it would have the lowest of its ports', and another one when that pod goes: then the
            // others know the wrong one for half a minute.
            of_link(address),
        ];

        exists_is_fine(
            self.request(RouteNetlinkMessage::NewLink(bridge), NLM_F_CREATE | NLM_F_EXCL),
        )?;
        let index = self.index_of(name)?.ok_or(io::ErrorKind::NotFound)?;
        exists_is_fine(self.add_address(index, address, prefix))?;
        self.set_up(index)?;
        Ok(index)
    }

    /// Makes a veth pair: `host_name` here, as a port of the bridge `bridge_index`, and `pod_name`
    /// in `namespace`, which is still down and will have `address`.
    pub(super) fn add_veth(
        &mut self,
        host_name: &str,
        bridge_index: u32,
        (pod_name, address): (&str, Ipv4Addr),
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(pod_name.to_owned()),
            of_link(address),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(host_name.to_owned()),
            LinkAttribute::Controller(bridge_index),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)?;
        let index = self.index_of(host_name)?.ok_or(io::ErrorKind::NotFound)?;
        self.set_up(index)
    }

    /// Lets a port of a bridge send frames back to where they came from.
    pub(super) fn reflect(&mut self, name: &str) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = self.index_of(name)?.ok_or(io::ErrorKind::NotFound)?;
        let mode = InfoBridgePort::HairpinMode(true);
        link.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![mode])),
        ])];
        // What a port is to its bridge is changed so, and not by RTM_SETLINK.
        self.request(RouteNetlinkMessage::NewLink(link), 0)
    }

    /// Configures a pod's namespace: loopback up, the address, the default route.
    pub(super) fn configure(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        prefix: u8,
        gateway: Ipv4Addr,
    ) -> io::Result<()> {
        self.set_up(LOOPBACK)?;
        let index = self.index_of(name)?.ok_or(io::ErrorKind::NotFound)?;
        self.set_up(index)?;
        self.add_address(index, address, prefix)?;
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = MAIN_TABLE;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes =
            vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
        self.request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes an interface; it may be gone already.
    pub(super) fn remove_link(&mut self, name: &str) -> io::Result<()> {
        match self.index_of(name)? {
            Some(index) => self.remove_index(index),
            None => Ok(()),
        }
    }

    /// Removes every interface that is a port of the bridge and of which `is_left` says so; returns how
    /// many.
    pub(super) fn remove_ports(
        &mut self,
        bridge_index: u32,
        is_left: impl Fn(&str) -> bool,
    ) -> io::Result<usize> {
        let mut ports = Vec::new();
        for message in
            self.exchange(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?
        {
            if let RouteNetlinkMessage::NewLink(link) = message
                && link.attributes.contains(&LinkAttribute::Controller(bridge_index))
                && link.attributes.iter().any(
                    |attribute| matches!(attribute, LinkAttribute::IfName(name) if is_left(name)),
                )
            {
                ports.push(link.header.index);
            }
        }
        for index in &ports {
            self.remove_index(*index)?;
        }
        Ok(ports.len())
    }

    fn remove_index(&mut self, index: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        match self.request(RouteNetlinkMessage::DelLink(link), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    fn index_of(&mut self, name: &str) -> io::Result<Option<u32>> {
        let mut link = LinkMessage::default();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.exchange(RouteNetlinkMessage::GetLink(link), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
            Ok(messages) => Ok(messages.into_iter().find_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
                _ => None,
            })),
        }
    }

    /// Brings an interface up without an IPv6 link-local address: pods have IPv4 for now, and the
    /// discovery around that address is noise in the counters.
    fn set_up(&mut self, index: u32) -> io::Result<()> {
        let generation = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes =
            vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![generation])])];
        match self.request(RouteNetlinkMessage::SetLink(link), 0) {
            // Without IPv6 there is no such address anyway.
            Err(error) if error.raw_os_error() != Some(libc::EAFNOSUPPORT) => return Err(error),
            _ => {}
        }
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(IpAddr::V4(address)),
            AddressAttribute::Address(IpAddr::V4(address)),
        ];
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Every address of this network namespace.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.exchange(request, NLM_F_DUMP)?;
        let addresses = answers.into_iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
            // On a link with a peer, `Address` is the peer's.
            let attributes = message.attributes.into_iter();
            let (mut local, mut address) = (None, None);
            for attribute in attributes {
                match attribute {
                    AddressAttribute::Local(found) => local = Some(found),
                    AddressAttribute::Address(found) => address = Some(found),
                    _ => {}
                }
            }
            local.or(address)
        });
        Ok(addresses.collect())
    }

    /// Sends a request and waits for its acknowledgement.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, flags | NLM_F_ACK).map(drop)
    }

    /// Sends a request and collects its answers.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut buffer = vec![0; request.header.length as usize];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                if answer.header.sequence_number == self.sequence {
                    match answer.payload {
                        NetlinkPayload::Error(error) => {
                            return match error.code {
                                None => Ok(answers),
                                Some(_) => Err(error.to_io()),
                            };
                        }
                        NetlinkPayload::Done(_) => return Ok(answers),
                        NetlinkPayload::InnerMessage(message) => answers.push(message),
                        _ => {}
                    }
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

/// Tells that addresses of this network namespace have changed.
pub(super) struct AddressChanges {
    socket: Socket,
}

impl AddressChanges {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in [libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR] {
            socket.add_membership(group)?;
        }
        Ok(Self { socket })
    }

    /// Waits for a change.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        self.socket.set_non_blocking(false)?;
        match self.socket.recv_from_full() {
            // There were more than fit.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Passes over the changes that are there already.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.socket.set_non_blocking(true)?;
        loop {
            match self.socket.recv_from_full() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn exists_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
