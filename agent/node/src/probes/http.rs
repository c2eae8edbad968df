//! HTTP probes as a kubelet makes them.
//!
//! 200 to 399 is success; a redirect to the same host is followed, one to another host is success;
//! certificates are not verified; at most 10 KiB of the body are looked at.
//! Source: kubernetes `pkg/probe/http/http.go`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::dial::dial;

const BODY_LIMIT: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// GETs what `action` says from `host:port`. `timeout` as [`dial`] has it.
pub(super) async fn get(action: &HTTPGetAction, host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    let tls = action.scheme.as_deref() == Some("HTTPS");
    let mut path = action.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    for _ in 0..=MAX_REDIRECTS {
        let answer = once(action, tls, host, port, &path, timeout).await?;
        let code = answer.status.as_u16();
        match answer.redirect.map(|location| local_path(&location, tls, host, port)) {
            Some(Some(next)) => path = next,
            // Elsewhere: the container answers, and where it points is not its health.
            Some(None) => return Ok(()),
            None if (200..400).contains(&code) => return Ok(()),
            None => return Err(format!("HTTP probe failed with statuscode: {code}")),
        }
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

struct Answer {
    status: StatusCode,
    redirect: Option<String>,
}

async fn once(
    action: &HTTPGetAction,
    tls: bool,
    host: &str,
    port: u16,
    path: &str,
    timeout: Duration,
) -> Result<Answer, String> {
    let scheme = if tls { "https" } else { "http" };
    let shown = || format!("Get \"{scheme}://{host}:{port}{path}\"");
    let stream = dial(host, port, timeout).await.map_err(|error| format!("{}: {error}", shown()))?;
    let request = request(action, host, port, path)?;
    let answer = if tls {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{}: {error}", shown()))?;
        let stream = TlsConnector::from(tls_config()?)
            .connect(name, stream)
            .await
            .map_err(|error| format!("{}: {error}", shown()))?;
        send(stream, request).await
    } else {
        send(stream, request).await
    };
    answer.map_err(|error| format!("{}: {error}", shown()))
}

fn request(action: &HTTPGetAction, host: &str, port: u16, path: &str) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(path).body(Empty::new()).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    for given in action.http_headers.iter().flatten() {
        let name = HeaderName::try_from(given.name.as_str()).map_err(|error| error.to_string())?;
        let value = HeaderValue::try_from(given.value.as_str()).map_err(|error| error.to_string())?;
        headers.append(name, value);
    }
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let authority = HeaderValue::try_from(authority).map_err(|error| error.to_string())?;
    headers.entry(header::HOST).or_insert(authority);
    headers
        .entry(header::USER_AGENT)
        .or_insert(HeaderValue::from_static(concat!("kube-probe/1.37 portreeve/", env!("CARGO_PKG_VERSION"))));
    headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let redirect = status
            .is_redirection()
            .then(|| response.headers().get(header::LOCATION)?.to_str().ok().map(str::to_owned))
            .flatten();
        // Read as far as the kubelet does; more is no failure.
        let _ = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
        Ok(Answer { status, redirect })
    };
    tokio::pin!(exchange);
    tokio::select! {
        // cancel-safe: the exchange is dropped with the connection, nothing goes on.
        answer = &mut exchange => answer,
        // cancel-safe: an ended connection has told the exchange already.
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// The path of a redirect that stays on this host.
fn local_path(location: &str, tls: bool, host: &str, port: u16) -> Option<String> {
    let uri: Uri = location.parse().ok()?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    if let Some(authority) = uri.authority() {
        let same_scheme = uri.scheme_str() == Some(if tls { "https" } else { "http" });
        let default = if tls { 443 } else { 80 };
        let same = authority.host().trim_matches(['[', ']']) == host && authority.port_u16().unwrap_or(default) == port;
        if !(same && same_scheme) {
            return None;
        }
    }
    path.starts_with('/').then(|| path.to_owned())
}

fn tls_config() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// A probe asks whether a container answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ServerConfig, SupportedProtocolVersion};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;
    use tokio_rustls::TlsAcceptor;

    /// A server that answers each connection with the next of `answers` and keeps the requests.
    async fn serve(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                let length = stream.read(&mut buffer).await.unwrap();
                requests.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                let answer = answer.replace("PORT", &port.to_string());
                // The probe may hang up before a long body is sent.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            requests
        });
        (port, task)
    }

    fn action(path: &str) -> HTTPGetAction {
        HTTPGetAction { path: Some(path.to_owned()), port: IntOrString::Int(0), ..HTTPGetAction::default() }
    }

    fn answer(status: &str, more: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n{more}\r\nok")
    }

    #[tokio::test]
    async fn statuses_from_200_to_399_are_healthy_and_no_others() {
        for (status, healthy) in [
            ("200 OK", true),
            ("204 No Content", true),
            ("304 Not Modified", true),
            ("399 Odd", true),
            ("400 Bad Request", false),
            ("404 Not Found", false),
            ("500 Internal Server Error", false),
            ("503 Service Unavailable", false),
        ] {
            let (port, server) = serve(vec![answer(status, "")]).await;
            let result = get(&action("/healthz"), "127.0.0.1", port, Duration::ZERO).await;
            assert_eq!(result.is_ok(), healthy, "{status}: {result:?}");
            server.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_local_redirect_is_followed_and_a_foreign_one_is_healthy() {
        let local = answer("302 Found", "location: /next\r\n");
        let absolute = answer("302 Found", "location: http://127.0.0.1:PORT/next\r\n");
        let foreign = answer("302 Found", "location: http://192.0.2.1/\r\n");
        let broken = answer("500 Oops", "");
        for (answers, healthy) in [
            (vec![local.clone(), broken.clone()], false),
            (vec![absolute, broken.clone()], false),
            (vec![local, answer("200 OK", "")], true),
            (vec![foreign], true),
        ] {
            let (port, server) = serve(answers).await;
            assert_eq!(get(&action("/"), "127.0.0.1", port, Duration::ZERO).await.is_ok(), healthy);
            server.await.unwrap();
        }
    }

    #[tokio::test]
    async fn requests_look_like_a_kubelets_and_headers_of_the_manifest_win() {
        let (port, server) = serve(vec![answer("200 OK", ""), answer("200 OK", "")]).await;
        get(&action("x?y=1"), "127.0.0.1", port, Duration::ZERO).await.unwrap();
        let mut with = action("/");
        with.http_headers =
            Some(vec![k8s_openapi::api::core::v1::HTTPHeader { name: "Host".into(), value: "example.test".into() }]);
        get(&with, "127.0.0.1", port, Duration::ZERO).await.unwrap();
        let requests = server.await.unwrap();
        assert!(requests[0].starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{}", requests[0]);
        assert!(requests[0].contains("user-agent: kube-probe/"), "{}", requests[0]);
        assert!(requests[1].contains("host: example.test\r\n"), "{}", requests[1]);
    }

    #[tokio::test]
    async fn an_endless_body_does_not_hold_the_probe() {
        let body = "x".repeat(1 << 20);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n{body}");
        let (port, server) = serve(vec![answer]).await;
        get(&action("/"), "127.0.0.1", port, Duration::ZERO).await.unwrap();
        server.await.unwrap();
    }

    /// A server with a certificate that nobody vouches for and that is of another name.
    async fn serve_tls(
        status: &'static str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> (u16, JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args([
                "-days",
                "2",
                "-subj",
                "/CN=elsewhere.test",
                "-addext",
                "subjectAltName=DNS:elsewhere.test",
                "-keyout",
            ])
            .args([&*key, std::path::Path::new("-out"), &*certificate])
            .output()
            .expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&certificate).unwrap()],
                PrivateKeyDer::from_pem_file(&key).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut buffer = vec![0; 4096];
            let length = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer(status, "").as_bytes()).await.unwrap();
            // The probe may hang up first.
            let _ = stream.shutdown().await;
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        (port, task)
    }

    #[tokio::test]
    async fn a_container_with_any_certificate_is_asked_by_tls() {
        let mut https = action("/healthz");
        https.scheme = Some("HTTPS".to_owned());
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (port, server) = serve_tls("200 OK", &[version]).await;
            get(&https, "127.0.0.1", port, Duration::ZERO).await.unwrap();
            assert!(server.await.unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
            let (port, server) = serve_tls("500 Internal Server Error", &[version]).await;
            let error = get(&https, "localhost", port, Duration::ZERO).await.unwrap_err();
            assert_eq!(error, "HTTP probe failed with statuscode: 500");
            server.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_server_without_tls_is_no_https() {
        let mut https = action("/");
        https.scheme = Some("HTTPS".to_owned());
        let (port, server) = serve(vec![answer("200 OK", "")]).await;
        let error = get(&https, "127.0.0.1", port, Duration::ZERO).await.unwrap_err();
        assert!(error.starts_with(&format!("Get \"https://127.0.0.1:{port}/\": ")), "{error}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_port_is_a_failure_that_says_where() {
        let (port, server) = serve(vec![]).await;
        server.await.unwrap();
        let error = get(&action("/"), "127.0.0.1", port, Duration::ZERO).await.unwrap_err();
        assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
    }
}
