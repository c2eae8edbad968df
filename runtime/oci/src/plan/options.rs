//! Mount options by name: attributes of the mount, of the whole tree, propagation, and what goes to the file system.

use portreeve_sys::mount::{
    ATIME_MASK, NO_ATIME, NO_DEV, NO_DIR_ATIME, NO_EXEC, NO_SUID, NO_SYMLINK_FOLLOW, Propagation, READ_ONLY,
    STRICT_ATIME,
};

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
    /// For the file system: flags without, options with a value.
    pub(crate) filesystem: Vec<(String, Option<String>)>,
}

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
        "shared" => parsed.propagation = Some((Propagation::Shared, false)),
        "rshared" => parsed.propagation = Some((Propagation::Shared, true)),
        "slave" => parsed.propagation = Some((Propagation::Slave, false)),
        "rslave" => parsed.propagation = Some((Propagation::Slave, true)),
        "private" => parsed.propagation = Some((Propagation::Private, false)),
        "rprivate" => parsed.propagation = Some((Propagation::Private, true)),
        "unbindable" => parsed.propagation = Some((Propagation::Unbindable, false)),
        "runbindable" => parsed.propagation = Some((Propagation::Unbindable, true)),
        // Defaults of every mount, said out loud.
        "defaults" | "async" | "nolazytime" | "nomand" | "noiversion" | "loud" | "remount" => {}
        _ => return false,
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
    fn of_two_contrary_options_the_later_wins() {
        assert_eq!(parsed(&["ro", "rw"]).own, Attributes { set: 0, clear: READ_ONLY });
        assert_eq!(parsed(&["noatime", "strictatime"]).own, Attributes { set: STRICT_ATIME, clear: ATIME_MASK });
    }

    #[test]
    fn what_nobody_knows_goes_to_the_file_system() {
        let options = parsed(&["mode=755", "newinstance", "rprivate"]);
        assert_eq!(options.filesystem, [("mode".into(), Some("755".into())), ("newinstance".into(), None)]);
        assert_eq!(options.propagation, Some((Propagation::Private, true)));
    }
}
