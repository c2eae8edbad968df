//! A registry that keeps a pull waiting in its middle.

use std::{
    fs,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use portreeve_image::ImageRef;

use super::{
    Layout, Pack,
    scripted::{Answer, Scripted},
    two_layers,
};

/// It has an image of two layers, of which the second is sent when the test lets it go.
pub struct Held {
    pub server: Scripted,
    pub layout: Layout,
    second: Arc<Barrier>,
}

impl Held {
    pub fn new() -> Self {
        Self::of(&two_layers())
    }

    pub fn of(tars: &[Vec<u8>]) -> Self {
        let layout = Layout::new(tars, Pack::Gzip);
        let (server, second) = (Scripted::start(), Arc::new(Barrier::new(2)));
        let held = Self { server, layout, second };
        held.server.on("/v2/r/manifests/x", Answer::ok(held.blob(held.layout.manifest.hex())));
        for digest in [&held.layout.config, &held.layout.layers[0]] {
            held.server.on(&format!("/v2/r/blobs/{digest}"), Answer::ok(held.blob(digest.hex())));
        }
        let second = &held.layout.layers[1];
        let waits = Answer { together: Some(held.second.clone()), ..Answer::ok(held.blob(second.hex())) };
        held.server.on(&format!("/v2/r/blobs/{second}"), waits);
        held
    }

    fn blob(&self, name: &str) -> Vec<u8> {
        fs::read(self.layout.dir.path().join("blobs/sha256").join(name)).unwrap()
    }

    pub async fn let_go(&self) {
        let second = self.second.clone();
        tokio::task::spawn_blocking(move || second.wait()).await.unwrap();
    }

    /// From now on all is sent at once.
    pub fn hold_nothing(&self) {
        let second = &self.layout.layers[1];
        self.server.replace(&format!("/v2/r/blobs/{second}"), Answer::ok(self.blob(second.hex())));
    }

    pub fn reference(&self) -> ImageRef {
        format!("127.0.0.1:{}/r:x", self.server.port).parse().unwrap()
    }
}

pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
