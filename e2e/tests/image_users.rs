//! The user that an image names, and what a manifest says beside it, as `id` in a real pod tells.

use portreeve_e2e::{Agent, BUSYBOX, Image, World, skipped_without_root};

fn pod(name: &str, image: &str, security: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: '{image}'
    command: [sh, -c, 'id -u; id -g; id -G']
    securityContext: {security}
"
    )
}

#[test]
fn a_container_runs_as_its_images_user_unless_the_manifest_names_another() {
    if skipped_without_root("image_users") {
        return;
    }
    let world = World::new("image-users");
    let agent = Agent::with_busybox(&world);
    for (tag, user) in [("numbers", "1000:1000"), ("name", "user"), ("both", "user:extra"), ("unknown", "nobody-here")]
    {
        let image = Image::busybox_of_user(world.home(), &format!("test.local/user:{tag}"), user);
        agent.client(&["image", "load", image.tar.to_str().expect("a path in UTF-8")]).ok();
    }
    // Name of the pod, image, security context, and user, group and all groups.
    let expected = [
        ("root", BUSYBOX, "{}", "0 0 0"),
        ("numbers", "test.local/user:numbers", "{}", "1000 1000 1000 2000"),
        ("name", "test.local/user:name", "{}", "1000 1000 1000 2000"),
        ("both", "test.local/user:both", "{}", "1000 2000 2000"),
        ("not-root", "test.local/user:numbers", "{runAsNonRoot: true}", "1000 1000 1000 2000"),
        ("another", "test.local/user:name", "{runAsUser: 7, runAsGroup: 8}", "7 8 8"),
    ];
    for (name, image, security, _) in expected {
        agent.drop_manifest(&format!("{name}.yaml"), &pod(name, image, security));
    }
    for (name, _, _, ids) in expected {
        agent.wait_pod(name, "has ended", |pod| pod["status"]["phase"] == "Succeeded");
        let told = agent.client(&["logs", name]).ok();
        assert_eq!(told.split_whitespace().collect::<Vec<_>>().join(" "), ids, "{name}");
    }
    // Who cannot be known to be another than root is refused, as is who is nobody at all.
    for (name, image, security, word) in [
        ("by-name", "test.local/user:name", "{runAsNonRoot: true}", "user"),
        ("nobody", "test.local/user:unknown", "{}", "nobody-here"),
    ] {
        agent.drop_manifest(&format!("{name}.yaml"), &pod(name, image, security));
        agent.wait_pod(name, "is refused", |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["message"].as_str().is_some_and(|message| message.contains(word))
        });
    }
}
