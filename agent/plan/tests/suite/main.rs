//! Tests of the planner: tables for policy, properties for shape, on a small model of a node.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // Tests may, their modules as well.

mod admission;
mod cases;
mod edits;
mod ending;
mod model;
mod pods;
mod properties;
mod starting;
mod statuses;
mod staying;
