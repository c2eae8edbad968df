//! `Retry-After`: when a registry that has too much to do wants to be asked again.
//!
//! Source: RFC 9110 §10.2.3, RFC 6585 §4.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use reqwest::{Response, StatusCode, header::RETRY_AFTER};

use crate::registry::RegistryError;

/// What one request waits for at most, in all; a registry that wants more fails the pull, which is asked for again later.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nobody is believed who wants to be left alone for longer.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// The least that is waited, whatever a registry says.
const SHORTEST: Duration = Duration::from_secs(1);

/// A date is a date, whatever day of the week it is said to be.
static DATES: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);

/// What is left of the time that a request may wait for because it was asked to.
pub(crate) struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(PATIENCE)
    }
}

impl Patience {
    /// How long to wait when a registry asks for `pause`; none when that is more than is left.
    pub(crate) fn take(&mut self, pause: Duration) -> Option<Duration> {
        let pause = pause.max(SHORTEST);
        self.0 = self.0.checked_sub(pause)?;
        Some(pause)
    }
}

/// Sends a request, again when it is answered that it comes too early, as long as that takes little time.
pub(crate) async fn send(url: &str, request: reqwest::RequestBuilder) -> Result<Response, RegistryError> {
    let mut request = request;
    let mut patience = Patience::default();
    loop {
        let again = request.try_clone();
        let answer = request.send().await.map_err(|e| RegistryError::from_request(url, e))?;
        let (Some(pause), Some(again)) = (asked_for(&answer), again) else { return Ok(answer) };
        let Some(pause) = patience.take(pause) else { return Ok(answer) };
        tracing::debug!(url, ?pause, status = answer.status().as_u16(), "registry wants to be asked later");
        // Its connection is not of use any more than its body.
        drop(answer);
        tokio::time::sleep(pause).await;
        request = again;
    }
}

/// How long the registry asks to be left alone.
pub(crate) fn asked_for(answer: &Response) -> Option<Duration> {
    if !matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    parse(answer.headers().get(RETRY_AFTER)?.to_str().ok()?, Timestamp::now())
}

/// Seconds, or a date.
fn parse(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let pause = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        // Its form is the one that mail has, too.
        Err(_) if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() => LONGEST,
        Err(_) => {
            let then = match DATES.parse_zoned(value) {
                Ok(date) => date.timestamp(),
                // The last days that a date can name are beyond what is counted here.
                Err(_) if value.ends_with(" GMT") && value.contains(" Dec 9999 ") => Timestamp::MAX,
                Err(_) => return None,
            };
            Duration::try_from(then.duration_since(now)).unwrap_or_default()
        }
    };
    Some(pause.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pause_is_given_in_seconds_or_as_a_date_and_has_a_bound() {
        let now = "1994-11-06T08:49:37Z".parse().unwrap();
        for (value, seconds) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("0", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("Fri, 06 Nov 2094 08:48:37 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(LONGEST.as_secs())),
            ("99999999", Some(LONGEST.as_secs())),
            ("99999999999999999999999999", Some(LONGEST.as_secs())),
            ("", None),
            ("-1", None),
            ("soon", None),
        ] {
            let expected = if value.contains("2094") { Some(LONGEST) } else { seconds.map(Duration::from_secs) };
            assert_eq!(parse(value, now), expected, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn any_value_ends_in_an_answer(value in "[ -~]{0,40}") {
            let _any = parse(&value, Timestamp::UNIX_EPOCH);
        }
    }
}
