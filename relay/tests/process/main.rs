//! The real process, its real sockets, in a network namespace of its own. Needs root.

mod derp;
mod lab;
mod udp;
