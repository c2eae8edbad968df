//! Reads gzip, zstd or plain bytes, whichever they are.

use std::{
    io::{self, BufRead, Cursor, Read},
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use flate2::bufread::MultiGzDecoder;

use crate::layer::{LayerError, archive::read_error};

type Input<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// The first bytes, which tell what a stream is: the longest header of a zstd frame.
const HEADER: usize = 18;
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// 32 MiB, the most that tools for images make, later frames of a stream among them; most have 8 MiB. As many are held as
/// layers are unpacked.
pub(crate) const USUAL_WINDOW_LOG: u32 = 25;
/// 128 MiB, `zstd --long` and the most that the library takes without being told; one is held at a time.
const LARGEST_WINDOW_LOG: u32 = 27;

/// The decompressed form of a stream, told by its first bytes and not by a media type, which may lie.
pub(crate) enum Decompressor<R: BufRead> {
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd { decoder: Box<zstd::stream::read::Decoder<'static, Input<R>>>, _room: Option<LargeWindow> },
    Plain(Input<R>),
}

/// Room for a window beyond the usual: there is one such place in a process, and whoever finds it taken waits.
pub(crate) struct LargeWindow(());

static IS_TAKEN: Mutex<bool> = Mutex::new(false);
static GIVEN_BACK: Condvar = Condvar::new();

impl LargeWindow {
    fn wait() -> Self {
        let is_taken = IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = GIVEN_BACK.wait_while(is_taken, |is_taken| *is_taken);
        *is_free.unwrap_or_else(PoisonError::into_inner) = true;
        Self(())
    }
}

impl Drop for LargeWindow {
    fn drop(&mut self) {
        *IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        GIVEN_BACK.notify_one();
    }
}

/// Bytes of the window that a zstd frame wants; `None` for another kind of frame. Source: RFC 8878 §3.1.1.1.
fn window_bytes(frame: &[u8]) -> Option<u64> {
    let rest = frame.strip_prefix(&ZSTD)?;
    let (&descriptor, rest) = rest.split_first()?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let window = rest.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // The content is the window. Its size stands behind the id of a dictionary.
    let dictionary = match descriptor & 3 {
        3 => 4,
        length => usize::from(length),
    };
    let (length, more) = match descriptor >> 6 {
        0 => (1, 0),
        1 => (2, 256),
        2 => (4, 0),
        _ => (8, 0),
    };
    let rest = rest.get(dictionary..)?;
    let mut size = [0; 8];
    size.get_mut(..length)?.copy_from_slice(rest.get(..length)?);
    Some(u64::from_le_bytes(size).saturating_add(more))
}

impl<R: BufRead> Decompressor<R> {
    /// Blocks while another stream has a window beyond the usual, when this one wants such a one.
    pub(crate) fn new(input: R) -> Result<Self, LayerError> {
        Self::with_windows(input, true)
    }

    /// For a part of a stream, of which several may be held by one reader: windows beyond the usual are refused.
    pub(crate) fn of_part(input: R) -> Result<Self, LayerError> {
        Self::with_windows(input, false)
    }

    fn with_windows(mut input: R, large: bool) -> Result<Self, LayerError> {
        let mut start = Vec::new();
        while start.len() < HEADER {
            let buffer = input.fill_buf().map_err(read_error)?;
            if buffer.is_empty() {
                break;
            }
            let step = buffer.len().min(HEADER - start.len());
            start.extend_from_slice(buffer.get(..step).unwrap_or_default());
            input.consume(step);
        }
        let unsupported = |name: &str| {
            let problem = format!("{name} is not supported, only gzip, zstd and none");
            LayerError::Decompress(Arc::new(io::Error::new(io::ErrorKind::Unsupported, problem)))
        };
        let kind = start.clone();
        let input = Cursor::new(start).chain(input);
        // Skippable frames lead zstd:chunked layers that some tools write.
        let zstd = kind.starts_with(&ZSTD)
            || kind.get(1..4) == Some(&[0x2a, 0x4d, 0x18]) && kind.first().is_some_and(|b| b & 0xf0 == 0x50);
        if kind.starts_with(&[0x1f, 0x8b]) {
            Ok(Self::Gzip(Box::new(MultiGzDecoder::new(input))))
        } else if zstd {
            let failed = |error| LayerError::Decompress(Arc::new(error));
            let wants_more = window_bytes(&kind).is_some_and(|bytes| bytes > 1 << USUAL_WINDOW_LOG);
            let room = (large && wants_more).then(LargeWindow::wait);
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(failed)?;
            let largest = if room.is_some() { LARGEST_WINDOW_LOG } else { USUAL_WINDOW_LOG };
            decoder.window_log_max(largest).map_err(failed)?;
            Ok(Self::Zstd { decoder: Box::new(decoder), _room: room })
        } else if kind.starts_with(b"BZh") {
            Err(unsupported("bzip2"))
        } else if kind.starts_with(&[0xfd, b'7', b'z', b'X', b'Z']) {
            Err(unsupported("xz"))
        } else {
            Ok(Self::Plain(input))
        }
    }

    /// The compressed stream, wherever it is now.
    pub(crate) fn into_inner(self) -> R {
        match self {
            Self::Gzip(decoder) => decoder.into_inner().into_inner().1,
            Self::Zstd { decoder, .. } => decoder.finish().into_inner().1,
            Self::Plain(input) => input.into_inner().1,
        }
    }
}

impl<R: BufRead> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd { decoder, .. } => decoder.read(buffer),
            Self::Plain(input) => return input.read(buffer),
        };
        // What the network said comes through; the rest is the decoder's own complaint.
        result.map_err(|error| match error.get_ref().map(|e| e.is::<LayerError>()) {
            Some(true) => error,
            _ if error.kind() == io::ErrorKind::Interrupted => error,
            _ => io::Error::other(LayerError::Decompress(Arc::new(error))),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use super::*;

    fn packed(window_log: u32, size: Option<u64>) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.set_pledged_src_size(size).unwrap();
        io::copy(&mut io::repeat(7).take(size.unwrap_or(1 << 20)), &mut encoder).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(bytes: &[u8], part: bool) -> Result<usize, LayerError> {
        let input = Cursor::new(bytes);
        let mut decompressor = if part { Decompressor::of_part(input)? } else { Decompressor::new(input)? };
        let copied = io::copy(&mut decompressor, &mut io::sink()).map_err(read_error)?;
        Ok(usize::try_from(copied).unwrap())
    }

    #[test]
    fn the_window_of_a_frame_is_read_as_its_encoder_wrote_it() {
        for log in [10, 17, 23, 24, 27] {
            assert_eq!(window_bytes(&packed(log, None)), Some(1 << log), "{log}");
        }
        // With a size that is known before, the content is the window.
        for size in [0, 255, 256, 65_791, 65_792, 1 << 20, 20 << 20] {
            assert_eq!(window_bytes(&packed(27, Some(size))), Some(size), "{size}");
        }
        assert_eq!(window_bytes(b"\x1f\x8b and more"), None);
        assert_eq!(window_bytes(&ZSTD), None);
    }

    #[test]
    fn windows_beyond_the_usual_are_held_one_at_a_time_and_only_for_whole_streams() {
        for (bytes, whole, part) in [
            (packed(25, None), true, true),
            (packed(26, None), true, false),
            (packed(27, Some(40 << 20)), true, false),
            (packed(28, None), false, false),
            // What the first frame says holds for those that follow.
            ([packed(20, None), packed(27, None)].concat(), false, false),
        ] {
            assert_eq!((unpacked(&bytes, false).is_ok(), unpacked(&bytes, true).is_ok()), (whole, part));
        }
        let large = packed(27, None);
        let first = Decompressor::new(Cursor::new(&large[..])).unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unpacked(&large, false).unwrap();
                is_done.store(true, Ordering::SeqCst);
            });
            assert_eq!(unpacked(&packed(20, None), false).unwrap(), 1 << 20, "others go on");
            std::thread::sleep(Duration::from_millis(50));
            assert!(!is_done.load(Ordering::SeqCst), "two had a large window");
            drop(first);
        });
        assert!(is_done.load(Ordering::SeqCst));
    }
}
