//! `WWW-Authenticate`: what a registry wants to see.
//!
//! Source: RFC 9110 §11.6.1, distribution `docs/spec/auth/token.md`.

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from `realm`.
    Bearer { realm: String, service: Option<String> },
    /// Name and password.
    Basic,
}

/// The best challenge among the header's values: a token is better than a password.
pub(crate) fn best<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, parameters) in headers.flat_map(parse) {
        let get = |name: &str| parameters.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = get("realm") {
                return Some(Challenge::Bearer { realm, service: get("service") });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

type Parsed = (String, Vec<(String, String)>);

fn parse(header: &str) -> Vec<Parsed> {
    let mut found: Vec<Parsed> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',', '\t', '"']).unwrap_or(rest.len());
        let (token, after) = rest.split_at(end);
        let next = after.trim_start_matches([' ', '\t']);
        if token.is_empty() {
            // A stray '=' or quote: nothing that follows can be trusted.
            return found;
        }
        if let (Some(value), Some((_, parameters))) = (next.strip_prefix('='), found.last_mut()) {
            let (value, after) = take_value(value.trim_start_matches([' ', '\t']));
            parameters.push((token.to_owned(), value));
            rest = after;
        } else {
            found.push((token.to_owned(), Vec::new()));
            rest = next;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
}

fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_preferred_wherever_its_challenge_stands() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into) })
        };
        for (headers, expect) in [
            (vec![r#"Bearer realm="https://a/t",service="s",scope="x:y,z""#], bearer("https://a/t", Some("s"))),
            (vec![r#"Basic realm="r", bearer Realm = "https://a/\"t" "#], bearer("https://a/\"t", None)),
            (vec!["Basic realm=r", "Bearer realm=https://a/t,service=s"], bearer("https://a/t", Some("s"))),
            (vec![r#"Basic realm="Registry""#], Some(Challenge::Basic)),
            (vec!["Negotiate abc=="], None),
            (vec!["Bearer service=x"], None),
            (vec![r#"="#], None),
        ] {
            assert_eq!(best(headers.iter().copied()), expect, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn any_header_ends_in_an_answer(text in "[ -~]{0,80}") {
            let _any = best([text.as_str()].into_iter());
        }
    }
}
