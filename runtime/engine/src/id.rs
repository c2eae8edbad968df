//! Names of sandboxes and containers: 64 lower-case hex digits, and who owns them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 lower-case hex digits, not {0:?}")]
pub struct IdError(String);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The 64 hex digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// A new id, from the kernel's random numbers.
            pub(crate) fn random() -> io::Result<Self> {
                random_hex().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if text.len() == 64 && hex { Ok(Self(text)) } else { Err(IdError(text.chars().take(80).collect())) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id! {
    /// A pod sandbox.
    SandboxId
}
id! {
    /// A container; also the name of its cgroup and of its snapshot.
    ContainerId
}

/// Who decides about a sandbox. What one owner made, another never touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// This agent's own reconciler.
    Node,
    /// A kubelet, through CRI.
    Cri,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Cri => "cri",
        })
    }
}

fn random_hex() -> io::Result<String> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        for half in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(half), 16).unwrap_or('0'));
        }
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_parses_and_differs_from_the_next() {
        let one = SandboxId::random().unwrap();
        assert_eq!(one.as_str().parse::<SandboxId>().unwrap(), one);
        assert_ne!(one, SandboxId::random().unwrap());
    }

    #[test]
    fn what_could_be_a_path_is_no_id() {
        let slash = "../".repeat(22);
        for text in ["", "..", "a/b", "ABCDEF", slash.as_str()] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
    }
}
