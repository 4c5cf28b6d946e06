//! `gwctl`: the command line of GhostWire.
//!
//! [`cli`] says which words there are, [`commands`] does them, [`output`] shows what came of it (tables for
//! people, JSON for programs), [`exit`] how it ends. The node is asked through its daemon's socket, the network
//! through the coordination server's ([`connect`]). Policies can be checked, tested and explained without either.

pub mod cli;
pub mod commands;
pub mod connect;
pub mod exit;
pub mod network;
pub mod output;
pub mod service;
