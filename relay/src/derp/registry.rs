//! Who is connected, and who has heard of whom.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ghostwire_relay_protocol::derp::PublicKey;

use super::queue::Queue;

/// One connection of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    queue: Arc<Queue>,
    /// Who has received a packet from here: they are told when it ends.
    heard_by: HashSet<PublicKey>,
}

/// All connections. A key may have several (a machine that was cloned, a connection that has not been noticed
/// to be dead); packets go to the one that sent last.
#[derive(Debug, Default)]
pub struct Registry {
    clients: HashMap<PublicKey, Vec<Connection>>,
    next: u64,
}

impl Registry {
    /// Adds a connection; it is the active one until another one of its key sends.
    pub fn connect(&mut self, key: PublicKey, queue: Arc<Queue>) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        self.clients.entry(key).or_default().push(Connection { id, queue, heard_by: HashSet::new() });
        id
    }

    /// Removes a connection. Gives those who have to be told that the peer is gone: nobody, while it has another
    /// connection.
    pub fn disconnect(&mut self, key: PublicKey, id: ConnectionId) -> Vec<Arc<Queue>> {
        let Some(connections) = self.clients.get_mut(&key) else { return Vec::new() };
        let Some(at) = connections.iter().position(|connection| connection.id == id) else {
            return Vec::new();
        };
        let ended = connections.remove(at);
        if let Some(heir) = connections.last_mut() {
            heir.heard_by.extend(ended.heard_by);
            return Vec::new();
        }
        self.clients.remove(&key);
        ended
            .heard_by
            .iter()
            .filter_map(|peer| self.active(peer))
            .map(|peer| Arc::clone(&peer.queue))
            .collect()
    }

    /// Where a packet goes. The sender becomes the active connection of its key. `None`: the receiver is not here.
    pub fn route(&mut self, from: PublicKey, id: ConnectionId, to: PublicKey) -> Option<Arc<Queue>> {
        let connections = self.clients.get_mut(&from)?;
        let at = connections.iter().position(|connection| connection.id == id)?;
        let last = connections.len() - 1;
        connections.swap(at, last);
        let queue = Arc::clone(&self.active(&to)?.queue);
        if let Some(sender) = self.clients.get_mut(&from).and_then(|connections| connections.last_mut()) {
            sender.heard_by.insert(to);
        }
        Some(queue)
    }

    /// The queues of all connections.
    pub fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.clients.values().flatten().map(|connection| &connection.queue)
    }

    /// How many clients are connected.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    fn active(&self, key: &PublicKey) -> Option<&Connection> {
        self.clients.get(key)?.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PublicKey = PublicKey([1; 32]);
    const B: PublicKey = PublicKey([2; 32]);

    #[test]
    fn only_those_who_heard_of_a_peer_learn_that_it_is_gone() {
        let mut registry = Registry::default();
        let (a, b) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
        let (id_a, id_b) = (registry.connect(A, a.clone()), registry.connect(B, b.clone()));
        assert!(registry.disconnect(B, id_b).is_empty());
        let id_b = registry.connect(B, b.clone());
        assert!(Arc::ptr_eq(&registry.route(A, id_a, B).unwrap(), &b));
        let told = registry.disconnect(A, id_a);
        assert!(told.len() == 1 && Arc::ptr_eq(&told[0], &b));
        assert!(registry.route(B, id_b, A).is_none());
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn of_two_connections_the_one_that_sent_last_receives() {
        let mut registry = Registry::default();
        let (old, new, b) =
            (Arc::new(Queue::default()), Arc::new(Queue::default()), Arc::new(Queue::default()));
        let id_old = registry.connect(A, old.clone());
        let id_new = registry.connect(A, new.clone());
        let id_b = registry.connect(B, b);
        assert!(Arc::ptr_eq(&registry.route(B, id_b, A).unwrap(), &new));
        registry.route(A, id_old, B);
        assert!(Arc::ptr_eq(&registry.route(B, id_b, A).unwrap(), &old));
        assert!(registry.disconnect(A, id_old).is_empty(), "it is still here");
        assert!(Arc::ptr_eq(&registry.route(B, id_b, A).unwrap(), &new));
        assert_eq!(
            registry.disconnect(A, id_new).len(),
            1,
            "what the first connection said is not forgotten"
        );
    }
}
