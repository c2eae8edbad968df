//! The doors over a socket, as a client sees them, with a scripted house behind them.

mod client;
mod fake;
mod kubectl;
mod list;
mod logs;
mod own;
mod stream;
