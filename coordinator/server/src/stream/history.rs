//! Which states a node may come back with: those it was told and has not superseded by an acknowledgement.

use std::collections::VecDeque;

use super::delta::Told;

/// Unacknowledged revisions kept per node.
const LENGTH: usize = 64;

/// The revisions that one node was told, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    told: VecDeque<(u64, Told)>,
}

impl History {
    /// Remembers what revision `revision` told.
    pub fn push(&mut self, revision: u64, told: Told) {
        if self.told.len() == LENGTH {
            self.told.pop_front();
        }
        self.told.push_back((revision, told));
    }

    /// The node has applied `revision`: it will not come back with an older one. False if it was never told.
    pub fn acknowledge(&mut self, revision: u64) -> bool {
        let known = self.told.back().is_some_and(|(newest, _)| revision <= *newest);
        while self.told.len() > 1 && self.told[0].0 < revision {
            self.told.pop_front();
        }
        known
    }

    /// What the node knew at `revision`. Forgets everything newer: the node has not applied it.
    pub fn rewind(&mut self, revision: u64) -> Option<Told> {
        let index = self.told.iter().position(|(known, _)| *known == revision)?;
        self.told.truncate(index + 1);
        self.told.back().map(|(_, told)| told.clone())
    }
}
