//! Mount options by name: attributes of the mount, of the whole tree, propagation, and what goes to the file system.

use portreeve_sys::mount::{
    ATIME_MASK, NO_ATIME, NO_DEV, NO_DIR_ATIME, NO_EXEC, NO_SUID, NO_SYMLINK_FOLLOW, Propagation, READ_ONLY,
    STRICT_ATIME,
};

/// Names of mount options that are ours to carry out; any other goes to the file system. Sorted.
pub const MOUNT_OPTIONS: [&str; 64] = [
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// Attributes to set and to clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl Attributes {
    fn apply(&mut self, attribute: u64, on: bool) {
        // Of two contrary options the later wins.
        if on {
            self.set |= attribute;
            self.clear &= !attribute;
        } else {
            self.clear |= attribute;
            self.set &= !attribute;
        }
    }

    fn access_time(&mut self, mode: u64) {
        // The modes exclude each other; the kernel wants the whole field cleared to set one.
        self.set = (self.set & !ATIME_MASK) | mode;
        self.clear |= ATIME_MASK;
    }

    /// Both in one, for a mount that has nothing below it; where they contradict each other `later` counts.
    pub(crate) fn then(self, later: Self) -> Self {
        Self { set: (self.set & !later.clear) | later.set, clear: self.clear | later.clear }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

/// The options of one mount, sorted by what they act on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Options {
    /// `Some(recursive)` for bind and rbind.
    pub(crate) bind: Option<bool>,
    /// Of the mount itself.
    pub(crate) own: Attributes,
    /// Of the mount and every one below it.
    pub(crate) tree: Attributes,
    pub(crate) propagation: Option<(Propagation, bool)>,
    /// `Some(recursive)` for idmap and ridmap.
    pub(crate) id_map: Option<bool>,
    pub(crate) copy_up: bool,
    /// It changes a mount that is there: `remount`.
    pub(crate) again: bool,
    /// For the file system: flags without, options with a value.
    pub(crate) filesystem: Vec<(String, Option<String>)>,
    /// Flags of the file system that were said not to be.
    pub(crate) without: Vec<&'static str>,
}

impl Options {
    /// An option that only a new file system could take. Those of the file system as a whole, which a bind mount has
    /// already, mean nothing to it and are passed over, as mount(2) does.
    pub(crate) fn foreign_to_a_bind(&self) -> Option<String> {
        let foreign =
            |(key, value): &&(String, Option<String>)| value.is_some() || !WHOLE.iter().any(|(set, _)| set == key);
        let (key, value) = self.filesystem.iter().find(foreign)?;
        Some(value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}")))
    }
}

/// Flags of a file system as a whole that fsconfig(2) takes, and what takes each back.
const WHOLE: [(&str, Option<&str>); 4] =
    [("sync", Some("async")), ("dirsync", None), ("lazytime", Some("nolazytime")), ("mand", Some("nomand"))];

pub(crate) fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for option in options {
        let name = option.as_str();
        if structural(&mut parsed, name) || attribute(&mut parsed.own, name) {
            continue;
        }
        if let Some(rest) = name.strip_prefix('r')
            && attribute(&mut parsed.tree, rest)
        {
            continue;
        }
        let (key, value) = name.split_once('=').map_or((name, None), |(key, value)| (key, Some(value.to_owned())));
        parsed.filesystem.push((key.to_owned(), value));
    }
    parsed
}

fn structural(parsed: &mut Options, name: &str) -> bool {
    match name {
        "bind" => parsed.bind = Some(false),
        "rbind" => parsed.bind = Some(true),
        "idmap" => parsed.id_map = Some(false),
        "ridmap" => parsed.id_map = Some(true),
        "tmpcopyup" => parsed.copy_up = true,
        "remount" => parsed.again = true,
        "shared" => parsed.propagation = Some((Propagation::Shared, false)),
        "rshared" => parsed.propagation = Some((Propagation::Shared, true)),
        "slave" => parsed.propagation = Some((Propagation::Slave, false)),
        "rslave" => parsed.propagation = Some((Propagation::Slave, true)),
        "private" => parsed.propagation = Some((Propagation::Private, false)),
        "rprivate" => parsed.propagation = Some((Propagation::Private, true)),
        "unbindable" => parsed.propagation = Some((Propagation::Unbindable, false)),
        "runbindable" => parsed.propagation = Some((Propagation::Unbindable, true)),
        // Nothing, which mount(2) passes over between commas and podman gives for `--systemd`; defaults, said out loud;
        // and what file systems decide by themselves, for which fsconfig(2) has no word.
        "" | "defaults" | "loud" | "silent" | "iversion" | "noiversion" | "acl" | "noacl" => {}
        _ => {
            let Some((set, _)) = WHOLE.iter().find(|(_, back)| *back == Some(name)) else { return false };
            parsed.filesystem.retain(|(key, _)| key != set);
            parsed.without.push(set);
        }
    }
    true
}

fn attribute(attributes: &mut Attributes, name: &str) -> bool {
    match name {
        "ro" => attributes.apply(READ_ONLY, true),
        "rw" => attributes.apply(READ_ONLY, false),
        "nosuid" => attributes.apply(NO_SUID, true),
        "suid" => attributes.apply(NO_SUID, false),
        "nodev" => attributes.apply(NO_DEV, true),
        "dev" => attributes.apply(NO_DEV, false),
        "noexec" => attributes.apply(NO_EXEC, true),
        "exec" => attributes.apply(NO_EXEC, false),
        "nodiratime" => attributes.apply(NO_DIR_ATIME, true),
        "diratime" => attributes.apply(NO_DIR_ATIME, false),
        "nosymfollow" => attributes.apply(NO_SYMLINK_FOLLOW, true),
        "symfollow" => attributes.apply(NO_SYMLINK_FOLLOW, false),
        "noatime" => attributes.access_time(NO_ATIME),
        "strictatime" => attributes.access_time(STRICT_ATIME),
        // Relative access times are the value 0 of the field and the kernel's default.
        "relatime" | "atime" | "nostrictatime" => attributes.access_time(0),
        "norelatime" => attributes.access_time(STRICT_ATIME),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> Options {
        parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_recursive_form_acts_on_the_tree_and_the_plain_one_on_the_mount() {
        let options = parsed(&["rbind", "ro", "rnosuid", "rro"]);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.own, Attributes { set: READ_ONLY, clear: 0 });
        assert_eq!(options.tree, Attributes { set: NO_SUID | READ_ONLY, clear: 0 });
    }

    #[test]
    fn an_empty_option_is_nothing() {
        let options = parsed(&["", "mode=755"]);
        assert_eq!(options.filesystem, [("mode".to_owned(), Some("755".to_owned()))]);
        assert_eq!(options.foreign_to_a_bind().as_deref(), Some("mode=755"));
        assert_eq!(parsed(&[""]).foreign_to_a_bind(), None);
    }

    #[test]
    fn of_two_contrary_options_the_later_wins() {
        assert_eq!(parsed(&["ro", "rw"]).own, Attributes { set: 0, clear: READ_ONLY });
        assert_eq!(parsed(&["noatime", "strictatime"]).own, Attributes { set: STRICT_ATIME, clear: ATIME_MASK });
    }

    #[test]
    fn of_a_contrary_pair_in_both_forms_the_recursive_one_wins() {
        for (options, set) in [
            (&["rro", "rw"][..], READ_ONLY),
            (&["rw", "rro"], READ_ONLY),
            (&["ro", "rrw"], 0),
            (&["rstrictatime", "noatime"], STRICT_ATIME),
            (&["nodev", "rnosuid"], NO_DEV | NO_SUID),
        ] {
            let options = parsed(options);
            assert_eq!(options.own.then(options.tree).set, set, "{options:?}");
        }
    }

    /// What an option does, for a golden line.
    fn effect(name: &str) -> String {
        let options = parsed(&[name]);
        let attributes = |what: &str, a: Attributes| {
            if a.is_empty() { String::new() } else { format!(" {what}(set={:#x} clear={:#x})", a.set, a.clear) }
        };
        let recursive = |tree: bool| if tree { " recursively" } else { "" };
        let mut text = format!("{name}:{}{}", attributes("mount", options.own), attributes("tree", options.tree));
        text.extend(options.bind.map(|tree| format!(" bind{}", recursive(tree))));
        text.extend(options.id_map.map(|tree| format!(" idmap{}", recursive(tree))));
        text.extend(options.propagation.map(|(kind, tree)| format!(" {kind:?}{}", recursive(tree))));
        text.extend(options.copy_up.then(|| " copy up".to_owned()));
        text.extend(options.again.then(|| " of a mount that is there".to_owned()));
        text.extend(options.without.iter().map(|key| format!(" without {key}")));
        text.extend(options.filesystem.iter().map(|(key, _)| format!(" to the file system: {key}")));
        text.extend(options.foreign_to_a_bind().map(|_| " (not of a bind)".to_owned()));
        text + "\n"
    }

    #[test]
    fn every_option_has_its_effect() {
        let text: String = MOUNT_OPTIONS.iter().map(|name| effect(name)).collect();
        expect_test::expect![[r#"
            acl:
            async: without sync
            atime: mount(set=0x0 clear=0x70)
            bind: bind
            defaults:
            dev: mount(set=0x0 clear=0x4)
            diratime: mount(set=0x0 clear=0x80)
            dirsync: to the file system: dirsync
            exec: mount(set=0x0 clear=0x8)
            idmap: idmap
            iversion:
            lazytime: to the file system: lazytime
            loud:
            mand: to the file system: mand
            noacl:
            noatime: mount(set=0x10 clear=0x70)
            nodev: mount(set=0x4 clear=0x0)
            nodiratime: mount(set=0x80 clear=0x0)
            noexec: mount(set=0x8 clear=0x0)
            noiversion:
            nolazytime: without lazytime
            nomand: without mand
            norelatime: mount(set=0x20 clear=0x70)
            nostrictatime: mount(set=0x0 clear=0x70)
            nosuid: mount(set=0x2 clear=0x0)
            nosymfollow: mount(set=0x200000 clear=0x0)
            private: Private
            ratime: tree(set=0x0 clear=0x70)
            rbind: bind recursively
            rdev: tree(set=0x0 clear=0x4)
            rdiratime: tree(set=0x0 clear=0x80)
            relatime: mount(set=0x0 clear=0x70)
            remount: of a mount that is there
            rexec: tree(set=0x0 clear=0x8)
            ridmap: idmap recursively
            rnoatime: tree(set=0x10 clear=0x70)
            rnodev: tree(set=0x4 clear=0x0)
            rnodiratime: tree(set=0x80 clear=0x0)
            rnoexec: tree(set=0x8 clear=0x0)
            rnorelatime: tree(set=0x20 clear=0x70)
            rnostrictatime: tree(set=0x0 clear=0x70)
            rnosuid: tree(set=0x2 clear=0x0)
            rnosymfollow: tree(set=0x200000 clear=0x0)
            ro: mount(set=0x1 clear=0x0)
            rprivate: Private recursively
            rrelatime: tree(set=0x0 clear=0x70)
            rro: tree(set=0x1 clear=0x0)
            rrw: tree(set=0x0 clear=0x1)
            rshared: Shared recursively
            rslave: Slave recursively
            rstrictatime: tree(set=0x20 clear=0x70)
            rsuid: tree(set=0x0 clear=0x2)
            rsymfollow: tree(set=0x0 clear=0x200000)
            runbindable: Unbindable recursively
            rw: mount(set=0x0 clear=0x1)
            shared: Shared
            silent:
            slave: Slave
            strictatime: mount(set=0x20 clear=0x70)
            suid: mount(set=0x0 clear=0x2)
            symfollow: mount(set=0x0 clear=0x200000)
            sync: to the file system: sync
            tmpcopyup: copy up
            unbindable: Unbindable
        "#]]
        .assert_eq(&text);
        assert!(MOUNT_OPTIONS.is_sorted());
    }

    #[test]
    fn a_flag_of_the_file_system_can_be_taken_back() {
        assert_eq!(parsed(&["sync", "lazytime", "async"]).filesystem, [("lazytime".into(), None)]);
    }

    #[test]
    fn what_nobody_knows_goes_to_the_file_system() {
        let options = parsed(&["mode=755", "newinstance", "rprivate"]);
        assert_eq!(options.filesystem, [("mode".into(), Some("755".into())), ("newinstance".into(), None)]);
        assert_eq!(options.propagation, Some((Propagation::Private, true)));
    }
}
