//! PAX extended headers: `<length> <key>=<value>\n`, values being any bytes.

use std::collections::BTreeMap;

/// What PAX headers say about the next member.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse_path: Option<Vec<u8>>,
    pub(crate) sparse_size: Option<u64>,
    pub(crate) sparse_map: Vec<u64>,
    pub(crate) sparse_in_content: bool,
    sparse: bool,
    any: bool,
}

impl Pax {
    /// Nothing was said.
    pub(crate) fn is_empty(&self) -> bool {
        !self.any
    }

    /// The member is a file with holes.
    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse
    }

    /// The name; a sparse file's real one stands in a record of its own.
    pub(crate) fn take_path(&mut self) -> Option<Vec<u8>> {
        self.sparse_path.take().or_else(|| self.path.take())
    }

    /// Adds the records of one header.
    pub(crate) fn parse(&mut self, mut text: &[u8]) -> Result<(), &'static str> {
        self.any = true;
        // Some writers fill the last block with NUL.
        while !text.is_empty() && !text.iter().all(|b| *b == 0) {
            let space = text.iter().take(20).position(|b| *b == b' ').ok_or("a PAX record has no length")?;
            let length: usize = text
                .get(..space)
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .ok_or("a PAX record's length is no number")?;
            let record = text.get(space + 1..length).ok_or("a PAX record is longer than its header")?;
            let record = record.strip_suffix(b"\n").ok_or("a PAX record does not end with a newline")?;
            let equals = record.iter().position(|b| *b == b'=').ok_or("a PAX record has no '='")?;
            let (key, value) = (record.get(..equals).unwrap_or_default(), record.get(equals + 1..).unwrap_or_default());
            self.record(key, value)?;
            text = text.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || {
            std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.parse::<u64>().ok())
                .ok_or("a PAX record's value is no number")
        };
        // An empty value takes back what was said.
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(time(value).ok_or("a PAX time is no number")?),
            b"GNU.sparse.major" => {
                self.sparse = true;
                self.sparse_in_content = number()? > 0;
            }
            b"GNU.sparse.name" => self.sparse_path = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse = true;
                self.sparse_size = Some(number()?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_map.push(number()?),
            b"GNU.sparse.map" => {
                let list = std::str::from_utf8(value).map_err(|_| "a sparse map is no list")?;
                self.sparse_map = list
                    .split(',')
                    .map(|n| n.parse().map_err(|_| "a sparse map has no numbers"))
                    .collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

/// `seconds[.fraction]`, possibly negative.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_newlines_and_equals_signs() {
        let mut pax = Pax::default();
        let value = b"\x01\x00\x0a=\n";
        let key = b"SCHILY.xattr.security.capability";
        let length = 3 + key.len() + 1 + value.len() + 1;
        let mut text = format!("{length} ").into_bytes();
        text.extend_from_slice(key);
        text.push(b'=');
        text.extend_from_slice(value);
        text.push(b'\n');
        text.extend_from_slice(b"16 mtime=-1.250\n");
        pax.parse(&text).unwrap();
        assert_eq!(pax.xattrs, BTreeMap::from([(b"security.capability".to_vec(), value.to_vec())]));
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for bad in ["99 path=x\n", "0 path=x\n", "x path=x\n", "8 path=x\n", "9 pathx\n", "-9 path=x\n", "11 size=-1\n"]
        {
            assert!(Pax::default().parse(bad.as_bytes()).is_err(), "{bad:?} was taken");
        }
    }
}
