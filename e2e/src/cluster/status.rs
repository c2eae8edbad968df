//! Refusals as the API conventions have them: objects of kind `Status`.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use super::double::Kind;

/// Whatever ended an answer before its end.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What an answer carries: whole, or the lines of a watch as they come.
pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Why a request was not carried out.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Value,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, retry_after: None }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details = json!({ "name": name, "group": kind.group, "kind": kind.plural });
        self
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// A path that nobody serves.
    pub(super) fn no_such_resource() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    pub(super) fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.resource());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(kind, name)
    }

    /// The same, by the name of a resource.
    pub(super) fn no_such_object(resource: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{resource} {name:?} not found"))
    }

    pub(super) fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.resource());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(kind, name)
    }

    /// Another write came first, or a precondition does not hold.
    pub(super) fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.resource());
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(kind, name)
    }

    /// The same, of whatever object.
    pub(super) fn modified(why: &str) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", format!("Operation cannot be fulfilled: {why}"))
    }

    /// Fields of server-side apply that others own: manager and path of each.
    pub(super) fn fields_are_owned(conflicts: &[(String, String)]) -> Self {
        let count = conflicts.len();
        let plural = if count == 1 { "" } else { "s" };
        let list: Vec<_> =
            conflicts.iter().map(|(manager, field)| format!("conflict with {manager:?}: {field}")).collect();
        let message = format!("Apply failed with {count} conflict{plural}: {}", list.join("; "));
        let mut refusal = Self::new(StatusCode::CONFLICT, "Conflict", message);
        let causes = conflicts.iter().map(|(manager, field)| {
            json!({ "reason": "FieldManagerConflict", "message": format!("conflict with {manager:?}"), "field": field })
        });
        refusal.details = json!({ "causes": causes.collect::<Vec<_>>() });
        refusal
    }

    pub(super) fn invalid(kind: &Kind, name: &str, field: &str, why: &str) -> Self {
        let message = format!("{}.{} {name:?} is invalid: {field}: {why}", kind.kind, kind.group);
        let mut refusal = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).about(kind, name);
        refusal.details["causes"] = json!([{ "reason": "FieldValueInvalid", "message": why, "field": field }]);
        refusal
    }

    pub(super) fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} {name:?} is forbidden: {why}", kind.resource());
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(kind, name)
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub(super) fn unsupported_media(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// What was asked for is older than the history that is kept.
    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// A resourceVersion that this server has not reached yet.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut refusal = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        refusal.details = json!({ "causes": [cause], "retryAfterSeconds": 1 });
        refusal.retry_after = Some(Duration::from_secs(1));
        refusal
    }

    pub(super) fn too_many(retry_after: Duration) -> Self {
        let message = "Too many requests, please try again later.";
        let mut refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        refusal.details = json!({ "retryAfterSeconds": retry_after.as_secs() });
        refusal.retry_after = Some(retry_after);
        refusal
    }

    pub(super) fn internal(message: &str) -> Self {
        let message = format!("Internal error occurred: {message}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// The object that tells it.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }

    /// The answer that tells it.
    pub(super) fn answer(&self) -> Response<Body> {
        let mut answer = json_answer(self.code, &self.status());
        if let Some(retry_after) = self.retry_after {
            answer.headers_mut().insert(RETRY_AFTER, retry_after.as_secs().into());
        }
        answer
    }
}

/// An answer that carries a document.
pub(super) fn json_answer(code: StatusCode, document: &Value) -> Response<Body> {
    whole(code, HeaderValue::from_static("application/json"), document.to_string().into())
}

/// An answer that is there at once.
pub(super) fn whole(code: StatusCode, media_type: HeaderValue, bytes: Bytes) -> Response<Body> {
    let mut answer = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, media_type);
    answer
}
