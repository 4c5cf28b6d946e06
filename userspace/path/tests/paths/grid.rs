//! Every pair of kinds of network: the path reached is the one that theory says, and how fast.

use std::fmt::Write as _;
use std::time::Duration;

use ghostwire_path::Class;

use crate::sim::World;
use crate::sim::nat::{Behaviour, Scope};
use crate::sim::net::INTERNET;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Public,
    /// Public addresses of both families, default drop.
    Firewall,
    /// Endpoint-independent mapping, port kept, address-and-port-dependent filtering.
    PortPreserving,
    /// Endpoint-independent mapping, random port, address-dependent filtering.
    EndpointIndependent,
    /// A new random port for every remote, address-and-port-dependent filtering.
    Symmetric,
    /// A port-preserving NAT behind a provider's.
    DoubleNat,
    UdpBlocked,
    /// WireGuard's packets are dropped, other UDP passes.
    WireGuardBlocked,
    Ipv6Only,
}

pub(crate) const KINDS: [Kind; 9] = [
    Kind::Public,
    Kind::Firewall,
    Kind::PortPreserving,
    Kind::EndpointIndependent,
    Kind::DoubleNat,
    Kind::Symmetric,
    Kind::Ipv6Only,
    Kind::WireGuardBlocked,
    Kind::UdpBlocked,
];

pub(crate) const PORT_PRESERVING: Behaviour =
    Behaviour { mapping: Scope::Any, filtering: Scope::AddressPort, preserves_ports: true, hairpins: false };
pub(crate) const ENDPOINT_INDEPENDENT: Behaviour =
    Behaviour { mapping: Scope::Any, filtering: Scope::Address, preserves_ports: false, hairpins: false };
pub(crate) const SYMMETRIC: Behaviour = Behaviour {
    mapping: Scope::AddressPort,
    filtering: Scope::AddressPort,
    preserves_ports: false,
    hairpins: false,
};

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Firewall => "firewall",
            Self::PortPreserving => "NAT keeps port",
            Self::EndpointIndependent => "NAT endp.-indep.",
            Self::Symmetric => "NAT symmetric",
            Self::DoubleNat => "double NAT",
            Self::UdpBlocked => "UDP blocked",
            Self::WireGuardBlocked => "WG blocked",
            Self::Ipv6Only => "IPv6 only",
        }
    }

    pub(crate) fn build(self, world: &mut World, host: usize) {
        let outside = |at: usize| format!("203.0.113.{}", host * 10 + at).parse().unwrap();
        let inside = format!("192.168.{}.10", host + 1);
        let v6 = format!("2001:db8:{}::10", host + 1);
        match self {
            Self::Public | Self::Firewall => {
                world.public(host);
                world.uplink(host, 1, INTERNET, &v6);
                world.net.hosts[host].firewall = self == Self::Firewall;
            }
            Self::PortPreserving | Self::EndpointIndependent | Self::Symmetric => {
                let behaviour = match self {
                    Self::PortPreserving => PORT_PRESERVING,
                    Self::Symmetric => SYMMETRIC,
                    _ => ENDPOINT_INDEPENDENT,
                };
                let realm = world.net.add_nat(INTERNET, behaviour, outside(1));
                world.uplink(host, 1, realm, &inside);
            }
            Self::DoubleNat => {
                let provider = Behaviour { preserves_ports: false, ..PORT_PRESERVING };
                let outer = world.net.add_nat(INTERNET, provider, outside(1));
                let shared = format!("100.64.{host}.7").parse().unwrap();
                let inner = world.net.add_nat(outer, PORT_PRESERVING, shared);
                world.uplink(host, 1, inner, &inside);
            }
            Self::UdpBlocked => {
                world.public(host);
                world.net.hosts[host].udp_blocked = true;
            }
            Self::WireGuardBlocked => {
                world.public(host);
                world.net.hosts[host].wireguard_blocked = true;
            }
            Self::Ipv6Only => world.uplink(host, 1, INTERNET, &v6),
        }
    }

    fn has_v4(self) -> bool {
        self != Self::Ipv6Only
    }

    fn has_v6(self) -> bool {
        matches!(self, Self::Ipv6Only | Self::Public | Self::Firewall)
    }

    /// Lets in only what was sent to, address and port.
    fn is_strict(self) -> bool {
        matches!(self, Self::Firewall | Self::PortPreserving | Self::DoubleNat)
    }
}

/// The best class that exists, and whether ports have to be guessed for it.
pub(crate) fn theory(a: Kind, b: Kind) -> (Class, bool) {
    let either = |kind: Kind| a == kind || b == kind;
    if either(Kind::UdpBlocked) {
        return (Class::Derp, false);
    }
    let v6 = a.has_v6() && b.has_v6();
    let v4 = a.has_v4() && b.has_v4();
    if !(v4 || v6) {
        let class = if either(Kind::WireGuardBlocked) { Class::Derp } else { Class::RelayPort };
        return (class, false);
    }
    if either(Kind::WireGuardBlocked) {
        return (Class::Quic, false);
    }
    if v6 {
        return (Class::Direct, false);
    }
    if a == Kind::Symmetric && b == Kind::Symmetric {
        return (Class::RelayPort, false);
    }
    (Class::Direct, either(Kind::Symmetric) && (a.is_strict() || b.is_strict()))
}

pub(crate) struct Cell {
    pub(crate) class: Option<Class>,
    first: Option<Duration>,
    best: Option<Duration>,
}

fn measure(world: &mut World, wanted: Class, most: Duration) -> Cell {
    world.start();
    let first = world.run_until(Duration::from_secs(30), |world| {
        world.nodes.iter().all(|node| !node.delivered.is_empty())
    });
    let begun = world.now.duration_since(world.begin);
    let best = world.run_until(most, |world| world.both(wanted)).map(|more| begun + more);
    // And it stays there.
    world.run_for(Duration::from_mins(1));
    let class = world.class(0).filter(|class| world.class(1) == Some(*class));
    Cell { class, first, best }
}

fn short(class: Option<Class>) -> &'static str {
    match class {
        None => "none",
        Some(Class::Direct) => "direct",
        Some(Class::Quic) => "quic",
        Some(Class::RelayPort) => "relay",
        Some(Class::Derp) => "derp",
    }
}

fn show(cell: &Cell) -> String {
    let ms = |time: Option<Duration>| time.map_or("never".to_owned(), |time| time.as_millis().to_string());
    format!("{} {}/{}", short(cell.class), ms(cell.first), ms(cell.best))
}

#[test]
fn every_pair_of_networks_meets_by_the_best_path() {
    let mut table = String::from("path, ms to first packet both ways / ms to best path both ways\n");
    write!(table, "{:<17}", "").unwrap();
    for b in KINDS {
        write!(table, "{:<18}", b.name()).unwrap();
    }
    table.push('\n');
    let mut wrong = Vec::new();
    for a in KINDS {
        write!(table, "{:<17}", a.name()).unwrap();
        for b in KINDS {
            let (wanted, guessed) = theory(a, b);
            let mut world = World::new(a as u64 * 100 + b as u64);
            a.build(&mut world, 0);
            b.build(&mut world, 1);
            let most = Duration::from_secs(if guessed { 120 } else { 30 });
            let cell = measure(&mut world, wanted, most);
            write!(table, "{:<18}", show(&cell)).unwrap();
            let late = cell.first.is_none_or(|first| first > Duration::from_secs(3));
            if cell.class != Some(wanted) || late {
                wrong.push(format!(
                    "{} - {}: wanted {wanted}, got {}\n{}{}",
                    a.name(),
                    b.name(),
                    show(&cell),
                    world.nodes[0].machine.why(world.now),
                    world.nodes[1].machine.why(world.now)
                ));
            }
        }
        table.push('\n');
    }
    for hairpins in [true, false] {
        let mut world = World::new(7);
        let nat = Behaviour { hairpins, ..PORT_PRESERVING };
        let realm = world.net.add_nat(INTERNET, nat, "203.0.113.1".parse().unwrap());
        world.uplink(0, 1, realm, "192.168.1.10");
        world.uplink(1, 1, realm, "192.168.1.11");
        let cell = measure(&mut world, Class::Direct, Duration::from_secs(30));
        writeln!(table, "same NAT, hairpin {hairpins}: {}", show(&cell)).unwrap();
        let remote = world.nodes[0].machine.in_use().primary.and_then(|(_, route)| route.remote());
        if cell.class != Some(Class::Direct) || remote.map(|at| at.ip()) != "192.168.1.11".parse().ok() {
            wrong.push(format!("same NAT: {remote:?} {}", world.nodes[0].machine.why(world.now)));
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
