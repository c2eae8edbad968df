//! What an image must have been built for to run here.

use std::fmt;

/// Operating system, architecture and, where there is one, its variant, in the words of an image index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, ... (Go's names).
    pub architecture: String,
    /// `v8`, `v7`, ...
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this very program.
    #[must_use]
    pub fn current() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// How well an image for `os`/`architecture`/`variant` runs here: `None` not at all, else smaller is better.
    pub(crate) fn distance(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<u32> {
        if os != self.os || architecture != self.architecture {
            return None;
        }
        let level = |v: Option<&str>| -> Option<u32> {
            match (architecture, v) {
                ("amd64", None) => Some(1),
                ("arm64", None) => Some(8),
                ("arm", None) => Some(7),
                (_, None) => Some(0),
                (_, Some(v)) => v.strip_prefix('v').unwrap_or(v).split('.').next()?.parse().ok(),
            }
        };
        match (level(self.variant.as_deref()), level(variant)) {
            // An older variant runs on a newer machine, never the reverse.
            (Some(own), Some(theirs)) => own.checked_sub(theirs),
            _ if self.variant.as_deref() == variant => Some(0),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_variant_that_still_runs_is_nearest() {
        let arm = Platform { os: "linux".into(), architecture: "arm".into(), variant: Some("v7".into()) };
        assert_eq!(arm.distance("linux", "arm", Some("v7")), Some(0));
        assert_eq!(arm.distance("linux", "arm", Some("v6")), Some(1));
        assert_eq!(arm.distance("linux", "arm", Some("v8")), None);
        assert_eq!(arm.distance("linux", "arm64", Some("v8")), None);
        assert_eq!(arm.distance("windows", "arm", Some("v7")), None);
        let amd = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        assert_eq!(amd.distance("linux", "amd64", None), Some(0));
        assert_eq!(amd.distance("linux", "amd64", Some("v2")), None);
        assert_eq!(amd.distance("unknown", "unknown", None), None);
    }
}
