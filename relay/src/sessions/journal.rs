//! What a relay that is restarted has to know of the one before: who has which port, and who is bound where. The pair
//! table stays in the kernel; this says whose its entries are.
//!
//! A journal is a list of records of fixed length. The shell appends [`Event::Record`](super::Event::Record)s to a
//! file before it answers, so that the file knows all that was granted; a record that was cut short at the end is of
//! something that was not. Leases begin anew with the restart.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ghostwire_relay_protocol::token::{NetworkId, NodeId};

use super::{Order, Owner};
use crate::limits::{Rate, SessionRate};

/// Length of a record in bytes.
pub const RECORD_LEN: usize = 112;

/// Where a record's check begins.
const CHECK_AT: usize = RECORD_LEN - 4;

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// First of a journal: the seed of the pair table that it belongs to.
    Begin {
        /// The seed.
        seed: u64,
    },
    /// A node has a port.
    Port {
        /// The node.
        owner: Owner,
        /// The port.
        port: u16,
        /// The request's place.
        order: Order,
        /// From where it asked.
        source: SocketAddr,
    },
    /// It has none any more, and no legs.
    PortEnded {
        /// The node.
        owner: Owner,
    },
    /// A node is bound towards a peer.
    Leg {
        /// The node.
        owner: Owner,
        /// The peer.
        peer: NodeId,
        /// At which of the relay's addresses.
        local: u8,
        /// Where.
        source: SocketAddr,
        /// The request's place.
        order: Order,
        /// The pair's number in the table.
        session: u32,
        /// What the pair may send.
        rate: SessionRate,
    },
    /// It is not any more.
    LegEnded {
        /// The node.
        owner: Owner,
        /// The peer.
        peer: NodeId,
    },
}

const BEGIN: u8 = 1;
const PORT: u8 = 2;
const PORT_ENDED: u8 = 3;
const LEG: u8 = 4;
const LEG_ENDED: u8 = 5;

/// Writes fields one after the other; what does not fit is left out, which the tests would notice.
struct Fields {
    bytes: [u8; RECORD_LEN],
    at: usize,
}

impl Fields {
    fn put(&mut self, field: &[u8]) -> &mut Self {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + field.len()) {
            place.copy_from_slice(field);
        }
        self.at += field.len();
        self
    }

    fn owner(&mut self, owner: Owner) -> &mut Self {
        self.put(&owner.network.0.to_be_bytes()).put(&owner.node.0.to_be_bytes())
    }

    fn order(&mut self, order: Order) -> &mut Self {
        self.put(&order.issued.to_be_bytes()).put(&order.sequence.to_be_bytes())
    }

    fn address(&mut self, address: SocketAddr) -> &mut Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        self.put(&ip.octets()).put(&address.port().to_be_bytes())
    }
}

/// Reads them.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn owner(&mut self) -> Option<Owner> {
        Some(Owner { network: NetworkId(self.u64()?), node: NodeId(self.u64()?) })
    }

    fn order(&mut self) -> Option<Order> {
        Some(Order { issued: self.u64()?, sequence: self.u64()? })
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip = Ipv6Addr::from(self.take::<16>()?).to_canonical();
        Some(SocketAddr::new(ip, self.take().map(u16::from_be_bytes)?))
    }

    fn rate(&mut self) -> Option<Rate> {
        Some(Rate { per_second: self.u64()?, burst: self.u64()? })
    }
}

impl Record {
    /// To a journal.
    pub fn to_bytes(&self) -> [u8; RECORD_LEN] {
        let mut fields = Fields { bytes: [0; RECORD_LEN], at: 0 };
        match self {
            Self::Begin { seed } => fields.put(&[BEGIN]).put(&seed.to_be_bytes()),
            Self::Port { owner, port, order, source } => {
                fields.put(&[PORT]).owner(*owner).put(&port.to_be_bytes()).order(*order).address(*source)
            }
            Self::PortEnded { owner } => fields.put(&[PORT_ENDED]).owner(*owner),
            Self::Leg { owner, peer, local, source, order, session, rate } => {
                fields.put(&[LEG]).owner(*owner).put(&peer.0.to_be_bytes()).put(&[*local]);
                fields.address(*source).order(*order).put(&session.to_be_bytes());
                for rate in [rate.bytes, rate.handshakes] {
                    fields.put(&rate.per_second.to_be_bytes()).put(&rate.burst.to_be_bytes());
                }
                &mut fields
            }
            Self::LegEnded { owner, peer } => {
                fields.put(&[LEG_ENDED]).owner(*owner).put(&peer.0.to_be_bytes())
            }
        };
        let check = check(&fields.bytes);
        fields.at = CHECK_AT;
        fields.put(&check);
        fields.bytes
    }

    /// From a journal. `None`: damaged, or of another version.
    pub fn from_bytes(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        if bytes.get(CHECK_AT..)? != check(bytes) {
            return None;
        }
        let mut reader = Reader(bytes);
        Some(match reader.take()? {
            [BEGIN] => Self::Begin { seed: reader.u64()? },
            [PORT] => Self::Port {
                owner: reader.owner()?,
                port: reader.take().map(u16::from_be_bytes)?,
                order: reader.order()?,
                source: reader.address()?,
            },
            [PORT_ENDED] => Self::PortEnded { owner: reader.owner()? },
            [LEG] => Self::Leg {
                owner: reader.owner()?,
                peer: NodeId(reader.u64()?),
                local: reader.take().map(|[local]| local)?,
                source: reader.address()?,
                order: reader.order()?,
                session: reader.take().map(u32::from_be_bytes)?,
                rate: SessionRate { bytes: reader.rate()?, handshakes: reader.rate()? },
            },
            [LEG_ENDED] => Self::LegEnded { owner: reader.owner()?, peer: NodeId(reader.u64()?) },
            _ => return None,
        })
    }
}

/// FNV-1a over the rest of a record: tells damage, not intent.
fn check(bytes: &[u8; RECORD_LEN]) -> [u8; 4] {
    let mut hash = 0x811C_9DC5_u32;
    for byte in bytes.iter().take(CHECK_AT) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_be_bytes()
}

/// The records of a journal, up to the first that is damaged.
pub fn read(journal: &[u8]) -> impl Iterator<Item = Record> {
    let (records, _cut) = journal.as_chunks::<RECORD_LEN>();
    records.iter().map_while(Record::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_journal_and_damage_ends_it() {
        let owner = Owner { network: NetworkId(u64::MAX), node: NodeId(7) };
        let order = Order { issued: 1 << 40, sequence: u64::MAX - 1 };
        let rate = |per_second| Rate { per_second, burst: u64::MAX };
        let records = [
            Record::Begin { seed: 0x1234_5678_9ABC_DEF0 },
            Record::Port { owner, port: 50_001, order, source: "198.51.100.1:1".parse().unwrap() },
            Record::Leg {
                owner,
                peer: NodeId(u64::MAX),
                local: 7,
                source: "[2001:db8::1]:65535".parse().unwrap(),
                order,
                session: u32::MAX,
                rate: SessionRate { bytes: rate(1), handshakes: rate(u64::MAX) },
            },
            Record::LegEnded { owner, peer: NodeId(3) },
            Record::PortEnded { owner },
        ];
        let journal: Vec<u8> = records.iter().flat_map(Record::to_bytes).collect();
        assert_eq!(read(&journal).collect::<Vec<_>>(), records);
        assert_eq!(read(&journal[..journal.len() - 1]).count(), 4, "the last one is cut short");
        for at in RECORD_LEN..2 * RECORD_LEN {
            let mut damaged = journal.clone();
            damaged[at] ^= 1;
            assert_eq!(read(&damaged).count(), 1, "byte {at}");
        }
    }
}
