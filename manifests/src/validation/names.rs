//! The forms of names: labels, subdomains, qualified names, ports, users.

use crate::yaml::{UNFILLED, has_template};

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

/// How to mend a text that is no IP address.
pub(super) fn mended_ip(text: &str) -> String {
    if let Ok(std::net::IpAddr::V6(address)) = text.parse()
        && let Some(mapped) = address.to_ipv4_mapped()
    {
        return format!("write the IPv4 address: `{mapped}`");
    }
    let number = |part: &str| part.parse::<u8>().map(|number| number.to_string());
    match text.split('.').map(number).collect::<Result<Vec<_>, _>>() {
        Ok(parts) if parts.len() == 4 => format!("without leading zeros: `{}`", parts.join(".")),
        _ => "give the address itself: names are not looked up here".to_owned(),
    }
}

/// How to mend a text that failed a check of names: the nearest text that passes it.
pub(super) fn mended(text: &str, check: fn(&str) -> Check) -> String {
    /// Longer ones are not worth reading again.
    const SHOWN: usize = 40;
    /// Nothing that is this long was meant as a name.
    const READ: usize = 1024;
    if has_template(text) {
        return UNFILLED.to_owned();
    }
    let filler = if check("a_b").is_ok() { '_' } else { '-' };
    let example = || format!("for example `web{filler}1`");
    let good = |name: &str| !name.is_empty() && check(name).is_ok();
    if text.len() > READ {
        return example();
    }
    let candidates = candidates(text, filler);
    if let Some(name) = candidates.iter().find(|name| good(name)) {
        return if name.len() <= SHOWN { format!("for example `{name}`") } else { first_change(text, name) };
    }
    // What is only too long passes when it is cut: as a whole, or after its prefix.
    let excess = |name: &String| {
        let from = name.find('/').map_or(0, |at| at + 1);
        let cut = |most: usize| name.get(..from + most).is_some_and(|name| good(name.trim_end_matches(is_joint)));
        let most = [253, 63, 15].into_iter().find(|most| cut(*most))?;
        Some(name.len() - from - most)
    };
    match candidates.iter().find_map(excess) {
        Some(excess) => format!("shorten it by {excess}"),
        None => example(),
    }
}

/// Where a text begins to differ from a good one.
fn first_change(text: &str, good: &str) -> String {
    let same = text.chars().zip(good.chars()).take_while(|(a, b)| a == b).count();
    match text.chars().nth(same) {
        Some(first) => format!("change {first:?}, its character {}", same + 1),
        None => format!("end it after character {same}"),
    }
}

fn is_joint(c: char) -> bool {
    !c.is_ascii_alphanumeric()
}

/// Texts like this one that may be names, the most like it first.
fn candidates(text: &str, filler: char) -> [String; 6] {
    let clean = |kept: &[char]| {
        let mut name = String::with_capacity(text.len());
        let mut prefixed = false;
        for c in text.chars() {
            let known = c.is_ascii_alphanumeric() || c == '-' || c == filler;
            let c = if known || (kept.contains(&c) && !(c == '/' && prefixed)) { c } else { filler };
            if c == '/' {
                // What stands before it is a domain.
                prefixed = true;
                name = name.to_ascii_lowercase().replace('_', "-");
            }
            if !(is_joint(c) && name.ends_with(is_joint)) {
                name.push(c);
            }
        }
        if name.ends_with('/') {
            name.push_str("name");
        }
        name.trim_matches(is_joint).to_owned()
    };
    let names = [clean(&['.', '/']), clean(&['.']), clean(&[])];
    let [lower, lower_dots, lower_plain] = names.each_ref().map(|name| name.to_ascii_lowercase());
    let [full, dots, plain] = names;
    [full, lower, dots, lower_dots, plain, lower_plain]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_good_name_is_named() {
        let long = format!("{}_{}", "a".repeat(30), "b".repeat(30));
        for (text, check, expected) in [
            ("Web", label as fn(&str) -> Check, "for example `web`"),
            ("my_App.", subdomain, "for example `my-app`"),
            ("a..b", subdomain, "for example `a.b`"),
            ("a.b/c", label, "for example `a-b-c`"),
            ("-x", subdomain, "for example `x`"),
            ("Example.com/Name", qualified, "for example `example.com/Name`"),
            ("a_b/c", qualified, "for example `a-b/c`"),
            ("a/b/c", qualified, "for example `a/b_c`"),
            ("a/", qualified, "for example `a/name`"),
            ("a b", label_value, "for example `a_b`"),
            ("A=B", variable, "for example `A_B`"),
            ("..a", config_key, "for example `a`"),
            ("HTTP--80", port_name, "for example `http-80`"),
            ("80", port_name, "for example `web-1`"),
            ("\u{e9}", variable, "for example `web_1`"),
            ("", subdomain, "for example `web-1`"),
            (&long, label, "change '_', its character 31"),
            (&format!("{}-", "a".repeat(50)), label, "change '-', its character 51"),
            (&"a".repeat(64), label, "shorten it by 1"),
            (&"a".repeat(254), subdomain, "shorten it by 1"),
            (&format!("example.com/{}", "a".repeat(65)), qualified, "shorten it by 2"),
            (&"a".repeat(1 << 20), port_name, "for example `web-1`"),
        ] {
            assert_eq!(mended(text, check), expected, "{text}");
        }
    }

    #[test]
    fn addresses_are_mended() {
        for (text, expected) in [
            ("010.0.0.1", "without leading zeros: `10.0.0.1`"),
            ("::ffff:1.2.3.4", "write the IPv4 address: `1.2.3.4`"),
            ("dns.example.com", "give the address itself: names are not looked up here"),
        ] {
            assert_eq!(mended_ip(text), expected, "{text}");
        }
    }

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
