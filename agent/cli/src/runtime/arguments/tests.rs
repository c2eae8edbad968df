use super::*;

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

/// What the words mean: the verb's debug form, or what is wrong with them.
fn read(text: &str) -> Result<String, String> {
    let words = words(text);
    let (_, asked, rest) = globals(&words).map_err(|error| error.to_string())?;
    let verb = asked.map_or_else(|| verb(rest), Ok).map_err(|error| error.to_string())?;
    Ok(format!("{verb:?}"))
}

#[test]
fn flags_before_the_verb_are_the_runtimes() {
    let spellings = [
        "--root /r --log /l --log-format json --systemd-cgroup --rootless true --debug --criu /usr/bin/criu state x",
        "--root=/r --log=/l --log-format=json --systemd-cgroup=true --rootless=true --debug=1 --criu=/usr/bin/criu state x",
        "-root /r -log=/l -log-format json -systemd-cgroup -rootless 1 -debug -criu /usr/bin/criu state x",
    ];
    for text in spellings {
        let words = words(text);
        let (global, asked, rest) = globals(&words).unwrap();
        let expected = Global {
            root: Some("/r".into()),
            log: Some("/l".into()),
            log_format: LogFormat::Json,
            systemd_cgroup: true,
            rootless: Some(true),
            debug: true,
            criu: Some("/usr/bin/criu".into()),
        };
        assert_eq!(global, expected, "{text}");
        assert!(asked.is_none());
        assert_eq!(rest, ["state", "x"]);
    }
    let (global, _, rest) = globals(&[]).unwrap();
    assert_eq!(global, Global::default());
    assert!(rest.is_empty());
}

#[test]
fn the_same_is_meant_in_every_spelling() {
    let same = [
        &[
            "create --bundle /b --pid-file /p x",
            "create --bundle=/b -pid-file=/p x",
            "create x -b /b --pid-file /p",
            "create -b=/b --pid-file /p -- x",
            "create -b /else -b /b --pid-file=/p x",
        ][..],
        &["run -d -b /b x", "run -db /b x", "run --detach=true --bundle /b x", "run x --detach -b /b"],
        &["delete -f x", "delete --force x", "delete x --force", "delete -force=1 x"],
        &["kill x", "kill x TERM", "kill x 15", "kill x SIGTERM", "kill -- x 15", "kill --all=false x"],
        &["kill -a x 9", "kill --all x KILL"],
        &[
            "exec -t -u 5:6 -e A=1 -e B=2 x sh -c ls",
            "exec --tty --user=5:6 --env A=1 --env=B=2 x sh -c ls",
            "exec -tu 5:6 -e=A=1 -e B=2 x sh -c ls",
        ],
        &["exec -d -p /f x", "exec --detach --process /f x", "exec --process=/f --detach -- x"],
        &["ps -f json x", "ps --format json x"],
        &["list -q", "list --quiet -f json"],
        &["update -r - x", "update --resources=- x"],
        &["--version", "-v", "--version state"],
        &["", "--help", "-h", "help", "-h create"],
        &["create --help", "create -h", "help create", "create --help x y z"],
    ];
    for group in same {
        let meant: Vec<_> =
            group.iter().map(|text| read(text).unwrap_or_else(|error| panic!("{text}: {error}"))).collect();
        for (text, meaning) in group.iter().zip(&meant) {
            assert_eq!(Some(meaning), meant.first(), "{text}");
        }
    }
}

#[test]
fn words_of_another_program_are_left_alone() {
    let exec = read("exec x ls --tty -l --user root -- -x").unwrap();
    assert!(exec.contains(r#"arguments: ["ls", "--tty", "-l", "--user", "root", "--", "-x"], tty: None"#), "{exec}");
    let apart = read("exec x -- -l -- x").unwrap();
    assert!(apart.contains(r#"arguments: ["-l", "--", "x"]"#), "{apart}");
    let ps = read("ps x -e --format pid").unwrap();
    assert!(ps.contains(r#"json: false, options: ["-e", "--format", "pid"]"#), "{ps}");
}

#[test]
fn what_makes_no_sense_is_refused_and_says_where_help_is() {
    let cases = [
        ("creat x", "there is no verb \"creat\", did you mean \"create\" (see `portreeve runtime --help`)"),
        ("frobnicate", "there is no verb \"frobnicate\" (see `portreeve runtime --help`)"),
        ("--rot /r state x", "there is no flag \"--rot\", did you mean \"root\" (see `portreeve runtime --help`)"),
        ("create --bundel /b x", "did you mean \"bundle\" (see `portreeve runtime create --help`)"),
        ("create -xyz x", "there is no flag \"-xyz\""),
        ("create", "create takes ID, and 0 operands were given"),
        ("create x y", "create takes ID, and 2 operands were given"),
        ("list x", "1 operands were given"),
        ("create --bundle", "--bundle needs a value"),
        ("run -bd x y", "in \"-bd\" only the last flag can have a value"),
        ("delete --force=maybe x", "--force is true or false, not \"maybe\""),
        ("create --preserve-fds -1 x", "--preserve-fds takes a number, and \"-1\" is none here"),
        ("create --preserve-fds 4294967296 x", "\"4294967296\" is none here"),
        ("kill x NOSUCH", "\"NOSUCH\" is no signal"),
        ("exec x", "there is no command, and no --process"),
        ("exec -p /f x ls", "one of them"),
        ("exec -e NAME x ls", "--env takes NAME=VALUE"),
        ("exec -e =1 x ls", "--env takes NAME=VALUE"),
        ("exec -u root x ls", "--user takes UID[:GID] in digits, not \"root\""),
        ("exec -g x1 x ls", "--additional-gids takes a number"),
        ("exec --cap CAP_NOSUCH x ls", "there is no capability \"CAP_NOSUCH\""),
        ("--log-format xml state x", "--log-format is text or json"),
        ("--rootless maybe state x", "--rootless is true, false or auto"),
        ("ps -f yaml x", "--format is table or json"),
        ("events --interval 0s x", "--interval takes a time"),
        ("events --interval 5 x", "--interval takes a time"),
        ("list -f yaml", "--format is table or json"),
        ("checkpoint --manage-cgroups-mode none x", "--manage-cgroups-mode is soft, full, strict or ignore"),
        ("restore --empty-ns mount x", "--empty-ns is network, not \"mount\""),
        ("checkpoint --page-server 127.0.0.1 x", "--page-server is ADDRESS:PORT"),
    ];
    for (text, expected) in cases {
        let told = read(text).expect_err(text);
        assert!(told.contains(expected), "{text}: {told}");
        assert!(told.contains("--help`)"), "{text}: {told}");
    }
}

#[test]
fn every_verb_of_runc_takes_the_flags_that_its_callers_pass() {
    // Of conmon, podman, containerd and Docker.
    let calls = [
        "--log /l --log-format json create --bundle /b --pid-file /p --console-socket /s x",
        "--systemd-cgroup --root /r create --bundle /b --pid-file /p --no-pivot --no-new-keyring --preserve-fds 2 x",
        "create --pidfd-socket /s x",
        "run --bundle /b --detach --keep --no-subreaper --no-pivot --no-new-keyring x",
        "start x",
        "state x",
        "kill x 9",
        "kill --all x 15",
        "delete --force x",
        "exec --pid-file /p --process /f --detach x",
        "exec --console-socket /s --pidfd-socket /s --cwd / --cap CAP_NET_RAW --no-new-privs --ignore-paused x ls",
        "exec --apparmor a --process-label l --preserve-fds 1 --additional-gids 1 --cgroup c --no-subreaper x ls",
        "ps --format json x",
        "list --format json",
        "pause x",
        "resume x",
        "update --resources=/f x",
        "update --cpu-quota 1 --memory 1g --pids-limit 5 x",
        "events --interval 100ms x",
        "events --stats x",
        "spec --bundle /b --rootless",
        "checkpoint --image-path /i --work-path /w --parent-path /p --leave-running --tcp-established --file-locks x",
        "checkpoint --ext-unix-sk --shell-job --lazy-pages --status-fd 3 --page-server a:1 --pre-dump --auto-dedup x",
        "checkpoint --manage-cgroups-mode ignore --empty-ns network --tcp-skip-in-flight --link-remap x",
        "restore --bundle /b --image-path /i --work-path /w --detach --pid-file /p --console-socket /s --no-pivot x",
        "restore --manage-cgroups-mode soft --empty-ns network --lazy-pages --auto-dedup --tcp-established x",
        "restore --lsm-profile selinux:x --lsm-mount-context y --no-subreaper --ext-unix-sk --file-locks x",
    ];
    for call in calls {
        read(call).unwrap_or_else(|error| panic!("{call}: {error}"));
    }
}

#[test]
fn the_help_names_every_verb_and_every_flag() {
    let all = help(None).unwrap();
    for usage in VERBS {
        assert!(all.contains(&format!("\n  {} ", usage.name)), "{}", usage.name);
        let one = help(Some(usage.name)).unwrap();
        assert!(one.starts_with(&format!("portreeve runtime {} ", usage.name)), "{one}");
        let mut seen = std::collections::BTreeSet::new();
        for flag in usage.flags.iter().copied().flatten().chain([&HELP_FLAG]) {
            assert!(one.contains(&format!("--{}", flag.long)), "{one}");
            assert!(seen.insert(flag.long.to_owned()), "two flags --{} in {}", flag.long, usage.name);
            if let Some(short) = flag.short {
                assert!(seen.insert(short.to_string()), "two flags -{short} in {}", usage.name);
            }
        }
    }
    assert!(help(Some("nothing")).is_err());
}

#[test]
fn bytes_that_are_no_text_are_paths_or_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let odd = || OsString::from_vec(b"/\xff".to_vec());
    let path = [OsString::from("create"), "-b".into(), odd(), "x".into()];
    assert!(verb(&path).is_ok());
    let id = [OsString::from("start"), odd()];
    assert!(verb(&id).unwrap_err().to_string().contains("not UTF-8"));
    let flag = [OsString::from("start"), OsString::from_vec(b"--\xff".to_vec())];
    assert!(verb(&flag).unwrap_err().to_string().contains("there is no flag"));
}
