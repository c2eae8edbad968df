//! The image service, as a kubelet uses it.

use std::path::PathBuf;

use portreeve_e2e::cri::{code, image_spec, v1};
use portreeve_e2e::{Agent, BUSYBOX, Cri, Image, LOGIN, Registry, World, skipped_without_root};
use tonic::Code;

fn connect(agent: &Agent<'_>) -> Cri {
    Cri::connect(&agent.run_dir().join("cri.sock"))
}

#[test]
fn images_come_are_told_and_go() {
    if skipped_without_root("cri_images") {
        return;
    }
    let world = World::new("cri-images");
    let registry = Registry::start(&world, 5000);
    let closed = Registry::closed(&world, 5001);
    let image = Image::busybox_with(world.home(), "test.local/one:1", &[("etc/one", "one")]);
    let (one, two) = (registry.push(&image, "one:1"), registry.push(&image, "two:2"));
    let other = Image::busybox_with(world.home(), "test.local/other:1", &[("etc/other", "other")]);
    let behind = closed.push(&other, "other:1");
    let agent = Agent::with_busybox(&world);
    let cri = connect(&agent);

    assert_eq!(cri.image(&one), None, "absent is no error");
    let id = cri.pull(&one).unwrap();
    assert_eq!(cri.pull(&one).unwrap(), id, "again");
    assert_eq!(cri.pull(&two).unwrap(), id, "one image, two names");
    let shown = cri.image(&one).unwrap();
    assert_eq!(shown.id, id);
    assert_eq!(shown.repo_tags, [one.clone(), two.clone()]);
    assert!(shown.repo_digests.iter().any(|digest| digest.starts_with("127.0.0.1:5000/one@sha256:")), "{shown:?}");
    assert!(shown.size > 0 && !shown.pinned);
    assert_eq!(cri.image(&id), Some(shown.clone()), "by its id");
    assert_eq!(cri.image(&shown.repo_digests[0]).map(|image| image.id), Some(id.clone()), "by its digest");
    let verbose = v1::ImageStatusRequest { image: Some(image_spec(&one)), verbose: true };
    let verbose = cri.images(async |mut images| images.image_status(verbose).await).unwrap();
    assert!(verbose.info["info"].contains("imageSpec"));

    let list = |filter: Option<&str>| {
        let filter = filter.map(|name| v1::ImageFilter { image: Some(image_spec(name)) });
        let request = v1::ListImagesRequest { filter };
        let images = cri.images(async |mut images| images.list_images(request).await).unwrap().images;
        images.into_iter().map(|image| image.id).collect::<Vec<_>>()
    };
    assert!(list(None).contains(&id) && list(None).len() == 2, "and the preloaded one");
    assert_eq!(list(Some(&two)), [id.as_str()]);
    assert_eq!(list(Some("nobody.example/x:1")), Vec::<String>::new());
    let streamed = cri.wait(async {
        let mut images = Vec::new();
        let mut client = cri.image_client();
        let mut stream = client.stream_images(v1::StreamImagesRequest::default()).await.unwrap().into_inner();
        while let Some(batch) = stream.message().await.unwrap() {
            images.extend(batch.images);
        }
        images.len()
    });
    assert_eq!(streamed, 2);

    let pull = |image: &str, auth: Option<v1::AuthConfig>| {
        let request = v1::PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config: None };
        cri.images(async |mut images| images.pull_image(request).await)
    };
    assert_eq!(code(pull(&format!("{}/nothing:1", registry.host()), None)), Code::NotFound);
    assert_eq!(code(pull("UPPER//:", None)), Code::InvalidArgument);
    assert_eq!(code(pull(&behind, None)), Code::PermissionDenied);
    let login = |password: &str| v1::AuthConfig {
        username: LOGIN.0.to_owned(),
        password: password.to_owned(),
        ..v1::AuthConfig::default()
    };
    assert_eq!(code(pull(&behind, Some(login("wrong")))), Code::PermissionDenied);
    pull(&behind, Some(login(LOGIN.1))).unwrap();
    let gone = registry.host();
    drop(registry);
    let unreachable = pull(&format!("{gone}/one:2"), None).unwrap_err();
    // Any other code would stand before the word for a kubelet.
    assert_eq!(unreachable.code(), Code::Unknown, "{unreachable}");
    assert!(unreachable.message().starts_with("RegistryUnavailable: "), "{unreachable}");

    let space = cri.images(async |mut images| images.image_fs_info(v1::ImageFsInfoRequest {}).await).unwrap();
    for filesystem in space.image_filesystems.iter().chain(&space.container_filesystems) {
        assert!(PathBuf::from(&filesystem.fs_id.as_ref().unwrap().mountpoint).is_dir());
        assert!(filesystem.used_bytes.unwrap().value > 100_000 && filesystem.timestamp > 0);
    }
    assert_eq!((space.image_filesystems.len(), space.container_filesystems.len()), (1, 1));

    let remove = |image: &str| {
        let request = v1::RemoveImageRequest { image: Some(image_spec(image)) };
        cri.images(async |mut images| images.remove_image(request).await)
    };
    remove(&one).unwrap();
    assert_eq!(cri.image(&two), None, "all names go");
    remove(&one).unwrap();
    remove(&id).unwrap();
    assert!(cri.image(BUSYBOX).unwrap().pinned, "preloaded");
    assert_eq!(code(remove(BUSYBOX)), Code::FailedPrecondition);
}
