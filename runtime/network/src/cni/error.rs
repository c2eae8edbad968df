//! Why an operation on a network of plugins failed.

use std::{io, path::PathBuf, time::Duration};

/// What went wrong, with the network and the plugin that it concerns.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// A file of ours or of the administrator cannot be used.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was being done, as in "reading".
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A network's configuration says what cannot be.
    #[error("network configuration {}: {problem}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// No directory has the program of a plugin.
    #[error("network {network}: plugin {plugin:?} is in none of {searched}: install it there, or name its directory")]
    NoPlugin {
        /// The network.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// Where it was looked for.
        searched: String,
    },
    /// A plugin refuses, in its own words.
    #[error("network {network}: {command} by plugin {plugin}: {message} (code {code})")]
    Refused {
        /// The network.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// What it was told to do.
        command: &'static str,
        /// Of the specification when below 100, of the plugin otherwise.
        code: u32,
        /// What it says, with the details.
        message: String,
    },
    /// A plugin does not speak as plugins do.
    #[error("network {network}: {command} by plugin {plugin}: {problem}")]
    Garbled {
        /// The network.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// What it was told to do.
        command: &'static str,
        /// What it did instead.
        problem: String,
    },
    /// A plugin does not end; it and its children were killed.
    #[error("network {network}: {command} by plugin {plugin} did not end within {} s", limit.as_secs())]
    TimedOut {
        /// The network.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// What it was told to do.
        command: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// There is nothing to compare the pod's network with.
    #[error("pod {container}: it was attached to no network by plugins")]
    NotAttached {
        /// The pod's sandbox.
        container: String,
    },
}

impl CniError {
    /// The plugin asks to be asked again, as nothing has to change for that. Source: CNI specification, error code 11.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::Refused { code: 11, .. } | Self::TimedOut { .. })
    }
}
