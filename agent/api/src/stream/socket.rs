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

/// A request for a WebSocket with channels, checked and not yet answered.
pub(crate) struct Upgrade {
    accept: String,
    protocol: Protocol,
    upgraded: OnUpgrade,
}

impl Upgrade {
    /// Checks the request.
    pub(crate) fn of(mut request: Request) -> Result<Upgrade, Failure> {
        let headers = request.headers();
        let is_websocket = request.version() == Version::HTTP_11
            && has_token(headers, &CONNECTION, "upgrade")
            && has_token(headers, &UPGRADE, "websocket");
        if !is_websocket {
            return Err(Failure::bad_request("Upgrade request required"));
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(Failure::bad_request("WebSocket version 13 is required"));
        }
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
            return Err(Failure::bad_request("Sec-WebSocket-Key is missing"));
        };
        let accept = derive_accept_key(key.as_bytes());
        let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|offer| offer.to_str().ok());
        let Some(protocol) = Protocol::choose(offers) else {
            return Err(Failure::bad_request(format!(
                "none of the offered WebSocket protocols is spoken here: {}",
                super::protocols()
            )));
        };
        Ok(Upgrade { accept, protocol, upgraded: hyper::upgrade::on(&mut request) })
    }

    /// The answer, and the socket once the answer was sent.
    pub(crate) fn accept(self) -> (Response, impl Future<Output = Option<(Socket, Protocol)>> + Send + use<>) {
        let Upgrade { accept, protocol, upgraded } = self;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name()));
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
