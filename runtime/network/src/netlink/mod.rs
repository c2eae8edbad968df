//! Synchronous netlink: messages are written by hand, sent in batches, and answered at once.
//!
//! The kernel works on a request inside `send`, so every answer to it waits in the socket when
//! `send` returns: nothing here ever sleeps. A batch is several messages in one `send`; they are
//! worked on in order, and each failure is reported with the number of its message.

mod decode;
mod encode;
mod socket;

pub(crate) use decode::{Attribute, Message, attributes, find};
pub(crate) use encode::{Batch, Writer};
pub(crate) use socket::{Refusal, Socket};
