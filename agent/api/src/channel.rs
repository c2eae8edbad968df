//! The channel protocol of exec, attach and port-forward inside a WebSocket.
//!
//! ```text
//!   one binary message = 1 byte channel | payload
//!
//!   exec, attach:   0 stdin   ->        1 stdout  <-       2 stderr  <-
//!                   3 error   <-  a metav1 Status, last     4 resize  ->  {"Width":80,"Height":24}
//!   port-forward:   2i data  <->        2i+1 error <-       each opens with the port, 2 bytes, little endian
//!   v5 only:        255 close           the payload is the channel that has reached its end
//! ```
//! Source: k8s.io/apimachinery/pkg/util/remotecommand, k8s.io/kubelet/pkg/cri/streaming.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Standard input of the process.
pub const STDIN: u8 = 0;
/// Standard output of the process.
pub const STDOUT: u8 = 1;
/// Standard error of the process.
pub const STDERR: u8 = 2;
/// How it ended: one metav1 `Status`.
pub const ERROR: u8 = 3;
/// The terminal's new size.
pub const RESIZE: u8 = 4;
/// The channel named by the payload has reached its end (v5 only).
pub const CLOSE: u8 = 255;

/// The most payload one message carries from us.
pub const CHUNK_BYTES: usize = 32 * 1024;
/// The largest message that is read; kubectl sends at most 32 KiB.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// A version of the channel protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// `v4.channel.k8s.io`: an exit code comes as `Status`.
    V4,
    /// `v5.channel.k8s.io`: a channel can be closed by itself.
    V5,
}

impl Protocol {
    /// The name in `Sec-WebSocket-Protocol`.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::V4 => "v4.channel.k8s.io",
            Protocol::V5 => "v5.channel.k8s.io",
        }
    }

    /// The best protocol a client offers, from the values of its headers.
    pub fn choose<'a>(offers: impl IntoIterator<Item = &'a str>) -> Option<Protocol> {
        offers
            .into_iter()
            .flat_map(|line| line.split(','))
            .filter_map(|name| match name.trim() {
                "v5.channel.k8s.io" => Some(Protocol::V5),
                "v4.channel.k8s.io" => Some(Protocol::V4),
                _ => None,
            })
            .max()
    }
}

/// One message: bytes on a channel, or the end of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes on a channel.
    Bytes {
        /// Which channel.
        channel: u8,
        /// What it carries.
        payload: Bytes,
    },
    /// A channel has reached its end.
    End {
        /// Which channel.
        channel: u8,
    },
}

/// A message that is not of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// There is no channel byte.
    #[error("an empty message has no channel")]
    Empty,
    /// A close names no channel, or more than one.
    #[error("a close message must name one channel")]
    Close,
}

impl Frame {
    /// The message's bytes.
    pub fn encode(&self) -> Bytes {
        match self {
            Frame::Bytes { channel, payload } => {
                let mut message = BytesMut::with_capacity(payload.len() + 1);
                message.put_u8(*channel);
                message.put_slice(payload);
                message.freeze()
            }
            Frame::End { channel } => Bytes::copy_from_slice(&[CLOSE, *channel]),
        }
    }

    /// Reads a message; only v5 knows the close.
    ///
    /// # Errors
    /// [`FrameError`] when there is no channel, or a close names none.
    pub fn decode(protocol: Protocol, mut message: Bytes) -> Result<Frame, FrameError> {
        let Some(&channel) = message.first() else { return Err(FrameError::Empty) };
        let payload = message.split_off(1);
        if channel != CLOSE || protocol < Protocol::V5 {
            return Ok(Frame::Bytes { channel, payload });
        }
        match payload.as_ref() {
            [channel] => Ok(Frame::End { channel: *channel }),
            _ => Err(FrameError::Close),
        }
    }
}

/// The size of a terminal, in characters, as the resize channel carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_protocol_wins_in_any_order_and_spelling() {
        assert_eq!(Protocol::choose(["v4.channel.k8s.io, v5.channel.k8s.io"]), Some(Protocol::V5));
        assert_eq!(Protocol::choose(["channel.k8s.io", "v4.channel.k8s.io"]), Some(Protocol::V4));
        assert_eq!(Protocol::choose(["channel.k8s.io"]), None);
    }

    #[test]
    fn a_resize_is_what_kubectl_sends() {
        let size: TerminalSize = serde_json::from_str(r#"{"Width":80,"Height":24}"#).unwrap();
        assert_eq!(size, TerminalSize { width: 80, height: 24 });
    }

    proptest! {
        #[test]
        fn bytes_come_back_as_they_went(channel in 0u8..255, payload: Vec<u8>) {
            let frame = Frame::Bytes { channel, payload: payload.into() };
            for protocol in [Protocol::V4, Protocol::V5] {
                prop_assert_eq!(&Frame::decode(protocol, frame.encode()).unwrap(), &frame);
            }
        }

        #[test]
        fn an_end_comes_back_under_v5_and_is_bytes_under_v4(channel: u8) {
            let frame = Frame::End { channel };
            prop_assert_eq!(Frame::decode(Protocol::V5, frame.encode()).unwrap(), frame.clone());
            let bytes = Frame::Bytes { channel: CLOSE, payload: Bytes::copy_from_slice(&[channel]) };
            prop_assert_eq!(Frame::decode(Protocol::V4, frame.encode()).unwrap(), bytes);
        }

        #[test]
        fn no_message_is_read_as_more_than_it_holds(message: Vec<u8>) {
            match Frame::decode(Protocol::V5, message.clone().into()) {
                Ok(frame) => prop_assert_eq!(frame.encode().to_vec(), message),
                Err(FrameError::Empty) => prop_assert!(message.is_empty()),
                Err(FrameError::Close) => {
                    prop_assert_eq!(message[0], CLOSE);
                    prop_assert!(message.len() != 2);
                }
            }
        }
    }
}
