//! Layers that come slowly, by several connections at once.
//!
//! ```text
//!   bytes=0-4M        one connection; how fast it was decides
//!      fast -> bytes=4M-         the same one goes on
//!      slow -> bytes=4M-6M, 6M-8M, 8M-10M, ...   so many at once, handed on in order
//! ```
//! A registry that knows no ranges answers the first request with all of it, and that is taken.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::{
    manifest::Descriptor,
    registry::{
        RegistryError, Session,
        body::{Body, Pieces},
    },
};

/// Layers of which less is left come by one connection, in bytes.
const LEAST: u64 = 16 << 20;
/// What comes first.
const FIRST: u64 = 4 << 20;
/// What each further request asks for; as many are in memory at once as there are connections.
const PIECE: u64 = 2 << 20;
/// Bytes per second of one connection beyond which others would bring nothing: unpacking is not faster.
const FAST: u64 = 64 << 20;

enum Transfer {
    First { body: Box<Body>, left: u64 },
    Rest(Pieces),
    Ended,
}

impl Session {
    /// A layer's bytes from `offset` on, and whether they come from the beginning all the same.
    pub(crate) async fn layer(
        self: &Arc<Self>,
        layer: &Descriptor,
        offset: u64,
    ) -> Result<(Pieces, bool), RegistryError> {
        if self.registries.terms.connections < 2 || layer.size.saturating_sub(offset) < LEAST {
            return self.blob(layer, offset).await;
        }
        let (body, from_beginning) = self.range(layer, offset, Some(FIRST)).await?;
        if from_beginning {
            return Ok((body.pieces(), true));
        }
        let (session, layer) = (self.clone(), layer.clone());
        let begun = Transfer::First { body: Box::new(body), left: FIRST };
        let pieces = stream::unfold(begun, move |mut transfer| {
            let (session, layer) = (session.clone(), layer.clone());
            async move {
                let piece = transfer.next(&session, &layer, offset + FIRST).await?;
                Some((piece, transfer))
            }
        });
        Ok((Box::pin(pieces), false))
    }

    /// One piece, whole.
    async fn piece(&self, layer: &Descriptor, offset: u64) -> Result<Vec<Bytes>, RegistryError> {
        let length = PIECE.min(layer.size - offset);
        let (mut body, from_beginning) = self.range(layer, offset, Some(length)).await?;
        if from_beginning {
            let problem = "it sends parts of a blob, and then all of it".to_owned();
            return Err(RegistryError::Protocol { url: self.url("blobs", layer.digest.as_str()), problem });
        }
        let (mut chunks, mut left) = (Vec::new(), length);
        while let Some(chunk) = body.next().await? {
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| self.too_long(layer, length))?;
            chunks.push(chunk);
        }
        if left > 0 {
            return Err(self.cut_off(layer));
        }
        Ok(chunks)
    }

    /// All from `offset` on, by several connections.
    fn pieces(self: &Arc<Self>, layer: &Descriptor, offset: u64) -> Pieces {
        let (session, layer, size) = (self.clone(), layer.clone(), layer.size);
        let offsets = std::iter::successors(Some(offset), |at| at.checked_add(PIECE)).take_while(move |at| *at < size);
        let pieces = stream::iter(offsets).map(move |at| {
            let (session, layer) = (session.clone(), layer.clone());
            async move { session.piece(&layer, at).await }
        });
        let in_order = pieces.buffered(self.registries.terms.connections).flat_map(|piece| {
            stream::iter(match piece {
                Ok(chunks) => chunks.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
        });
        Box::pin(in_order)
    }

    fn too_long(&self, layer: &Descriptor, limit: u64) -> RegistryError {
        RegistryError::TooLong { url: self.url("blobs", layer.digest.as_str()), limit }
    }

    fn cut_off(&self, layer: &Descriptor) -> RegistryError {
        let source = Arc::new(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        RegistryError::Transfer { url: self.url("blobs", layer.digest.as_str()), source }
    }
}

impl Transfer {
    async fn next(
        &mut self,
        session: &Arc<Session>,
        layer: &Descriptor,
        rest: u64,
    ) -> Option<Result<Bytes, RegistryError>> {
        loop {
            match self {
                Self::First { body, left } => match body.next().await {
                    Ok(Some(chunk)) => match left.checked_sub(chunk.len() as u64) {
                        Some(less) => {
                            *left = less;
                            return Some(Ok(chunk));
                        }
                        None => {
                            *self = Self::Ended;
                            return Some(Err(session.too_long(layer, FIRST)));
                        }
                    },
                    Ok(None) if *left > 0 => {
                        *self = Self::Ended;
                        return Some(Err(session.cut_off(layer)));
                    }
                    Ok(None) => {
                        let rest = if is_fast(FIRST, body.waited()) {
                            match session.blob(layer, rest).await {
                                // Taken up again from here, it may send all of it.
                                Ok((_, true)) => Err(session.cut_off(layer)),
                                other => other.map(|(pieces, _)| pieces),
                            }
                        } else {
                            tracing::debug!(digest = %layer.digest, "layer comes slowly: by several connections");
                            Ok(session.pieces(layer, rest))
                        };
                        match rest {
                            Ok(pieces) => *self = Self::Rest(pieces),
                            Err(error) => {
                                *self = Self::Ended;
                                return Some(Err(error));
                            }
                        }
                    }
                    Err(error) => {
                        *self = Self::Ended;
                        return Some(Err(error));
                    }
                },
                Self::Rest(pieces) => return pieces.next().await,
                Self::Ended => return None,
            }
        }
    }
}

/// `waited` is the time for the network alone: while who unpacks is slower, bytes are there already.
fn is_fast(bytes: u64, waited: Duration) -> bool {
    waited.as_secs_f64() * f64::from(u32::try_from(FAST).unwrap_or(u32::MAX))
        <= f64::from(u32::try_from(bytes).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_is_what_unpacking_cannot_follow() {
        assert!(is_fast(FIRST, Duration::from_millis(62)));
        assert!(!is_fast(FIRST, Duration::from_millis(63)));
        assert!(is_fast(FIRST, Duration::ZERO));
    }
}
