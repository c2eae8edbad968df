//! Label and field selectors.
//!
//! ```text
//! labels:  a=b  a==b  a!=b  a in (x,y)  a notin (x,y)  a  !a  a>1  a<1      joined by ','
//! fields:  path=value  path==value  path!=value   with \, \= \\ as escapes  joined by ','
//! ```
//! Source: k8s.io/apimachinery/pkg/{labels,fields}/selector.go.

use std::collections::{BTreeMap, BTreeSet};

use crate::failure::Failure;

/// The longest selector that is read at all.
const MAX_LENGTH_BYTES: usize = 64 * 1024;

/// Requirements on labels that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Above(i64),
    Below(i64),
}

impl LabelSelector {
    /// Reads a selector; nothing selects everything.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if text.len() > MAX_LENGTH_BYTES {
            return Err(Failure::bad_request("labelSelector: too long"));
        }
        Parser { tokens: tokens(text) }
            .requirements()
            .map(LabelSelector)
            .map_err(|problem| Failure::bad_request(format!("unable to parse labelSelector {text:?}: {problem}")))
    }

    /// Whether these labels satisfy every requirement.
    pub(crate) fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.and_then(|labels| labels.get(&requirement.key));
            match &requirement.test {
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Above(bound) => number(value).is_some_and(|value| value > *bound),
                Test::Below(bound) => number(value).is_some_and(|value| value < *bound),
            }
        })
    }
}

fn number(value: Option<&String>) -> Option<i64> {
    value.and_then(|value| value.parse().ok())
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Comma,
    Open,
    Close,
    Not,
    Equal,
    NotEqual,
    Above,
    Below,
}

/// A token as it was written, or that there is none.
fn written(token: Option<&Token>) -> String {
    let text = match token {
        None => return "the end".to_owned(),
        Some(Token::Word(word)) => word,
        Some(Token::Comma) => ",",
        Some(Token::Open) => "(",
        Some(Token::Close) => ")",
        Some(Token::Not) => "!",
        Some(Token::Equal) => "=",
        Some(Token::NotEqual) => "!=",
        Some(Token::Above) => ">",
        Some(Token::Below) => "<",
    };
    format!("'{text}'")
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        let token = match first {
            ' ' | '\t' | '\r' | '\n' => continue,
            ',' => Token::Comma,
            '(' => Token::Open,
            ')' => Token::Close,
            '>' => Token::Above,
            '<' => Token::Below,
            '=' => {
                rest.next_if_eq(&'=');
                Token::Equal
            }
            '!' => match rest.next_if_eq(&'=') {
                Some(_) => Token::NotEqual,
                None => Token::Not,
            },
            _ => {
                let mut word = String::from(first);
                while let Some(next) = rest.next_if(|next| !" \t\r\n,()><=!".contains(*next)) {
                    word.push(next);
                }
                Token::Word(word)
            }
        };
        tokens.push(token);
    }
    tokens.reverse();
    tokens
}

/// Reads from the end of `tokens`, which are in reverse.
struct Parser {
    tokens: Vec<Token>,
}

impl Parser {
    fn requirements(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        while !self.tokens.is_empty() {
            requirements.push(self.requirement()?);
            match self.tokens.pop() {
                None => break,
                Some(Token::Comma) if !self.tokens.is_empty() => {}
                Some(Token::Comma) => return Err("nothing follows the last ','".to_owned()),
                other => return Err(format!("found {}, expected ','", written(other.as_ref()))),
            }
        }
        Ok(requirements)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.next_if(&Token::Not) {
            return Ok(Requirement { key: self.key()?, test: Test::Absent });
        }
        let key = self.key()?;
        let test = match self.tokens.last() {
            None | Some(Token::Comma) => Test::Exists,
            Some(_) => match self.tokens.pop() {
                Some(Token::Equal) => Test::In(BTreeSet::from([self.value()?])),
                Some(Token::NotEqual) => Test::NotIn(BTreeSet::from([self.value()?])),
                Some(Token::Above) => Test::Above(self.bound()?),
                Some(Token::Below) => Test::Below(self.bound()?),
                Some(Token::Word(word)) if word == "in" => Test::In(self.values()?),
                Some(Token::Word(word)) if word == "notin" => Test::NotIn(self.values()?),
                other => {
                    let found = written(other.as_ref());
                    return Err(format!("found {found}, expected one of =, ==, !=, in, notin, <, >"));
                }
            },
        };
        Ok(Requirement { key, test })
    }

    fn next_if(&mut self, token: &Token) -> bool {
        let found = self.tokens.last() == Some(token);
        if found {
            self.tokens.pop();
        }
        found
    }

    fn key(&mut self) -> Result<String, String> {
        match self.tokens.pop() {
            Some(Token::Word(word)) => Ok(word),
            other => Err(format!("found {}, expected a key", written(other.as_ref()))),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        match self.tokens.last() {
            // `a=` asks for the empty value.
            None | Some(Token::Comma | Token::Close) => Ok(String::new()),
            Some(Token::Word(_)) => self.key(),
            other => Err(format!("found {}, expected a value", written(other))),
        }
    }

    fn bound(&mut self) -> Result<i64, String> {
        let value = self.value()?;
        value.parse().map_err(|_| format!("{value:?} is not a whole number"))
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        if !self.next_if(&Token::Open) {
            return Err("expected '(' after in or notin".to_owned());
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            match self.tokens.pop() {
                Some(Token::Comma) => {}
                Some(Token::Close) => return Ok(values),
                other => return Err(format!("found {}, expected ',' or ')'", written(other.as_ref()))),
            }
        }
    }
}

/// Requirements on fields that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<(String, bool, String)>);

impl FieldSelector {
    /// Reads a selector whose fields must be among `supported`.
    pub(crate) fn parse(text: &str, supported: &[&str]) -> Result<Self, Failure> {
        if text.len() > MAX_LENGTH_BYTES {
            return Err(Failure::bad_request("fieldSelector: too long"));
        }
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|term| !term.is_empty()) {
            let (field, equal, value) = split_term(&term).ok_or_else(|| {
                Failure::bad_request(format!("invalid field selector: {text:?}; can't understand {term:?}"))
            })?;
            if !supported.contains(&field) {
                return Err(Failure::bad_request(format!(
                    "field label not supported: {field} (supported here: {})",
                    supported.join(", ")
                )));
            }
            terms.push((field.to_owned(), equal, unescape(value)?));
        }
        Ok(FieldSelector(terms))
    }

    /// Whether an object whose fields `read` returns satisfies every term.
    pub(crate) fn matches(&self, read: impl Fn(&str) -> String) -> bool {
        self.0.iter().all(|(field, equal, value)| (read(field) == *value) == *equal)
    }
}

fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for next in text.chars() {
        if next == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = next == '\\' && !escaped;
        if let Some(term) = terms.last_mut() {
            term.push(next);
        }
    }
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find(['=', '!'])?;
    let (field, rest) = term.split_at_checked(at)?;
    let (equal, value) = match rest.strip_prefix("!=") {
        Some(value) => (false, value),
        None => (true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?),
    };
    Some((field, equal, value))
}

fn unescape(value: &str) -> Result<String, Failure> {
    let invalid = || Failure::bad_request(format!("invalid field selector: bad escape in {value:?}"));
    let mut text = String::with_capacity(value.len());
    let mut rest = value.chars();
    while let Some(next) = rest.next() {
        match next {
            '\\' => match rest.next() {
                Some(literal @ ('\\' | ',' | '=')) => text.push(literal),
                _ => return Err(invalid()),
            },
            '=' => return Err(invalid()),
            other => text.push(other),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        LabelSelector::parse(selector).unwrap().matches(Some(&labels))
    }

    #[test]
    fn every_operator_of_a_label_selector_is_understood() {
        let web = [("app", "web"), ("tier", "front"), ("n", "5"), ("empty", "")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app=db", false),
            ("app!=db", true),
            ("missing!=x", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("app in (web, db)", true),
            ("app in (db)", false),
            ("app notin (db),tier", true),
            ("missing notin (a,b)", true),
            ("n>4", true),
            ("n < 5", false),
            ("missing>4", false),
            ("empty=", true),
            ("app in (,web)", true),
            (" app = web , tier ", true),
        ] {
            assert_eq!(selects(selector, &web), expected, "{selector}");
        }
    }

    #[test]
    fn a_broken_label_selector_is_a_bad_request() {
        for selector in ["=a", "a in", "a in x", "a in (x", "a,", "a b", "a>x", "!", "(a)", "a=b=c", "!a=b"] {
            let failure = LabelSelector::parse(selector).unwrap_err();
            assert_eq!(failure.code(), 400, "{selector}");
        }
    }

    #[test]
    fn what_stands_in_the_way_is_shown_as_it_was_written() {
        for (selector, expected) in [
            ("!!", "unable to parse labelSelector \"!!\": found '!', expected a key"),
            ("!", "unable to parse labelSelector \"!\": found the end, expected a key"),
            ("a b", "unable to parse labelSelector \"a b\": found 'b', expected one of =, ==, !=, in, notin, <, >"),
            ("a=!=", "unable to parse labelSelector \"a=!=\": found '!=', expected a value"),
            ("a in (x", "unable to parse labelSelector \"a in (x\": found the end, expected ',' or ')'"),
            ("a=b=c", "unable to parse labelSelector \"a=b=c\": found '=', expected ','"),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().message(), expected);
        }
    }

    #[test]
    fn a_field_selector_compares_and_escapes() {
        let read = |field: &str| match field {
            "metadata.name" => "a,b=c".to_owned(),
            _ => "default".to_owned(),
        };
        let fields = ["metadata.name", "metadata.namespace"];
        for (selector, expected) in [
            ("", true),
            ("metadata.name=a\\,b\\=c", true),
            ("metadata.name!=a\\,b\\=c", false),
            ("metadata.namespace==default,metadata.name!=x", true),
            ("metadata.namespace=other", false),
        ] {
            let parsed = FieldSelector::parse(selector, &fields).unwrap();
            assert_eq!(parsed.matches(read), expected, "{selector}");
        }
    }

    #[test]
    fn an_unknown_field_names_the_known_ones() {
        let failure = FieldSelector::parse("spec.foo=1", &["metadata.name"]).unwrap_err();
        assert!(failure.message().starts_with("field label not supported: spec.foo"));
        assert!(failure.message().contains("metadata.name"));
    }
}
