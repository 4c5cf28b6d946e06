//! What waits to be written to one client.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Packets that wait at most, of each of the two kinds.
const PACKETS: usize = 32;

/// Other frames that wait at most: pongs and news of peers.
const NOTICES: usize = 64;

/// Which lane a frame takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// About the connection and its peers.
    Notice,
    /// Path discovery: small and urgent.
    Disco,
    /// Everything else.
    Data,
}

/// Three bounded lanes. Where one is full, its oldest frame makes room: a late packet is worth less than a fresh
/// one, and a client that does not read holds up nobody.
#[derive(Debug, Default)]
pub struct Queue {
    lanes: Mutex<Lanes>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    notices: VecDeque<Vec<u8>>,
    disco: VecDeque<Vec<u8>>,
    data: VecDeque<Vec<u8>>,
    dropped: u64,
    closed: bool,
}

impl Queue {
    /// Adds a whole frame.
    pub fn push(&self, lane: Lane, frame: Vec<u8>) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.closed {
            return;
        }
        let (queue, limit) = match lane {
            Lane::Notice => (&mut lanes.notices, NOTICES),
            Lane::Disco => (&mut lanes.disco, PACKETS),
            Lane::Data => (&mut lanes.data, PACKETS),
        };
        queue.push_back(frame);
        if queue.len() > limit {
            queue.pop_front();
            lanes.dropped += 1;
        }
        drop(lanes);
        self.filled.notify_one();
    }

    /// Ends the queue: what waits is still delivered.
    pub fn close(&self) {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.filled.notify_one();
    }

    /// Frames that were dropped.
    pub fn dropped(&self) -> u64 {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).dropped
    }

    /// Waits for frames and appends all that wait to `out`. `false`: the queue has ended and is empty.
    pub async fn take(&self, out: &mut Vec<u8>) -> bool {
        loop {
            {
                let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
                let Lanes { notices, disco, data, closed, .. } = &mut *lanes;
                for frame in notices.drain(..).chain(disco.drain(..)).chain(data.drain(..)) {
                    out.extend_from_slice(&frame);
                }
                if !out.is_empty() || *closed {
                    return !out.is_empty();
                }
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_lane_loses_its_oldest_and_no_other_lane() {
        let queue = Queue::default();
        queue.push(Lane::Disco, vec![200]);
        for number in 0..40 {
            queue.push(Lane::Data, vec![number]);
        }
        queue.push(Lane::Notice, vec![100]);
        let mut out = Vec::new();
        assert!(queue.take(&mut out).await);
        let expected: Vec<u8> = [100, 200].into_iter().chain(8..40).collect();
        assert_eq!(out, expected);
        assert_eq!(queue.dropped(), 8);
    }

    #[tokio::test]
    async fn a_closed_queue_delivers_what_waits_and_takes_no_more() {
        let queue = Queue::default();
        queue.push(Lane::Notice, vec![1]);
        queue.close();
        queue.push(Lane::Notice, vec![2]);
        let mut out = Vec::new();
        assert!(queue.take(&mut out).await);
        assert_eq!(out, [1]);
        out.clear();
        assert!(!queue.take(&mut out).await);
    }
}
