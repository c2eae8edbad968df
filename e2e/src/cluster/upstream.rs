//! The API server behind: what is not the double's is passed to it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use super::authority::{Authority, Certificate};
use super::call::Call;
use super::double::Discovered;
use super::status::{Body, Refusal, json_answer, whole};

/// As whom a request is made.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
    /// The node that a token of a ServiceAccount is bound to.
    pub(super) node: Option<String>,
}

impl User {
    /// Who may do everything.
    pub(super) fn administrator() -> Self {
        Self { name: "kubernetes-admin".into(), groups: vec!["system:masters".into()], node: None }
    }

    /// An agent's ServiceAccount, by a token of the pod on this node.
    pub(super) fn agent(node: &str) -> Self {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:portreeve-system"].map(String::from).to_vec();
        Self { name: "system:serviceaccount:portreeve-system:portreeve".into(), groups, node: Some(node.into()) }
    }

    fn write(&self, headers: &mut HeaderMap) {
        let value = |text: &str| HeaderValue::from_str(text).expect("names are plain");
        headers.insert("x-remote-user", value(&self.name));
        for group in self.groups.iter().map(String::as_str).chain(["system:authenticated"]) {
            headers.append("x-remote-group", value(group));
        }
        if let Some(node) = &self.node {
            headers.insert("x-remote-extra-authentication.kubernetes.io%2fnode-name", value(node));
        }
    }
}

/// A client of the API server and of its etcd.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    server: SocketAddr,
    etcd: SocketAddr,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Upstream {
    pub(super) fn new(server: SocketAddr, etcd: SocketAddr, authority: &Authority, own: &Certificate) -> Self {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(authority.certificate()).expect("openssl wrote a certificate");
        roots.add(root).expect("an authority");
        let certificate = CertificateDer::from_pem_file(&own.certificate).expect("openssl wrote a certificate");
        let key = PrivateKeyDer::from_pem_file(&own.key).expect("openssl wrote a key");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring knows them")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .expect("the key fits the certificate");
        let connector =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        Self { server, etcd, client: Client::builder(TokioExecutor::new()).build(connector.build()) }
    }

    /// Passes a request on, and its answer back. An error means that there was none: the client is to see no other.
    pub(super) async fn pass(&self, parts: &Parts, body: Bytes, user: &User) -> anyhow::Result<Response<Body>> {
        let answer = self.send(parts.method.clone(), &parts.uri, parts.headers.clone(), body, user).await?;
        let (mut parts, body) = answer.into_parts();
        for header in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
            parts.headers.remove(header);
        }
        Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()))
    }

    async fn send(
        &self,
        method: Method,
        uri: &Uri,
        mut headers: HeaderMap,
        body: Bytes,
        user: &User,
    ) -> anyhow::Result<Response<Incoming>> {
        let foreign: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
        for header in foreign.iter().chain(&[HOST, AUTHORIZATION, CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH]) {
            headers.remove(header);
        }
        user.write(&mut headers);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = format!("https://{}{path}", self.server).parse().context("the path of a request")?;
        *request.headers_mut() = headers;
        self.client.request(request).await.context("the API server gave no answer")
    }

    async fn fetch(&self, path: &str, headers: HeaderMap, user: &User) -> anyhow::Result<(StatusCode, Value)> {
        let uri = path.parse().context("a path")?;
        let answer = self.send(Method::GET, &uri, headers, Bytes::new(), user).await?;
        let code = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Ok((code, serde_json::from_slice(&bytes).unwrap_or_else(|_| text())))
    }

    /// Why it is not ready, if it is not.
    pub(super) async fn readiness(&self) -> Result<(), String> {
        match self.fetch("/readyz?verbose", HeaderMap::new(), &User::administrator()).await {
            Ok((StatusCode::OK, _)) => Ok(()),
            Ok((_, said)) => Err(said.to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    /// Its groups that custom resources have.
    pub(super) async fn groups(&self) -> anyhow::Result<Discovered> {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let (_, crds) = self.fetch(path, HeaderMap::new(), &User::administrator()).await?;
        let mut found = Discovered::from([("apiextensions.k8s.io".to_owned(), ["v1".to_owned()].into())]);
        for spec in crds["items"].as_array().into_iter().flatten().map(|crd| &crd["spec"]) {
            let versions =
                spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true);
            let names = versions.filter_map(|version| version["name"].as_str().map(str::to_owned));
            found.entry(spec["group"].as_str().unwrap_or_default().to_owned()).or_default().extend(names);
        }
        Ok(found)
    }

    /// The revision at which everything is now.
    pub(super) async fn revision(&self) -> anyhow::Result<String> {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?limit=1";
        let (_, list) = self.fetch(path, HeaderMap::new(), &User::administrator()).await?;
        list["metadata"]["resourceVersion"].as_str().map(str::to_owned).context("a list names its revision")
    }

    /// Answers a list or a get as of an earlier revision.
    pub(super) async fn recall(
        &self,
        revision: &str,
        call: &Call,
        parts: &Parts,
        user: &User,
    ) -> anyhow::Result<Response<Body>> {
        let mut options = call.options.clone();
        let page = options.contains_key("continue");
        if !page {
            options.insert("resourceVersion".into(), revision.into());
            options.insert("resourceVersionMatch".into(), "Exact".into());
        }
        let mut headers = parts.headers.clone();
        headers.remove(ACCEPT_ENCODING);
        let mut path = call.path.trim_end_matches('/').to_owned();
        if call.verb == "get" {
            // An object alone can be had only as it is now; among others it can be had as it was.
            path.truncate(path.len() - call.name.len() - if call.sub.is_empty() { 1 } else { call.sub.len() + 2 });
            options.insert("fieldSelector".into(), format!("metadata.name={}", call.name));
        }
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&options).finish();
        let (code, document) = self.fetch(&format!("{path}?{query}"), headers, user).await?;
        if call.verb != "get" || code != StatusCode::OK {
            return Ok(json_answer(code, &document));
        }
        let Some(item) = document["items"].get(0) else {
            return Ok(Refusal::no_such_object(&call.resource(), &call.name).answer());
        };
        let mut object = item.clone();
        let kind = document["kind"].as_str().unwrap_or_default().trim_end_matches("List");
        object["apiVersion"] = document["apiVersion"].clone();
        object["kind"] = kind.into();
        Ok(json_answer(code, &object))
    }

    /// Has etcd forget all revisions before this one.
    pub(super) async fn compact(&self) -> anyhow::Result<()> {
        let head = self.ask_etcd("range", json!({ "key": "AA==", "limit": 1 })).await?;
        let revision = head["header"]["revision"].clone();
        self.ask_etcd("compaction", json!({ "revision": revision, "physical": true })).await.map(drop)
    }

    async fn ask_etcd(&self, what: &str, question: Value) -> anyhow::Result<Value> {
        let uri = format!("http://{}/v3/kv/{what}", self.etcd);
        let request = Request::post(&uri).body(Full::from(question.to_string()))?;
        let answer = self.client.request(request).await.with_context(|| format!("asking {uri}"))?;
        let code = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        anyhow::ensure!(code == StatusCode::OK, "{uri} said {code}: {}", String::from_utf8_lossy(&bytes));
        Ok(serde_json::from_slice(&bytes)?)
    }
}

/// An answer as it is once all of it is there, and how long it is.
pub(super) async fn gather(answer: Response<Body>) -> anyhow::Result<(Response<Body>, usize)> {
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.map_err(|error| anyhow::anyhow!("the answer has no end: {error}"))?.to_bytes();
    let length = bytes.len();
    let (_, body) = whole(parts.status, HeaderValue::from_static("application/json"), bytes).into_parts();
    Ok((Response::from_parts(parts, body), length))
}
