//! The page of a pod, in kubectl's order and words.

use std::collections::BTreeMap;
use std::fmt::Write;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, EnvVar, Event, Pod, Probe, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use portreeve_api::age::age;

/// Where the values of the top level begin.
const VALUES: usize = 18;
/// Where the values of a container begin.
const INNER: usize = 16;

/// Collects lines; writing to a string cannot fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, text: impl AsRef<str>) {
        // What comes from manifests and containers must not steer the terminal.
        let clean = text.as_ref().chars().map(|one| if one.is_control() { ' ' } else { one });
        let start = self.0.len();
        self.0.extend(clean);
        let end = self.0.trim_end().len().max(start);
        self.0.truncate(end);
        self.0.push('\n');
    }

    fn field(&mut self, indent: usize, name: &str, value: impl AsRef<str>) {
        let width = if indent == 0 { VALUES } else { INNER };
        self.line(format!("{}{:<width$}{}", " ".repeat(indent), format!("{name}:"), value.as_ref()));
    }

    fn map(&mut self, name: &str, map: Option<&BTreeMap<String, String>>, between: &str) {
        let mut lines = map.into_iter().flatten().map(|(key, value)| format!("{key}{between}{value}"));
        self.field(0, name, lines.next().unwrap_or_else(|| "<none>".to_owned()));
        for line in lines {
            self.line(format!("{}{line}", " ".repeat(VALUES)));
        }
    }

    /// Rows in aligned columns below an indent.
    fn rows(&mut self, indent: usize, rows: &[Vec<String>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let mut line = " ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                let _infallible = write!(line, "{cell:<width$}  ");
            }
            self.line(line);
        }
    }
}

/// The page of a pod.
pub(super) fn page(pod: &Pod, events: &[Event], now: Timestamp) -> String {
    let mut page = Page::default();
    let (spec, status) = (pod.spec.clone().unwrap_or_default(), pod.status.clone().unwrap_or_default());
    page.field(0, "Name", text(pod.metadata.name.as_deref()));
    page.field(0, "Namespace", text(pod.metadata.namespace.as_deref()));
    page.field(0, "UID", text(pod.metadata.uid.as_deref()));
    let host = status.host_ip.as_deref().map(|ip| format!("/{ip}")).unwrap_or_default();
    page.field(0, "Node", format!("{}{host}", text(spec.node_name.as_deref())));
    page.field(0, "Start Time", moment(status.start_time.as_ref()));
    page.map("Labels", pod.metadata.labels.as_ref(), "=");
    page.map("Annotations", pod.metadata.annotations.as_ref(), ": ");
    match &pod.metadata.deletion_timestamp {
        Some(since) => {
            page.field(0, "Status", format!("Terminating (lasts {})", age(since.0, now)));
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
            page.field(0, "Termination Grace Period", format!("{grace}s"));
        }
        None => page.field(0, "Status", text(status.phase.as_deref())),
    }
    if let Some(reason) = &status.reason {
        page.field(0, "Reason", reason);
    }
    if let Some(message) = &status.message {
        page.field(0, "Message", message);
    }
    page.field(0, "IP", status.pod_ip.as_deref().unwrap_or_default());
    page.line("IPs:");
    let ips: Vec<_> = status.pod_ips.iter().flatten().collect();
    if ips.is_empty() {
        page.line("  <none>");
    }
    for ip in ips {
        page.line(format!("  IP:  {}", ip.ip));
    }
    containers(
        &mut page,
        "Init Containers",
        spec.init_containers.as_deref(),
        status.init_container_statuses.as_deref(),
    );
    containers(&mut page, "Containers", Some(&spec.containers), status.container_statuses.as_deref());
    conditions(&mut page, pod);
    volumes(&mut page, spec.volumes.as_deref());
    page.field(0, "QoS Class", text(status.qos_class.as_deref()));
    page.field(0, "Restart Policy", text(spec.restart_policy.as_deref()));
    happened(&mut page, events, now);
    page.0
}

fn text(value: Option<&str>) -> &str {
    value.filter(|value| !value.is_empty()).unwrap_or("<none>")
}

fn moment(time: Option<&Time>) -> String {
    time.map_or_else(|| "<none>".to_owned(), |time| time.0.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string())
}

fn containers(page: &mut Page, title: &str, containers: Option<&[Container]>, statuses: Option<&[ContainerStatus]>) {
    let Some(containers) = containers.filter(|containers| !containers.is_empty()) else { return };
    page.line(format!("{title}:"));
    for container in containers {
        let status = statuses.into_iter().flatten().find(|status| status.name == container.name);
        describe_container(page, container, status);
    }
}

fn describe_container(page: &mut Page, container: &Container, status: Option<&ContainerStatus>) {
    page.line(format!("  {}:", container.name));
    let field = |page: &mut Page, name: &str, value: &str| page.field(4, name, value);
    if let Some(status) = status {
        field(page, "Container ID", status.container_id.as_deref().unwrap_or_default());
    }
    field(page, "Image", text(container.image.as_deref()));
    if let Some(status) = status {
        field(page, "Image ID", &status.image_id);
    }
    let ports = container.ports.iter().flatten();
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for port in ports {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        inside.push(format!("{}/{protocol}", port.container_port));
        outside.push(format!("{}/{protocol}", port.host_port.unwrap_or_default()));
    }
    let joined = |ports: &[String]| if ports.is_empty() { "<none>".to_owned() } else { ports.join(", ") };
    field(page, "Port", &joined(&inside));
    field(page, "Host Port", &joined(&outside));
    for (name, words) in [("Command", &container.command), ("Args", &container.args)] {
        if let Some(words) = words.as_ref().filter(|words| !words.is_empty()) {
            page.line(format!("    {name}:"));
            for word in words.iter().flat_map(|word| word.lines()) {
                page.line(format!("      {word}"));
            }
        }
    }
    if let Some(status) = status {
        state(page, "State", status.state.as_ref());
        if status.last_state.as_ref().is_some_and(|state| *state != ContainerState::default()) {
            state(page, "Last State", status.last_state.as_ref());
        }
        field(page, "Ready", if status.ready { "True" } else { "False" });
        field(page, "Restart Count", &status.restart_count.to_string());
    }
    if let Some(resources) = &container.resources {
        for (name, quantities) in [("Limits", &resources.limits), ("Requests", &resources.requests)] {
            if let Some(quantities) = quantities.as_ref().filter(|quantities| !quantities.is_empty()) {
                page.line(format!("    {name}:"));
                for (resource, quantity) in quantities {
                    page.line(format!("      {:<10}{}", format!("{resource}:"), quantity.0));
                }
            }
        }
    }
    for (name, probe) in [
        ("Liveness", &container.liveness_probe),
        ("Readiness", &container.readiness_probe),
        ("Startup", &container.startup_probe),
    ] {
        if let Some(probe) = probe {
            field(page, name, &describe_probe(probe));
        }
    }
    environment(page, container);
    if container.volume_mounts.iter().flatten().count() == 0 {
        page.field(4, "Mounts", "<none>");
    } else {
        page.line("    Mounts:");
    }
    for mount in container.volume_mounts.iter().flatten() {
        let mode = if mount.read_only == Some(true) { "ro" } else { "rw" };
        let sub = mount.sub_path.as_ref().map(|path| format!(",path=\"{path}\"")).unwrap_or_default();
        page.line(format!("      {} from {} ({mode}{sub})", mount.mount_path, mount.name));
    }
}

fn state(page: &mut Page, name: &str, state: Option<&ContainerState>) {
    let state = state.cloned().unwrap_or_default();
    let inner =
        |page: &mut Page, name: &str, value: &str| page.line(format!("      {:<14}{value}", format!("{name}:")));
    if let Some(running) = state.running {
        page.field(4, name, "Running");
        inner(page, "Started", &moment(running.started_at.as_ref()));
    } else if let Some(ended) = state.terminated {
        page.field(4, name, "Terminated");
        if let Some(reason) = &ended.reason {
            inner(page, "Reason", reason);
        }
        if let Some(message) = &ended.message {
            inner(page, "Message", message);
        }
        inner(page, "Exit Code", &ended.exit_code.to_string());
        if let Some(signal) = ended.signal.filter(|signal| *signal > 0) {
            inner(page, "Signal", &signal.to_string());
        }
        inner(page, "Started", &moment(ended.started_at.as_ref()));
        inner(page, "Finished", &moment(ended.finished_at.as_ref()));
    } else {
        page.field(4, name, "Waiting");
        let waiting = state.waiting.unwrap_or_default();
        for (name, value) in [("Reason", waiting.reason), ("Message", waiting.message)] {
            if let Some(value) = value {
                inner(page, name, &value);
            }
        }
    }
}

fn describe_probe(probe: &Probe) -> String {
    let port = |port: &IntOrString| match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    let what = if let Some(exec) = &probe.exec {
        format!("exec [{}]", exec.command.iter().flatten().cloned().collect::<Vec<_>>().join(" "))
    } else if let Some(get) = &probe.http_get {
        let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let (host, path) = (get.host.as_deref().unwrap_or_default(), get.path.as_deref().unwrap_or("/"));
        format!("http-get {scheme}://{host}:{}{path}", port(&get.port))
    } else if let Some(socket) = &probe.tcp_socket {
        format!("tcp-socket {}:{}", socket.host.as_deref().unwrap_or_default(), port(&socket.port))
    } else if let Some(grpc) = &probe.grpc {
        format!("grpc <pod>:{} {}", grpc.port, grpc.service.as_deref().unwrap_or_default())
    } else {
        "unknown".to_owned()
    };
    format!(
        "{what} delay={}s timeout={}s period={}s #success={} #failure={}",
        probe.initial_delay_seconds.unwrap_or_default(),
        probe.timeout_seconds.unwrap_or(1),
        probe.period_seconds.unwrap_or(10),
        probe.success_threshold.unwrap_or(1),
        probe.failure_threshold.unwrap_or(3),
    )
}

fn environment(page: &mut Page, container: &Container) {
    let froms: Vec<String> = container
        .env_from
        .iter()
        .flatten()
        .map(|from| {
            let (name, kind) = match (&from.config_map_ref, &from.secret_ref) {
                (Some(map), _) => (map.name.as_str(), "ConfigMap"),
                (None, Some(secret)) => (secret.name.as_str(), "Secret"),
                (None, None) => ("", "unknown"),
            };
            format!("      {name}  {kind}")
        })
        .collect();
    if !froms.is_empty() {
        page.line("    Environment Variables from:");
        froms.iter().for_each(|line| page.line(line));
    }
    let variables: Vec<&EnvVar> = container.env.iter().flatten().collect();
    if variables.is_empty() {
        page.field(4, "Environment", "<none>");
        return;
    }
    page.line("    Environment:");
    for variable in variables {
        page.line(format!("      {}  {}", format_args!("{}:", variable.name), origin(variable)));
    }
}

fn origin(variable: &EnvVar) -> String {
    let Some(from) = &variable.value_from else { return variable.value.clone().unwrap_or_default() };
    if let Some(field) = &from.field_ref {
        return format!("({}:{})", field.api_version.as_deref().unwrap_or("v1"), field.field_path);
    }
    if let Some(resource) = &from.resource_field_ref {
        return format!("({})", resource.resource);
    }
    // A Secret's value is never shown, only where it comes from.
    if let Some(key) = &from.secret_key_ref {
        return format!("<set to the key '{}' in secret '{}'>", key.key, key.name);
    }
    if let Some(key) = &from.config_map_key_ref {
        return format!("<set to the key '{}' of config map '{}'>", key.key, key.name);
    }
    String::new()
}

fn conditions(page: &mut Page, pod: &Pod) {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    if conditions.is_empty() {
        return;
    }
    page.line("Conditions:");
    let mut rows = vec![["Type", "Status", "Reason"].map(str::to_owned).to_vec()];
    for condition in conditions {
        rows.push(vec![
            condition.type_.clone(),
            condition.status.clone(),
            condition.reason.clone().unwrap_or_default(),
        ]);
    }
    page.rows(2, &rows);
}

fn volumes(page: &mut Page, volumes: Option<&[Volume]>) {
    let Some(volumes) = volumes.filter(|volumes| !volumes.is_empty()) else {
        page.field(0, "Volumes", "<none>");
        return;
    };
    page.line("Volumes:");
    for volume in volumes {
        page.line(format!("  {}:", volume.name));
        let (kind, detail) = if let Some(path) = &volume.host_path {
            ("HostPath (a directory or file of the machine)", format!("Path:    {}", path.path))
        } else if let Some(map) = &volume.config_map {
            ("ConfigMap", format!("Name:    {}", map.name))
        } else if let Some(secret) = &volume.secret {
            ("Secret", format!("Name:    {}", secret.secret_name.as_deref().unwrap_or_default()))
        } else if let Some(empty) = &volume.empty_dir {
            let size = empty.size_limit.as_ref().map_or("<unset>", |size| size.0.as_str());
            (
                "EmptyDir (shares the pod's lifetime)",
                format!("Medium:  {}  SizeLimit: {size}", empty.medium.as_deref().unwrap_or_default()),
            )
        } else if let Some(image) = &volume.image {
            let (reference, policy) = (image.reference.as_deref(), image.pull_policy.as_deref());
            (
                "Image (a container image, shown read-only)",
                format!("Reference:  {}  PullPolicy: {}", reference.unwrap_or_default(), policy.unwrap_or_default()),
            )
        } else if volume.projected.is_some() {
            ("Projected", String::new())
        } else if volume.downward_api.is_some() {
            ("DownwardAPI", String::new())
        } else {
            ("unknown", String::new())
        };
        page.line(format!("    Type:    {kind}"));
        if !detail.is_empty() {
            page.line(format!("    {detail}"));
        }
    }
}

fn happened(page: &mut Page, events: &[Event], now: Timestamp) {
    if events.is_empty() {
        page.field(0, "Events", "<none>");
        return;
    }
    page.line("Events:");
    let mut rows = vec![
        ["Type", "Reason", "Age", "From", "Message"].map(str::to_owned).to_vec(),
        ["----", "------", "----", "----", "-------"].map(str::to_owned).to_vec(),
    ];
    let mut events: Vec<&Event> = events.iter().collect();
    let last = |event: &Event| {
        let time = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref()).map(|time| time.0);
        time.or(event.event_time.as_ref().map(|time| time.0))
    };
    events.sort_by_key(|event| last(event));
    for event in events {
        let ago = |time: Option<Timestamp>| time.map_or_else(|| "<unknown>".to_owned(), |time| age(time, now));
        let mut when = ago(last(event));
        if let Some(count) = event.count.filter(|count| *count > 1) {
            when = format!("{when} (x{count} over {})", ago(event.first_timestamp.as_ref().map(|time| time.0)));
        }
        let from = event.source.as_ref().and_then(|source| source.component.clone());
        rows.push(vec![
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            when,
            from.or_else(|| event.reporting_component.clone()).unwrap_or_default(),
            event.message.as_deref().unwrap_or_default().trim().to_owned(),
        ]);
    }
    page.rows(2, &rows);
}

#[cfg(test)]
mod tests;
