//! Reads answers with a bound on their length and on their slowness.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::time::timeout;

use crate::registry::{RegistryError, throttle::Throttle};

/// Bytes per second; what stays below it for a whole stall timeout stands still.
const LOWEST_RATE: u64 = 1024;

/// An answer's bytes, in pieces.
pub(crate) type Pieces = BoxStream<'static, Result<Bytes, RegistryError>>;

/// The body of one answer.
pub(crate) struct Body {
    answer: reqwest::Response,
    url: String,
    pace: Pace,
    throttle: Option<Arc<Throttle>>,
}

impl Body {
    /// `window` is how long the transfer may stand still.
    pub(crate) fn new(url: String, answer: reqwest::Response, window: Duration) -> Self {
        Self { answer, url, pace: Pace::new(window), throttle: None }
    }

    /// The same, no faster than all transfers together may be.
    pub(crate) fn throttled(mut self, throttle: &Arc<Throttle>) -> Self {
        self.throttle = Some(throttle.clone());
        self
    }

    /// How long the network was waited for.
    pub(crate) fn waited(&self) -> Duration {
        self.pace.waited
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let begun = Instant::now();
        // Only the wait for the network counts: whoever takes the pieces may be slow as he likes.
        let Ok(piece) = timeout(self.pace.left, self.answer.chunk()).await else {
            let (url, bytes, window) = (self.url.clone(), self.pace.enough, self.pace.window);
            return Err(RegistryError::TooSlow { url, bytes, window });
        };
        let piece = piece.map_err(|e| RegistryError::from_request(&self.url, e))?;
        let length = piece.as_ref().map_or(0, |p| p.len() as u64);
        self.pace.count(begun.elapsed(), length);
        if let Some(throttle) = &self.throttle {
            throttle.pay(length).await;
        }
        Ok(piece)
    }

    /// All of it, when that is not more than `limit` bytes.
    pub(crate) async fn read(mut self, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let mut content = Vec::new();
        let mut promised = self.answer.content_length().unwrap_or(0);
        while promised <= limit {
            let Some(piece) = self.next().await? else { return Ok(content) };
            content.extend_from_slice(&piece);
            promised = content.len() as u64;
        }
        Err(RegistryError::TooLong { url: self.url, limit })
    }

    /// Its beginning, of about `limit` bytes and whatever of it comes within one stall timeout.
    pub(crate) async fn beginning(mut self, limit: usize) -> Vec<u8> {
        let mut content = Vec::new();
        let window = self.pace.window;
        let reading = async {
            // An answer that is cut off still has a beginning.
            while let Ok(Some(piece)) = self.next().await {
                content.extend_from_slice(piece.get(..limit.saturating_sub(content.len())).unwrap_or(&piece));
                if content.len() >= limit {
                    break;
                }
            }
        };
        // So has one that does not end.
        let _too_slow = timeout(window, reading).await;
        content
    }

    /// Its pieces as they come.
    pub(crate) fn pieces(self) -> Pieces {
        Box::pin(futures_util::stream::unfold(self, |mut body| async {
            let piece = body.next().await.transpose()?;
            Some((piece, body))
        }))
    }
}

/// Measures a transfer: `enough` bytes must come within each `window` of waiting.
struct Pace {
    window: Duration,
    enough: u64,
    left: Duration,
    seen: u64,
    /// In all.
    waited: Duration,
}

impl Pace {
    fn new(window: Duration) -> Self {
        let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let enough = (millis.saturating_mul(LOWEST_RATE) / 1000).max(1);
        Self { window, enough, left: window, seen: 0, waited: Duration::ZERO }
    }

    fn count(&mut self, waited: Duration, bytes: u64) {
        self.seen += bytes;
        self.waited += waited;
        self.left = self.left.saturating_sub(waited);
        if self.seen >= self.enough {
            (self.left, self.seen) = (self.window, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enough_bytes_buy_more_time() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(60 * second);
        assert_eq!(pace.enough, 60 * 1024);
        for _ in 0..59 {
            pace.count(second, 1);
        }
        assert_eq!(pace.left, second);
        pace.count(second, 60 * 1024);
        assert_eq!(pace.left, 60 * second);
    }
}
