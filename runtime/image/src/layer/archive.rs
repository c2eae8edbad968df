//! Reads the members of a tar stream, with a bound on everything.
//!
//! The `tar` crate parses header blocks; the walk over them is ours, because the crate's own reads
//! PAX headers and long names of any length into memory and splits PAX records at newlines, which
//! breaks binary values such as `security.capability`.
//! Source: POSIX pax, GNU tar manual "Basic Tar Format" and "Sparse Formats", Go `archive/tar`.

use std::{
    collections::BTreeMap,
    io::{self, BufRead},
    sync::Arc,
};

use crate::layer::{LayerError, Limits, pax::Pax};

const BLOCK: usize = 512;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
    /// Volume labels, multi-volume parts and such: nothing that a file system could hold.
    Other,
}

/// One member of an archive; its content is read by [`Archive::chunk`].
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Length of the file, holes included.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Offset and length of what is stored, when the file has holes.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

/// A tar stream, read member by member.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    input: R,
    limits: Limits,
    entry: u64,
    /// Content bytes of the current member that were not read yet.
    remaining: u64,
    /// Bytes that fill its last block.
    padding: u64,
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(input: R, limits: &Limits) -> Self {
        Self { input, limits: limits.clone(), entry: 0, remaining: 0, padding: 0 }
    }

    /// Members so far.
    pub(crate) fn entries(&self) -> u64 {
        self.entry
    }

    /// Goes to the next member, past what was not read of the last one; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, LayerError> {
        let mut pax = Pax::default();
        let (mut long_path, mut long_link) = (None, None);
        let mut extension_bytes = 0;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return if pax.is_empty() && long_path.is_none() && long_link.is_none() {
                    Ok(None)
                } else {
                    Err(self.malformed("the archive ends after a header that describes a next entry"))
                };
            };
            self.entry += 1;
            if self.entry > self.limits.entries {
                return Err(LayerError::Limit { what: "entries", limit: self.limits.entries });
            }
            let kind = header.as_old().linkflag.first().copied().unwrap_or(0);
            match kind {
                b'L' | b'K' | b'x' => {
                    let text = self.extension(&header, &mut extension_bytes)?;
                    match kind {
                        b'L' => long_path = Some(until_nul(&text).to_vec()),
                        b'K' => long_link = Some(until_nul(&text).to_vec()),
                        _ => pax.parse(&text).map_err(|problem| self.malformed(problem))?,
                    }
                }
                // Global PAX headers carry comments (git's commit id); nobody applies them to layers.
                b'g' => {
                    self.remaining = self.stored_size(&header, &Pax::default())?;
                    self.padding = padding(self.remaining);
                }
                _ => {
                    return self.member(&header, kind, pax, long_path, long_link).map(Some);
                }
            }
        }
    }

    /// Some more bytes of the current member's content; empty at its end. Follow with `consume`.
    pub(crate) fn chunk(&mut self) -> Result<&[u8], LayerError> {
        let remaining = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        if remaining == 0 {
            return Ok(&[]);
        }
        let entry = self.entry;
        let buffer = self.input.fill_buf().map_err(read_error)?;
        if buffer.is_empty() {
            return Err(truncated(entry));
        }
        Ok(buffer.get(..remaining).unwrap_or(buffer))
    }

    /// The stream, which is at the next byte that was not consumed.
    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// Marks `amount` bytes of the last chunk as read.
    pub(crate) fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.remaining = self.remaining.saturating_sub(amount as u64);
    }

    /// Reads the current member's whole content, which must be shorter than `limit`.
    pub(crate) fn read_all(&mut self, limit: u64) -> Result<Vec<u8>, LayerError> {
        if self.remaining > limit {
            return Err(LayerError::Limit { what: "bytes in one document", limit });
        }
        let mut content = Vec::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(content);
            }
            content.extend_from_slice(chunk);
            let length = chunk.len();
            self.consume(length);
        }
    }

    /// What is left of the stream after the last member.
    pub(crate) fn into_input(self) -> R {
        self.input
    }

    fn skip_rest(&mut self) -> Result<(), LayerError> {
        let (content, padding) = (std::mem::take(&mut self.remaining), std::mem::take(&mut self.padding));
        if self.skip(content)? > 0 {
            return Err(truncated(self.entry));
        }
        // `umoci insert` 0.4 leaves out what fills the last block, and the end mark; Go's reader takes that, and so do we.
        self.skip(padding)?;
        Ok(())
    }

    /// Passes over as many bytes; how many the stream had less.
    fn skip(&mut self, bytes: u64) -> Result<u64, LayerError> {
        let mut left = bytes;
        while left > 0 {
            let buffer = self.input.fill_buf().map_err(read_error)?;
            if buffer.is_empty() {
                break;
            }
            let step = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.input.consume(step);
            left -= step as u64;
        }
        Ok(left)
    }

    /// The next header block; `None` at the end mark or the end of the stream.
    fn header(&mut self) -> Result<Option<tar::Header>, LayerError> {
        if self.input.fill_buf().map_err(read_error)?.is_empty() {
            return Ok(None);
        }
        let block = self.block()?;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        // The sum counts its own field as spaces. GNU and Sun tar once summed signed bytes.
        let counted = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
        let unsigned: u32 = counted.clone().map(u32::from).sum();
        let signed: i32 = counted.map(|b| i32::from(b.cast_signed())).sum();
        match header.cksum() {
            Ok(sum) if sum == unsigned || i32::try_from(sum) == Ok(signed) => Ok(Some(header)),
            _ => {
                self.entry += 1;
                Err(self.malformed("the header's checksum is wrong"))
            }
        }
    }

    fn block(&mut self) -> Result<[u8; BLOCK], LayerError> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => truncated(self.entry),
            _ => read_error(e),
        })?;
        Ok(block)
    }

    /// The content of a header that describes the next member.
    fn extension(&mut self, header: &tar::Header, so_far: &mut usize) -> Result<Vec<u8>, LayerError> {
        self.remaining = self.stored_size(header, &Pax::default())?;
        self.padding = padding(self.remaining);
        *so_far = so_far.saturating_add(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        if *so_far > self.limits.header_bytes {
            let limit = self.limits.header_bytes as u64;
            return Err(LayerError::Limit { what: "bytes of headers for one entry", limit });
        }
        self.read_all(u64::MAX)
    }

    fn stored_size(&self, header: &tar::Header, pax: &Pax) -> Result<u64, LayerError> {
        let size = match pax.size {
            Some(size) => size,
            None => number(&header.as_old().size).ok_or_else(|| self.malformed("its size is no number"))?,
        };
        // Beyond this, offsets no longer fit what the kernel counts in.
        if size > i64::MAX as u64 - 4 * BLOCK as u64 {
            return Err(self.malformed("its size is impossible"));
        }
        Ok(size)
    }

    fn member(
        &mut self,
        header: &tar::Header,
        flag: u8,
        mut pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, LayerError> {
        let old = header.as_old();
        let path = pax.take_path().or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            pax.link.take().or(long_link).unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let kind = match flag {
            b'\0' if path.ends_with(b"/") => Kind::Directory,
            b'\0' | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => Kind::Other,
        };
        // As Go reads it: these never have content, whatever their size field says.
        let stored = match kind {
            Kind::File | Kind::Other => self.stored_size(header, &pax)?,
            _ => 0,
        };
        self.remaining = stored;
        self.padding = padding(stored);
        let id = |from_pax: Option<u64>, field: &[u8]| {
            from_pax.or_else(|| number(field)).and_then(|n| u32::try_from(n).ok())
        };
        let uid = id(pax.uid, &old.uid).ok_or_else(|| self.malformed("its uid is no 32-bit number"))?;
        let gid = id(pax.gid, &old.gid).ok_or_else(|| self.malformed("its gid is no 32-bit number"))?;
        let mode = number(&old.mode)
            .and_then(|m| u32::try_from(m).ok())
            .ok_or_else(|| self.malformed("its mode is no number"))?;
        let mtime = pax.mtime.or_else(|| seconds(&old.mtime).map(|s| (s, 0)));
        let mtime = mtime.ok_or_else(|| self.malformed("its mtime is no number"))?;
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => self.device(header)?,
            _ => (0, 0),
        };
        let (size, sparse) = if flag == b'S' {
            let (size, map) = self.old_sparse(header)?;
            (size, Some(map))
        } else if kind == Kind::File && pax.is_sparse() {
            let (size, map) = self.pax_sparse(&mut pax)?;
            (size, Some(map))
        } else {
            (stored, None)
        };
        if let Some(map) = &sparse {
            self.check_sparse(map, size)?;
        }
        Ok(Member { path, link, kind, mode: mode & 0o7777, uid, gid, mtime, size, device, xattrs: pax.xattrs, sparse })
    }

    fn device(&self, header: &tar::Header) -> Result<(u32, u32), LayerError> {
        let part = |number: io::Result<Option<u32>>| number.ok().flatten();
        match (part(header.device_major()), part(header.device_minor())) {
            (Some(major), Some(minor)) => Ok((major, minor)),
            _ => Err(self.malformed("its device number is no number")),
        }
    }

    /// GNU's old format: four pieces in the header, more in blocks that follow it.
    fn old_sparse(&mut self, header: &tar::Header) -> Result<(u64, Vec<(u64, u64)>), LayerError> {
        let Some(gnu) = header.as_gnu() else {
            return Err(self.malformed("a sparse file needs a GNU header"));
        };
        let size = number(&gnu.realsize).ok_or_else(|| self.malformed("its real size is no number"))?;
        let mut map = Vec::new();
        let raw = |p: &tar::GnuSparseHeader| (p.offset, p.numbytes);
        let mut pieces: Vec<_> = gnu.sparse.iter().map(raw).collect();
        let mut extended = gnu.is_extended();
        loop {
            // Unused places are blank.
            for (offset, length) in pieces.iter().filter(|(o, l)| o.first() != Some(&0) && l.first() != Some(&0)) {
                let part = number(offset).zip(number(length));
                map.push(part.ok_or_else(|| self.malformed("its sparse map has no numbers"))?);
            }
            if !extended {
                return Ok((size, map));
            }
            self.check_map_length(map.len())?;
            let mut block = tar::GnuExtSparseHeader::new();
            block.as_mut_bytes().copy_from_slice(&self.block()?);
            pieces = block.sparse().iter().map(raw).collect();
            extended = block.is_extended();
        }
    }

    /// GNU's formats in PAX headers: 0.0 and 0.1 have the map in the header, 1.0 before the content.
    fn pax_sparse(&mut self, pax: &mut Pax) -> Result<(u64, Vec<(u64, u64)>), LayerError> {
        let Some(size) = pax.sparse_size else {
            return Err(self.malformed("a sparse file needs its real size"));
        };
        if !pax.sparse_in_content {
            let map = std::mem::take(&mut pax.sparse_map);
            return match map.chunks_exact(2).map(|p| Some((*p.first()?, *p.get(1)?))).collect() {
                Some(pairs) if map.len().is_multiple_of(2) => Ok((size, pairs)),
                _ => Err(self.malformed("its sparse map is incomplete")),
            };
        }
        let mut numbers = Numbers::default();
        let pieces = numbers.next(self)?;
        self.check_map_length(usize::try_from(pieces).unwrap_or(usize::MAX))?;
        let mut map = Vec::new();
        for _ in 0..pieces {
            map.push((numbers.next(self)?, numbers.next(self)?));
        }
        Ok((size, map))
    }

    fn check_map_length(&self, pieces: usize) -> Result<(), LayerError> {
        if pieces.saturating_mul(16) > self.limits.header_bytes {
            let limit = self.limits.header_bytes as u64 / 16;
            return Err(LayerError::Limit { what: "pieces in one sparse file", limit });
        }
        Ok(())
    }

    /// Pieces lie one after the other inside the file, and are exactly what is stored.
    fn check_sparse(&self, map: &[(u64, u64)], size: u64) -> Result<(), LayerError> {
        let (mut end, mut stored) = (0_u64, 0_u64);
        for &(offset, length) in map {
            if offset < end {
                return Err(self.malformed("pieces of a sparse file overlap"));
            }
            end = offset.checked_add(length).ok_or_else(|| self.malformed("a sparse piece is too long"))?;
            stored = stored.saturating_add(length);
        }
        if end > size || stored != self.remaining {
            return Err(self.malformed("the sparse map does not fit the file's size"));
        }
        Ok(())
    }

    fn malformed(&self, problem: impl Into<String>) -> LayerError {
        LayerError::Malformed { entry: self.entry, problem: problem.into() }
    }
}

/// The decimal lines in front of a sparse 1.0 file's content, which fill whole blocks.
#[derive(Default)]
struct Numbers {
    block: Vec<u8>,
}

impl Numbers {
    fn next<R: BufRead>(&mut self, archive: &mut Archive<R>) -> Result<u64, LayerError> {
        loop {
            if let Some(end) = self.block.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.block.drain(..=end).collect();
                return std::str::from_utf8(&line)
                    .ok()
                    .and_then(|l| l.trim_end().parse().ok())
                    .ok_or_else(|| archive.malformed("its sparse map has no numbers"));
            }
            if self.block.len() > 32 || archive.remaining < BLOCK as u64 {
                return Err(archive.malformed("its sparse map is incomplete"));
            }
            let block = archive.block()?;
            archive.remaining -= BLOCK as u64;
            self.block.extend_from_slice(&block);
        }
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// A numeric field: octal digits between blanks, or base 256 when its first bit is set; blank is 0.
fn number(field: &[u8]) -> Option<u64> {
    u64::try_from(seconds(field)?).ok()
}

/// The same, with a sign, which only base 256 can express.
fn seconds(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        let text = std::str::from_utf8(until_nul(field)).ok()?.trim();
        return if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() };
    }
    let negative = first & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (i, byte) in field.iter().enumerate() {
        let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
        value = (value << 8) | i128::from(byte);
        if i64::try_from(value).is_err() {
            return None;
        }
    }
    i64::try_from(value).ok()
}

fn truncated(entry: u64) -> LayerError {
    LayerError::Malformed { entry, problem: "the archive ends in the middle of it".to_owned() }
}

/// A reader below us may have wrapped one of our own errors.
pub(crate) fn read_error(error: io::Error) -> LayerError {
    match error.get_ref().and_then(|e| e.downcast_ref::<LayerError>()) {
        Some(own) => own.clone(),
        None => LayerError::Read(Arc::new(error)),
    }
}
