//! The image of the tests that run real containers: busybox, with users and a configuration of its own. The node's tests
//! use this very file.

use std::fs;
use std::io::Write as _;

use sha2::{Digest as _, Sha256};

pub(crate) const IMAGE: &str = "docker.io/library/box:1";

/// A docker-archive with busybox.
pub(crate) fn archive() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |path: &str, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        layer.append_data(&mut header, path, content).expect("layer");
    };
    for directory in ["bin/", "etc/", "proc/", "sys/", "dev/", "root/", "home/web/"] {
        add(directory, 0o755, b"");
    }
    add("tmp/", 0o1777, b"");
    add("bin/busybox", 0o755, &fs::read("/bin/busybox").expect("busybox"));
    add("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:100:101::/home/web:/bin/sh\n");
    add("etc/group", 0o644, b"root:x:0:\nweb:x:101:\naudio:x:29:web\n");
    add("bin/notexec", 0o644, b"nothing");
    for applet in [
        "sh", "sleep", "cat", "echo", "id", "kill", "ls", "mount", "ps", "hostname", "head", "tail", "dd", "nc",
        "stty", "env", "true", "false", "yes", "seq", "touch", "readlink", "test", "pwd", "wc", "tr", "grep",
        "unshare", "ip", "mkdir", "rm",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("link");
    }
    let layer = layer.into_inner().expect("layer");
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Env":["FROM_IMAGE=1"],"Cmd":["/bin/sh"],"StopSignal":"SIGUSR1"}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        hex::encode(Sha256::digest(&layer))
    );
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]"#);
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in
        [("config.json", config.as_bytes()), ("layer.tar", &layer), ("manifest.json", manifest.as_bytes())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content).expect("archive");
    }
    let mut bytes = archive.into_inner().expect("archive");
    bytes.flush().expect("archive");
    bytes
}
