//! Errors as the API server says them: a `Status` with the right code and reason.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};

use portreeve_node::WatchError;

use crate::backend::BackendError;

/// A request that failed, as a metav1 `Status`.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Box<StatusDetails>,
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Failure { code, reason, message: message.into(), details: Box::default() }
    }

    /// 404 for one object, in kubectl's words: `pods "web" not found`.
    pub fn not_found(resource: &str, name: &str) -> Self {
        let mut failure = Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{resource} \"{name}\" not found"));
        failure.details.kind = Some(resource.to_owned());
        failure.details.name = Some(name.to_owned());
        failure
    }

    /// 404 for a path.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 403: this client may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 405: the path exists, the method does not.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406: none of the forms the client accepts is known.
    pub fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/json;as=Table;v=v1;g=meta.k8s.io",
        )
    }

    /// 409: the state of the object forbids it.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// 410: that version is no longer known; list again.
    pub fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(StatusCode::GONE, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// 410: a list as it was at that version is no longer known.
    pub fn list_expired() -> Self {
        Self::new(StatusCode::GONE, "Expired", "The provided resource version is too old: take the list without one")
    }

    /// 504: that version was not given out yet; what the client has is from another life of the agent.
    pub fn version_too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let mut failure = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        failure.details.retry_after_seconds = Some(1);
        failure.details.causes = Some(vec![StatusCause {
            reason: Some("ResourceVersionTooLarge".to_owned()),
            message: Some("Too large resource version".to_owned()),
            ..StatusCause::default()
        }]);
        failure
    }

    /// 422: an option of a request that cannot be; `problem` is the API server's word for what kind of wrong it is.
    pub fn invalid_option(kind: &str, name: &str, field: &str, problem: &str, message: &str) -> Self {
        let mut failure = Self::invalid(format!("{kind} \"{name}\" is invalid: {field}: {message}"));
        failure.details.kind = Some(kind.to_owned());
        failure.details.name = Some(name.to_owned()).filter(|name| !name.is_empty());
        failure.details.causes = Some(vec![StatusCause {
            reason: Some(problem.to_owned()),
            message: Some(message.to_owned()),
            field: Some(field.to_owned()),
        }]);
        failure
    }

    /// 413: larger than the bound.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// 422: what was sent is not valid.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// 429: a bound is reached.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
    }

    /// 500: something here failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// The HTTP code.
    pub fn code(&self) -> StatusCode {
        self.code
    }

    /// What went wrong, for a person.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The object that goes over the wire.
    pub fn status(&self) -> Status {
        Status {
            code: Some(i32::from(self.code.as_u16())),
            // Never absent: of a 404, `kubectl debug` reads the name in the details without asking for them first.
            details: Some((*self.details).clone()),
            message: Some(self.message.clone()),
            reason: Some(self.reason.to_owned()),
            status: Some("Failure".to_owned()),
            ..Status::default()
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.code, axum::Json(self.status())).into_response()
    }
}

impl From<WatchError> for Failure {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::TooOld { asked, oldest } => Failure::expired(asked, oldest),
        }
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        let (code, reason) = match &error {
            BackendError::Command { .. } => (StatusCode::BAD_REQUEST, "BadRequest"),
            BackendError::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            BackendError::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            BackendError::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            BackendError::Conflict(_) => (StatusCode::CONFLICT, "Conflict"),
            BackendError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            BackendError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        };
        let mut failure = Self::new(code, reason, error.to_string());
        if let BackendError::Invalid { causes, .. } = error {
            let cause = |cause| StatusCause { message: Some(cause), ..StatusCause::default() };
            failure.details.causes = (!causes.is_empty()).then(|| causes.into_iter().map(cause).collect());
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_pod_reads_as_kubectl_expects() {
        let status = serde_json::to_value(Failure::not_found("pods", "web").status()).unwrap();
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["code"], 404);
        assert_eq!(status["reason"], "NotFound");
        assert_eq!(status["message"], "pods \"web\" not found");
        assert_eq!(status["details"]["kind"], "pods");
    }

    #[test]
    fn every_failure_has_details() {
        for failure in [Failure::no_such_path(), Failure::method_not_allowed(), Failure::internal("x")] {
            let status = serde_json::to_value(failure.status()).unwrap();
            assert_eq!(status["details"], serde_json::json!({}), "{status}");
        }
    }

    #[test]
    fn a_forgotten_version_is_gone() {
        let failure = Failure::expired(5, 10);
        assert_eq!(failure.code(), StatusCode::GONE);
        assert_eq!(failure.status().reason.as_deref(), Some("Expired"));
    }
}
