//! The doors over a socket, as a client sees them, with a scripted house behind them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod client;
mod discovery;
mod fake;
mod kubectl;
mod list;
mod logs;
mod node;
mod own;
mod places;
mod stream;
