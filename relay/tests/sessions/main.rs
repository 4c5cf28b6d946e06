//! The session table: what nodes can do, and what attackers cannot.

mod attacks;
mod life;
mod model;
mod world;
