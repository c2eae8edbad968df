//! Writing netlink messages and attributes (linux/netlink.h).

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Attributes appended to one buffer; every attribute is padded to four bytes.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends raw bytes, for the fixed header of a message family.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// An attribute with a byte string.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let at = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(at)
    }

    /// An attribute with a string that ends in a zero byte.
    pub(crate) fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let at = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(at)
    }

    /// A byte.
    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A number in the machine's byte order (rtnetlink).
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order (netfilter).
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A signed number in network byte order (netfilter).
    pub(crate) fn be32_signed(&mut self, kind: u16, value: i32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An attribute that holds the attributes written by `content`.
    pub(crate) fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.open(kind | NLA_F_NESTED);
        content(self);
        self.close(at)
    }

    /// What was written so far.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its length.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) -> &mut Self {
        // No attribute of ours comes near 64 KiB: long lists are cut by their writers.
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// `NLA_F_NESTED` as the attribute type it is or'ed into.
const NLA_F_NESTED: u16 = 1 << 15;

/// `NLM_F_REQUEST`.
const NLM_F_REQUEST: u16 = 1;
/// `NLM_F_ACK`: the message wants an answer when it succeeds too.
const NLM_F_ACK: u16 = 4;

/// Several messages that are sent by one call.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) messages: u32,
    /// Where the message starts that asks for an answer.
    answer_at: usize,
    /// What each message does, for the error that names it.
    pub(super) actions: Vec<String>,
}

impl Batch {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was pushed.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Appends a message; `action` says what it does in case the kernel refuses it.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, action: impl Into<String>, content: impl FnOnce(&mut Writer)) {
        self.answer_at = self.bytes.len();
        self.push_unanswered(kind, flags, action, content);
    }

    /// Appends a message that the kernel does not answer when it succeeds.
    pub(crate) fn push_unanswered(
        &mut self,
        kind: u16,
        flags: u16,
        action: impl Into<String>,
        content: impl FnOnce(&mut Writer),
    ) {
        let mut writer = Writer::default();
        content(&mut writer);
        let length = u32::try_from(HEADER + writer.len()).unwrap_or(u32::MAX);
        let flags = flags | NLM_F_REQUEST;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.messages.to_ne_bytes());
        self.bytes.extend_from_slice(&0_u32.to_ne_bytes());
        self.bytes.extend_from_slice(&writer.bytes);
        self.messages += 1;
        self.actions.push(action.into());
    }

    /// The bytes to send, in which the last answered message asks for its answer.
    pub(super) fn with_answer(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        // The low byte of `nlmsg_flags` holds NLM_F_ACK on either byte order's first or second
        // byte: it is rewritten as a whole.
        if let Some(place) = bytes.get_mut(self.answer_at + 6..self.answer_at + 8)
            && let Ok(flags) = <[u8; 2]>::try_from(&*place)
        {
            place.copy_from_slice(&(u16::from_ne_bytes(flags) | NLM_F_ACK).to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_padded_but_its_length_is_not() {
        let mut writer = Writer::default();
        writer.string(3, "lo").u8(4, 7);
        assert_eq!(writer.bytes, [7, 0, 3, 0, b'l', b'o', 0, 0, 5, 0, 4, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn a_nest_counts_what_is_in_it() {
        let mut writer = Writer::default();
        writer.nest(1, |inner| {
            inner.u8(2, 9);
        });
        assert_eq!(writer.bytes, [12, 0, 1, 0x80, 5, 0, 2, 0, 9, 0, 0, 0]);
    }
}
