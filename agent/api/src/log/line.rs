//! One line of a log in CRI format: `<RFC 3339 time> <stdout|stderr> <F|P>[:tags] <content>`.
//!
//! `P` is a part of a line that goes on in the next entry of the same stream.

use jiff::Timestamp;

/// Which streams a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streams {
    All,
    Stdout,
    Stderr,
}

/// How a client wants to see the lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) timestamps: bool,
    pub(super) since: Option<Timestamp>,
    pub(super) streams: Streams,
}

/// Which streams stand in the middle of a line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open {
    stdout: bool,
    stderr: bool,
}

impl Style {
    /// Writes what a client sees of one entry, which comes without its line break.
    ///
    /// An entry that is not in this format is shown as it is: hiding it would help nobody.
    pub(super) fn write(&mut self, entry: &[u8], open: &mut Open, out: &mut Vec<u8>) {
        let Some(parsed) = parse(entry) else {
            if self.since.is_none() {
                out.extend_from_slice(entry);
                out.push(b'\n');
            }
            return;
        };
        let (wanted, in_line) = match parsed.stream {
            b"stderr" => (self.streams != Streams::Stdout, &mut open.stderr),
            _ => (self.streams != Streams::Stderr, &mut open.stdout),
        };
        if !wanted {
            return;
        }
        if let Some(since) = self.since {
            let time = std::str::from_utf8(parsed.time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            if time.is_some_and(|time| time < since) {
                return;
            }
            // Entries come in order of time: all that follow are new enough.
            self.since = None;
        }
        if self.timestamps && !*in_line {
            out.extend_from_slice(parsed.time);
            out.push(b' ');
        }
        out.extend_from_slice(parsed.content);
        if !parsed.partial {
            out.push(b'\n');
        }
        *in_line = parsed.partial;
    }
}

struct Entry<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    partial: bool,
    content: &'a [u8],
}

fn parse(entry: &[u8]) -> Option<Entry<'_>> {
    let mut parts = entry.splitn(4, |byte| *byte == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    let content = parts.next().unwrap_or_default();
    let partial = match tags.first()? {
        b'F' => false,
        b'P' => true,
        _ => return None,
    };
    matches!(stream, b"stdout" | b"stderr").then_some(Entry { time, stream, partial, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(mut style: Style, entries: &[&str]) -> String {
        let (mut open, mut out) = (Open::default(), Vec::new());
        for entry in entries {
            style.write(entry.as_bytes(), &mut open, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    const PLAIN: Style = Style { timestamps: false, since: None, streams: Streams::All };
    const ENTRIES: [&str; 4] = [
        "2026-01-01T00:00:01.000000001Z stdout P one ",
        "2026-01-01T00:00:02.000000001Z stderr F oops",
        "2026-01-01T00:00:03.000000001Z stdout F two",
        "2026-01-01T00:00:04.000000001Z stdout F ",
    ];

    #[test]
    fn parts_of_a_line_are_joined() {
        assert_eq!(shown(PLAIN, &[ENTRIES[0], ENTRIES[2], ENTRIES[3]]), "one two\n\n");
    }

    #[test]
    fn a_joined_line_has_one_timestamp() {
        let style = Style { timestamps: true, ..PLAIN };
        assert_eq!(shown(style, &[ENTRIES[0], ENTRIES[2]]), "2026-01-01T00:00:01.000000001Z one two\n");
    }

    #[test]
    fn older_entries_are_left_out() {
        let style = Style { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..PLAIN };
        assert_eq!(shown(style, &ENTRIES), "two\n\n");
    }

    #[test]
    fn one_stream_can_be_chosen() {
        assert_eq!(shown(Style { streams: Streams::Stderr, ..PLAIN }, &ENTRIES), "oops\n");
    }

    #[test]
    fn what_is_not_in_the_format_is_shown_as_it_is() {
        assert_eq!(shown(PLAIN, &["garbage"]), "garbage\n");
    }
}
