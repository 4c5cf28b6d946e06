//! What the programs shall do, said slowly: the reference for the differential test. Stateless decisions are the
//! policy crate's reference evaluator's; connections, fragments and buckets are plain maps without time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use ghostwire_ebpf_abi::conntrack::state;
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_packet::transport::tcp;
use ghostwire_packet::{Error, Family, Icmp, Packet, Part, SliceReader, V4, V6, protocol};
use ghostwire_policy::filter::{AddrSet, Flow, NodeFilter};

use crate::lab::{DROP, PASS};

/// A policy with what surrounds it.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) filter: NodeFilter,
    pub(crate) own: Vec<IpAddr>,
    pub(crate) peers: AddrSet,
    pub(crate) routed: AddrSet,
    pub(crate) generation: u32,
    pub(crate) shadow: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ConnId {
    local: IpAddr,
    remote: IpAddr,
    local_port: u16,
    remote_port: u16,
    protocol: u8,
}

type FragmentId = (Direction, IpAddr, IpAddr, u32, u8);

/// The first fragment, as far as its followers are judged by it.
#[derive(Clone, Copy)]
struct First {
    generation: u32,
    ports: (u16, u16),
    icmp_type: u8,
}

/// The state of a node.
pub(crate) struct Model {
    pub(crate) rules: Option<Rules>,
    pub(crate) burst: u64,
    connections: HashMap<ConnId, u32>,
    fragments: HashMap<FragmentId, First>,
    buckets: HashMap<IpAddr, u64>,
}

/// One packet with addresses that can be printed.
struct Seen {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    icmp_protocol: u8,
    ports: (u16, u16),
    flags: u8,
    icmp: Icmp,
    icmp_type: u8,
    part: Part,
    fragment: (u32, u8),
    quote: Option<Result<Quote, Error>>,
}

struct Quote {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    icmp: Icmp,
}

fn address<F: Family>(addr: F::Addr) -> IpAddr {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(F::mapped(addr)) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let addr = Ipv6Addr::from(bytes);
    if F::VERSION == 4 { addr.to_canonical() } else { addr.into() }
}

fn see(packet: &[u8]) -> Result<Seen, Error> {
    match packet.first().ok_or(Error::Malformed)? >> 4 {
        _ if packet.len() < 4 => Err(Error::Malformed),
        4 => see_family::<V4>(packet),
        6 => see_family::<V6>(packet),
        _ => Err(Error::Unsupported),
    }
}

fn see_family<F: Family>(bytes: &[u8]) -> Result<Seen, Error> {
    let reader = SliceReader::new(bytes);
    let packet: Packet<F::Addr> = F::parse(&reader)?;
    let transport = packet.transport;
    let quote = matches!(transport.icmp, Icmp::Error).then(|| {
        F::quoted(&reader, packet.transport_offset + 8).map(|quoted| Quote {
            src: address::<F>(quoted.src),
            dst: address::<F>(quoted.dst),
            protocol: quoted.protocol,
            ports: (u16::from_be(quoted.src_port_be), u16::from_be(quoted.dst_port_be)),
            icmp: quoted.icmp,
        })
    });
    Ok(Seen {
        src: address::<F>(packet.src),
        dst: address::<F>(packet.dst),
        protocol: packet.protocol,
        icmp_protocol: F::ICMP,
        ports: (u16::from_be(transport.src_port_be), u16::from_be(transport.dst_port_be)),
        flags: transport.tcp_flags,
        icmp: transport.icmp,
        icmp_type: transport.icmp_type,
        part: packet.fragmentation.part,
        fragment: (packet.fragmentation.id_be, packet.fragmentation.protocol),
        quote,
    })
}

fn is_carried(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !(addr.octets()[0] >= 224 || addr.is_link_local()),
        IpAddr::V6(addr) => {
            !(addr.is_multicast() || addr.is_unicast_link_local() || addr.to_ipv4_mapped().is_some())
        }
    }
}

impl Rules {
    fn is_local(&self, addr: IpAddr) -> bool {
        self.own.contains(&addr) || self.routed.contains(addr)
    }

    /// Whether `remote` may open this to `local`.
    fn inbound(&self, remote: IpAddr, local: IpAddr, protocol: u8, dst_port: u16) -> bool {
        self.filter.inbound_verdict(&Flow { src: remote, dst: local, protocol, dst_port }).is_allowed()
    }

    /// Whether `local` may open this to `remote`.
    fn outbound(&self, remote: IpAddr, local: IpAddr, protocol: u8, dst_port: u16) -> bool {
        self.filter.outbound_verdict(&Flow { src: local, dst: remote, protocol, dst_port }).is_allowed()
    }
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            rules: None,
            burst: 0,
            connections: HashMap::new(),
            fragments: HashMap::new(),
            buckets: HashMap::new(),
        }
    }

    /// The action and the reason that shall be counted.
    pub(crate) fn judge(&mut self, direction: Direction, packet: &[u8]) -> (u32, Reason) {
        let Some(rules) = self.rules.clone() else { return (DROP, Reason::NoImage) };
        match self.decide(&rules, direction, packet) {
            Ok(reason) => (PASS, reason),
            Err(reason) if rules.shadow && decided_by_policy(reason) => (PASS, Reason::Shadow),
            Err(reason) => (DROP, reason),
        }
    }

    fn decide(&mut self, rules: &Rules, direction: Direction, packet: &[u8]) -> Result<Reason, Reason> {
        let mut seen = see(packet).map_err(|error| match error {
            Error::Malformed => Reason::Malformed,
            Error::Unsupported => Reason::Unsupported,
        })?;
        if !is_carried(seen.src) || !is_carried(seen.dst) {
            return Err(Reason::Unsupported);
        }
        if let Some(quote) = &seen.quote {
            return icmp_error(rules, direction, seen.dst, quote);
        }
        let id = (direction, seen.src, seen.dst, seen.fragment.0, seen.fragment.1);
        if seen.part == Part::Later {
            let first = *self.fragments.get(&id).ok_or(Reason::OrphanFragment)?;
            if first.generation != rules.generation {
                seen.ports = first.ports;
                seen.flags = tcp::ACK;
                seen.icmp_type = first.icmp_type;
                if seen.protocol == seen.icmp_protocol {
                    seen.icmp = if seen.icmp_protocol == protocol::ICMP {
                        V4::icmp(first.icmp_type)
                    } else {
                        V6::icmp(first.icmp_type)
                    };
                }
                self.flow(rules, direction, &seen).map_err(|_| Reason::OrphanFragment)?;
                self.fragments.insert(id, First { generation: rules.generation, ..first });
            }
            return Ok(Reason::Fragment);
        }
        let reason = self.flow(rules, direction, &seen)?;
        if seen.part == Part::First {
            self.take_token(seen.src)?;
            let first = First { generation: rules.generation, ports: seen.ports, icmp_type: seen.icmp_type };
            self.fragments.insert(id, first);
        }
        Ok(reason)
    }

    fn take_token(&mut self, source: IpAddr) -> Result<(), Reason> {
        let tokens = self.buckets.entry(source).or_insert(self.burst);
        *tokens = tokens.checked_sub(1).ok_or(Reason::StateRateLimited)?;
        Ok(())
    }

    fn flow(&mut self, rules: &Rules, direction: Direction, seen: &Seen) -> Result<Reason, Reason> {
        let (remote, local) = match direction {
            Direction::Ingress => (seen.src, seen.dst),
            Direction::Egress => (seen.dst, seen.src),
        };
        if !rules.peers.contains(remote) {
            return Err(Reason::UnknownRemote);
        }
        if !rules.is_local(local) {
            return Err(Reason::NotLocal);
        }
        match direction {
            Direction::Ingress => self.ingress(rules, seen, remote, local),
            Direction::Egress => self.egress(rules, seen, remote, local),
        }
    }

    fn ingress(
        &mut self,
        rules: &Rules,
        seen: &Seen,
        remote: IpAddr,
        local: IpAddr,
    ) -> Result<Reason, Reason> {
        let (src_port, dst_port) = seen.ports;
        if rules.inbound(remote, local, seen.protocol, dst_port) {
            return Ok(Reason::Policy);
        }
        let is_icmp = seen.protocol == seen.icmp_protocol;
        if is_icmp && seen.icmp != Icmp::EchoReply {
            return Err(Reason::Denied);
        }
        let remote_port = if is_icmp { 0 } else { src_port };
        let id = ConnId { local, remote, local_port: dst_port, remote_port, protocol: seen.protocol };
        let conn = self.connections.get_mut(&id).ok_or(Reason::Denied)?;
        if !rules.outbound(remote, local, seen.protocol, remote_port) {
            return Err(Reason::Denied);
        }
        if seen.protocol == protocol::TCP {
            *conn = tcp_from_remote(*conn, seen.flags).ok_or(Reason::InvalidState)?;
        }
        Ok(Reason::Connection)
    }

    fn egress(
        &mut self,
        rules: &Rules,
        seen: &Seen,
        remote: IpAddr,
        local: IpAddr,
    ) -> Result<Reason, Reason> {
        let (src_port, dst_port) = seen.ports;
        let is_icmp = seen.protocol == seen.icmp_protocol;
        let reply_allowed = rules.inbound(remote, local, seen.protocol, src_port);
        if !rules.outbound(remote, local, seen.protocol, dst_port) {
            let opens = match seen.protocol {
                protocol::TCP => seen.flags & tcp::SYN != 0 && seen.flags & tcp::ACK == 0,
                _ => is_icmp && seen.icmp != Icmp::EchoReply,
            };
            return if reply_allowed && !opens { Ok(Reason::Reply) } else { Err(Reason::Denied) };
        }
        if reply_allowed || (is_icmp && seen.icmp != Icmp::EchoRequest) {
            return Ok(Reason::Policy);
        }
        let remote_port = if is_icmp { 0 } else { dst_port };
        let id = ConnId { local, remote, local_port: src_port, remote_port, protocol: seen.protocol };
        if let Some(conn) = self.connections.get_mut(&id) {
            if seen.protocol == protocol::TCP {
                *conn = tcp_from_us(*conn, seen.flags);
            }
        } else if let Some(initial) = initial_state(seen.protocol, seen.flags) {
            self.take_token(local)?;
            self.connections.insert(id, initial);
        }
        Ok(Reason::Policy)
    }
}

fn decided_by_policy(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Denied
            | Reason::UnknownRemote
            | Reason::NotLocal
            | Reason::UnrelatedIcmpError
            | Reason::OrphanFragment
            | Reason::InvalidState
    )
}

fn icmp_error(
    rules: &Rules,
    direction: Direction,
    dst: IpAddr,
    quote: &Result<Quote, Error>,
) -> Result<Reason, Reason> {
    let unrelated = Err(Reason::UnrelatedIcmpError);
    let quote = match quote {
        Ok(quote) => quote,
        Err(Error::Malformed) => return Err(Reason::Malformed),
        Err(Error::Unsupported) => return unrelated,
    };
    if quote.src != dst || !is_carried(quote.src) || !is_carried(quote.dst) {
        return unrelated;
    }
    let (src_port, dst_port) = quote.ports;
    let is_icmp = matches!(
        (quote.src, quote.protocol),
        (IpAddr::V4(_), protocol::ICMP) | (IpAddr::V6(_), protocol::ICMPV6)
    );
    let could_answer = !is_icmp || quote.icmp == Icmp::EchoReply;
    let (remote, local) = match direction {
        Direction::Ingress => (quote.dst, quote.src),
        Direction::Egress => (quote.src, quote.dst),
    };
    if !rules.peers.contains(remote) || !rules.is_local(local) {
        return unrelated;
    }
    let (opened, answered) = match direction {
        Direction::Ingress => (
            rules.outbound(remote, local, quote.protocol, dst_port),
            rules.inbound(remote, local, quote.protocol, src_port),
        ),
        Direction::Egress => (
            rules.inbound(remote, local, quote.protocol, dst_port),
            rules.outbound(remote, local, quote.protocol, src_port),
        ),
    };
    if opened || (answered && could_answer) { Ok(Reason::IcmpError) } else { unrelated }
}

fn initial_state(protocol: u8, flags: u8) -> Option<u32> {
    if protocol != protocol::TCP {
        return Some(state::DATAGRAM);
    }
    let has = |flag| flags & flag != 0;
    match (has(tcp::SYN), has(tcp::ACK), has(tcp::RST) || has(tcp::FIN)) {
        (true, false, false) => Some(state::SYN_SENT),
        (false, _, false) => Some(state::ESTABLISHED),
        _ => None,
    }
}

fn tcp_from_remote(now: u32, flags: u8) -> Option<u32> {
    let (syn, ack) = (flags & tcp::SYN != 0, flags & tcp::ACK != 0);
    let (rst, fin) = (flags & tcp::RST != 0, flags & tcp::FIN != 0);
    match now & 0xff {
        state::SYN_SENT => {
            if rst {
                Some(state::CLOSED)
            } else if syn && ack && !fin {
                Some(state::ESTABLISHED)
            } else {
                None
            }
        }
        state::CLOSED => (!syn).then_some(state::CLOSED),
        _ if syn && !ack => None,
        _ if rst => Some(state::CLOSED),
        _ if !fin => Some(now),
        _ if now & state::FIN_LOCAL != 0 => Some(state::CLOSED),
        _ => Some(state::CLOSING | state::FIN_REMOTE),
    }
}

fn tcp_from_us(now: u32, flags: u8) -> u32 {
    let (syn, ack) = (flags & tcp::SYN != 0, flags & tcp::ACK != 0);
    let kind = now & 0xff;
    if flags & tcp::RST != 0 {
        state::CLOSED
    } else if syn && !ack && matches!(kind, state::CLOSING | state::CLOSED) {
        state::SYN_SENT
    } else if kind == state::CLOSED || flags & tcp::FIN == 0 {
        now
    } else if now & state::FIN_REMOTE != 0 {
        state::CLOSED
    } else {
        state::CLOSING | state::FIN_LOCAL
    }
}
