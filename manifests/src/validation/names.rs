//! The forms of names: labels, subdomains, qualified names, ports, users.

/// What is wrong with a text, if something is.
pub(super) type Check = Result<(), &'static str>;

const LABEL: &str =
    "must be lower-case letters, digits and `-`, beginning and ending with a letter or digit, at most 63";
const SUBDOMAIN: &str =
    "must be lower-case letters, digits, `-` and `.`, each part beginning and ending with a letter or digit";

fn lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label_form(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(lower_or_digit);
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|byte| lower_or_digit(byte) || byte == b'-')
}

/// RFC 1123 label.
pub(super) fn label(text: &str) -> Check {
    if text.len() <= 63 && is_label_form(text) { Ok(()) } else { Err(LABEL) }
}

/// RFC 1123 subdomain.
pub(super) fn subdomain(text: &str) -> Check {
    if text.len() > 253 {
        Err("must be at most 253 characters long")
    } else if text.split('.').all(is_label_form) {
        Ok(())
    } else {
        Err(SUBDOMAIN)
    }
}

/// RFC 1123 subdomain in which underscores are allowed.
pub(super) fn subdomain_with_underscore(text: &str) -> Check {
    let part = |part: &str| {
        // One underscore may come before the label, any number within it.
        let part = part.strip_prefix('_').unwrap_or(part);
        let edge = |byte: Option<u8>| byte.is_some_and(lower_or_digit);
        edge(part.bytes().next())
            && edge(part.bytes().last())
            && part.bytes().all(|byte| lower_or_digit(byte) || matches!(byte, b'-' | b'_'))
    };
    if text.len() <= 253 && text.split('.').all(part) { Ok(()) } else { Err(SUBDOMAIN) }
}

/// A prefix of a generated name may end in `-`: more will follow.
pub(super) fn prefix_of(text: &str, check: fn(&str) -> Check) -> Check {
    match text.strip_suffix('-') {
        // The server puts a letter in the place of the last two characters.
        Some(rest) if !rest.is_empty() && rest.is_ascii() => {
            let mut masked = rest.to_owned();
            masked.pop();
            masked.push('a');
            check(&masked)
        }
        _ => check(text),
    }
}

/// A qualified name: an optional DNS prefix and a name, `example.com/name`.
pub(super) fn qualified(text: &str) -> Check {
    const NAME: &str =
        "the name must be letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit, at most 63";
    let name = match text.split_once('/') {
        None => text,
        Some(("", _)) => return Err("the prefix before `/` may not be empty"),
        Some((_, rest)) if rest.contains('/') => return Err("may have only one `/`"),
        Some((prefix, rest)) => {
            subdomain(prefix).map_err(|_| "the prefix before `/` must be a DNS subdomain")?;
            rest
        }
    };
    if name.is_empty() {
        return Err("the name part may not be empty");
    }
    if name.len() <= 63 && is_label_text(name) { Ok(()) } else { Err(NAME) }
}

fn is_label_text(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric();
    text.bytes().next().is_some_and(word)
        && text.bytes().last().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || matches!(byte, b'-' | b'_' | b'.'))
}

/// A label's value: empty, or like the name of a qualified name.
pub(super) fn label_value(text: &str) -> Check {
    if text.is_empty() || (text.len() <= 63 && is_label_text(text)) {
        Ok(())
    } else {
        Err("must be letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit, at most 63")
    }
}

/// A key of a config map or secret.
pub(super) fn config_key(text: &str) -> Check {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err("must be letters, digits, `-`, `_` and `.`");
    }
    if text.len() > 253 {
        return Err("may have at most 253 characters");
    }
    if text == "." || text == ".." || text.starts_with("..") {
        return Err("may not be `.` or begin with `..`");
    }
    Ok(())
}

/// An environment variable's name: any printable ASCII but `=`.
pub(super) fn variable(text: &str) -> Check {
    if text.is_empty() || text.bytes().any(|byte| !(0x20..0x7f).contains(&byte) || byte == b'=') {
        Err("must be printable ASCII without `=`")
    } else {
        Ok(())
    }
}

/// A named port (IANA service name).
pub(super) fn port_name(text: &str) -> Check {
    let allowed = |byte: u8| lower_or_digit(byte) || byte == b'-';
    if text.is_empty() || text.len() > 15 {
        Err("must have 1 to 15 characters")
    } else if !text.bytes().all(allowed) {
        Err("must be lower-case letters, digits and `-`")
    } else if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        Err("needs at least one letter")
    } else if text.contains("--") || text.starts_with('-') || text.ends_with('-') {
        Err("may not begin or end with `-`, nor have two in a row")
    } else {
        Ok(())
    }
}

/// A port's number.
pub(super) fn port_number(number: i64) -> Check {
    if (1..=65_535).contains(&number) { Ok(()) } else { Err("must be between 1 and 65535") }
}

/// A user's or group's number.
pub(super) fn id(number: i64) -> Check {
    if (0..=2_147_483_647).contains(&number) { Ok(()) } else { Err("must be between 0 and 2147483647") }
}

/// A header's name in HTTP.
pub(super) fn header(text: &str) -> Check {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !text.is_empty() && text.bytes().all(allowed) { Ok(()) } else { Err("must be letters, digits and `-`") }
}

/// An IP address; leading zeros and IPv4-mapped IPv6 addresses are refused.
pub(super) fn ip(text: &str) -> Check {
    match text.parse::<std::net::IpAddr>() {
        Err(_) => Err("is no IP address, such as 10.9.8.7 or 2001:db8::ffff"),
        Ok(std::net::IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            Err("may not be an IPv4-mapped IPv6 address")
        }
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_their_kind() {
        assert!(label("a-1").is_ok());
        assert!(label("1a").is_ok());
        assert!(label("-a").is_err());
        assert!(subdomain("a.b-c").is_ok());
        assert!(subdomain("a..b").is_err());
        assert!(subdomain_with_underscore("_a_b.c").is_ok());
        assert!(subdomain_with_underscore("__a").is_err());
        assert!(subdomain_with_underscore("a_").is_err());
        assert!(prefix_of("a--", subdomain).is_ok());
        assert!(prefix_of("a\u{e9}-", subdomain).is_err());
        assert!(qualified("example.com/Name_1").is_ok());
        assert!(qualified("Example.com/x").is_err());
        assert!(qualified("a/b/c").is_err());
        assert!(variable("a b.c").is_ok());
        assert!(variable("a=b").is_err());
        assert!(port_name("8a").is_ok());
        assert!(port_name("80").is_err());
        assert!(ip("010.0.0.1").is_err());
        assert!(ip("::ffff:1.2.3.4").is_err());
        assert!(config_key("..a").is_err());
    }
}
