//! Speaking to a registry.

mod error;

pub use error::RegistryError;
