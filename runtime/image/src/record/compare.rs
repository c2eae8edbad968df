//! A record, and what is there now.

use std::{
    cell::RefCell,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader},
    os::fd::BorrowedFd,
};

use nix::sys::stat::FileStat;

use crate::{
    digest::{Digest, Hashed},
    record::{Line, Root, next, walk},
};

/// Examples that are told of one directory; it may be wrong as a whole.
const MOST_TOLD: usize = 10;

/// What is wrong with one directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Entries that are not as they were unpacked.
    pub count: u64,
    /// The first of them: the path, and what is wrong.
    pub told: Vec<(String, String)>,
}

impl Damage {
    pub(crate) fn add(&mut self, path: &[u8], problem: impl Into<String>) {
        self.count += 1;
        if self.told.len() < MOST_TOLD {
            self.told.push((crate::text::shown(&String::from_utf8_lossy(path)), problem.into()));
        }
    }
}

/// Compares a directory with its record, which must have `digest` itself: every entry, and every byte of its files.
pub(crate) fn verify(root: Root<'_>, record: File, digest: &Digest) -> io::Result<Damage> {
    let mut damage = Damage::default();
    let mut record = Recorded { record: BufReader::with_capacity(1 << 16, Hashed::new(record)), ahead: None };
    record.advance()?;
    // A disk that cannot give one file may well give the others.
    let unreadable = RefCell::new(None);
    let mut digest_of = |parent: BorrowedFd<'_>, name: &[u8], stat: &FileStat| match walk::read(parent, name, stat) {
        Ok(digest) => Ok(Some(digest)),
        Err(error) => {
            unreadable.replace(Some(error));
            Ok(None)
        }
    };
    walk::walk(root, true, &mut digest_of, &mut |path, line| {
        let error = unreadable.take();
        while let Some(ahead) = record.ahead.take_if(|ahead| order(&ahead.path, path) == Ordering::Less) {
            damage.add(&ahead.path, "is missing");
            record.advance()?;
        }
        match record.ahead.take_if(|ahead| ahead.path == path) {
            None => damage.add(path, "was not unpacked from the image"),
            Some(before) => {
                let now = Line::parse(line);
                if let Some(error) = error {
                    damage.add(path, format!("cannot be read: {error}"));
                } else if now.as_ref() != Some(&before) {
                    damage.add(path, now.map_or_else(String::new, |now| difference(&before, &now)));
                }
                record.advance()?;
            }
        }
        Ok(())
    })?;
    while let Some(ahead) = record.ahead.take() {
        damage.add(&ahead.path, "is missing");
        record.advance()?;
    }
    let (actual, _) = record.record.into_inner().finish()?;
    if actual != *digest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the record of its files is itself damaged"));
    }
    Ok(damage)
}

/// Which of two paths a walk meets first.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    // The root has no name, and comes before all.
    match (a.is_empty(), b.is_empty()) {
        (false, false) => a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/')),
        (a_root, b_root) => b_root.cmp(&a_root),
    }
}

fn difference(before: &Line, now: &Line) -> String {
    let (before, now): (BTreeMap<_, _>, BTreeMap<_, _>) = (before.keywords().collect(), now.keywords().collect());
    let keywords: BTreeSet<&[u8]> = before.keys().chain(now.keys()).copied().collect();
    let differing = keywords.into_iter().filter(|keyword| before.get(keyword) != now.get(keyword));
    let shown = |value: Option<&&[u8]>| {
        value.map_or_else(|| "nothing".to_owned(), |value| crate::text::shown(&String::from_utf8_lossy(value)))
    };
    let told = differing.map(|keyword| match keyword {
        b"sha256digest" => "its content has changed".to_owned(),
        keyword => {
            let (before, now) = (shown(before.get(keyword)), shown(now.get(keyword)));
            format!("{} is {now} instead of {before}", String::from_utf8_lossy(keyword))
        }
    });
    told.collect::<Vec<_>>().join(", ")
}

struct Recorded {
    record: BufReader<Hashed<File>>,
    ahead: Option<Line>,
}

impl Recorded {
    fn advance(&mut self) -> io::Result<()> {
        self.ahead = next(&mut self.record)?;
        Ok(())
    }
}
