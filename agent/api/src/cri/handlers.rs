//! The runtimes that a pod may name beside our own, which has no name.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use portreeve_engine::{Handler, HandlerFeatures, chain, handler_features};
use tonic::Status;

use super::v1;

/// Programs by the names of their handlers.
#[derive(Debug, Clone, Default)]
pub(super) struct Handlers(Arc<BTreeMap<String, Known>>);

/// A program, and what it said of itself when it was asked last.
#[derive(Debug)]
struct Known {
    program: PathBuf,
    features: Mutex<Option<Told>>,
}

/// An answer, or none: a busy machine may have been the reason for that.
#[derive(Debug)]
struct Told {
    by: Version,
    at: Instant,
    features: Option<HandlerFeatures>,
}

/// So long after it gave no answer a program is asked again.
const ASKED_AGAIN: Duration = Duration::from_secs(60);

/// What is another one when somebody has put another program there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Handlers {
    pub(super) fn new(programs: BTreeMap<String, PathBuf>) -> Self {
        let known = |program| Known { program, features: Mutex::default() };
        Self(Arc::new(programs.into_iter().map(|(name, program)| (name, known(program))).collect()))
    }

    /// What a name means; nothing for our own runtime.
    ///
    /// # Errors
    /// For a name that nobody configured. Source of the code: containerd internal/cri/config, `GetSandboxRuntime`, whose
    /// error has none.
    pub(super) fn find(&self, name: &str) -> Result<Option<Handler>, Status> {
        if name.is_empty() {
            return Ok(None);
        }
        let Some(known) = self.0.get(name) else {
            let all: Vec<String> = self.0.keys().map(|name| format!("{name:?}")).collect();
            let others =
                if all.is_empty() { String::new() } else { format!(", and those that are: {}", all.join(", ")) };
            let message = format!("no runtime handler {name:?} is configured{others}; the empty one is always there");
            return Err(Status::unknown(message));
        };
        Ok(Some(Handler { name: name.to_owned(), program: known.program.clone() }))
    }

    /// All of them, our own first. A program is asked for its features when it is another one than before.
    pub(super) async fn shown(&self, own: v1::RuntimeHandlerFeatures) -> Vec<v1::RuntimeHandler> {
        let all = self.clone();
        let others = move || all.0.iter().map(|(name, known)| (name.clone(), known.features())).collect::<Vec<_>>();
        let others = tokio::task::spawn_blocking(others).await.unwrap_or_default();
        let shown = |(name, features): (String, HandlerFeatures)| v1::RuntimeHandler {
            name,
            features: Some(v1::RuntimeHandlerFeatures {
                recursive_read_only_mounts: features.recursive_readonly_mounts,
                user_namespaces: features.user_namespaces && own.user_namespaces,
            }),
        };
        let first = v1::RuntimeHandler { name: String::new(), features: Some(own) };
        std::iter::once(first).chain(others.into_iter().map(shown)).collect()
    }
}

impl Known {
    /// None of them when it cannot be asked. Blocking.
    fn features(&self) -> HandlerFeatures {
        let Some(version) = version(&self.program) else { return HandlerFeatures::default() };
        let mut told = self.features.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.as_ref().filter(|told| told.by == version);
        if let Some(last) = last.filter(|last| last.features.is_some() || last.at.elapsed() < ASKED_AGAIN) {
            return last.features.unwrap_or_default();
        }
        let features = handler_features(&self.program)
            .inspect_err(|error| {
                tracing::warn!(program = %self.program.display(), error = %chain(error), "features of a runtime handler not known, none is announced");
            })
            .ok();
        *told = Some(Told { by: version, at: Instant::now(), features });
        features.unwrap_or_default()
    }
}

fn version(program: &Path) -> Option<Version> {
    let found = std::fs::metadata(program).ok()?;
    Some(Version { device: found.dev(), inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_handler_is_found_by_its_name_and_one_that_nobody_configured_is_refused_in_words() {
        let handlers =
            Handlers::new([("runc".to_owned(), "/bin/runc".into()), ("crun".to_owned(), "/c".into())].into());
        assert_eq!(handlers.find("").unwrap(), None);
        let runc = Handler { name: "runc".to_owned(), program: "/bin/runc".into() };
        assert_eq!(handlers.find("runc").unwrap(), Some(runc));
        let refused = handlers.find("kata").unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unknown);
        assert!(
            refused.message().contains("\"kata\"") && refused.message().contains("\"crun\", \"runc\""),
            "{refused}"
        );
        assert_eq!(Handlers::default().find("kata").unwrap_err().code(), tonic::Code::Unknown);
    }

    #[tokio::test]
    async fn features_are_asked_for_once_and_again_of_another_program() {
        let home = tempfile::tempdir().unwrap();
        let (program, calls) = (home.path().join("program"), home.path().join("calls"));
        let put = |options: &str| {
            let beside = home.path().join("beside");
            let said = format!("{{\"mountOptions\": [{options}]}}");
            std::fs::write(&beside, format!("#!/bin/sh\necho $1 >> {}\necho '{said}'\n", calls.display())).unwrap();
            std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&beside, &program).unwrap();
        };
        let handlers = Handlers::new([("one".to_owned(), program.clone())].into());
        let own = v1::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: true };
        let rro = async || {
            let shown = handlers.shown(own).await;
            assert_eq!(shown.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["", "one"]);
            assert_eq!(shown[0].features, Some(own));
            shown[1].features.unwrap().recursive_read_only_mounts
        };
        assert!(!rro().await, "it is not there");
        put("\"rro\"");
        assert!(rro().await && rro().await);
        assert_eq!(std::fs::read_to_string(&calls).unwrap(), "features\n");
        put("");
        assert!(!rro().await);
    }
}
