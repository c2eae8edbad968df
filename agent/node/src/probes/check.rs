//! One try of a probe or hook: exec, HTTP, TCP.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portreeve_engine::{ContainerId, EngineError};

use super::dial::dial;
use super::http;
use crate::runtime::Runtime;

/// Output of a probe's command that is kept, in bytes; the kubelet's bound.
const OUTPUT_LIMIT: usize = 10 << 10;

/// What is tried.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Handler {
    Exec(Vec<String>),
    Http(HTTPGetAction),
    Tcp(TCPSocketAction),
    Sleep(Duration),
}

impl Handler {
    pub(crate) fn of_probe(probe: &Probe) -> Option<Self> {
        Self::of(probe.exec.as_ref(), probe.http_get.as_ref(), probe.tcp_socket.as_ref())
    }

    pub(crate) fn of_hook(hook: &LifecycleHandler) -> Option<Self> {
        if let Some(sleep) = &hook.sleep {
            let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
            return Some(Self::Sleep(Duration::from_secs(seconds)));
        }
        Self::of(hook.exec.as_ref(), hook.http_get.as_ref(), hook.tcp_socket.as_ref())
    }

    fn of(exec: Option<&ExecAction>, http: Option<&HTTPGetAction>, tcp: Option<&TCPSocketAction>) -> Option<Self> {
        exec.map(|exec| Self::Exec(exec.command.clone().unwrap_or_default()))
            .or_else(|| http.map(|http| Self::Http(http.clone())))
            .or_else(|| tcp.map(|tcp| Self::Tcp(tcp.clone())))
    }
}

/// Why a try did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Miss {
    /// What was tried says no.
    #[error("{0}")]
    Failed(String),
    /// It could not be tried: nothing is known of the container.
    #[error("{0}")]
    Untried(String),
}

/// Where it is tried.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) id: ContainerId,
    pub(crate) container: Arc<Container>,
    /// The pod's address, for handlers that name no other host.
    pub(crate) host: Option<String>,
}

/// Tries once. `timeout` is for the command of an exec handler and for finding a named host (zero: none); the
/// caller bounds the rest.
pub(crate) async fn run(handler: &Handler, target: &Target, timeout: Duration) -> Result<(), Miss> {
    match handler {
        Handler::Exec(command) => exec(target, command.clone(), timeout).await,
        Handler::Http(action) => {
            let host = host_of(action.host.as_deref(), target).map_err(Miss::Untried)?;
            let port = port_of(&action.port, &target.container).map_err(Miss::Untried)?;
            http::get(action, &host, port, timeout).await.map_err(Miss::Failed)
        }
        Handler::Tcp(action) => {
            let host = host_of(action.host.as_deref(), target).map_err(Miss::Untried)?;
            let port = port_of(&action.port, &target.container).map_err(Miss::Untried)?;
            dial(&host, port, timeout).await.map(drop).map_err(Miss::Failed)
        }
        Handler::Sleep(time) => {
            tokio::time::sleep(*time).await;
            Ok(())
        }
    }
}

async fn exec(target: &Target, command: Vec<String>, timeout: Duration) -> Result<(), Miss> {
    match target.runtime.exec_sync(&target.id, command, timeout, OUTPUT_LIMIT).await {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            let text = text.trim();
            Err(Miss::Failed(if text.is_empty() {
                format!("command exited with code {}", output.exit_code)
            } else {
                format!("command exited with code {}: {text}", output.exit_code)
            }))
        }
        Err(EngineError::ExecTimeout { timeout }) => {
            Err(Miss::Failed(format!("command did not end within {} s", timeout.as_secs())))
        }
        Err(error) => Err(Miss::Untried(portreeve_engine::chain(&error))),
    }
}

fn host_of(given: Option<&str>, target: &Target) -> Result<String, String> {
    match given.filter(|host| !host.is_empty()) {
        Some(host) => Ok(host.to_owned()),
        None => target.host.clone().ok_or_else(|| "the pod has no address".to_owned()),
    }
}

/// A port by number or by the name of one of the container's ports.
fn port_of(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0).ok_or_else(|| match port {
        IntOrString::Int(number) => format!("{number} is no port"),
        IntOrString::String(name) => format!("container {} has no port {name:?}", container.name),
    })
}
