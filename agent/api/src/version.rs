//! What a client says about the version of a list that it wants.
//!
//! Source: Kubernetes API concepts, "Resource versions"; k8s.io/apimachinery
//! `pkg/apis/internalversion/validation` for what goes together, `pkg/storage` for the errors.

use crate::failure::Failure;
use crate::params::Params;

/// The version that a list must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The newest, or any: the newest is also that.
    Newest,
    /// This one or a newer one.
    NotOlderThan(u64),
    /// This one and no other.
    Exact(u64),
}

const MATCH: &str = "resourceVersionMatch";
const KIND: &str = "ListOptions.meta.k8s.io";

fn forbidden(field: &str, message: &str) -> Failure {
    Failure::invalid_option(KIND, "", field, "FieldValueForbidden", &format!("Forbidden: {message}"))
}

fn not_supported(given: &str, supported: &str) -> Failure {
    let message = format!("Unsupported value: {given:?}: supported values: {supported}");
    Failure::invalid_option(KIND, "", MATCH, "FieldValueNotSupported", &message)
}

/// The version in the query; none and `0` are any.
pub(crate) fn version(params: &Params) -> Result<Option<u64>, Failure> {
    let Some(text) = params.text("resourceVersion") else { return Ok(None) };
    let number = text.parse::<u64>();
    let number = number.map_err(|_| Failure::bad_request(format!("invalid resource version: {text:?}")))?;
    Ok(Some(number).filter(|version| *version > 0))
}

/// Whether a watch's options go together.
pub(crate) fn check_watch(params: &Params) -> Result<(), Failure> {
    let (given, initial) = (params.text(MATCH), params.get("sendInitialEvents").is_some());
    match given {
        None if initial => {
            Err(forbidden(MATCH, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"))
        }
        Some(_) if !initial => {
            Err(forbidden(MATCH, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"))
        }
        Some(_) if params.text("continue").is_some() => {
            Err(forbidden(MATCH, "resourceVersionMatch is forbidden for continue requests"))
        }
        Some(given) if given != "NotOlderThan" => Err(not_supported(given, "\"NotOlderThan\"")),
        _ => Ok(()),
    }
}

impl Wanted {
    /// Reads what a list asks for.
    pub(crate) fn of_list(params: &Params) -> Result<Wanted, Failure> {
        let given = params.text(MATCH);
        if given.is_some() && params.text("resourceVersion").is_none() {
            return Err(forbidden(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        if given.is_some() && params.text("continue").is_some() {
            return Err(forbidden(MATCH, "resourceVersionMatch is forbidden for continue requests"));
        }
        if let Some(given) = given.filter(|given| !matches!(*given, "Exact" | "NotOlderThan")) {
            return Err(not_supported(given, "\"Exact\", \"NotOlderThan\", \"\""));
        }
        if params.get("sendInitialEvents").is_some() {
            return Err(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        let asked = version(params)?;
        if asked.is_some() && params.text("continue").is_some() {
            return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
        }
        let limited = params.number("limit")?.is_some_and(|limit| limit > 0);
        match (asked, given) {
            (None, Some("Exact")) => {
                Err(forbidden(MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""))
            }
            (None, _) => Ok(Wanted::Newest),
            (Some(asked), Some("Exact")) => Ok(Wanted::Exact(asked)),
            // Without a match a limit makes it exact, as the first page of a list that goes on.
            (Some(asked), None) if limited => Ok(Wanted::Exact(asked)),
            (Some(asked), _) => Ok(Wanted::NotOlderThan(asked)),
        }
    }

    /// Whether a list of the version `listed` will do; `given_out` says whether a version that is newer was given out
    /// for another list, after which this one has not changed.
    pub(crate) fn check(self, listed: u64, given_out: impl FnOnce(u64) -> bool) -> Result<(), Failure> {
        match self {
            Wanted::NotOlderThan(asked) | Wanted::Exact(asked) if asked > listed => {
                if given_out(asked) {
                    Ok(())
                } else {
                    Err(Failure::version_too_large(asked, listed))
                }
            }
            Wanted::Exact(asked) if asked < listed => Err(Failure::list_expired()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> Result<Wanted, (u16, String)> {
        Wanted::of_list(&Params::of(query)).map_err(|failure| (failure.code().as_u16(), failure.message().to_owned()))
    }

    #[test]
    fn a_version_means_what_the_api_server_says_it_means() {
        for (query, expected) in [
            ("", Wanted::Newest),
            ("resourceVersion=0", Wanted::Newest),
            ("resourceVersion=", Wanted::Newest),
            ("resourceVersion=0&resourceVersionMatch=NotOlderThan", Wanted::Newest),
            ("resourceVersion=7", Wanted::NotOlderThan(7)),
            ("resourceVersion=7&resourceVersionMatch=NotOlderThan&limit=5", Wanted::NotOlderThan(7)),
            ("resourceVersion=7&limit=5", Wanted::Exact(7)),
            ("resourceVersion=7&resourceVersionMatch=Exact", Wanted::Exact(7)),
            ("continue=a%2Fb&limit=5", Wanted::Newest),
        ] {
            assert_eq!(wanted(query), Ok(expected), "{query}");
        }
    }

    #[test]
    fn options_that_do_not_go_together_are_refused_in_the_api_servers_words() {
        for (query, code, part) in [
            ("resourceVersion=abc", 400, "invalid resource version"),
            ("resourceVersion=-1", 400, "invalid resource version"),
            ("resourceVersion=7&continue=a%2Fb", 400, "not allowed when using continue"),
            ("resourceVersionMatch=Exact", 422, "forbidden unless resourceVersion is provided"),
            ("resourceVersion=0&resourceVersionMatch=Exact", 422, "forbidden for resourceVersion \"0\""),
            ("resourceVersion=7&resourceVersionMatch=Newest", 422, "Unsupported value: \"Newest\""),
            ("resourceVersion=7&resourceVersionMatch=Exact&continue=a", 422, "forbidden for continue"),
            ("sendInitialEvents=true", 422, "forbidden for list"),
        ] {
            let (found, message) = wanted(query).unwrap_err();
            assert_eq!(found, code, "{query}: {message}");
            assert!(message.contains(part), "{query}: {message}");
        }
        assert!(check_watch(&Params::of("sendInitialEvents=true")).is_err());
        assert!(check_watch(&Params::of("resourceVersionMatch=NotOlderThan")).is_err());
        assert!(check_watch(&Params::of("sendInitialEvents=true&resourceVersionMatch=Exact")).is_err());
        assert!(check_watch(&Params::of("sendInitialEvents=true&resourceVersionMatch=NotOlderThan")).is_ok());
    }

    #[test]
    fn a_list_is_given_only_when_it_is_what_was_asked_for() {
        let code = |wanted: Wanted, given_out: bool| wanted.check(10, |_| given_out).map_err(|it| it.code().as_u16());
        assert_eq!(code(Wanted::NotOlderThan(9), false), Ok(()));
        assert_eq!(code(Wanted::NotOlderThan(11), false), Err(504));
        assert_eq!(code(Wanted::NotOlderThan(11), true), Ok(()));
        assert_eq!(code(Wanted::Exact(10), false), Ok(()));
        assert_eq!(code(Wanted::Exact(9), false), Err(410));
        assert_eq!(code(Wanted::Exact(11), false), Err(504));
    }
}
