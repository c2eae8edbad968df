//! A security context, `user:role:type[:level]`, and what its parts may be.

use std::fmt;
use std::str::FromStr;

/// No part is ever longer, in bytes.
const LONGEST: usize = 255;

/// A text that is no context, or no part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ContextError {
    /// As a whole.
    #[error("{0:?} is no context, which is user:role:type or user:role:type:level")]
    Context(String),
    /// A user, role or type.
    #[error("{0:?} is not of letters, digits, '_', '-' and '.', at most {LONGEST}")]
    Part(String),
    /// A level.
    #[error("{0:?} is no level, such as s0, s0:c1,c2 or s0-s1:c0.c1023")]
    Level(String),
}

/// A security context. Source: selinux(8), Linux, security/selinux/ss/services.c.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) user: String,
    pub(super) role: String,
    pub(super) kind: String,
    /// None under a policy without levels.
    pub(super) level: Option<String>,
}

impl FromStr for Context {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Self, ContextError> {
        // Levels have colons of their own.
        let mut parts = text.splitn(4, ':');
        let (Some(user), Some(role), Some(kind)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(ContextError::Context(text.to_owned()));
        };
        [user, role, kind].into_iter().try_for_each(check_part)?;
        let level = parts.next();
        level.map_or(Ok(()), check_level)?;
        Ok(Self {
            user: user.to_owned(),
            role: role.to_owned(),
            kind: kind.to_owned(),
            level: level.map(str::to_owned),
        })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, role, kind, level } = self;
        write!(f, "{user}:{role}:{kind}")?;
        level.as_ref().map_or(Ok(()), |level| write!(f, ":{level}"))
    }
}

/// A user, role or type.
pub(super) fn check_part(part: &str) -> Result<(), ContextError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match !part.is_empty() && part.len() <= LONGEST && part.chars().all(plain) {
        true => Ok(()),
        false => Err(ContextError::Part(part.to_owned())),
    }
}

/// A sensitivity or two, each with categories or without: `s0`, `s0:c1,c2`, `s0-s1:c0.c1023`.
pub(super) fn check_level(level: &str) -> Result<(), ContextError> {
    let numbered = |item: &str, letter: char| {
        let digits = item.strip_prefix(letter).unwrap_or_default();
        (1..=4).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit())
    };
    let category = |item: &str| match item.split_once('.') {
        Some((first, last)) => numbered(first, 'c') && numbered(last, 'c'),
        None => numbered(item, 'c'),
    };
    let one = |level: &str| match level.split_once(':') {
        Some((sensitivity, categories)) => numbered(sensitivity, 's') && categories.split(',').all(category),
        None => numbered(level, 's'),
    };
    let (low, high) = level.split_once('-').map_or((level, None), |(low, high)| (low, Some(high)));
    match one(low) && high.is_none_or(one) {
        true => Ok(()),
        false => Err(ContextError::Level(level.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_has_three_parts_or_a_level_as_well() {
        for text in ["u:r:t", "system_u:system_r:container_t:s0", "a:b:c:s0-s15:c0.c1023", "u:r:t:s0:c1,c2"] {
            assert_eq!(text.parse::<Context>().unwrap().to_string(), text);
        }
        let parsed: Context = "u:r:t:s0:c1,c2".parse().unwrap();
        assert_eq!((parsed.kind.as_str(), parsed.level.as_deref()), ("t", Some("s0:c1,c2")));
        for text in ["", "u", "u:r", "u::t", "u:r:t:", "u:r:t:c1", "u:r:t u", "u:r:t\n:s0", "u:r,context=x:t"] {
            assert!(text.parse::<Context>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_level_is_a_sensitivity_with_categories_or_without() {
        for level in
            ["s0", "s0-s0", "s0:c0", "s0:c0.c3", "s0:c0,c3", "s0-s0:c0,c3.c6", "s0-s15:c0.c1023", "s0:c1-s1:c2"]
        {
            assert_eq!(check_level(level), Ok(()), "{level}");
        }
        for level in
            ["", "s", "0", "c0", "s0,c0,c3", "s0:", "s0:c", "s0:c0,", "s0:c0..c1", "s0:c12345", "s0-", "s0 ", "s0:c-1"]
        {
            assert!(check_level(level).is_err(), "{level:?}");
        }
    }
}
