//! Sandboxes and containers in CRI-shaped types, and the shim that keeps them.
