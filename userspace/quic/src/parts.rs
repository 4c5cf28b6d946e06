//! Messages in datagrams. A message that does not fit into what is left of a datagram goes on in the next one.
//!
//! A datagram is a sequence of pieces, each with a header in network byte order:
//!
//! ```text
//! whole message:        0x00 | length 16 | bytes
//! part, more follow:    0x01 | number 16 | offset 16 | length 16 | bytes
//! the message's end:    0x02 | number 16 | offset 16 | length 16 | bytes
//! ```
//!
//! Numbers tell messages in parts apart and start again at 2^16. Datagrams may be lost and come in any order: what lacks
//! a part is forgotten when [`MOST_PENDING`] younger messages lack parts too. A lost datagram thus takes up to two messages
//! of a bulk transfer with it.

use std::collections::VecDeque;

use bytes::Bytes;

/// Messages that may lack parts at a time. Reordering on a path rarely spans more datagrams.
pub const MOST_PENDING: usize = 32;
/// Parts of one message: the longest on the smallest path has 57.
const MOST_PARTS: usize = 64;
/// The longest message.
pub const MAX_MESSAGE_LEN: usize = u16::MAX as usize;

const WHOLE: u8 = 0;
const PART: u8 = 1;
const END: u8 = 2;
const WHOLE_HEADER: usize = 3;
const PART_HEADER: usize = 7;
/// A shorter part is not worth its header and its share of the risk.
const LEAST_PART: usize = 64;

fn be(number: usize) -> [u8; 2] {
    // Callers have checked the length of the message, which bounds everything.
    u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes()
}

/// Puts messages into datagrams.
#[derive(Debug, Default)]
pub struct Packer {
    datagram: Vec<u8>,
    number: u16,
}

impl Packer {
    /// Nothing waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message; `send` gets each datagram that is full. `capacity`: the longest datagram now. False: the message
    /// is empty or too long, or the datagrams are too short.
    pub fn push(&mut self, message: &[u8], capacity: usize, mut send: impl FnMut(Bytes)) -> bool {
        let fits = (1..=MAX_MESSAGE_LEN).contains(&message.len());
        if !fits || capacity < PART_HEADER + LEAST_PART {
            return false;
        }
        if self.datagram.len() > capacity {
            // The path has become narrower.
            self.flush(&mut send);
        }
        if self.datagram.len() + WHOLE_HEADER + message.len() > capacity {
            let fits_alone = WHOLE_HEADER + message.len() <= capacity;
            if !fits_alone {
                self.split(message, capacity, &mut send);
                return true;
            }
            self.flush(&mut send);
        }
        self.datagram.push(WHOLE);
        self.datagram.extend(be(message.len()));
        self.datagram.extend(message);
        true
    }

    fn split(&mut self, message: &[u8], capacity: usize, send: &mut impl FnMut(Bytes)) {
        let number = self.number;
        self.number = number.wrapping_add(1);
        let mut offset = 0;
        while offset < message.len() {
            if self.datagram.len() + PART_HEADER + LEAST_PART > capacity {
                self.flush(&mut *send);
            }
            let room = capacity - self.datagram.len() - PART_HEADER;
            let end = message.len().min(offset + room);
            let part = message.get(offset..end).unwrap_or_default();
            self.datagram.push(if end == message.len() { END } else { PART });
            self.datagram.extend(number.to_be_bytes());
            self.datagram.extend(be(offset));
            self.datagram.extend(be(part.len()));
            self.datagram.extend(part);
            offset = end;
        }
    }

    /// Nothing more comes soon: what waits is sent.
    pub fn flush(&mut self, mut send: impl FnMut(Bytes)) {
        if !self.datagram.is_empty() {
            let capacity = self.datagram.capacity();
            let full = std::mem::replace(&mut self.datagram, Vec::with_capacity(capacity));
            send(full.into());
        }
    }
}

/// A datagram that no [`Packer`] has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a datagram is malformed")]
pub struct Malformed;

/// A message that lacks parts.
#[derive(Debug)]
struct Pending {
    number: u16,
    bytes: Vec<u8>,
    /// Its length, once the end is there.
    length: Option<usize>,
    /// From where to where we have it; no two overlap.
    have: Vec<(usize, usize)>,
}

/// Takes messages out of datagrams.
#[derive(Debug, Default)]
pub struct Joiner {
    pending: VecDeque<Pending>,
}

/// Reads a datagram from its beginning.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take(1)?.first().copied().ok_or(Malformed)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?.try_into().map_err(|_| Malformed)?;
        Ok(u16::from_be_bytes(bytes))
    }
}

impl Joiner {
    /// Waits for nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a datagram; `deliver` gets each message that is complete. What comes before the damage is delivered.
    pub fn feed(&mut self, datagram: &[u8], mut deliver: impl FnMut(Vec<u8>)) -> Result<(), Malformed> {
        let mut reader = Reader(datagram);
        while !reader.0.is_empty() {
            match reader.u8()? {
                WHOLE => {
                    let length = reader.u16()?;
                    let message = reader.take(length.into())?;
                    if message.is_empty() {
                        return Err(Malformed);
                    }
                    deliver(message.to_vec());
                }
                kind @ (PART | END) => {
                    let (number, offset) = (reader.u16()?, usize::from(reader.u16()?));
                    let length = reader.u16()?;
                    let part = reader.take(length.into())?;
                    if let Some(message) = self.part(number, offset, part, kind == END)? {
                        deliver(message);
                    }
                }
                _ => return Err(Malformed),
            }
        }
        Ok(())
    }

    fn part(
        &mut self,
        number: u16,
        offset: usize,
        part: &[u8],
        is_end: bool,
    ) -> Result<Option<Vec<u8>>, Malformed> {
        let end = offset + part.len();
        if part.is_empty() || end > MAX_MESSAGE_LEN {
            return Err(Malformed);
        }
        let at = self.pending.iter().position(|pending| pending.number == number).unwrap_or_else(|| {
            if self.pending.len() >= MOST_PENDING {
                self.pending.pop_front();
            }
            self.pending.push_back(Pending { number, bytes: Vec::new(), length: None, have: Vec::new() });
            self.pending.len() - 1
        });
        let Some(pending) = self.pending.get_mut(at) else { return Err(Malformed) };
        if !pending.add(offset, end, part, is_end) {
            self.pending.remove(at);
            return Err(Malformed);
        }
        Ok(if pending.is_complete() { self.pending.remove(at).map(|pending| pending.bytes) } else { None })
    }

    /// Messages that lack parts.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

impl Pending {
    fn add(&mut self, offset: usize, end: usize, part: &[u8], is_end: bool) -> bool {
        let overlaps = self.have.iter().any(|(from, to)| *from < end && offset < *to);
        let beyond = self.length.is_some_and(|length| is_end || end > length);
        let behind = is_end && self.have.iter().any(|(_, to)| *to > end);
        if overlaps || beyond || behind || self.have.len() >= MOST_PARTS {
            return false;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let Some(place) = self.bytes.get_mut(offset..end) else { return false };
        place.copy_from_slice(part);
        self.have.push((offset, end));
        if is_end {
            self.length = Some(end);
        }
        true
    }

    fn is_complete(&self) -> bool {
        let have: usize = self.have.iter().map(|(from, to)| to - from).sum();
        self.length == Some(have)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(messages: &[Vec<u8>], capacity: usize) -> Vec<Bytes> {
        let (mut packer, mut datagrams) = (Packer::new(), Vec::new());
        for message in messages {
            assert!(packer.push(message, capacity, |datagram| datagrams.push(datagram)));
        }
        packer.flush(|datagram| datagrams.push(datagram));
        datagrams
    }

    fn join(datagrams: impl IntoIterator<Item = Bytes>) -> Vec<Vec<u8>> {
        let (mut joiner, mut messages) = (Joiner::new(), Vec::new());
        for datagram in datagrams {
            joiner.feed(&datagram, |message| messages.push(message)).unwrap();
        }
        messages
    }

    #[test]
    fn full_packets_of_a_bulk_transfer_take_few_more_datagrams() {
        let messages: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte; 1_452]).collect();
        let datagrams = pack(&messages, 1_402);
        assert!(datagrams.len() < 256 * 106 / 100, "{}", datagrams.len());
        let full = datagrams.iter().filter(|datagram| datagram.len() > 1_402 - PART_HEADER - LEAST_PART);
        assert!(full.count() + 1 >= datagrams.len(), "equal lengths are sent in one go");
        assert_eq!(join(datagrams), messages);
    }

    #[test]
    fn what_lacks_a_part_is_forgotten_in_the_end() {
        let (mut joiner, mut messages) = (Joiner::new(), 0);
        for _ in 0..10 * MOST_PENDING {
            let mut packer = Packer::new();
            for number in 0..1_000 {
                packer.number = number;
                let mut first = true;
                packer.push(&[7; 1_452], 1_200, |datagram| {
                    if std::mem::take(&mut first) {
                        joiner.feed(&datagram, |_| messages += 1).unwrap_or_default();
                    }
                });
                packer.datagram.clear();
            }
        }
        assert_eq!(messages, 0);
        assert!(joiner.pending() <= MOST_PENDING);
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused() {
        let part = |kind: u8, offset: u16, bytes: &[u8]| {
            let mut datagram = vec![kind, 0, 9];
            datagram.extend(offset.to_be_bytes());
            datagram.extend(be(bytes.len()));
            datagram.extend(bytes);
            datagram
        };
        for pair in [
            [part(PART, 0, b"abcd"), part(END, 2, b"cdef")],
            [part(END, 4, b"ef"), part(PART, 6, b"gh")],
            [part(END, 4, b"ef"), part(END, 0, b"abcd")],
            [part(PART, 6, b"gh"), part(END, 2, b"cd")],
        ] {
            let mut joiner = Joiner::new();
            assert_eq!(joiner.feed(&pair[0], |_| panic!("incomplete")), Ok(()));
            assert_eq!(joiner.feed(&pair[1], |_| panic!("contradictory")), Err(Malformed));
            assert_eq!(joiner.pending(), 0);
        }
        assert_eq!(Joiner::new().feed(&part(PART, 65_535, b"x"), |_| ()), Err(Malformed));
        assert_eq!(Joiner::new().feed(&[WHOLE, 0, 0], |_| ()), Err(Malformed));
    }

    fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let length = prop_oneof![1..200_usize, 1_000..1_500_usize, 8_000..9_000_usize];
        prop::collection::vec(
            length.prop_map(|length| vec![u8::try_from(length % 251).unwrap(); length]),
            1..20,
        )
    }

    proptest! {
        #[test]
        fn every_message_comes_through_in_any_order_and_at_changing_capacities(
            messages in messages(),
            capacities in prop::collection::vec(200..1_600_usize, 1..5),
            swaps in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
        ) {
            let (mut packer, mut datagrams) = (Packer::new(), Vec::new());
            for (at, message) in messages.iter().enumerate() {
                let capacity = capacities[at % capacities.len()];
                packer.push(message, capacity, |datagram| datagrams.push(datagram));
            }
            packer.flush(|datagram| datagrams.push(datagram));
            for swap in swaps {
                let at = swap.index(datagrams.len());
                datagrams.swap(0, at);
            }
            let (mut sent, mut arrived) = (messages, join(datagrams));
            sent.sort();
            arrived.sort();
            prop_assert_eq!(sent, arrived);
        }

        #[test]
        fn datagrams_are_never_longer_than_they_may_be(messages in messages(), capacity in 80..1_600_usize) {
            prop_assert!(pack(&messages, capacity).iter().all(|datagram| datagram.len() <= capacity));
        }

        #[test]
        fn reading_is_total_and_bounded(
            datagrams in prop::collection::vec(prop::collection::vec(0..5_u8, 0..60), 0..60),
        ) {
            let mut joiner = Joiner::new();
            for datagram in datagrams {
                let _ = joiner.feed(&datagram, |message| assert!(message.len() <= MAX_MESSAGE_LEN));
                prop_assert!(joiner.pending() <= MOST_PENDING);
            }
        }
    }
}
