//! The planner: desired and observed state to steps; status; no I/O.
