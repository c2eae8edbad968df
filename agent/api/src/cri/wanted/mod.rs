//! What a client asks a sandbox or container to be, as the engine wants it.

mod container;
mod limits;
mod mount;
mod sandbox;
mod security;

use std::collections::BTreeMap;
use std::path::PathBuf;

use portreeve_engine::shortened;
use tonic::Status;

pub(crate) use container::{container, oom_score_adj};
pub(crate) use limits::resources;
pub(crate) use sandbox::sandbox;
pub(super) use sandbox::user_namespace;

use super::v1;

/// The longest name of a pod or container, in bytes, as Kubernetes has it.
const MAX_NAME: usize = 253;
/// Labels and annotations of a pod or container have no more bytes: lists of many fit their answers then. Kubernetes has
/// 256 KiB for a pod's annotations, and a kubelet adds its own.
const MOST_TEXT: usize = 512 << 10;

/// The least that a field has to say is not there, or makes no sense.
pub(super) fn invalid(field: &str, message: impl std::fmt::Display) -> Status {
    Status::invalid_argument(shortened(format!("{field}: {message}")))
}

/// A name is part of paths, of lines, and of what plugins are told.
fn name(field: &str, name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Err(invalid(field, "is empty"));
    }
    let harmless = |c: char| !c.is_control() && !c.is_whitespace() && c != '/';
    match name.len() <= MAX_NAME && !matches!(name, "." | "..") && name.chars().all(harmless) {
        true => Ok(()),
        false => Err(invalid(field, format!("{name:?} is no name of at most {MAX_NAME} bytes"))),
    }
}

/// A path that leads nowhere but down.
fn path(field: &str, path: String) -> Result<PathBuf, Status> {
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(invalid(field, format!("{path:?} has a part that no path may have here")));
    }
    Ok(path.into())
}

/// A path within something; `None` for none.
fn below(field: &str, path: String) -> Result<Option<PathBuf>, Status> {
    let path = self::path(field, path)?;
    if path.is_absolute() {
        return Err(invalid(field, format!("{path:?} is absolute")));
    }
    Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
}

fn bounded(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> Result<(), Status> {
    let bytes: usize = labels.iter().chain(annotations).map(|(name, value)| name.len() + value.len()).sum();
    if bytes <= MOST_TEXT {
        return Ok(());
    }
    Err(invalid("config.annotations", format!("with the labels they have {bytes} bytes, at most {MOST_TEXT} are kept")))
}

#[cfg(test)]
mod tests {
    use super::mount::mount;
    use super::security::seccomp;
    use super::*;

    pub(super) fn pod() -> v1::PodSandboxConfig {
        let metadata =
            v1::PodSandboxMetadata { name: "a".into(), uid: "u".into(), namespace: "default".into(), attempt: 2 };
        v1::PodSandboxConfig { metadata: Some(metadata), log_directory: "/logs".into(), ..Default::default() }
    }

    pub(super) fn container_config() -> v1::ContainerConfig {
        let metadata = v1::ContainerMetadata { name: "main".into(), attempt: 1 };
        v1::ContainerConfig { metadata: Some(metadata), ..Default::default() }
    }

    #[test]
    fn a_path_leads_nowhere_but_down() {
        let shown = |image_sub_path: &str| {
            let image = Some(v1::ImageSpec { image: "i".into(), ..Default::default() });
            mount(v1::Mount { image, image_sub_path: image_sub_path.into(), ..Default::default() }).is_ok()
        };
        let bound = |host_path: &str| mount(v1::Mount { host_path: host_path.into(), ..Default::default() }).is_ok();
        let logs = |log_directory: &str| {
            sandbox(v1::PodSandboxConfig { log_directory: log_directory.into(), ..pod() }, "/portreeve").is_ok()
        };
        let log = |log_path: &str| {
            container(v1::ContainerConfig { log_path: log_path.into(), ..container_config() }, "id".into()).is_ok()
        };
        assert!(shown("a/..b") && bound("/a") && logs("/a") && logs("") && log("a/0.log") && log(""));
        for bad in ["..", "a/../b", "a\0"] {
            assert!(!shown(bad) && !log(bad), "{bad:?}");
            let absolute = format!("/{bad}");
            assert!(!shown(&absolute) && !bound(&absolute) && !logs(&absolute) && !log(&absolute), "{bad:?}");
        }
        assert!(!bound("relative") && !logs("relative") && !log("/absolute") && !shown("/absolute"));
        assert!(seccomp(None, "localhost//a/../b").is_err());
    }

    #[test]
    fn a_name_is_one_word_that_can_be_part_of_a_path() {
        let named = |name: &str| {
            let metadata = v1::ContainerMetadata { name: name.into(), attempt: 0 };
            container(v1::ContainerConfig { metadata: Some(metadata), ..Default::default() }, "id".into()).is_ok()
        };
        let longest = "x".repeat(MAX_NAME);
        for good in ["a", "Main_1.2", "..a", longest.as_str()] {
            assert!(named(good), "{good:?}");
        }
        let long = "x".repeat(MAX_NAME + 1);
        for bad in ["", ".", "..", "a/b", "a b", "a\nb", "a\0", long.as_str()] {
            assert!(!named(bad), "{bad:?}");
        }
    }
}
