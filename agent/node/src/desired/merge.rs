//! The rules of ownership and of the last good version, as one pure function.
//!
//! - A name belongs to the first file that said it, until that file no longer does. Then another
//!   file that says it takes it over, under the same uid; with none, the object is removed.
//! - A file that cannot be read or parsed keeps everything it owns. An invalid document keeps its
//!   object. A document whose name cannot be told keeps whatever the file no longer names.
//! - A file that had objects and now has no document keeps them, and that is an error.
//! - A source that is silent about a file (unreadable, not listed yet) changes nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use portreeve_manifests::{Kind, Object, ObjectKey, Problem, Severity, Verdict};
use portreeve_plan::PodUid;

use super::ledger::{Ledger, Record, Removal};
use crate::report::{FileReport, FileState, ProblemReport, SourceReport, SourceState};
use crate::source::{FileContent, SourceSet};

/// Reason of the problem of a pod that asks for another node.
pub(crate) const NOT_FOR_THIS_NODE: &str = "NotForThisNode";

/// What a merge found out beyond the next ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// An object is new.
    Admitted(ObjectKey),
    /// An object differs from before.
    Changed(ObjectKey),
    /// An object was removed.
    Removed(ObjectKey),
}

/// The answer of [`merge`].
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The ledger as it should be now.
    pub ledger: Ledger,
    /// What each source says.
    pub reports: Vec<SourceReport>,
    /// What changed.
    pub news: Vec<News>,
}

/// Whether a pod that asks for this may run here; a sentence why not.
pub(crate) type Placement<'a> = &'a dyn Fn(&Object) -> Option<String>;

/// Where new uids come from: the object's, if something of it is known to run, else random.
pub(crate) type NewUid<'a> = &'a mut dyn FnMut(&ObjectKey) -> String;

struct Claim<'a> {
    set: usize,
    file: &'a Path,
    line: u32,
    /// `None`: the document is refused; it only holds its name.
    object: Option<&'a Object>,
    vanishing: bool,
}

#[derive(Default)]
struct FileFacts {
    /// What it owns and does not name may be in a part that cannot be told.
    holds_unnamed: bool,
    problems: Vec<ProblemReport>,
    unreadable: bool,
    refused: usize,
    conflicts: usize,
}

/// Merges what the sources say into `before`.
pub fn merge(
    before: &Ledger,
    sets: &[SourceSet],
    now: Timestamp,
    new_uid: NewUid<'_>,
    placement: Placement<'_>,
) -> Merged {
    let mut facts: BTreeMap<&Path, FileFacts> = BTreeMap::new();
    let mut claims: BTreeMap<ObjectKey, Vec<Claim<'_>>> = BTreeMap::new();
    for (index, set) in sets.iter().enumerate() {
        for (path, file) in &set.files {
            let fact = facts.entry(path).or_default();
            read_file(before, index, path, file, fact, &mut claims, placement);
        }
    }

    let mut next = Ledger {
        identities: sets.iter().filter_map(|set| Some((set.name.clone(), set.identity?))).collect(),
        mounts: sets.iter().flat_map(|set| set.mounts.clone()).collect(),
        objects: BTreeMap::new(),
        removals: before.removals.clone(),
    };
    for (name, identity) in &before.identities {
        next.identities.entry(name.clone()).or_insert(*identity);
    }
    let mut news = Vec::new();
    let mut uids = before.uids();

    for (key, record) in &before.objects {
        let said = claims.get(key).map_or(&[][..], Vec::as_slice);
        let by_owner = said.iter().find(|claim| claim.file == record.file);
        let held = is_held(record, sets, &facts);
        let owner = match by_owner {
            Some(claim) if !claim.vanishing => Some(claim),
            Some(vanishing) => {
                Some(said.iter().find(|claim| !claim.vanishing && claim.object.is_some()).unwrap_or(vanishing))
            }
            None if held => None,
            None => said.iter().find(|claim| claim.object.is_some()),
        };
        match owner {
            Some(owner) => {
                let record = update(record, key, owner, now, &mut facts, &mut uids, &mut next.removals);
                match record {
                    Updated::Same(record) => {
                        next.objects.insert(key.clone(), record);
                    }
                    Updated::Changed(record) => {
                        news.push(News::Changed(key.clone()));
                        next.objects.insert(key.clone(), record);
                    }
                }
            }
            None if held => {
                next.objects.insert(key.clone(), record.clone());
            }
            None => {
                news.push(News::Removed(key.clone()));
                if key.kind == Kind::Pod {
                    next.removals.insert(PodUid(record.uid.clone()), Removal { record: record.clone(), since: now });
                }
            }
        }
    }

    for (key, said) in &claims {
        if before.objects.contains_key(key) {
            continue;
        }
        let admissible = said.iter().filter(|claim| !claim.vanishing);
        // The first that can have the name has it: one that is refused keeps nobody else from it.
        let admitted = admissible.filter_map(|claim| Some((claim, claim.object?))).find_map(|(claim, object)| {
            match given_uid(object, &uids, None) {
                Ok(uid) => Some((claim, object, uid)),
                Err(problem) => {
                    refuse_uid(&mut facts, claim, key, problem);
                    None
                }
            }
        });
        let Some((claim, object, uid)) = admitted else {
            continue;
        };
        let uid = uid.unwrap_or_else(|| new_uid(key));
        uids.insert(uid.clone());
        news.push(News::Admitted(key.clone()));
        next.objects.insert(
            key.clone(),
            Record {
                uid,
                file: claim.file.to_owned(),
                line: claim.line,
                generation: 1,
                admitted_at: now,
                changed_at: now,
                hash: object.content_hash(),
                restart_requested_at: None,
                finished: None,
                object: Arc::new(object.clone()),
            },
        );
    }

    report_conflicts(&next, &claims, &mut facts);
    report_emptied(&next, sets, &claims, &mut facts);
    let reports = sets.iter().enumerate().map(|(index, set)| report(index, set, &next, &claims, &facts)).collect();
    Merged { ledger: next, reports, news }
}

fn read_file<'a>(
    before: &Ledger,
    set: usize,
    path: &'a Path,
    file: &'a crate::source::SourceFile,
    fact: &mut FileFacts,
    claims: &mut BTreeMap<ObjectKey, Vec<Claim<'a>>>,
    placement: Placement<'_>,
) {
    let parsed = match &file.content {
        FileContent::Parsed(parsed) => parsed,
        FileContent::Unreadable(message) => {
            fact.unreadable = true;
            fact.problems.push(problem(path, 0, None, "Unreadable", message.clone(), None));
            return;
        }
    };
    fact.problems.extend(parsed.problems.iter().map(from_parser));
    if parsed.unreadable {
        fact.unreadable = true;
        return;
    }
    for document in &parsed.documents {
        let line = document.position.line;
        let mut claim = |key: ObjectKey, object| {
            claims.entry(key).or_default().push(Claim { set, file: path, line, object, vanishing: file.vanishing });
        };
        match &document.verdict {
            Verdict::Accepted(object) => match placement(object) {
                // It says of itself that it belongs elsewhere: as if it were not here.
                Some(message) => {
                    fact.problems.push(not_for_this_node(path, line, &object.key(), message));
                }
                None => claim(object.key(), Some(object)),
            },
            Verdict::Refused { key: Some(key) } => {
                fact.refused += 1;
                claim(key.clone(), None);
            }
            Verdict::Refused { key: None } => {
                fact.refused += 1;
                fact.holds_unnamed = true;
            }
            Verdict::Ignored => {}
        }
    }
    let says_nothing = parsed.documents.iter().all(|document| matches!(document.verdict, Verdict::Ignored));
    if says_nothing && before.objects.values().any(|record| record.file == path) {
        fact.holds_unnamed = true;
    }
}

/// Whether the owner of `record` may still mean it although it does not say so.
fn is_held(record: &Record, sets: &[SourceSet], facts: &BTreeMap<&Path, FileFacts>) -> bool {
    if let Some(fact) = facts.get(record.file.as_path()) {
        return fact.unreadable || fact.holds_unnamed;
    }
    sets.iter()
        .filter(|set| record.file.starts_with(&set.path))
        .any(|set| set.is_silent_about(&record.file))
        // A file of no source: that source is gone from the configuration.
        || sets.iter().any(|set| !set.complete)
}

enum Updated {
    Same(Record),
    Changed(Record),
}

fn update(
    record: &Record,
    key: &ObjectKey,
    owner: &Claim<'_>,
    now: Timestamp,
    facts: &mut BTreeMap<&Path, FileFacts>,
    uids: &mut BTreeSet<String>,
    removals: &mut BTreeMap<PodUid, Removal>,
) -> Updated {
    let mut next = record.clone();
    owner.file.clone_into(&mut next.file);
    next.line = owner.line;
    let Some(object) = owner.object else {
        return Updated::Same(next);
    };
    let hash = object.content_hash();
    if hash == record.hash {
        return Updated::Same(next);
    }
    match given_uid(object, uids, Some(&record.uid)) {
        Ok(None) => {}
        Ok(Some(uid)) if uid == record.uid => {}
        Ok(Some(uid)) => {
            // Another uid is another pod.
            uids.insert(uid.clone());
            if key.kind == Kind::Pod {
                removals.insert(PodUid(record.uid.clone()), Removal { record: record.clone(), since: now });
            }
            next.uid = uid;
            next.admitted_at = now;
            next.generation = 0;
            next.restart_requested_at = None;
        }
        Err(problem) => {
            refuse_uid(facts, owner, key, problem);
            return Updated::Same(next);
        }
    }
    next.hash = hash;
    next.generation += 1;
    next.changed_at = now;
    // An edited pod is run again even if its former version had ended.
    next.finished = None;
    next.object = Arc::new(object.clone());
    Updated::Changed(next)
}

/// The uid that a pod's manifest gives it.
pub(crate) fn given_uid(
    object: &Object,
    taken: &BTreeSet<String>,
    own: Option<&str>,
) -> Result<Option<String>, String> {
    let Some(uid) = object.metadata().uid.as_deref().filter(|uid| !uid.is_empty()) else {
        return Ok(None);
    };
    let Ok(parsed) = uuid::Uuid::parse_str(uid) else {
        return Err(format!("{uid:?} is not a UUID"));
    };
    // One spelling, because it becomes the name of directories and cgroups.
    let uid = parsed.hyphenated().to_string();
    if taken.contains(&uid) && own != Some(uid.as_str()) {
        return Err(format!("{uid:?} is the uid of another object"));
    }
    Ok(Some(uid))
}

fn refuse_uid(facts: &mut BTreeMap<&Path, FileFacts>, claim: &Claim<'_>, key: &ObjectKey, message: String) {
    if let Some(fact) = facts.get_mut(claim.file) {
        fact.refused += 1;
        fact.problems.push(refused_uid(claim.file, claim.line, key, message));
    }
}

/// The problem of an object whose manifest gives it a uid that it cannot have.
pub(crate) fn refused_uid(file: &Path, line: u32, key: &ObjectKey, message: String) -> ProblemReport {
    let fix = "remove metadata.uid: the agent gives one and keeps it".to_owned();
    let report = problem(file, line, Some(key), "FieldValueInvalid", message, Some(fix));
    ProblemReport { field: "metadata.uid".to_owned(), ..report }
}

fn report_conflicts(
    next: &Ledger,
    claims: &BTreeMap<ObjectKey, Vec<Claim<'_>>>,
    facts: &mut BTreeMap<&Path, FileFacts>,
) {
    for (key, said) in claims {
        let Some(record) = next.objects.get(key) else {
            continue;
        };
        for claim in said.iter().filter(|claim| !claim.vanishing) {
            // The parser tells of a name that one file says twice.
            if claim.file == record.file {
                continue;
            }
            let owner = format!("{}:{}", record.file.display(), record.line);
            if let Some(fact) = facts.get_mut(claim.file) {
                fact.conflicts += 1;
                fact.problems.push(problem(
                    claim.file,
                    claim.line,
                    Some(key),
                    "Conflict",
                    format!("{key} is already defined in {owner}, which keeps it"),
                    Some("remove or rename one of them".to_owned()),
                ));
            }
        }
    }
}

fn report_emptied(
    next: &Ledger,
    sets: &[SourceSet],
    claims: &BTreeMap<ObjectKey, Vec<Claim<'_>>>,
    facts: &mut BTreeMap<&Path, FileFacts>,
) {
    for (path, file) in sets.iter().flat_map(|set| &set.files) {
        let FileContent::Parsed(parsed) = &file.content else {
            continue;
        };
        let says_nothing = parsed.documents.iter().all(|document| matches!(document.verdict, Verdict::Ignored));
        if parsed.unreadable || !says_nothing {
            continue;
        }
        let kept =
            next.objects.iter().filter(|(key, record)| record.file == *path && !claims.contains_key(key)).count();
        if kept > 0
            && let Some(fact) = facts.get_mut(path.as_path())
        {
            fact.unreadable = true;
            fact.problems.push(problem(
                path,
                0,
                None,
                "Empty",
                format!("the file had {kept} object(s) and now has none; they run on"),
                Some("remove the file to remove them".to_owned()),
            ));
        }
    }
}

fn report(
    index: usize,
    set: &SourceSet,
    next: &Ledger,
    claims: &BTreeMap<ObjectKey, Vec<Claim<'_>>>,
    facts: &BTreeMap<&Path, FileFacts>,
) -> SourceReport {
    let mut owned: BTreeMap<&PathBuf, Vec<&ObjectKey>> = BTreeMap::new();
    let mut held_back = 0;
    for (key, record) in &next.objects {
        if record.file.starts_with(&set.path) {
            owned.entry(&record.file).or_default().push(key);
            let in_force = claims
                .get(key)
                .into_iter()
                .flatten()
                .any(|claim| claim.set == index && claim.file == record.file && claim.object.is_some());
            held_back += usize::from(!in_force);
        }
    }
    let paths: BTreeSet<&PathBuf> = set.files.keys().chain(owned.keys().copied()).collect();
    let folders = set.unreadable_folders.iter().map(|(folder, reason)| FileReport {
        path: folder.clone(),
        state: FileState::HeldBack,
        objects: Vec::new(),
        problems: vec![unreadable(folder, reason.clone())],
    });
    let mut files: Vec<FileReport> = paths
        .into_iter()
        .map(|path| {
            let fact = facts.get(path.as_path());
            let objects = owned.get(path).map_or(&[][..], Vec::as_slice);
            FileReport {
                path: path.clone(),
                state: match fact {
                    None => FileState::HeldBack,
                    Some(fact) if fact.unreadable => FileState::HeldBack,
                    Some(fact) if fact.refused + fact.conflicts > 0 => FileState::Partial,
                    Some(_) => FileState::Loaded,
                },
                objects: objects.iter().map(ToString::to_string).collect(),
                problems: fact.map(|fact| fact.problems.clone()).unwrap_or_default(),
            }
        })
        .chain(folders)
        .collect();
    files.sort_by(|one, two| one.path.cmp(&two.path));
    let problems = || files.iter().flat_map(|file| &file.problems);
    let errors = problems().filter(|problem| problem.is_error()).count();
    SourceReport {
        name: set.name.clone(),
        kind: set.kind().to_owned(),
        path: set.path.clone(),
        state: match (&set.unreadable, set.complete) {
            (Some(_), _) => SourceState::Unreadable,
            (None, false) => SourceState::Starting,
            (None, true) => SourceState::Ready,
        },
        reason: set.unreadable.clone().or_else(|| {
            let (folder, reason) = set.unreadable_folders.first_key_value()?;
            Some(format!("{}: {reason}", folder.display()))
        }),
        last_read: set.read_at,
        objects: owned.values().map(Vec::len).sum(),
        errors: errors + usize::from(set.unreadable.is_some()),
        warnings: problems().count() - errors,
        held_back,
        files,
    }
}

/// A problem of the parser as the doors show it.
pub(crate) fn from_parser(problem: &Problem) -> ProblemReport {
    ProblemReport {
        severity: match problem.severity {
            Severity::Error => "error".to_owned(),
            Severity::Warning => "warning".to_owned(),
        },
        file: problem.file.clone(),
        line: problem.position.line,
        column: problem.position.column,
        object: problem.object.as_ref().map(ToString::to_string),
        field: problem.field.clone(),
        reason: problem.reason.to_string(),
        message: problem.message.clone(),
        fix: Some(problem.fix.clone()),
    }
}

/// The problem of a pod that asks for another node.
pub(crate) fn not_for_this_node(file: &Path, line: u32, object: &ObjectKey, message: String) -> ProblemReport {
    let fix = "remove nodeName and nodeSelector, or give the node the label".to_owned();
    let report = problem(file, line, Some(object), NOT_FOR_THIS_NODE, message, Some(fix));
    ProblemReport { severity: "warning".to_owned(), ..report }
}

/// The problem of a directory or folder that cannot be read.
pub(crate) fn unreadable(directory: &Path, reason: String) -> ProblemReport {
    problem(directory, 0, None, "Unreadable", reason, None)
}

fn problem(
    file: &Path,
    line: u32,
    object: Option<&ObjectKey>,
    reason: &str,
    message: String,
    fix: Option<String>,
) -> ProblemReport {
    ProblemReport {
        severity: "error".to_owned(),
        file: file.to_owned(),
        line,
        column: u32::from(line > 0),
        object: object.map(ToString::to_string),
        field: String::new(),
        reason: reason.to_owned(),
        message,
        fix,
    }
}
