//! From a request to a WebSocket. RFC 6455 §4.2.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::debug;

use crate::channel::{MAX_MESSAGE_BYTES, Protocol};
use crate::failure::Failure;

/// A WebSocket on an upgraded connection.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A request for a WebSocket, checked and not yet answered. With channels, unless another `Protocol` is named.
pub(crate) struct Upgrade<P = Protocol> {
    accept: String,
    protocol: P,
    name: &'static str,
    upgraded: OnUpgrade,
}

impl Upgrade {
    /// Checks the request.
    pub(crate) fn of(mut request: Request) -> Result<Self, Failure> {
        if !is_asked_for(&request) {
            return Err(Failure::bad_request("Upgrade request required"));
        }
        let Some(protocol) = Protocol::choose(offers(request.headers())) else {
            return Err(Failure::bad_request(format!(
                "none of the offered WebSocket protocols is spoken here: {}",
                super::protocols()
            )));
        };
        Self::speaking(&mut request, protocol, protocol.name())
    }
}

impl Upgrade<()> {
    /// Checks the request of a client that offers this protocol; `None` when it offers others, or wants no WebSocket.
    pub(crate) fn offering(request: &mut Request, name: &'static str) -> Option<Result<Self, Failure>> {
        let named = |offer: &str| offer.split(',').any(|one| one.trim() == name);
        let offered = is_asked_for(request) && offers(request.headers()).any(named);
        offered.then(|| Self::speaking(request, (), name))
    }
}

impl<P: Send + 'static> Upgrade<P> {
    fn speaking(request: &mut Request, protocol: P, name: &'static str) -> Result<Self, Failure> {
        let headers = request.headers();
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(Failure::bad_request("WebSocket version 13 is required"));
        }
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
            return Err(Failure::bad_request("Sec-WebSocket-Key is missing"));
        };
        let accept = derive_accept_key(key.as_bytes());
        Ok(Self { accept, protocol, name, upgraded: hyper::upgrade::on(request) })
    }

    /// The answer, and the socket once the answer was sent.
    pub(crate) fn accept(self) -> (Response, impl Future<Output = Option<(Socket, P)>> + Send + use<P>) {
        let Upgrade { accept, protocol, name, upgraded } = self;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        if let Ok(accept) = HeaderValue::from_str(&accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        let socket = async move {
            match upgraded.await {
                Ok(upgraded) => {
                    let socket =
                        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits())).await;
                    Some((socket, protocol))
                }
                Err(error) => {
                    debug!(%error, "client left before its stream began");
                    None
                }
            }
        };
        (response, socket)
    }
}

fn is_asked_for(request: &Request) -> bool {
    let headers = request.headers();
    request.version() == Version::HTTP_11
        && has_token(headers, &CONNECTION, "upgrade")
        && has_token(headers, &UPGRADE, "websocket")
}

fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|offer| offer.to_str().ok())
}

/// What one socket may hold in memory.
fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MAX_MESSAGE_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}
