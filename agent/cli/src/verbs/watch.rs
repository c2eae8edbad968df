//! Following a list from a version on.

use http::{Method, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, Lines, Refused, empty, with_query};

/// One change.
#[derive(Debug, Deserialize)]
pub(crate) struct Change {
    /// `ADDED`, `MODIFIED`, `DELETED`.
    #[serde(rename = "type")]
    pub(crate) word: String,
    /// The object, or a table of it.
    pub(crate) object: Value,
}

/// A stream of changes.
pub(crate) struct Changes(Lines);

/// Whether a list changed faster than it was followed: the agent has forgotten what came next, and
/// the list has to be taken again.
pub(crate) fn has_expired(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == StatusCode::GONE)
}

/// Follows the list at `path` after `version`.
///
/// # Errors
/// See [`has_expired`].
pub(crate) async fn follow(
    client: &Client,
    path: &str,
    query: &[(&str, &str)],
    version: &str,
    accept: &str,
) -> anyhow::Result<Changes> {
    let mut query = query.to_vec();
    query.extend([("watch", "1"), ("resourceVersion", version)]);
    let answer = client.request(Method::GET, &with_query(path, &query), accept, empty()).await?;
    Ok(Changes(answer.lines()))
}

impl Changes {
    /// The next change; `None` when the agent has ended the stream.
    ///
    /// # Errors
    /// See [`has_expired`].
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Change>> {
        loop {
            let Some(change) = self.0.next::<Change>().await? else { return Ok(None) };
            match change.word.as_str() {
                "BOOKMARK" => {}
                "ERROR" => {
                    let status: Status = serde_json::from_value(change.object).unwrap_or_default();
                    let code = status.code.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
                    let message = format!("the watch ended: {}", status.message.unwrap_or_default());
                    let code = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                    return Err(Refused { code, message, causes: Vec::new() }.into());
                }
                _ => return Ok(Some(change)),
            }
        }
    }
}
