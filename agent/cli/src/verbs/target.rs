//! Which container of which pod a verb means.

use std::io::{self, Write};

use anyhow::bail;
use clap::Args;
use k8s_openapi::api::core::v1::Pod;

use super::client::{Client, escape};
use super::{Namespace, pod_name};

/// Names the container that a verb means when it is not told, as kubectl reads it.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// A pod, and one of its containers.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The pod
    #[arg(value_parser = pod_name)]
    pub(super) pod: String,
    #[command(flatten)]
    pub(super) namespace: Namespace,
    /// The container [default: the one that the pod's annotation names, or the first]
    #[arg(short, long)]
    pub(super) container: Option<String>,
}

impl Target {
    /// The path of the pod's subresource.
    pub(super) fn path(&self, subresource: &str) -> String {
        pod_path(&self.namespace.namespace, &self.pod, subresource)
    }

    /// The container that is meant.
    ///
    /// # Errors
    /// When there is no such pod.
    pub(super) async fn container(&self, client: &Client) -> anyhow::Result<String> {
        match &self.container {
            Some(container) => Ok(container.clone()),
            None => default_container(client, &self.namespace.namespace, &self.pod).await,
        }
    }
}

/// The path of a pod's subresource.
pub(super) fn pod_path(namespace: &str, pod: &str, subresource: &str) -> String {
    format!("/api/v1/namespaces/{}/pods/{}/{subresource}", escape(namespace), escape(pod))
}

/// The container that is meant when none is named; where there was a choice it is told on standard error.
///
/// # Errors
/// When there is no such pod.
pub(super) async fn default_container(client: &Client, namespace: &str, pod: &str) -> anyhow::Result<String> {
    let object: Pod = client.get(&format!("/api/v1/namespaces/{}/pods/{}", escape(namespace), escape(pod))).await?;
    let Some((chosen, others)) = choose(&object) else {
        bail!("pod {pod} has no container");
    };
    if others.len() > 1 {
        // kubectl's words. Whoever closed standard error does not want to know.
        let _closed = writeln!(io::stderr(), "Defaulted container {chosen:?} out of: {}", others.join(", "));
    }
    Ok(chosen)
}

/// The default container, and all that there are.
fn choose(pod: &Pod) -> Option<(String, Vec<String>)> {
    let spec = pod.spec.as_ref()?;
    let mains = spec.containers.iter().map(|container| container.name.clone());
    let inits = spec.init_containers.iter().flatten();
    let all: Vec<String> = mains.chain(inits.clone().map(|container| format!("{} (init)", container.name))).collect();
    let named = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DEFAULT_CONTAINER));
    let known = |name: &&String| spec.containers.iter().chain(inits.clone()).any(|container| container.name == **name);
    let chosen = named.filter(known).cloned().or_else(|| Some(spec.containers.first()?.name.clone()))?;
    Some((chosen, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotation: Option<&str>) -> Pod {
        let mut pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a"},
            "spec": {"initContainers": [{"name": "before"}], "containers": [{"name": "one"}, {"name": "two"}]},
        }))
        .unwrap();
        pod.metadata.annotations =
            annotation.map(|name| [(DEFAULT_CONTAINER.to_owned(), name.to_owned())].into_iter().collect());
        pod
    }

    #[test]
    fn the_annotation_decides_then_the_first() {
        let all = ["one", "two", "before (init)"].map(str::to_owned).to_vec();
        for (annotation, chosen) in [(None, "one"), (Some("two"), "two"), (Some("nobody"), "one")] {
            assert_eq!(choose(&pod(annotation)), Some((chosen.to_owned(), all.clone())), "{annotation:?}");
        }
        assert_eq!(choose(&Pod::default()), None);
    }
}
