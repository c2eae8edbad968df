//! What a request asks for, in the words of the API: verb, resource, name and options.

use std::collections::BTreeMap;

use http::header::CONTENT_TYPE;
use http::{Method, Request};

/// A request, read.
#[derive(Debug, Clone, Default)]
pub(super) struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `apply`, `delete` or `deletecollection`; of a path that is no
    /// resource, the method in small letters.
    pub(super) verb: &'static str,
    /// The path as it came.
    pub(super) path: String,
    /// The group; empty for the core.
    pub(super) group: String,
    /// The version of the group; empty where the path is no resource.
    pub(super) version: String,
    /// The plural name; empty where the path is no resource.
    pub(super) plural: String,
    /// The namespace, where the path has one.
    pub(super) namespace: String,
    /// The object's name, where the path has one.
    pub(super) name: String,
    /// What of the object is asked for, such as `status`.
    pub(super) sub: String,
    /// Options, decoded.
    pub(super) options: BTreeMap<String, String>,
    /// The Content-Type without its parameters.
    pub(super) content_type: String,
}

impl Call {
    pub(super) fn read<B>(request: &Request<B>) -> Self {
        let path = request.uri().path().to_owned();
        let options =
            form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
        let content_type =
            request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
        let mut call = Self { path, options, content_type, ..Self::default() };
        call.place();
        call.verb = call.verb_of(request.method());
        call
    }

    /// Finds the resource in the path.
    fn place(&mut self) {
        let path = self.path.clone();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", version, rest),
            ["apis", group, version, rest @ ..] => (*group, version, rest),
            _ => return,
        };
        let (namespace, rest) = match rest {
            // A namespace itself, or a part of it.
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            _ => ("", rest),
        };
        let [plural, rest @ ..] = rest else { return };
        let own = |text: &str| text.to_owned();
        (self.group, self.version, self.plural, self.namespace) =
            (own(group), own(version), own(plural), own(namespace));
        self.name = rest.first().copied().unwrap_or_default().to_owned();
        self.sub = rest.get(1..).unwrap_or_default().join("/");
    }

    fn verb_of(&self, method: &Method) -> &'static str {
        let resource = !self.plural.is_empty();
        match *method {
            Method::GET if resource && self.is_set("watch") => "watch",
            Method::GET if resource && self.name.is_empty() => "list",
            Method::GET => "get",
            Method::POST if resource => "create",
            Method::POST => "post",
            Method::PUT if resource => "update",
            Method::PUT => "put",
            Method::PATCH if self.content_type.starts_with("application/apply-patch") => "apply",
            Method::PATCH => "patch",
            Method::DELETE if resource && self.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            _ => "other",
        }
    }

    /// An option's value; nothing where it is empty.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether an option is on.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.option(name).is_some_and(|value| value == "true" || value == "1")
    }

    /// The resource as counts and refusals name it: `leases.coordination.k8s.io`, `nodes/status`, or the path of what is none.
    pub(super) fn resource(&self) -> String {
        if self.plural.is_empty() {
            return self.path.clone();
        }
        let group = if self.group.is_empty() { String::new() } else { format!(".{}", self.group) };
        let sub = if self.sub.is_empty() { String::new() } else { format!("/{}", self.sub) };
        format!("{}{group}{sub}", self.plural)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, uri: &str, content_type: &str) -> Call {
        Call::read(
            &Request::builder().method(method).uri(uri).header(CONTENT_TYPE, content_type).body(()).expect("a request"),
        )
    }

    #[test]
    fn requests_are_read_as_the_api_means_them() {
        let cases = [
            ("GET", "/api/v1/nodes", "", "list nodes   "),
            ("GET", "/api/v1/namespaces/a", "", "get namespaces  a "),
            ("PUT", "/api/v1/namespaces/a/status", "", "update namespaces/status  a status"),
            ("GET", "/api/v1/namespaces/a/secrets?watch=1", "", "watch secrets a  "),
            ("POST", "/apis/coordination.k8s.io/v1/namespaces/a/leases", "", "create leases.coordination.k8s.io a  "),
            ("PATCH", "/apis/g/v1/xs/b/status", "application/apply-patch+yaml", "apply xs.g/status  b status"),
            ("PATCH", "/apis/g/v1/xs/b", "application/merge-patch+json", "patch xs.g  b "),
            ("DELETE", "/apis/g/v1/xs", "", "deletecollection xs.g   "),
            ("GET", "/apis/g/v1", "", "get /apis/g/v1   "),
            ("GET", "/readyz?verbose", "", "get /readyz   "),
        ];
        for (method, uri, content_type, expect) in cases {
            let call = read(method, uri, content_type);
            let got = format!("{} {} {} {} {}", call.verb, call.resource(), call.namespace, call.name, call.sub);
            assert_eq!(got, expect, "{method} {uri}");
        }
    }
}
