//! What nodes tell each other through us: of each node for each peer the latest signal, in memory only.
//!
//! A signal is a whole state that the receiver orders by itself, so a mailbox may forget what was replaced, and a
//! node that connects again simply gets everything that is kept. Nothing here reads a signal. Who may send to
//! whom is asked when a signal comes and again when it is handed out: policy may have changed in between.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ghostwire_proto::MAX_SIGNAL_BYTES;
use ghostwire_proto::v1::{IncomingSignal, Signal};
use prost::Message as _;
use tokio::sync::Notify;

use crate::model::{NodeId, UnixMs};

/// A signal is kept for this long for a peer that is away. Addresses older than that are rarely of use.
const KEPT_FOR: Duration = Duration::from_hours(1);

/// What bounds the memory.
#[derive(Clone, Copy, Debug)]
pub struct SignalLimits {
    /// Signals kept for one node; then its oldest goes.
    pub per_receiver: usize,
    /// Bytes kept for all; then the oldest of all goes.
    pub bytes: usize,
}

impl Default for SignalLimits {
    fn default() -> Self {
        Self { per_receiver: 4_096, bytes: 128 << 20 }
    }
}

/// One kept signal.
#[derive(Debug)]
struct Kept {
    from: NodeId,
    to: NodeId,
    signal: Arc<Signal>,
    bytes: usize,
    at: UnixMs,
}

#[derive(Debug, Default)]
struct Mailboxes {
    /// By a number that counts up: oldest first.
    kept: BTreeMap<u64, Kept>,
    /// Numbers, by receiver and sender.
    latest: HashMap<NodeId, HashMap<NodeId, u64>>,
    /// Numbers, by receiver, in order.
    queues: HashMap<NodeId, BTreeSet<u64>>,
    readers: HashMap<NodeId, Arc<Notify>>,
    last: u64,
    bytes: usize,
}

/// Everybody's mailbox.
#[derive(Debug)]
pub struct Signals {
    limits: SignalLimits,
    inner: Mutex<Mailboxes>,
}

impl Signals {
    /// Nothing is kept yet.
    pub fn new(limits: SignalLimits) -> Arc<Self> {
        Arc::new(Self { limits, inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Mailboxes> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a signal in place of the one before it and wakes its receiver. False: it is too large.
    pub fn put(&self, from: NodeId, to: NodeId, signal: Signal, now: UnixMs) -> bool {
        let bytes = signal.encoded_len();
        if bytes > MAX_SIGNAL_BYTES {
            return false;
        }
        let mut boxes = self.lock();
        boxes.expire(now);
        if let Some(old) = boxes.latest.get(&to).and_then(|senders| senders.get(&from)).copied() {
            boxes.remove(old);
        }
        boxes.last += 1;
        let number = boxes.last;
        boxes.bytes += bytes;
        boxes.kept.insert(number, Kept { from, to, signal: Arc::new(signal), bytes, at: now });
        boxes.latest.entry(to).or_default().insert(from, number);
        let queue = boxes.queues.entry(to).or_default();
        queue.insert(number);
        let excess = queue.first().copied().filter(|_| queue.len() > self.limits.per_receiver);
        if let Some(oldest) = excess {
            boxes.remove(oldest);
        }
        while boxes.bytes > self.limits.bytes {
            let Some((&oldest, _)) = boxes.kept.first_key_value() else { break };
            boxes.remove(oldest);
        }
        if let Some(reader) = boxes.readers.get(&to) {
            reader.notify_one();
        }
        true
    }

    /// The mailbox of a node that has connected: everything that is kept for it is new.
    pub fn reader(self: &Arc<Self>, node: NodeId) -> Reader {
        let woken = Arc::new(Notify::new());
        self.lock().readers.insert(node, woken.clone());
        woken.notify_one();
        Reader { signals: self.clone(), node, woken, read: 0 }
    }
}

impl Mailboxes {
    fn remove(&mut self, number: u64) {
        let Some(kept) = self.kept.remove(&number) else { return };
        self.bytes -= kept.bytes;
        if let Some(senders) = self.latest.get_mut(&kept.to) {
            senders.remove(&kept.from);
            if senders.is_empty() {
                self.latest.remove(&kept.to);
            }
        }
        if let Some(queue) = self.queues.get_mut(&kept.to) {
            queue.remove(&number);
            if queue.is_empty() {
                self.queues.remove(&kept.to);
            }
        }
    }

    fn expire(&mut self, now: UnixMs) {
        let kept_for = i64::try_from(KEPT_FOR.as_millis()).unwrap_or(i64::MAX);
        while let Some((&oldest, kept)) = self.kept.first_key_value() {
            if now.saturating_sub(kept.at) < kept_for {
                return;
            }
            self.remove(oldest);
        }
    }
}

/// One connection's view of its node's mailbox.
#[derive(Debug)]
pub struct Reader {
    signals: Arc<Signals>,
    node: NodeId,
    woken: Arc<Notify>,
    read: u64,
}

impl Reader {
    /// Waits until there may be something new.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    /// The next signal from somebody whom `visible` lets through; others stay where they are and are passed over.
    pub fn next(&mut self, visible: impl Fn(NodeId) -> bool) -> Option<IncomingSignal> {
        let boxes = self.signals.lock();
        let queue = boxes.queues.get(&self.node)?;
        for number in queue.range(self.read + 1..) {
            self.read = *number;
            let kept = boxes.kept.get(number).filter(|kept| visible(kept.from));
            if let Some(kept) = kept {
                return Some(IncomingSignal { from: kept.from.0, signal: Some((*kept.signal).clone()) });
            }
        }
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut boxes = self.signals.lock();
        // A newer connection of the same node may have taken the place.
        if boxes.readers.get(&self.node).is_some_and(|woken| Arc::ptr_eq(woken, &self.woken)) {
            boxes.readers.remove(&self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn signal(revision: u32) -> Signal {
        Signal { protocol: 1, generation: 7, revision, ..Signal::default() }
    }

    fn drain(reader: &mut Reader) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| reader.next(|_| true))
            .map(|signal| (signal.from, signal.signal.unwrap().revision))
            .collect()
    }

    #[test]
    fn only_the_latest_is_kept_and_comes_again_after_a_reconnect() {
        let signals = Signals::new(SignalLimits::default());
        let (a, b, c) = (NodeId(1), NodeId(2), NodeId(3));
        for revision in 1..=3 {
            assert!(signals.put(a, c, signal(revision), 0));
        }
        assert!(signals.put(b, c, signal(9), 0));
        let mut reader = signals.reader(c);
        assert_eq!(drain(&mut reader), [(1, 3), (2, 9)]);
        assert_eq!(drain(&mut reader), []);
        assert!(signals.put(a, c, signal(4), 0));
        assert_eq!(drain(&mut reader), [(1, 4)]);
        assert_eq!(drain(&mut signals.reader(c)), [(2, 9), (1, 4)]);
    }

    #[test]
    fn who_is_not_visible_is_passed_over() {
        let signals = Signals::new(SignalLimits::default());
        signals.put(NodeId(1), NodeId(3), signal(1), 0);
        signals.put(NodeId(2), NodeId(3), signal(2), 0);
        let mut reader = signals.reader(NodeId(3));
        assert_eq!(reader.next(|from| from == NodeId(2)).unwrap().from, 2);
        assert!(reader.next(|_| true).is_none());
    }

    #[test]
    fn what_is_too_large_is_refused_and_what_is_old_is_forgotten() {
        let signals = Signals::new(SignalLimits::default());
        let mut large = signal(1);
        large.credentials = Some(ghostwire_proto::v1::Credentials {
            password: "x".repeat(MAX_SIGNAL_BYTES),
            ..Default::default()
        });
        assert!(!signals.put(NodeId(1), NodeId(2), large, 0));
        assert!(signals.put(NodeId(1), NodeId(2), signal(1), 0));
        assert!(signals.put(NodeId(1), NodeId(3), signal(1), 3_600_000));
        assert_eq!(drain(&mut signals.reader(NodeId(2))), []);
    }

    #[test]
    fn an_old_connection_that_ends_late_leaves_the_new_one_awake() {
        let signals = Signals::new(SignalLimits::default());
        let old = signals.reader(NodeId(2));
        let new = signals.reader(NodeId(2));
        drop(old);
        assert!(Arc::ptr_eq(&signals.lock().readers[&NodeId(2)], &new.woken));
        drop(new);
        assert!(signals.lock().readers.is_empty());
    }

    proptest! {
        /// Against a model that keeps everything: a reader gets, for each sender, the last that was put and not
        /// pushed out by the bounds; and the books always add up.
        #[test]
        fn mailboxes_agree_with_a_model(
            steps in prop::collection::vec((1_u64..5, 1_u64..4, 0_i64..3_000_000), 1..80)
        ) {
            let limits = SignalLimits { per_receiver: 3, bytes: 120 };
            let signals = Signals::new(limits);
            let mut now = 0;
            let mut model: Vec<(u64, u64, u32, i64, usize)> = Vec::new();
            for (index, (from, to, wait)) in steps.into_iter().enumerate() {
                now += wait;
                let revision = u32::try_from(index).unwrap() + 1;
                let bytes = signal(revision).encoded_len();
                prop_assert!(signals.put(NodeId(from), NodeId(to), signal(revision), now));
                model.retain(|kept| now - kept.3 < 3_600_000 && (kept.0, kept.1) != (from, to));
                model.push((from, to, revision, now, bytes));
                if model.iter().filter(|kept| kept.1 == to).count() > limits.per_receiver {
                    let oldest = model.iter().position(|kept| kept.1 == to).unwrap();
                    model.remove(oldest);
                }
                while model.iter().map(|kept| kept.4).sum::<usize>() > limits.bytes {
                    model.remove(0);
                }
                for receiver in 1..4 {
                    let wanted: Vec<(u64, u32)> =
                        model.iter().filter(|kept| kept.1 == receiver).map(|kept| (kept.0, kept.2)).collect();
                    prop_assert_eq!(drain(&mut signals.reader(NodeId(receiver))), wanted);
                }
                let boxes = signals.lock();
                prop_assert_eq!(boxes.bytes, boxes.kept.values().map(|kept| kept.bytes).sum::<usize>());
                let queued: BTreeSet<u64> = boxes.queues.values().flatten().copied().collect();
                prop_assert!(queued.iter().eq(boxes.kept.keys()));
                prop_assert_eq!(boxes.latest.values().map(HashMap::len).sum::<usize>(), boxes.kept.len());
            }
        }
    }
}
