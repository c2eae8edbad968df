//! `apply` and `delete`: they write and remove files, and the files stay the truth.
//!
//! One file per object, `<manifests>/applied/<kind>.<namespace>.<name>.yaml`. What lives in any
//! other file belongs to whoever edits that file, and is refused with its place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portreeve_manifests::{Document, Kind, Object, ObjectKey, Position, Reason, Verdict, parse_file, parse_file_in};

use crate::desired::{Ledger, given_uid, refused_uid};
use crate::disk;
use crate::error::NodeError;
use crate::report::{Applied, ApplyReport, DeleteReport, Deleted, ManifestFile, ObjectName, ProblemReport};
use crate::source::{Identity, SourceSet};
use crate::volumes::NodeFacts;

/// Folder of the manifests that belongs to `apply`.
const FOLDER: &str = "applied";

/// What the given manifests say, in order; an object given twice is an error of the second.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) objects: Vec<Object>,
    /// Where each was said: file and line.
    pub(crate) places: BTreeMap<ObjectKey, (PathBuf, u32)>,
    pub(crate) refused: Vec<Option<ObjectKey>>,
    pub(crate) problems: Vec<ProblemReport>,
}

/// The reason of an object that is in another namespace than the one asked for.
const ELSEWHERE: &str = "NamespaceMismatch";

/// Parses manifests that were handed in; with a namespace, objects that say none are in it, and others are refused.
pub(crate) fn parse(files: &[ManifestFile], namespace: Option<&str>) -> Given {
    let namespace = namespace.filter(|namespace| !namespace.is_empty());
    let mut given = Given::default();
    for file in files {
        let parsed = parse_file_in(&file.path, file.content.as_bytes(), namespace.unwrap_or("default"));
        given.problems.extend(parsed.problems.iter().map(crate::desired::from_parser));
        for document in parsed.documents {
            match document.verdict {
                Verdict::Accepted(object) => {
                    let key = object.key();
                    if let Some(asked) = namespace.filter(|asked| *asked != key.namespace) {
                        given.problems.push(misplaced(file, document.position, &key, asked));
                        given.refused.push(Some(key));
                    } else if let Some((first, line)) = given.places.get(&key) {
                        given.problems.push(twice(file, document.position, &key, first, *line));
                    } else {
                        given.places.insert(key, (file.path.clone(), document.position.line));
                        given.objects.push(object);
                    }
                }
                Verdict::Refused { key } => given.refused.push(key),
                Verdict::Ignored => {}
            }
        }
    }
    given
}

/// Refuses what is given a uid that it cannot have: the merge would keep it out.
pub(crate) fn refuse_uids(given: &mut Given, ledger: &Ledger) {
    let mut taken = ledger.uids();
    for object in std::mem::take(&mut given.objects) {
        let key = object.key();
        let own = ledger.objects.get(&key).map(|record| record.uid.as_str());
        match given_uid(&object, &taken, own) {
            Ok(uid) => {
                taken.extend(uid);
                given.objects.push(object);
            }
            Err(message) => {
                let (file, line) = given.places.get(&key).cloned().unwrap_or_default();
                given.problems.push(refused_uid(&file, line, &key, message));
                given.refused.push(Some(key));
            }
        }
    }
}

fn misplaced(file: &ManifestFile, at: Position, key: &ObjectKey, asked: &str) -> ProblemReport {
    ProblemReport {
        field: "metadata.namespace".to_owned(),
        reason: ELSEWHERE.to_owned(),
        message: format!("{key} is not in the namespace `{asked}` that was asked for"),
        fix: Some(format!("give -n {}, or leave it out", key.namespace)),
        ..blank("error", &file.path, Some(at), key)
    }
}

/// Nobody can tell which of the two is meant.
fn twice(file: &ManifestFile, at: Position, key: &ObjectKey, first: &Path, line: u32) -> ProblemReport {
    ProblemReport {
        field: "metadata.name".to_owned(),
        reason: Reason::FieldValueDuplicate.to_string(),
        message: format!("{key} is also in {}:{line}", first.display()),
        fix: Some("rename one of the two, or leave it out".to_owned()),
        ..blank("error", &file.path, Some(at), key)
    }
}

/// A report about an object, without its words.
fn blank(severity: &str, file: &Path, at: Option<Position>, key: &ObjectKey) -> ProblemReport {
    ProblemReport {
        severity: severity.to_owned(),
        file: file.to_owned(),
        line: at.map_or(0, |at| at.line),
        column: at.map_or(0, |at| at.column),
        object: Some(key.to_string()),
        field: String::new(),
        reason: String::new(),
        message: String::new(),
        fix: None,
    }
}

/// The warning of an object that was written and that the agent has not taken up.
pub(crate) fn not_seen(manifests: &Path, key: &ObjectKey, within: Duration) -> ProblemReport {
    ProblemReport {
        reason: "NotSeen".to_owned(),
        message: format!("{key} is written, but the agent has not taken it up within {} s", within.as_secs()),
        fix: Some("`portreeve get sources` says why".to_owned()),
        ..blank("warning", &applied_path(manifests, key), None, key)
    }
}

/// A warning for each given pod that asks for another node.
pub(crate) fn elsewhere(given: &Given, node: &NodeFacts) -> BTreeMap<ObjectKey, ProblemReport> {
    let pods = given.objects.iter().filter_map(|object| match object {
        Object::Pod(pod) => Some((object.key(), crate::supervisor::elsewhere(pod, node)?)),
        _ => None,
    });
    pods.map(|(key, message)| {
        let (file, line) = given.places.get(&key).cloned().unwrap_or_default();
        let report = crate::desired::not_for_this_node(&file, line, &key, message);
        (key, report)
    })
    .collect()
}

/// The file of an applied object.
pub(crate) fn applied_path(manifests: &Path, key: &ObjectKey) -> PathBuf {
    let kind = key.kind.as_str().to_ascii_lowercase();
    manifests.join(FOLDER).join(format!("{kind}.{}.{}.yaml", key.namespace, key.name))
}

/// The directory that was read, held open so that nobody unmounts it meanwhile.
fn hold_directory(manifests: &Path, ledger: &Ledger) -> Result<File, NodeError> {
    let another = |path: &Path, source| NodeError::AnotherDirectory { path: path.to_owned(), source };
    let missing = |source| another(manifests, Some(source));
    let held = File::options().read(true).custom_flags(nix::libc::O_DIRECTORY).open(manifests).map_err(missing)?;
    let found = Identity::of(&held.metadata().map_err(missing)?);
    if ledger.identities.get(&SourceSet::starting(manifests).name).is_some_and(|known| *known != found) {
        return Err(another(manifests, None));
    }
    let folder = manifests.join(FOLDER);
    if let Some(known) = ledger.mounts.get(&folder) {
        let found = fs::metadata(&folder).map_err(|source| another(&folder, Some(source)))?;
        if *known != Identity::of(&found) {
            return Err(another(&folder, None));
        }
    }
    Ok(held)
}

/// Validates and writes.
pub(crate) fn apply_blocking(
    manifests: &Path,
    ledger: &Ledger,
    files: &[ManifestFile],
    namespace: Option<&str>,
    node: &NodeFacts,
) -> Result<(ApplyReport, Vec<(ObjectKey, String)>), NodeError> {
    let mut given = parse(files, namespace);
    refuse_uids(&mut given, ledger);
    let elsewhere = elsewhere(&given, node);
    let (errors, mut warnings): (Vec<_>, Vec<_>) = given.problems.into_iter().partition(ProblemReport::is_error);
    warnings.extend(elsewhere.values().cloned());
    if !errors.is_empty() || !given.refused.is_empty() {
        return Err(NodeError::Invalid(errors));
    }
    for object in &given.objects {
        let key = object.key();
        let path = applied_path(manifests, &key);
        if let Some(record) = ledger.objects.get(&key).filter(|record| record.file != path) {
            return Err(NodeError::OwnedElsewhere {
                object: name_of(&key),
                file: record.file.clone(),
                line: record.line,
            });
        }
        if let Some((other, record)) =
            ledger.objects.iter().find(|(other, record)| record.file == path && **other != key)
        {
            // Somebody put more into the file; it must not be lost.
            return Err(NodeError::OwnedElsewhere { object: name_of(other), file: path, line: record.line });
        }
    }
    let _held = hold_directory(manifests, ledger)?;
    let mut written = Vec::new();
    for object in &given.objects {
        let key = object.key();
        written.push(says(&applied_path(manifests, &key), &key)?);
    }
    let mut report = ApplyReport { applied: Vec::new(), warnings };
    let mut expected = Vec::new();
    for (object, said) in given.objects.iter().zip(written) {
        let key = object.key();
        let path = applied_path(manifests, &key);
        let hash = object.content_hash();
        let known = ledger.objects.get(&key);
        // The ledger has the last good version, whatever became of the file since then.
        let unchanged = known.is_some_and(|record| record.hash == hash) && said.as_deref() == Some(&*hash);
        if !unchanged {
            write(&path, object)?;
        }
        report.applied.push(Applied {
            kind: key.kind.to_string(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            outcome: match (unchanged, known) {
                (true, _) => "unchanged",
                (false, Some(_)) => "configured",
                (false, None) => "created",
            }
            .to_owned(),
            file: path,
        });
        if !elsewhere.contains_key(&key) {
            expected.push((key, hash));
        }
    }
    Ok((report, expected))
}

/// What the file of an applied object says of it now: the hash of its content, `None` when it says nothing good.
///
/// # Errors
/// [`NodeError::Crowded`] when something else is in the file: it would be lost with it.
fn says(path: &Path, key: &ObjectKey) -> Result<Option<String>, NodeError> {
    let bytes = match read_bounded(path) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(NodeError::Read { path: path.to_owned(), source }),
    };
    let parsed = parse_file(path, &bytes);
    // A document alone that does not say its name is the object's own, broken.
    if let [Document { verdict: Verdict::Refused { key: None }, .. }] = &*parsed.documents {
        return Ok(None);
    }
    let mut hash = None;
    for document in parsed.documents {
        match document.verdict {
            Verdict::Accepted(object) if object.key() == *key => hash = Some(object.content_hash()),
            Verdict::Refused { key: Some(refused) } if refused == *key => hash = None,
            Verdict::Accepted(_) | Verdict::Refused { .. } | Verdict::Ignored => {
                return Err(NodeError::Crowded {
                    object: name_of(key),
                    file: path.to_owned(),
                    line: document.position.line,
                });
            }
        }
    }
    Ok(hash)
}

/// The file's content; of one that is larger than any manifest, as much as shows that it is.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Somebody may have put a pipe there: nobody waits for its writer.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path)?;
    file.take(crate::source::MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write(path: &Path, object: &Object) -> Result<(), NodeError> {
    let failed = |source| NodeError::Write { path: path.to_owned(), source };
    let text = portreeve_manifests::to_yaml(&object.to_json());
    if let Some(parent) = path.parent() {
        disk::ensure_folder(parent, 0o700).map_err(failed)?;
    }
    disk::replace_blocking(path, text.as_bytes(), 0o600).map_err(failed)
}

/// Removes the files of applied objects; none when one of them lives in another file, or has none.
pub(crate) fn delete_blocking(
    manifests: &Path,
    ledger: &Ledger,
    objects: &[ObjectName],
) -> Result<DeleteReport, NodeError> {
    let _held = hold_directory(manifests, ledger)?;
    let mut report = DeleteReport::default();
    let mut removals = Vec::new();
    for object in objects {
        let Some(key) = key_of(object) else {
            report.absent.push(object.clone());
            continue;
        };
        let path = applied_path(manifests, &key);
        match ledger.objects.get(&key) {
            Some(record) if record.file != path => {
                return Err(NodeError::OwnedElsewhere {
                    object: object.clone(),
                    file: record.file.clone(),
                    line: record.line,
                });
            }
            Some(_) if !path.exists() => return Err(NodeError::FileMissing { object: object.clone(), path }),
            Some(_) => {}
            None if path.exists() => {}
            None => {
                report.absent.push(object.clone());
                continue;
            }
        }
        let companion = ledger.objects.iter().find(|(other, record)| record.file == path && **other != key);
        if let Some((_, record)) = companion {
            return Err(NodeError::OwnedElsewhere { object: object.clone(), file: path, line: record.line });
        }
        says(&path, &key)?;
        removals.push((object.clone(), path));
    }
    for (object, path) in removals {
        match fs::remove_file(&path) {
            Ok(()) => report.deleted.push(Deleted { object, file: path }),
            Err(source) => return Err(NodeError::Remove { path, source }),
        }
    }
    Ok(report)
}

/// The objects that manifests name, also those that are refused for their content.
pub(crate) fn named(files: &[ManifestFile], namespace: Option<&str>) -> Result<Vec<ObjectName>, NodeError> {
    let given = parse(files, namespace);
    let elsewhere = given.problems.iter().any(|problem| problem.reason == ELSEWHERE);
    let unnamed = elsewhere || given.refused.iter().any(Option::is_none);
    let empty = given.objects.is_empty() && given.refused.is_empty();
    if unnamed || (empty && given.problems.iter().any(ProblemReport::is_error)) {
        let errors = given.problems.into_iter().filter(ProblemReport::is_error).collect();
        return Err(NodeError::Invalid(errors));
    }
    let keys = given.objects.iter().map(Object::key).chain(given.refused.into_iter().flatten());
    Ok(keys.map(|key| name_of(&key)).collect())
}

pub(crate) fn name_of(key: &ObjectKey) -> ObjectName {
    ObjectName { kind: key.kind.to_string(), namespace: key.namespace.clone(), name: key.name.clone() }
}

fn key_of(object: &ObjectName) -> Option<ObjectKey> {
    let kind: Kind = Kind::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(&object.kind))?;
    Some(ObjectKey { kind, namespace: object.namespace.clone(), name: object.name.clone() })
}
