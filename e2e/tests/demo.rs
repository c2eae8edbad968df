//! The first command of the README.

use std::process::Stdio;

use portreeve_e2e::{World, binary, skipped_without_host_ports, skipped_without_root};

#[test]
fn the_demo_shows_a_page_and_leaves_nothing() {
    if skipped_without_root("demo") {
        return;
    }
    let world = World::new("demo");
    if skipped_without_host_ports(&world, "demo") {
        return;
    }
    let output = world
        .command(binary())
        .args(["demo", "--once"])
        .env("TMPDIR", world.home())
        .stdin(Stdio::null())
        .output()
        .expect("the demo runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("Portreeve runs what its manifests say."), "{stdout}");
    assert!(stdout.contains("web") && stdout.contains("1/1") && stdout.contains("neighbour"), "{stdout}");
    assert_eq!(world.sh("ip -o link | grep -v ' lo:' || true"), "", "links are left");
    assert_eq!(world.sh("nft list tables"), "", "tables are left");
    assert_eq!(std::fs::read_dir(world.home()).unwrap().count(), 0, "files are left");
}
