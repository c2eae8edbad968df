use super::*;

fn registries() -> Registries {
    Registries::with_insecure(&["old.lan"])
}

/// Files below one directory; `certs.d` and `registries.conf` are looked for in it.
fn hosts(files: &[(&str, &str)]) -> (tempfile::TempDir, Hosts) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let hosts = Hosts {
        certs_d: Some(directory.path().join("certs.d")),
        registries_conf: Some(directory.path().join("registries.conf")),
    };
    (directory, hosts)
}

/// Each endpoint in words: where, which repository, whose mirror, and what its connection is like.
fn asked(files: &[(&str, &str)], reference: &str) -> Result<Vec<String>, String> {
    let (directory, hosts) = hosts(files);
    let endpoints = hosts.endpoints(&reference.parse().unwrap(), &registries());
    let root = directory.path().display().to_string();
    let endpoints = endpoints.map_err(|error| error.to_string().replace(&root, ""))?;
    let words = endpoints.iter().map(|endpoint| {
        let mut words = format!("{} {}", endpoint.api, endpoint.repository);
        if endpoint.registry != endpoint.host {
            words += &format!(" login={}", endpoint.registry);
        }
        if let Some(registry) = &endpoint.mirrors {
            words += &format!(" ns={registry}");
        }
        if endpoint.access.unverified && !endpoint.access.plain {
            words += " unverified";
        }
        for authority in &endpoint.access.authorities {
            words += &format!(" ca={}", String::from_utf8_lossy(authority));
        }
        if let Some(identity) = &endpoint.access.identity {
            words += &format!(" client={}", String::from_utf8_lossy(identity).replace('\n', "+"));
        }
        for (name, value) in &endpoint.headers {
            words += &format!(" {name}={}", value.to_str().unwrap());
        }
        if let Some(timeout) = endpoint.connect_timeout {
            words += &format!(" {timeout:?}");
        }
        words
    });
    Ok(words.collect())
}

const DIGEST: &str = "x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn without_files_the_registry_alone_is_asked() {
    for (reference, expected) in [
        ("busybox", "https://registry-1.docker.io/v2 library/busybox login=docker.io"),
        ("quay.io/a/b", "https://quay.io/v2 a/b"),
        ("localhost:5000/a", "http://localhost:5000/v2 a"),
        ("old.lan/a", "http://old.lan/v2 a"),
    ] {
        assert_eq!(asked(&[], reference).unwrap(), [expected], "{reference}");
    }
}

#[test]
fn the_hosts_of_containerds_file_are_asked_in_its_order_and_then_the_server() {
    let file = r#"
        server = "https://registry-1.docker.io"
        ca = "own.pem"
        [host."https://z.mirror:5000"]
          capabilities = ["pull", "resolve"]
          dial_timeout = "1m30s"
        [host."http://a.mirror/proxy/hub"]
          ca = ["one.pem", "/two.pem"]
        [host."https://m.mirror/api/v2/"]
          skip_verify = true
          client = [["my.cert", "my.key"], ["other.cert", "other.key"]]
        [host."https://o.mirror/root"]
          override_path = true
          client = "both.pem"
          [host."https://o.mirror/root".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."bare.mirror"]
        [host."old.lan:80"]
        [host."https://push.only"]
          capabilities = ["push"]
        [host."https://digests.only"]
          capabilities = ["pull"]
    "#;
    let pem = |name: &str| (format!("certs.d/docker.io/{name}"), name.to_owned());
    let pems = ["own.pem", "one.pem", "my.cert", "my.key", "both.pem"].map(pem);
    let mut files: Vec<(&str, &str)> = pems.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let two = tempfile::NamedTempFile::new().unwrap();
    fs::write(two.path(), "two").unwrap();
    let file = file.replace("/two.pem", two.path().to_str().unwrap());
    files.push(("certs.d/docker.io/hosts.toml", &file));
    let by_tag = [
        "https://z.mirror:5000/v2 library/x ns=docker.io 90s",
        "http://a.mirror/proxy/hub/v2 library/x ns=docker.io ca=one.pem ca=two",
        "https://m.mirror/api/v2 library/x ns=docker.io unverified client=my.cert+my.key+",
        "https://o.mirror/root library/x ns=docker.io client=both.pem+ x-one=1 x-two=2 x-two=3",
        "https://bare.mirror/v2 library/x ns=docker.io",
        "http://old.lan/v2 library/x ns=docker.io",
        "https://registry-1.docker.io/v2 library/x login=docker.io ca=own.pem",
    ];
    assert_eq!(asked(&files, "x").unwrap(), by_tag);
    let by_digest = asked(&files, DIGEST).unwrap();
    assert_eq!(by_digest.len(), by_tag.len() + 1);
    assert_eq!(by_digest[6], "https://digests.only/v2 library/x ns=docker.io");
}

#[test]
fn a_server_that_is_the_mirror_leaves_nothing_to_fall_back_to() {
    let only = [("certs.d/quay.io/hosts.toml", "server = 'https://mirror.lan'")];
    assert_eq!(asked(&only, "quay.io/a/b:1").unwrap(), ["https://mirror.lan/v2 a/b ns=quay.io"]);
    let none = [("certs.d/quay.io/hosts.toml", "capabilities = ['push']")];
    let refused = asked(&none, "quay.io/a/b:1").unwrap_err();
    assert_eq!(refused, "/certs.d/quay.io/hosts.toml: no host in it may be pulled from");
}

#[test]
fn directories_have_containerds_names_and_dockers_certificates() {
    let file = "[host.'https://m.lan']";
    for (directory, reference, registry) in [
        ("reg.lan:5000", "reg.lan:5000/a", "reg.lan:5000"),
        ("reg.lan_5000_", "reg.lan:5000/a", "reg.lan:5000"),
        ("_default", "any.lan/a", "any.lan"),
    ] {
        let path = format!("certs.d/{directory}/hosts.toml");
        let expected = [format!("https://m.lan/v2 a ns={registry}"), format!("https://{registry}/v2 a")];
        assert_eq!(asked(&[(&path, file)], reference).unwrap(), expected, "{directory}");
    }
    let docker = [
        ("certs.d/reg.lan/ca.crt", "ca"),
        ("certs.d/reg.lan/more.crt", "more"),
        ("certs.d/reg.lan/me.cert", "me"),
        ("certs.d/reg.lan/me.key", "key"),
        ("certs.d/_default/hosts.toml", file),
    ];
    assert_eq!(asked(&docker, "reg.lan/a").unwrap(), ["https://reg.lan/v2 a ca=ca ca=more client=me+key"]);
}

#[test]
fn podmans_table_with_the_longest_prefix_says_where() {
    let file = r#"
        unqualified-search-registries = ["docker.io"]
        short-name-mode = "enforcing"
        [[registry]]
        prefix = "docker.io"
        location = "hub.lan/proxy"
        [[registry.mirror]]
        location = "m1.lan:5000"
        [[registry.mirror]]
        location = "m2.lan/hub"
        insecure = true
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "localhost:5001"
        pull-from-mirror = "tag-only"

        [[registry]]
        location = "docker.io/library/special"
        insecure = true

        [[registry]]
        prefix = "*.corp.lan"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "cache.lan"

        [[registry]]
        prefix = "bad.lan/team"
        blocked = true
    "#;
    let files = [("registries.conf", file)];
    for (reference, expected) in [
        (
            "busybox:1",
            vec![
                "https://m1.lan:5000/v2 library/busybox",
                "http://localhost:5001/v2 library/busybox",
                "https://hub.lan/v2 proxy/library/busybox",
            ],
        ),
        (
            DIGEST,
            vec![
                "https://m1.lan:5000/v2 library/x",
                "https://m2.lan/v2 hub/library/x unverified",
                "http://m2.lan/v2 hub/library/x",
                "https://hub.lan/v2 proxy/library/x",
            ],
        ),
        (
            "special:2",
            vec![
                "https://registry-1.docker.io/v2 library/special login=docker.io unverified",
                "http://registry-1.docker.io/v2 library/special login=docker.io",
            ],
        ),
        (
            "specially",
            vec![
                "https://m1.lan:5000/v2 library/specially",
                "http://localhost:5001/v2 library/specially",
                "https://hub.lan/v2 proxy/library/specially",
            ],
        ),
        ("a.corp.lan/x:1", vec!["https://a.corp.lan/v2 x"]),
        ("corp.lan/x:1", vec!["https://corp.lan/v2 x"]),
        ("bad.lan/teams/x", vec!["https://bad.lan/v2 teams/x"]),
    ] {
        assert_eq!(asked(&files, reference).unwrap(), expected, "{reference}");
    }
    let digest = format!("a.corp.lan/{DIGEST}");
    assert_eq!(asked(&files, &digest).unwrap(), ["https://cache.lan/v2 x", "https://a.corp.lan/v2 x"]);
    assert_eq!(asked(&files, "bad.lan/team/x").unwrap_err(), "/registries.conf blocks bad.lan/team");
}

#[test]
fn drop_ins_count_later_and_containerds_directory_before() {
    let files = [
        ("registries.conf", "[[registry]]\nlocation = 'a.lan'\n[[registry.mirror]]\nlocation = 'first.lan'"),
        ("registries.conf.d/2.conf", "[[registry]]\nlocation = 'a.lan'\n[[registry.mirror]]\nlocation = 'last.lan'"),
        ("registries.conf.d/1.conf", "[[registry]]\nlocation = 'a.lan'\n[[registry.mirror]]\nlocation = 'mid.lan'"),
        ("registries.conf.d/3.conf.off", "[[registry]]\nblocked = true\nlocation = 'a.lan'"),
        ("certs.d/b.lan/hosts.toml", "[host.'https://c.lan']"),
        ("certs.d/_default/hosts.toml", "[host.'https://default.lan']"),
        ("registries.conf.d/0.conf", "[[registry]]\nlocation = 'b.lan'\n[[registry.mirror]]\nlocation = 'no.lan'"),
    ];
    assert_eq!(asked(&files, "a.lan/x").unwrap(), ["https://last.lan/v2 x", "https://a.lan/v2 x"]);
    assert_eq!(asked(&files, "b.lan/x").unwrap(), ["https://c.lan/v2 x ns=b.lan", "https://b.lan/v2 x"]);
    assert_eq!(asked(&files, "d.lan/x").unwrap()[0], "https://default.lan/v2 x ns=d.lan");
}

#[test]
fn pushed_to_is_who_may_be_and_no_mirror_of_podmans() {
    let pushed = |files: &[(&str, &str)], name: &str| {
        let (_directory, hosts) = hosts(files);
        let ways = hosts.for_push(&name.parse().unwrap(), &registries()).map_err(|error| error.to_string())?;
        let ways = ways.iter().map(|endpoint| format!("{} {}", endpoint.api, endpoint.repository));
        Ok::<String, String>(ways.collect::<Vec<_>>().join(", "))
    };
    let file = "server = 'https://up.lan'\n[host.'https://pull.lan']\ncapabilities = ['pull', 'resolve']\n";
    let more = format!("{file}[host.'https://push.lan']\ncapabilities = ['push']");
    let all = format!("{file}[host.'https://all.lan']");
    for (file, expected) in [(file, "up"), (more.as_str(), "push"), (all.as_str(), "all")] {
        let expected = format!("https://{expected}.lan/v2 x");
        assert_eq!(pushed(&[("certs.d/a.lan/hosts.toml", file)], "a.lan/x").unwrap(), expected, "{file}");
    }
    let none = "capabilities = ['pull', 'resolve']";
    let refused = pushed(&[("certs.d/a.lan/hosts.toml", none)], "a.lan/x").unwrap_err();
    assert!(refused.ends_with("no host in it may be pushed to"), "{refused}");
    let table = "[[registry]]\nprefix = 'a.lan'\nlocation = 'b.lan/c'\n[[registry.mirror]]\nlocation = 'm.lan'";
    assert_eq!(pushed(&[("registries.conf", table)], "a.lan/x:1").unwrap(), "https://b.lan/v2 c/x");
    let insecure = "[[registry]]\nlocation = 'a.lan'\ninsecure = true";
    assert_eq!(pushed(&[("registries.conf", insecure)], "a.lan/x").unwrap(), "https://a.lan/v2 x, http://a.lan/v2 x");
    assert_eq!(pushed(&[], "me/x:1").unwrap(), "https://registry-1.docker.io/v2 me/x");
}

#[test]
fn what_is_wrong_is_said_with_its_file() {
    for (file, text, problem) in [
        ("certs.d/a.lan/hosts.toml", "server = \"x\"\n[host", "/certs.d/a.lan/hosts.toml: line 2: "),
        ("certs.d/a.lan/hosts.toml", "server = 3", "server is no text"),
        ("certs.d/a.lan/hosts.toml", "host = 3", "host is no table"),
        ("certs.d/a.lan/hosts.toml", "[host.'https://b.lan']\nskip_verify = 'yes'", "host \"https://b.lan\": "),
        ("certs.d/a.lan/hosts.toml", "[host.'ftp://b.lan']", "host \"ftp://b.lan\": it is no host"),
        ("certs.d/a.lan/hosts.toml", "[host.'https://me:pw@b.lan']", "it is no host"),
        ("certs.d/a.lan/hosts.toml", "[host.'b.lan']\nca = 'no.pem'", "/certs.d/a.lan/no.pem: there is no such file"),
        ("certs.d/a.lan/hosts.toml", "[host.'b.lan']\ndial_timeout = 'soon'", "dial_timeout \"soon\" is no time"),
        ("certs.d/a.lan/hosts.toml", "[host.'b.lan'.header]\n'a b' = 'c'", "header \"a b\" cannot be sent"),
        ("registries.conf", "[[registry]]\ninsecure = true", "neither prefix nor location"),
        (
            "registries.conf",
            "[[registry]]\nlocation = 'a.lan'\n[[registry.mirror]]\nlocation = 'https://b'",
            "is no host",
        ),
        ("registries.conf", "[[registry]]\nlocation = 7", "/registries.conf: line 2: "),
    ] {
        let refused = asked(&[(file, text)], "a.lan/x").unwrap_err();
        assert!(refused.contains(problem) && refused.starts_with('/'), "{text}: {refused}");
    }
}

proptest::proptest! {
    #[test]
    fn any_file_is_refused_or_read_without_panic(text in "\\PC{0,200}", reference in "[a-z]{1,5}(:[0-9]{1,4})?/[a-z]{1,5}") {
        if let Ok(reference) = reference.parse::<ImageRef>() {
            let directory = format!("certs.d/{}/hosts.toml", reference.registry());
            let (_directory, both) = hosts(&[(&directory, &text), ("registries.conf", &text)]);
            let _any = both.endpoints(&reference, &registries());
            let podmans = Hosts { certs_d: None, ..both };
            let _any = podmans.endpoints(&reference, &registries());
        }
    }
}
