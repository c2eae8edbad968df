//! What an image must have been built for to run here.

use std::fmt;

/// Operating system, architecture and, where there is one, its variant, in the words of an image index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, ... (Go's names).
    pub architecture: String,
    /// `v8`, `v7`, ...; of amd64 the level, `v2` to `v4`, none for the first.
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this very program, on this very machine.
    #[must_use]
    pub fn current() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_variant(amd64_has())),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some(arm_variant(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))),
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
        let variant = variant.filter(|v| !v.is_empty());
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

/// What this processor has of the second level, of the third and of the fourth. That the kernel keeps the wide registers
/// is a part of the answer. Source: x86-64 psABI §3.1.1, table "Micro-Architecture Levels".
#[cfg(target_arch = "x86_64")]
fn amd64_has() -> [bool; 3] {
    use std::arch::is_x86_feature_detected as has;

    // The second has LAHF and SAHF, too, for which this macro has no name; none with SSE4.2 is without them.
    let second =
        has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("sse4.1") && has!("sse4.2") && has!("ssse3");
    let third = has!("avx")
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe")
        && has!("xsave");
    let fourth = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    [second, third, fourth]
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_has() -> [bool; 3] {
    [false; 3]
}

/// The highest level of which nothing is missing, nor of those below it. The first has no name, as with containerd.
fn amd64_variant(has: [bool; 3]) -> Option<&'static str> {
    match has {
        [false, ..] => None,
        [true, false, _] => Some("v2"),
        [true, true, false] => Some("v3"),
        [true, true, true] => Some("v4"),
    }
}

/// The variant that `/proc/cpuinfo` tells; v7 when it does not. Source: containerd/platforms `cpuinfo_linux.go`.
fn arm_variant(cpuinfo: &str) -> &'static str {
    let value = |key: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map_or("", |(_, value)| value.trim())
    };
    let architecture = value("CPU architecture");
    // The first Raspberry Pi is said to be a 7, since its memory is managed as a 7's.
    let is_sixth = value("model name").to_lowercase().starts_with("armv6-compatible");
    match architecture.trim_end_matches(|c: char| c.is_ascii_uppercase()) {
        "7" if is_sixth => "v6",
        "8" => "v8",
        "6" => "v6",
        "5" => "v5",
        _ if architecture == "AArch64" => "v8",
        _ => "v7",
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
        assert_eq!(amd.distance("linux", "amd64", Some("v1")), Some(0));
        assert_eq!(amd.distance("linux", "amd64", Some("")), Some(0));
        assert_eq!(amd.distance("unknown", "unknown", None), None);
        let third = Platform { variant: Some("v3".into()), ..amd };
        assert_eq!(third.distance("linux", "amd64", Some("v4")), None);
        assert_eq!(third.distance("linux", "amd64", Some("v3")), Some(0));
        assert_eq!(third.distance("linux", "amd64", Some("v2")), Some(1));
        assert_eq!(third.distance("linux", "amd64", None), Some(2));
        assert_eq!(third.distance("linux", "amd64", Some("v1")), Some(2));
    }

    #[test]
    fn a_level_counts_only_with_all_below_it() {
        assert_eq!(amd64_variant([false, false, false]), None);
        assert_eq!(amd64_variant([false, true, true]), None);
        assert_eq!(amd64_variant([true, false, true]), Some("v2"));
        assert_eq!(amd64_variant([true, true, false]), Some("v3"));
        assert_eq!(amd64_variant([true, true, true]), Some("v4"));
    }

    #[test]
    fn what_runs_on_any_machine_of_its_kind_runs_on_this_one() {
        let here = Platform::current();
        assert!(here.distance("linux", &here.architecture, None).is_some(), "{here}");
        assert_eq!(here.distance("linux", &here.architecture, here.variant.as_deref()), Some(0));
    }

    #[test]
    fn the_variant_of_arm_is_told_by_the_kernel() {
        let cpuinfo = |model: &str, architecture: &str| {
            format!(
                "processor\t: 0\nmodel name\t: {model}\nCPU implementer\t: 0x41\nCPU architecture: {architecture}\n"
            )
        };
        for (model, architecture, expect) in [
            ("ARMv7 Processor rev 4 (v7l)", "7", "v7"),
            ("ARMv7 Processor", "7M", "v7"),
            ("ARMv6-compatible processor rev 7 (v6l)", "7", "v6"),
            ("ARMv6-compatible processor", "6TEJ", "v6"),
            ("ARM926EJ-S", "5TEJ", "v5"),
            ("ARMv8 Processor rev 4 (v8l)", "8", "v8"),
            ("ARMv8", "AArch64", "v8"),
            ("unheard of", "?(12)", "v7"),
        ] {
            assert_eq!(arm_variant(&cpuinfo(model, architecture)), expect, "{model} {architecture}");
        }
        assert_eq!(arm_variant(""), "v7");
    }
}
