//! The pair table in this process's memory.

use std::sync::Arc;

use ghostwire_relay_fastpath::table::{Line, Lines};

/// Lines on the heap, shared between the writer and the readers. An XDP program gets a BPF map in its place.
#[derive(Clone, Debug)]
pub struct HeapTable(Arc<[Line]>);

impl HeapTable {
    /// Empty lines.
    pub fn new(lines: u32) -> Self {
        Self((0..lines).map(|_| Line::default()).collect())
    }
}

impl Lines for HeapTable {
    #[inline]
    fn line(&self, index: u32) -> Option<&Line> {
        self.0.get(index as usize)
    }
}
