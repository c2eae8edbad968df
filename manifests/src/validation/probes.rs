//! Probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::container::Scope;
use super::pod::choice;
use super::{names, ports};
use crate::findings::Findings;
use crate::path::Path;

/// What there may be one of, and an example.
const PROBES: (&str, &str) = ("exec, httpGet, tcpSocket or grpc", "tcpSocket: {port: 80}");
const HOOKS: (&str, &str) = ("exec, httpGet, tcpSocket or sleep", "exec: {command: [sleep, \"5\"]}");

/// What a probe or a hook does; a hook knows no gRPC and a probe cannot sleep.
#[derive(Default)]
struct Action<'a> {
    exec: Option<&'a ExecAction>,
    http: Option<&'a HTTPGetAction>,
    tcp: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<&'a SleepAction>,
}

impl<'a> From<&'a Probe> for Action<'a> {
    fn from(probe: &'a Probe) -> Self {
        Self {
            exec: probe.exec.as_ref(),
            http: probe.http_get.as_ref(),
            tcp: probe.tcp_socket.as_ref(),
            grpc: probe.grpc.as_ref(),
            sleep: None,
        }
    }
}

impl<'a> From<&'a LifecycleHandler> for Action<'a> {
    fn from(hook: &'a LifecycleHandler) -> Self {
        Self {
            exec: hook.exec.as_ref(),
            http: hook.http_get.as_ref(),
            tcp: hook.tcp_socket.as_ref(),
            grpc: None,
            sleep: hook.sleep.as_ref(),
        }
    }
}

pub(super) fn probes(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    const ONE: &str = "must be 1";
    const DEFAULT: &str = "remove it: 1 is the default";
    if let Some(liveness) = &container.liveness_probe {
        let path = path.field("livenessProbe");
        probe(liveness, scope, &path, found);
        if liveness.success_threshold != Some(1) {
            found.invalid(&path.field("successThreshold"), &liveness.success_threshold.unwrap_or(0), ONE, DEFAULT);
        }
    }
    if let Some(readiness) = &container.readiness_probe {
        let path = path.field("readinessProbe");
        probe(readiness, scope, &path, found);
        if let Some(seconds) = readiness.termination_grace_period_seconds {
            found.invalid(
                &path.field("terminationGracePeriodSeconds"),
                &seconds,
                "a readiness probe stops nothing, so it may not have this",
                "remove it, or move it to the livenessProbe",
            );
        }
    }
    if let Some(startup) = &container.startup_probe {
        let path = path.field("startupProbe");
        probe(startup, scope, &path, found);
        if startup.success_threshold != Some(1) {
            found.invalid(&path.field("successThreshold"), &startup.success_threshold.unwrap_or(0), ONE, DEFAULT);
        }
    }
}

fn probe(probe: &Probe, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    action(&Action::from(probe), PROBES, scope, path, found);
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if let Some(value) = value.filter(|value| *value < 0) {
            found.invalid(&path.field(field), &value, "may not be below zero", "remove it for the default");
        }
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|it| *it <= 0) {
        let fix = "remove it, and the pod's own counts";
        found.invalid(&path.field("terminationGracePeriodSeconds"), &seconds, "must be above zero", fix);
    }
}

pub(super) fn lifecycle(container: &Container, scope: &Scope<'_>, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(lifecycle) = &container.lifecycle else {
        return;
    };
    let path = path.field("lifecycle");
    if let Some(hook) = &lifecycle.post_start {
        action(&Action::from(hook), HOOKS, scope, &path.field("postStart"), found);
    }
    if let Some(hook) = &lifecycle.pre_stop {
        action(&Action::from(hook), HOOKS, scope, &path.field("preStop"), found);
    }
}

fn action(
    action: &Action<'_>,
    (kinds, example): (&str, &str),
    scope: &Scope<'_>,
    path: &Path<'_>,
    found: &mut Findings<'_>,
) {
    let given = [
        ("exec", action.exec.is_some()),
        ("httpGet", action.http.is_some()),
        ("tcpSocket", action.tcp.is_some()),
        ("grpc", action.grpc.is_some()),
        ("sleep", action.sleep.is_some()),
    ];
    let mut first = None;
    for (field, _) in given.iter().filter(|(_, given)| *given) {
        if let Some(first) = first {
            let fix = format!("remove it, or `{first}`; exec can do both");
            found.forbidden(&path.field(field), "there may be only one kind of action", fix);
        } else {
            first = Some(*field);
        }
    }
    match first {
        None => found.required(path, &format!("must have one of {kinds}"), example),
        Some("exec") => {
            if let Some(exec) = action.exec
                && exec.command.as_ref().is_none_or(Vec::is_empty)
            {
                found.required(
                    &path.field("exec").field("command"),
                    "a command is required",
                    "command: [cat, /tmp/ready]",
                );
            }
        }
        Some("httpGet") => {
            if let Some(http) = action.http {
                http_get(http, &path.field("httpGet"), found);
            }
        }
        Some("tcpSocket") => {
            if let Some(tcp) = action.tcp {
                ports::number_or_name(&tcp.port, &path.field("tcpSocket").field("port"), found);
            }
        }
        Some("grpc") => {
            if let Some(grpc) = action.grpc {
                let port = IntOrString::Int(grpc.port);
                ports::number_or_name(&port, &path.field("grpc").field("port"), found);
            }
        }
        Some(_) => {
            if let Some(sleep) = action.sleep
                && (sleep.seconds < 0 || sleep.seconds > scope.grace)
            {
                found.invalid(
                    &path.field("sleep"),
                    &sleep.seconds,
                    format!("must be at least 0 and at most terminationGracePeriodSeconds ({})", scope.grace),
                    "sleep for less, or raise the pod's terminationGracePeriodSeconds",
                );
            }
        }
    }
}

fn http_get(http: &HTTPGetAction, path: &Path<'_>, found: &mut Findings<'_>) {
    ports::number_or_name(&http.port, &path.field("port"), found);
    choice(
        http.scheme.as_deref(),
        &["HTTP", "HTTPS"],
        "remove it for the default, `HTTP`",
        &path.field("scheme"),
        found,
    );
    for (index, header) in http.http_headers.iter().flatten().enumerate() {
        if let Err(message) = names::header(&header.name) {
            let path = path.field("httpHeaders");
            found.add_as(
                path.to_string(),
                &path.index(index).field("name"),
                crate::problem::Reason::FieldValueInvalid,
                format!("{:?}: {message}", header.name),
                names::mended(&header.name, names::header),
            );
        }
    }
}
