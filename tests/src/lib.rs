//! The mesh as a whole.
