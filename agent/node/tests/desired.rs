//! The rules of ownership, of uids and of the last good version.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use portreeve_manifests::{Kind, ObjectKey, parse_file};
use portreeve_node::desired::{Ledger, LedgerError, Merged, merge};
use portreeve_node::source::{FileContent, Identity, SourceFile, SourceSet};
use portreeve_node::{FileState, SourceState};

const ROOT: &str = "/m";

#[derive(Default)]
struct World {
    ledger: Ledger,
    files: BTreeMap<PathBuf, SourceFile>,
    unreadable: Option<String>,
    unreadable_folders: BTreeMap<PathBuf, String>,
    incomplete: bool,
    uids: u32,
}

impl World {
    fn write(&mut self, name: &str, text: &str) -> &mut Self {
        let path = Path::new(ROOT).join(name);
        let parsed = parse_file(&path, text.as_bytes());
        let file = SourceFile { content: FileContent::Parsed(Arc::new(parsed)), vanishing: false };
        self.files.insert(path, file);
        self
    }

    fn remove(&mut self, name: &str) -> &mut Self {
        self.files.remove(&Path::new(ROOT).join(name));
        self
    }

    fn vanish(&mut self, name: &str) -> &mut Self {
        self.files.get_mut(&Path::new(ROOT).join(name)).unwrap().vanishing = true;
        self
    }

    fn merge(&mut self) -> Merged {
        let mut set = SourceSet::starting(Path::new(ROOT));
        set.complete = !self.incomplete;
        set.unreadable = self.unreadable.clone();
        set.unreadable_folders = self.unreadable_folders.clone();
        set.identity = Some(Identity { device: 1, inode: 2 });
        set.mounts = BTreeMap::from([("/m/sub".into(), Identity { device: 3, inode: 1 })]);
        set.files = self.files.clone();
        let uids = &mut self.uids;
        let mut new_uid = |_: &ObjectKey| {
            *uids += 1;
            format!("00000000-0000-4000-8000-{uids:012}")
        };
        let merged = merge(&self.ledger, &[set], Timestamp::UNIX_EPOCH, &mut new_uid, &|_| None);
        self.ledger = merged.ledger.clone();
        merged
    }

    /// Pods by name: the image of the first container, uid's last digit, file.
    fn pods(&self) -> Vec<(String, String, char, String)> {
        let pods = self.ledger.pods();
        pods.map(|(key, record, pod)| {
            (
                key.name.clone(),
                pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap(),
                record.uid.chars().last().unwrap(),
                record.file.file_name().unwrap().to_str().unwrap().to_owned(),
            )
        })
        .collect()
    }
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: \"{image}\"}}]}}\n"
    )
}

fn own(name: &str, image: &str, uid: char, file: &str) -> (String, String, char, String) {
    (name.to_owned(), image.to_owned(), uid, file.to_owned())
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Pod, namespace: "default".to_owned(), name: name.to_owned() }
}

#[test]
fn an_edit_keeps_the_uid_and_a_removal_ends_it() {
    let mut world = World::default();
    world.write("a.yaml", &pod("a", "i:1")).merge();
    world.write("a.yaml", &pod("a", "i:2")).merge();
    assert_eq!(world.pods(), [own("a", "i:2", '1', "a.yaml")]);
    assert_eq!(world.ledger.objects[&key("a")].generation, 2);
    world.remove("a.yaml").merge();
    assert!(world.pods().is_empty());
    assert_eq!(world.ledger.removals.len(), 1);
    world.write("a.yaml", &pod("a", "i:2")).merge();
    assert_eq!(world.pods(), [own("a", "i:2", '2', "a.yaml")]);
}

#[test]
fn a_syntax_error_holds_back_the_whole_file() {
    let mut world = World::default();
    let both = pod("a", "i:1") + &pod("b", "i:1");
    world.write("f.yaml", &both).merge();
    let merged = world.write("f.yaml", &(pod("a", "i:2") + "---\n{{{ not yaml")).merge();
    assert_eq!(world.pods(), [own("a", "i:1", '1', "f.yaml"), own("b", "i:1", '2', "f.yaml")]);
    assert_eq!(merged.reports[0].files[0].state, FileState::HeldBack);
    assert_eq!(merged.reports[0].held_back, 2);
    assert!(merged.reports[0].errors > 0);
}

#[test]
fn an_invalid_document_holds_back_only_itself() {
    let mut world = World::default();
    world.write("f.yaml", &(pod("a", "i:1") + &pod("b", "i:1"))).merge();
    let broken = pod("a", "i:2") + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: []}\n";
    let merged = world.write("f.yaml", &broken).merge();
    assert_eq!(world.pods(), [own("a", "i:2", '1', "f.yaml"), own("b", "i:1", '2', "f.yaml")]);
    assert_eq!(merged.reports[0].files[0].state, FileState::Partial);
}

#[test]
fn a_document_whose_name_cannot_be_told_holds_what_the_file_no_longer_names() {
    let mut world = World::default();
    world.write("f.yaml", &(pod("a", "i:1") + &pod("b", "i:1"))).merge();
    let nameless = pod("a", "i:2") + "---\napiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {containers: []}\n";
    world.write("f.yaml", &nameless).merge();
    assert_eq!(world.pods(), [own("a", "i:2", '1', "f.yaml"), own("b", "i:1", '2', "f.yaml")]);
}

#[test]
fn a_file_that_becomes_empty_is_an_error_and_no_removal() {
    for empty in ["", "# nothing\n", "---\n"] {
        let mut world = World::default();
        world.write("f.yaml", &pod("a", "i:1")).merge();
        let merged = world.write("f.yaml", empty).merge();
        assert_eq!(world.pods(), [own("a", "i:1", '1', "f.yaml")], "{empty:?}");
        assert!(merged.reports[0].errors > 0, "{empty:?}");
        world.remove("f.yaml").merge();
        assert!(world.pods().is_empty(), "{empty:?}");
    }
}

#[test]
fn an_empty_file_that_never_had_objects_is_no_error() {
    let mut world = World::default();
    let merged = world.write("f.yaml", "# later\n").merge();
    assert!(merged.ledger.objects.is_empty());
    assert_eq!(merged.reports[0].errors, 0);
}

#[test]
fn the_first_owner_keeps_a_name_and_the_other_is_told_where() {
    let mut world = World::default();
    world.write("b.yaml", &pod("a", "i:1")).merge();
    let merged = world.write("a.yaml", &pod("a", "i:2")).merge();
    assert_eq!(world.pods(), [own("a", "i:1", '1', "b.yaml")]);
    let problem = &merged.reports[0].files[0].problems[0];
    assert_eq!(problem.reason, "Conflict");
    assert!(problem.to_string().contains("/m/b.yaml:"), "{problem}");
    let merged = world.merge();
    assert!(merged.news.is_empty());
    // The owner goes: the other has it, under the same uid.
    world.remove("b.yaml").merge();
    assert_eq!(world.pods(), [own("a", "i:2", '1', "a.yaml")]);
    assert!(world.ledger.removals.is_empty());
}

#[test]
fn the_same_name_twice_in_one_file_is_a_conflict() {
    let mut world = World::default();
    let merged = world.write("f.yaml", &(pod("a", "i:1") + &pod("a", "i:2"))).merge();
    assert_eq!(world.pods(), [own("a", "i:1", '1', "f.yaml")]);
    assert_eq!(merged.reports[0].errors, 1);
    assert_eq!(world.merge().reports[0].errors, 1);
}

#[test]
fn a_renamed_file_takes_its_objects_with_it_without_a_conflict() {
    let mut world = World::default();
    world.write("a.yaml", &pod("a", "i:1")).merge();
    let merged = world.write("b.yaml", &pod("a", "i:1")).vanish("a.yaml").merge();
    assert_eq!(world.pods(), [own("a", "i:1", '1', "b.yaml")]);
    assert_eq!(merged.reports[0].errors, 0);
    world.remove("a.yaml").merge();
    assert_eq!(world.pods(), [own("a", "i:1", '1', "b.yaml")]);
    assert!(world.ledger.removals.is_empty());
}

#[test]
fn a_source_that_cannot_be_read_changes_nothing() {
    let mut world = World::default();
    world.write("a.yaml", &pod("a", "i:1")).write("sub/b.yaml", &pod("b", "i:1")).merge();
    let before = world.pods();

    world.files.clear();
    world.unreadable = Some("gone".to_owned());
    let merged = world.merge();
    assert_eq!(world.pods(), before);
    assert_eq!(merged.reports[0].state, SourceState::Unreadable);

    world.unreadable = None;
    world.incomplete = true;
    world.merge();
    assert_eq!(world.pods(), before);

    world.incomplete = false;
    world.write("a.yaml", &pod("a", "i:1"));
    world.unreadable_folders.insert(PathBuf::from("/m/sub"), "permission denied".to_owned());
    world.unreadable_folders.insert(PathBuf::from("/m/tmp"), "a link to /tmp".to_owned());
    let report = &world.merge().reports[0];
    assert_eq!(world.pods(), before);
    let problems: Vec<_> = report.files.iter().flat_map(|file| &file.problems).map(ToString::to_string).collect();
    assert_eq!(problems, ["/m/sub: error: permission denied", "/m/tmp: error: a link to /tmp"]);
    assert_eq!((report.errors, report.state), (2, SourceState::Ready));

    world.unreadable_folders.clear();
    world.merge();
    assert_eq!(world.pods(), [own("a", "i:1", '1', "a.yaml")]);
}

#[test]
fn a_uid_of_the_manifest_must_be_a_uuid_and_unique() {
    let with_uid = |name: &str, uid: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: \"{uid}\"}}\nspec: {{containers: [{{name: c, image: i}}]}}\n"
        )
    };
    let good = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";
    let mut world = World::default();
    world.write("a.yaml", &with_uid("a", good)).merge();
    assert_eq!(world.ledger.objects[&key("a")].uid, good);
    let merged = world.write("b.yaml", &with_uid("b", good)).write("c.yaml", &with_uid("c", "../x")).merge();
    assert!(!world.ledger.objects.contains_key(&key("b")));
    assert!(!world.ledger.objects.contains_key(&key("c")));
    assert!(merged.reports[0].errors >= 2, "{:?}", merged.reports[0]);
}

#[test]
fn a_claim_that_is_refused_for_its_uid_keeps_no_other_from_the_name() {
    let mut world = World::default();
    world.write("web.yaml", &pod("web", "i:1")).merge();
    let uid = world.ledger.objects[&key("web")].uid.clone();
    let stolen = pod("a", "i:1").replace("name: a", &format!("name: a, uid: \"{uid}\""));
    let merged = world.write("d1.yaml", &stolen).write("d2.yaml", &pod("a", "i:2")).merge();
    assert_eq!(world.pods(), [own("a", "i:2", '2', "d2.yaml"), own("web", "i:1", '1', "web.yaml")]);
    let fields: Vec<_> = merged.reports[0].files[0].problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(fields, ["metadata.uid", ""], "refused for the uid, and told who has the name");
    assert!(merged.reports[0].files[1].problems.is_empty());
}

#[test]
fn the_ledger_survives_and_a_newer_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let mut world = World::default();
    let config = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {k: v}\n";
    world.write("a.yaml", &(pod("a", "i:1") + config)).write("b.yaml", &pod("b", "i:1")).merge();
    world.remove("b.yaml").merge();
    world.ledger.write_blocking(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Ledger::read(&path).unwrap(), world.ledger);
    assert_eq!(world.ledger.mounts.len(), 1);
    // As agents wrote it that did not remember what is mounted.
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("\"mounts\":{").unwrap();
    let former = format!("{before}{}", rest.split_once("}},").unwrap().1);
    fs::write(&path, former).unwrap();
    assert_eq!(Ledger::read(&path).unwrap(), Ledger { mounts: BTreeMap::new(), ..world.ledger.clone() });
    fs::write(&path, text).unwrap();

    let newer = fs::read_to_string(&path).unwrap().replacen("\"version\":1", "\"version\":2", 1);
    fs::write(&path, &newer).unwrap();
    assert!(matches!(Ledger::read(&path), Err(LedgerError::Newer { found: 2, .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    fs::write(&path, "{\"version\":1,").unwrap();
    assert!(matches!(Ledger::read(&path), Err(LedgerError::Parse { .. })));
    assert_eq!(Ledger::read(&dir.path().join("none")).unwrap(), Ledger::default());
}
