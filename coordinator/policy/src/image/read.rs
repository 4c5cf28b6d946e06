//! Reading an image the way the kernel does.

use std::net::IpAddr;

use ghostwire_ebpf_abi::event::Direction;
use ghostwire_ebpf_abi::image::{self as abi, flags, header};
use ipnet::IpNet;

use super::ClassImage;
use crate::filter::Flow;
use crate::service;

/// What an image says about the first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageVerdict {
    /// The bit is set.
    Allowed,
    /// The bit is not set.
    Denied,
    /// The far side belongs to no known peer.
    UnknownRemote,
    /// The near side is neither the node nor behind it.
    NotLocal,
}

impl ClassImage {
    /// The verdict on a flow that a remote opens to this side ([`Direction::Ingress`]), or this side to a remote.
    pub fn verdict(&self, direction: Direction, flow: &Flow) -> ImageVerdict {
        let (remote, local) = match direction {
            Direction::Ingress => (flow.src, flow.dst),
            Direction::Egress => (flow.dst, flow.src),
        };
        let remote = match self.remote_cell(remote) {
            0 => return ImageVerdict::UnknownRemote,
            cell => cell,
        };
        let local = if self.is_own(local) {
            abi::pack(0, 0)
        } else {
            match self.look_up(flags::LOCAL_NETS, &self.local_nets, local) {
                0 => return ImageVerdict::NotLocal,
                cell => cell,
            }
        };
        let service = self.service_cell(flow.protocol, flow.dst_port);
        let (class, base, stride, locals): (fn(u32) -> u32, u32, u32, u32) = match direction {
            Direction::Ingress => (abi::inbound, header::IN_BASE, header::IN_STRIDE, header::IN_LOCALS),
            Direction::Egress => (abi::outbound, header::OUT_BASE, header::OUT_STRIDE, header::OUT_LOCALS),
        };
        let (remote, local, service) = (u64::from(class(remote)), u64::from(class(local)), class(service));
        if remote == 0 {
            return ImageVerdict::Denied;
        }
        let row = remote * self.word(locals) + local;
        let word = self.word(base) + row * self.word(stride) + u64::from(service >> 6);
        let allowed = u32::try_from(word).is_ok_and(|word| self.word(word) >> (service & 63) & 1 == 1);
        if allowed { ImageVerdict::Allowed } else { ImageVerdict::Denied }
    }

    fn has(&self, flag: u64) -> bool {
        self.word(header::FLAGS) & flag != 0
    }

    fn cell(&self, table: u32, index: u32) -> u32 {
        let (word, upper) = abi::cell(table, index);
        let word = self.word(word) >> if upper { 32 } else { 0 };
        u32::try_from(word & 0xffff_ffff).unwrap_or_default()
    }

    fn service_cell(&self, protocol: u8, port: u16) -> u32 {
        match protocol {
            service::TCP => self.cell(abi::TCP, port.into()),
            service::UDP => self.cell(abi::UDP, port.into()),
            service::SCTP => self.cell(abi::SCTP, port.into()),
            other => self.cell(abi::PROTO, other.into()),
        }
    }

    /// The packed remote classes of an address; 0: unknown.
    fn remote_cell(&self, addr: IpAddr) -> u32 {
        match addr {
            IpAddr::V4(addr) => {
                let number = u32::from(addr);
                if self.has(flags::HAS_V4) && u64::from(number >> 16) == self.word(header::OVERLAY4) {
                    return self.cell(abi::REMOTE4, number & 0xffff);
                }
            }
            IpAddr::V6(addr) => {
                let number = u128::from(addr);
                let overlay = u128::from(self.word(header::OVERLAY6_HI)) << 48
                    | u128::from(self.word(header::OVERLAY6_LO));
                if self.has(flags::HAS_V6) && number >> 16 == overlay {
                    return self.cell(abi::REMOTE6, u32::try_from(number & 0xffff).unwrap_or_default());
                }
            }
        }
        self.look_up(flags::REMOTE_NETS, &self.remote_nets, addr)
    }

    fn is_own(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => {
                self.has(flags::HAS_V4) && u64::from(u32::from(addr)) == self.word(header::OWN4)
            }
            IpAddr::V6(addr) => {
                let own =
                    u128::from(self.word(header::OWN6_HI)) << 64 | u128::from(self.word(header::OWN6_LO));
                self.has(flags::HAS_V6) && u128::from(addr) == own
            }
        }
    }

    /// The longest match in a trie, where IPv4 is IPv4-mapped.
    fn look_up(&self, flag: u64, nets: &[(IpNet, u32)], addr: IpAddr) -> u32 {
        if !self.has(flag) {
            return 0;
        }
        let addr = match addr {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        let mapped = |net: &IpNet| match net {
            IpNet::V4(net) => (net.network().to_ipv6_mapped(), u32::from(net.prefix_len()) + 96),
            IpNet::V6(net) => (net.network(), u32::from(net.prefix_len())),
        };
        nets.iter()
            .map(|(net, cell)| (mapped(net), *cell))
            .filter(|&((net, length), _)| {
                let differing = u128::from(net) ^ u128::from(addr);
                length == 0 || differing >> (128 - length) == 0
            })
            .max_by_key(|&((_, length), _)| length)
            .map_or(0, |(_, cell)| cell)
    }
}
