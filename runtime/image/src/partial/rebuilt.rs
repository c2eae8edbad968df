//! The archive, byte by byte.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Cursor, Read},
    ops::Range,
    vec,
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256 as Hasher};

use crate::{
    layer::Decompressor,
    partial::{
        Fetched, Found, PartialError, Plan,
        local::{Files, Verified},
        tarsplit::{Piece, TarSplit},
        toc::{Content, Sha256},
    },
};

/// A layer's archive, put together of what is here and what is fetched.
pub(crate) struct Rebuilt<R: BufRead> {
    steps: Steps,
    files: Files,
    /// `None` while `now` reads it.
    fetched: Option<Fetched<R>>,
    now: Now<R>,
}

/// What comes next.
enum Step {
    Literal(Vec<u8>),
    /// Of a file that is here.
    Local(Content),
    /// Compressed bytes that are fetched: of this content, or whatever else they have.
    Packed(Range<u64>, Option<Content>),
    /// Compressed bytes that were fetched before.
    Held(Bytes),
}

enum Now<R: BufRead> {
    Between,
    Literal(Cursor<Vec<u8>>),
    Local(Box<Verified>),
    Packed(Box<Unpacking<R>>),
    Held(Box<Decompressor<Cursor<Bytes>>>),
}

impl<R: BufRead> Rebuilt<R> {
    /// With a verified tar-split, which decompresses to at most so many bytes.
    pub(crate) fn with_headers(
        (tar_split, unpacked): (Bytes, u64),
        contents: Vec<Content>,
        found: Found,
        fetched: Fetched<R>,
    ) -> Result<Self, PartialError> {
        let decoder = zstd::stream::read::Decoder::with_buffer(Cursor::new(tar_split));
        let decoder = decoder.map_err(|source| PartialError::Read { what: "the tar-split", source })?;
        let lines = BufReader::with_capacity(1 << 16, decoder.take(unpacked));
        let steps = Steps::Headers { headers: Box::new(TarSplit::new(lines)), contents: contents.into_iter() };
        Ok(Self::new(steps, found, fetched))
    }

    /// With the headers that are in the blob. `tail` is what comes behind `archive` and was fetched before.
    pub(crate) fn with_the_rest(
        contents: Vec<Content>,
        plan: &Plan,
        archive: Range<u64>,
        tail: Option<Bytes>,
        found: Found,
        fetched: Fetched<R>,
    ) -> Self {
        let mut steps = VecDeque::new();
        let mut before = archive.start;
        let rest = |range: Range<u64>, steps: &mut VecDeque<Step>| {
            if !range.is_empty() {
                steps.push_back(Step::Packed(range, None));
            }
        };
        for content in contents.into_iter().filter(|content| plan.leaves_out(&content.packed)) {
            rest(before..content.packed.start, &mut steps);
            before = content.packed.end;
            steps.push_back(Step::Local(content));
        }
        rest(before..archive.end, &mut steps);
        steps.extend(tail.map(Step::Held));
        Self::new(Steps::Rest(steps), found, fetched)
    }

    fn new(steps: Steps, found: Found, fetched: Fetched<R>) -> Self {
        Self { steps, files: Files::new(found), fetched: Some(fetched), now: Now::Between }
    }

    /// Whether there is one more step.
    fn begin(&mut self) -> io::Result<bool> {
        let next = self.steps.next(&self.files).map_err(io::Error::other)?;
        let Some(step) = next else { return Ok(false) };
        self.now = match step {
            Step::Literal(bytes) => Now::Literal(Cursor::new(bytes)),
            Step::Local(content) => Now::Local(Box::new(self.files.open(&content).map_err(io::Error::other)?)),
            Step::Packed(range, content) => {
                // Whoever reads on after an error finds no more.
                let fetched = self.fetched.take().ok_or(io::ErrorKind::UnexpectedEof)?;
                Now::Packed(Box::new(Unpacking::new(fetched, range, content)?))
            }
            Step::Held(bytes) => {
                Now::Held(Box::new(Decompressor::of_part(Cursor::new(bytes)).map_err(io::Error::other)?))
            }
        };
        Ok(true)
    }
}

impl<R: BufRead> Read for Rebuilt<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if matches!(self.now, Now::Between) && !self.begin()? {
                return Ok(0);
            }
            let length = match &mut self.now {
                Now::Between => 0,
                Now::Literal(bytes) => bytes.read(buffer)?,
                Now::Local(file) => file.read(buffer)?,
                Now::Packed(unpacking) => unpacking.read(buffer)?,
                Now::Held(decompressor) => decompressor.read(buffer)?,
            };
            if length > 0 {
                return Ok(length);
            }
            if let Now::Packed(unpacking) = std::mem::replace(&mut self.now, Now::Between) {
                self.fetched = Some(unpacking.finish()?);
            }
        }
    }
}

enum Steps {
    Headers { headers: Box<TarSplit<Headers>>, contents: vec::IntoIter<Content> },
    Rest(VecDeque<Step>),
}

type Headers = BufReader<io::Take<zstd::stream::read::Decoder<'static, Cursor<Bytes>>>>;

impl Steps {
    fn next(&mut self, files: &Files) -> Result<Option<Step>, PartialError> {
        let (headers, contents) = match self {
            Self::Rest(steps) => return Ok(steps.pop_front()),
            Self::Headers { headers, contents } => (headers, contents),
        };
        let malformed = |problem: &str| PartialError::Malformed { what: "the tar-split", problem: problem.to_owned() };
        match headers.next().transpose()? {
            Some(Piece::Literal(bytes)) => Ok(Some(Step::Literal(bytes))),
            // Both were written from one archive, so that the order is the same.
            Some(Piece::Content(size)) => match contents.next().filter(|content| content.size == size) {
                Some(content) if files.has(&content) => Ok(Some(Step::Local(content))),
                Some(content) => Ok(Some(Step::Packed(content.packed.clone(), Some(content)))),
                None => Err(malformed("has another order of files than the table of contents")),
            },
            None if contents.next().is_some() => Err(malformed("has fewer files than the table of contents")),
            None => Ok(None),
        }
    }
}

/// Decompresses one part of what is fetched.
struct Unpacking<R: BufRead> {
    packed: Decompressor<io::Take<Fetched<R>>>,
    verified: Option<(Content, Hasher)>,
    length: u64,
}

const WHAT: &str = "what was fetched of a file";

impl<R: BufRead> Unpacking<R> {
    fn new(mut fetched: Fetched<R>, range: Range<u64>, content: Option<Content>) -> io::Result<Self> {
        fetched.go_to(range.start)?;
        let packed = Decompressor::of_part(fetched.take(range.end - range.start)).map_err(io::Error::other)?;
        Ok(Self { packed, verified: content.map(|content| (content, Hasher::new())), length: 0 })
    }

    fn finish(self) -> io::Result<Fetched<R>> {
        let malformed =
            |problem: &str| io::Error::other(PartialError::Malformed { what: WHAT, problem: problem.to_owned() });
        if let Some((content, hasher)) = self.verified {
            let digest: Sha256 = hasher.finalize().into();
            if self.length != content.size || digest != content.digest {
                return Err(malformed("is not what the table of contents says"));
            }
        }
        let rest = self.packed.into_inner();
        if rest.limit() > 0 {
            return Err(malformed("ends before its frames do"));
        }
        Ok(rest.into_inner())
    }
}

impl<R: BufRead> Read for Unpacking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.packed.read(buffer)?;
        self.length += length as u64;
        if let Some((content, hasher)) = &mut self.verified {
            if self.length > content.size {
                let limit = content.size;
                return Err(io::Error::other(PartialError::Limit { what: WHAT, limit, unit: "bytes" }));
            }
            hasher.update(buffer.get(..length).unwrap_or_default());
        }
        Ok(length)
    }
}
