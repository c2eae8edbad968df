//! Query parameters with Kubernetes' rules: repeated keys, `1`/`true`, unknown ones ignored.

use axum::extract::{FromRequestParts, Query};
use http::request::Parts;

use crate::failure::Failure;

/// The query of a request, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// The first value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The first value of a key, when it is not empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// Every value of a key, in order.
    pub(crate) fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
    }

    /// A boolean; a key without value counts as true, as the API server has it.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, Failure> {
        match self.get(key) {
            None | Some("0" | "false" | "False" | "FALSE" | "f" | "F") => Ok(false),
            Some("" | "1" | "true" | "True" | "TRUE" | "t" | "T") => Ok(true),
            Some(other) => Err(Failure::bad_request(format!("{key}: {other:?} is not a boolean"))),
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, Failure> {
        let Some(text) = self.text(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Failure::bad_request(format!("{key}: {text:?} is not a number from 0 on")))
    }
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let Query(pairs) =
            Query::try_from_uri(&parts.uri).map_err(|error| Failure::bad_request(format!("query: {error}")))?;
        Ok(Params(pairs))
    }
}

#[cfg(test)]
impl Params {
    /// The parameters of a query as it stands in a URL.
    pub(crate) fn of(query: &str) -> Params {
        let uri: http::Uri = format!("http://localhost/?{query}").parse().unwrap();
        Params(Query::try_from_uri(&uri).unwrap().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_repeat() {
        assert_eq!(Params::of("command=echo&command=a%20b&tty=1").all("command"), ["echo", "a b"]);
    }

    #[test]
    fn a_flag_without_value_is_true_and_nonsense_is_refused() {
        assert!(Params::of("watch").flag("watch").unwrap());
        assert!(!Params::of("watch=0").flag("watch").unwrap());
        assert!(Params::of("watch=maybe").flag("watch").is_err());
    }

    #[test]
    fn a_negative_number_is_refused() {
        assert!(Params::of("tailLines=-1").number("tailLines").is_err());
        assert_eq!(Params::of("tailLines=7").number("tailLines").unwrap(), Some(7));
    }
}
