//! GhostWire's node daemon.
