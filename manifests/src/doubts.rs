//! What is allowed and hardly meant: a warning each, with what was probably meant.
//!
//! Sources: the warnings of the API server (Kubernetes `pkg/api/pod/warnings.go`), and what it accepts although no
//! container can start with it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::defaults;
use crate::findings::Findings;
use crate::path::Path;
use crate::quantity::Amount;
use crate::yaml::{UNFILLED, has_template};

/// Below this memory limit hardly a program starts: a shell alone needs about as much.
const LEAST_MEMORY_BYTES: i128 = 4 << 20;

/// Finds what a pod says that can hardly be meant.
pub(crate) fn pod(pod: &Pod, found: &mut Findings<'_>) {
    let Some(spec) = &pod.spec else { return };
    let root = Path::ROOT;
    let spec_path = root.field("spec");
    let mut ports = Ports::new();
    for (list, containers) in
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)]
    {
        let list_path = spec_path.field(list);
        for (index, container) in containers.iter().enumerate() {
            let path = list_path.index(index);
            image(container.image.as_deref(), &path.field("image"), found);
            resources(container, &path.field("resources"), found);
            environment(container, &path.field("env"), found);
            // What only prepares the pod has gone when the others listen.
            if list == "containers" || container.restart_policy.as_deref() == Some("Always") {
                self::ports(container, &mut ports, &path.field("ports"), found);
            }
        }
    }
    let volumes_path = spec_path.field("volumes");
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if let Some(limit) = volume.empty_dir.as_ref().and_then(|it| it.size_limit.as_ref()) {
            whole_bytes(limit, &volumes_path.index(index).field("emptyDir").field("sizeLimit"), found);
        }
        if let Some(source) = &volume.image {
            let path = volumes_path.index(index);
            image(source.reference.as_deref(), &path.field("image").field("reference"), found);
        }
    }
}

/// Memory and disk in parts of a byte, and memory that no program starts in.
fn resources(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    let Some(resources) = &container.resources else { return };
    let limits = resources.limits.as_ref();
    for (field, list) in [("limits", limits), ("requests", resources.requests.as_ref())] {
        for name in ["memory", "ephemeral-storage"] {
            let own = path.field(field);
            let own = own.key(name);
            // A request that follows its limit has been named with it.
            let follows = field == "requests"
                && limits.is_some_and(|limits| limits.get(name) == list.and_then(|it| it.get(name)));
            let Some(quantity) = list.and_then(|list| list.get(name)).filter(|_| !follows) else { continue };
            if whole_bytes(quantity, &own, found) && (field, name) == ("limits", "memory") {
                enough_memory(quantity, &own, found);
            }
        }
    }
}

/// Whether a size is a whole number of bytes; the warning is the API server's when it is none.
fn whole_bytes(quantity: &Quantity, path: &Path<'_>, found: &mut Findings<'_>) -> bool {
    if amount(quantity).is_whole_for_the_server() {
        return true;
    }
    let message = format!("fractional byte value {:?} is invalid, must be an integer", quantity.0);
    let thousandths = found.written(path).and_then(|text| text.trim().strip_suffix('m'));
    let fix = match thousandths.filter(|number| number.len() <= 20) {
        Some(number) => format!("did you mean `{number}Mi`? `m` is a thousandth of a byte"),
        None => "write whole bytes, or a unit, for example `512Mi`".to_owned(),
    };
    found.doubt(path, message, fix);
    false
}

fn enough_memory(limit: &Quantity, path: &Path<'_>, found: &mut Findings<'_>) {
    // Zero is no limit, and less is an error.
    let bytes = amount(limit).scaled(0);
    if !(1..LEAST_MEMORY_BYTES).contains(&bytes) {
        return;
    }
    let message = format!("{:?} is too little memory for nearly every program to start", limit.0);
    // A small number without a unit, or with a smaller one, most likely lacks the unit that was meant.
    let number = limit.0.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let meant = Quantity(format!("{number}Mi"));
    let fix = if number.len() <= 4 && amount(&meant).scaled(0) >= LEAST_MEMORY_BYTES {
        format!("did you mean `{}`?", meant.0)
    } else {
        "give it more, for example `64Mi`".to_owned()
    };
    found.doubt(path, message, fix);
}

fn amount(quantity: &Quantity) -> Amount {
    Amount::parse(&quantity.0).unwrap_or(Amount::ZERO)
}

/// A variable that is set again without use of its first value.
fn environment(container: &Container, path: &Path<'_>, found: &mut Findings<'_>) {
    let mut first = BTreeMap::new();
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let name = variable.name.as_str();
        let Some(former) = first.get(name).copied() else {
            first.insert(name, index);
            continue;
        };
        let value = variable.value.as_deref().unwrap_or_default();
        let reference = format!("$({name})");
        if variable.value_from.is_some() || value == reference || !value.contains(&reference) {
            let message = format!("{name:?} is set already, at {path}[{former}], and this value hides that one");
            found.doubt(&path.index(index).field("name"), message, "rename or remove one of the two");
        }
    }
}

/// By port and protocol: host address, port of the host, and where.
type Ports = BTreeMap<(i32, String), Vec<(String, i32, String)>>;

/// The same port twice, where the containers of a pod share one address, and an address of the host without its port.
fn ports(container: &Container, seen: &mut Ports, path: &Path<'_>, found: &mut Findings<'_>) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let path = path.index(index);
        let address = port.host_ip.clone().unwrap_or_default();
        let host = port.host_port.unwrap_or_default();
        if !address.is_empty() && host == 0 {
            let fix = "add the hostPort, or remove the hostIP";
            found.doubt(&path.field("hostIP"), "a hostIP without a hostPort publishes nothing".to_owned(), fix);
        }
        let key = (port.container_port, port.protocol.clone().unwrap_or_default());
        let others = seen.entry(key).or_default();
        let overlaps = |other: &&(String, i32, String)| {
            let (other_address, other_host, _) = *other;
            // Where both publish, only the same port of the same address is one thing twice.
            host == 0 || *other_host == 0 || (host == *other_host && (address.is_empty() || other_address.is_empty()))
        };
        if let Some((.., place)) = others.iter().find(overlaps) {
            let message = format!("the port {} is there already, at {place}", port.container_port);
            let fix = "the containers of a pod share its ports: change or remove one of the two";
            found.doubt(&path.field("containerPort"), message, fix);
        }
        others.push((address, host, path.to_string()));
    }
}

/// An image that cannot be pulled, as its name is none.
fn image(image: Option<&str>, path: &Path<'_>, found: &mut Findings<'_>) {
    if let Some(image) = image
        && let Some((why, fix)) = no_image(image)
    {
        /// No name is longer.
        const SHOWN: usize = 80;
        let shown: String = image.chars().take(SHOWN).collect();
        let fix = if fix.len() <= 2 * SHOWN - 50 {
            fix
        } else {
            "give a name such as `docker.io/library/nginx:1.29`".to_owned()
        };
        found.doubt(path, format!("{shown:?} cannot be an image's name: {why}"), fix);
    }
}

/// Why a text is no image's name, and what to do; `None` for one that is, and for what is an error anyway.
fn no_image(image: &str) -> Option<(String, String)> {
    let is_name = defaults::is_image_name;
    if image.is_empty() || image.trim() != image || is_name(image) {
        return None;
    }
    let meant = |text: String, otherwise: &str| {
        if is_name(&text) { format!("did you mean `{text}`?") } else { otherwise.to_owned() }
    };
    let found = |why: &str, fix: String| Some((why.to_owned(), fix));
    if has_template(image) {
        return found("a template in it was not filled in", UNFILLED.to_owned());
    }
    if image.contains("${") || image.contains("$(") {
        return found("variables are not filled in here", "write the name out".to_owned());
    }
    if let Some((scheme, rest)) = image.split_once("://") {
        let fix = meant(rest.to_owned(), "begin it with the registry's host, without a scheme");
        return Some((format!("it begins with `{scheme}://`"), fix));
    }
    if image.contains(char::is_whitespace) {
        // The space is one too many, or stands in the place of the colon.
        let glue = if image.contains(':') { "" } else { ":" };
        let joined = image.split_whitespace().collect::<Vec<_>>().join(glue);
        return found("there is a space in it", meant(joined, "remove it, and what does not belong to the name"));
    }
    if image.starts_with([':', '@']) {
        return found("there is no name before the tag", format!("put the name before it, as in `nginx{image}`"));
    }
    if let Some(name) = image.strip_suffix([':', '@']) {
        return found("it ends where a tag should follow", meant(name.to_owned(), "add the tag, for example `:1.29`"));
    }
    if image.len() == 64 && image.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return found("it is an image's id", "give the name that the image was pulled or loaded by".to_owned());
    }
    if let Some((name, digest)) = image.split_once('@')
        && is_name(name)
    {
        let why = format!("{:?} is no digest", digest.chars().take(80).collect::<String>());
        return Some((why, "write `sha256:` and 64 hexadecimal digits in lower case".to_owned()));
    }
    let (name, tag) = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    };
    if let Some(tag) = tag
        && is_name(name)
    {
        let why = format!("{:?} is no tag", tag.chars().take(80).collect::<String>());
        return Some((
            why,
            "a tag has letters, digits, `_`, `.` and `-`, at most 128, and begins with none of the last two".to_owned(),
        ));
    }
    if image.bytes().any(|byte| byte.is_ascii_uppercase()) {
        let lower = name.to_ascii_lowercase() + image.get(name.len()..).unwrap_or_default();
        if is_name(&lower) {
            return found("there are capital letters in it", format!("did you mean `{lower}`?"));
        }
    }
    let fix =
        "lower-case letters and digits, joined by `.`, `_`, `-` and `/`; for example `docker.io/library/nginx:1.29`";
    found("it has not the form of one", fix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::no_image;

    #[test]
    fn what_is_no_image_says_why() {
        for (image, why, fix) in [
            ("Nginx:1.2", "there are capital letters in it", "did you mean `nginx:1.2`?"),
            ("docker.io/Library/nginx", "there are capital letters in it", "did you mean `docker.io/library/nginx`?"),
            ("http://example.com/a:1", "it begins with `http://`", "did you mean `example.com/a:1`?"),
            ("docker://nginx", "it begins with `docker://`", "did you mean `nginx`?"),
            ("nginx :1.2", "there is a space in it", "did you mean `nginx:1.2`?"),
            (":1.2", "there is no name before the tag", "put the name before it, as in `nginx:1.2`"),
            ("nginx:", "it ends where a tag should follow", "did you mean `nginx`?"),
            ("{{ .Values.image }}", "a template in it was not filled in", "fill it in first, as `helm template` does"),
            ("${REGISTRY}/a", "variables are not filled in here", "write the name out"),
            ("a@sha256:12", "\"sha256:12\" is no digest", "write `sha256:` and 64 hexadecimal digits in lower case"),
        ] {
            assert_eq!(no_image(image), Some((why.to_owned(), fix.to_owned())), "{image}");
        }
        for tag in [".a", "a/", "-", "a+b"] {
            let (why, _) = no_image(&format!("nginx:{tag}")).unwrap();
            assert!(!why.is_empty());
        }
        for image in ["nginx", "nginx:1", "Example.com/nginx", "localhost:5000/a/b:1", "", " nginx"] {
            assert_eq!(no_image(image), None, "{image}");
        }
    }
}
