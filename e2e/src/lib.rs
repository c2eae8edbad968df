//! End-to-end tests and benchmarks that drive the built binary as a user does.
