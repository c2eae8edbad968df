//! Which part of a policy concerns an image: scopes, the most specific first.
//!
//! ```text
//!  a.b.example:5000/ns/repo:tag    a tag or digest, as the reference has it
//!  a.b.example:5000/ns/repo        a repository
//!  a.b.example:5000/ns             a namespace
//!  a.b.example:5000                a registry
//!  *.b.example, *.example          domains, whatever the port
//!  (empty)                         any image
//! ```
//! Source: containers-policy.json(5), "docker:" under TRANSPORTS.

use crate::reference::ImageRef;

/// The scopes that a reference falls under, the most specific first.
pub(super) fn scopes(reference: &ImageRef) -> Vec<String> {
    // Hosts are the same in large letters and in small ones.
    let host = reference.registry().to_ascii_lowercase();
    let name = format!("{host}/{}", reference.repository());
    let exact = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, Some(tag)) => format!("{name}:{tag}"),
        (None, None) => name.clone(),
    };
    let mut found = vec![exact];
    let with_parents = |found: &mut Vec<String>, name: &str| {
        let ends = name.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| at);
        let ends: Vec<usize> = ends.chain([name.len()]).collect();
        found.extend(ends.iter().rev().filter_map(|end| name.get(..*end)).map(str::to_owned));
    };
    with_parents(&mut found, &name);
    // The port that everybody means who names none.
    if let Some(host) = host.strip_suffix(":443") {
        with_parents(&mut found, &format!("{host}/{}", reference.repository()));
    }
    let mut domain = without_port(&host);
    while let Some((_, parent)) = domain.split_once('.') {
        found.push(format!("*.{parent}"));
        domain = parent;
    }
    found.push(String::new());
    found
}

/// Whether a scope can ever concern an image; one that cannot would leave unguarded what somebody meant to guard.
pub(super) fn check(scope: &str) -> Result<(), String> {
    if scope.is_empty() {
        return Ok(());
    }
    if scope.split('/').next().is_some_and(|host| host.contains(|c: char| c.is_ascii_uppercase())) {
        return Err(format!("{scope:?}: write the host in small letters"));
    }
    if let Some(domain) = scope.strip_prefix('*') {
        let plain = !domain.contains(['*', '/', ':', '@']) && domain.starts_with('.');
        let good = plain && format!("x{domain}/x").parse::<ImageRef>().is_ok();
        let hint = "is no domain; write \"*.example.com\", or \"\" for all";
        return if good { Ok(()) } else { Err(format!("{scope:?} {hint}")) };
    }
    let image = scope.split_once('/').is_some() && (scope.contains('@') || scope_tag(scope).is_some());
    if image {
        return match scope.parse::<ImageRef>() {
            Ok(reference) if scopes(&reference).first().is_some_and(|exact| exact == scope) => Ok(()),
            Ok(reference) => Err(format!("{scope:?} is no image's full name; write {:?}", reference.to_string())),
            Err(error) => Err(format!("{scope:?} is no scope: {error}")),
        };
    }
    check_prefix(scope)
}

/// Whether repositories can begin with this registry, namespace or repository.
pub(super) fn check_prefix(prefix: &str) -> Result<(), String> {
    let probe = format!("{prefix}/x/x");
    let wrong = |problem: &dyn std::fmt::Display| {
        Err(format!("{prefix:?} is no registry, namespace or repository as in \"docker.io/library\": {problem}"))
    };
    match probe.parse::<ImageRef>() {
        Ok(reference) if reference.name() == probe && scope_tag(prefix).is_none() => Ok(()),
        Ok(reference) => wrong(&format!("an image below it would be {:?}", reference.name())),
        Err(error) => wrong(&error),
    }
}

/// What follows the last colon behind the last slash.
fn scope_tag(scope: &str) -> Option<&str> {
    let (_, last) = scope.rsplit_once('/')?;
    last.split_once(':').map(|(_, tag)| tag)
}

fn without_port(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, _)) if !registry.ends_with(']') => host,
        _ => registry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn scopes_lead_from_the_image_to_everything() {
        let pinned = format!("r.example/x@{DIGEST}");
        let both = format!("r.example/x:1@{DIGEST}");
        for (reference, expect) in [
            (
                "a.b.example:5000/ns/repo:1",
                vec![
                    "a.b.example:5000/ns/repo:1",
                    "a.b.example:5000/ns/repo",
                    "a.b.example:5000/ns",
                    "a.b.example:5000",
                    "*.b.example",
                    "*.example",
                    "",
                ],
            ),
            (
                "busybox",
                vec![
                    "docker.io/library/busybox:latest",
                    "docker.io/library/busybox",
                    "docker.io/library",
                    "docker.io",
                    "*.io",
                    "",
                ],
            ),
            (&pinned, vec![&pinned, "r.example/x", "r.example", "*.example", ""]),
            // Beside a digest the tag need not be true.
            (&both, vec![&pinned, "r.example/x", "r.example", "*.example", ""]),
            (
                "Registry.Example:443/ns/x:1",
                vec![
                    "registry.example:443/ns/x:1",
                    "registry.example:443/ns/x",
                    "registry.example:443/ns",
                    "registry.example:443",
                    "registry.example/ns/x",
                    "registry.example/ns",
                    "registry.example",
                    "*.example",
                    "",
                ],
            ),
            ("localhost/x:1", vec!["localhost/x:1", "localhost/x", "localhost", ""]),
            ("[::1]:5000/x:1", vec!["[::1]:5000/x:1", "[::1]:5000/x", "[::1]:5000", ""]),
        ] {
            assert_eq!(scopes(&reference.parse().unwrap()), expect, "{reference}");
        }
    }

    #[test]
    fn docker_hub_is_one_scope_by_whatever_name() {
        for host in
            ["index.docker.io", "Index.Docker.io", "registry-1.docker.io:443", "INDEX.docker.io:443", "docker.io:443"]
        {
            let reference = format!("{host}/library/busybox").parse().unwrap();
            assert_eq!(scopes(&reference), scopes(&"busybox".parse().unwrap()), "{host}");
        }
    }

    #[test]
    fn every_scope_of_an_image_is_one_that_may_be_written() {
        for reference in ["a.b.example:5000/ns/repo:1", "busybox", &format!("r.example/x@{DIGEST}"), "[::1]:5000/x"] {
            for scope in scopes(&reference.parse().unwrap()) {
                assert_eq!(check(&scope), Ok(()), "{scope}");
            }
        }
    }

    #[test]
    fn a_scope_that_no_image_falls_under_is_refused() {
        for (scope, hint) in [
            ("busybox", "docker.io/busybox/x/x"),
            ("library", "docker.io/library/x/x"),
            ("docker.io/busybox:1", "write \"docker.io/library/busybox:1\""),
            ("index.docker.io/library", "would be \"docker.io/library/x/x\""),
            ("docker.io:443/library", "would be \"docker.io/library/x/x\""),
            ("https://r.example/ns", "is a URL"),
            ("r.example/", "not a repository name component"),
            ("r.example/NS", "not a repository name component"),
            ("r.example/ns:", "not a tag"),
            ("r.example/x@sha256:1", "malformed digest"),
            ("R.example/ns", "small letters"),
            ("*.Example", "small letters"),
            ("*", "no domain"),
            ("*example.com", "no domain"),
            ("*.", "no domain"),
            ("*.example.com:5000", "no domain"),
            ("*.example.com/ns", "no domain"),
            ("r.example:99999", "not a registry host"),
        ] {
            let problem = check(scope).unwrap_err();
            assert!(problem.contains(hint), "{scope}: {problem}");
        }
    }
}
