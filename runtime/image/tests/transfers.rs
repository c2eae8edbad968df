//! How layers come: by how many connections, how fast, and when.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use portreeve_image::{Config, Image, ImageRef, PullError, Retry, Store};
use support::{
    Layout, Pack, Tar,
    scripted::{Answer, Scripted},
};

const MEBIBYTE: usize = 1 << 20;

/// An image of one layer of so many MiB that do not compress, which is sent as `how` says.
struct Served {
    server: Scripted,
    layout: Layout,
}

impl Served {
    fn new(mebibytes: usize, how: impl Fn(Vec<u8>) -> Vec<Answer>) -> Self {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        let content: Vec<u8> = (0..mebibytes * MEBIBYTE).map(|_| next()).collect();
        let layout = Layout::new(&[Tar::new().file("content", &content).bytes()], Pack::Plain);
        let server = Scripted::start();
        let blob = |name: &str| fs::read(layout.dir.path().join("blobs/sha256").join(name)).unwrap();
        server.on("/v2/r/manifests/x", Answer::ok(blob(layout.manifest.hex())));
        server.on(&format!("/v2/r/blobs/{}", layout.config), Answer::ok(blob(layout.config.hex())));
        let path = format!("/v2/r/blobs/{}", layout.layers[0]);
        how(blob(layout.layers[0].hex())).into_iter().for_each(|answer| server.on(&path, answer));
        Self { server, layout }
    }

    fn reference(&self) -> ImageRef {
        format!("127.0.0.1:{}/r:x", self.server.port).parse().unwrap()
    }

    async fn pull(&self, root: &Path, set: impl FnOnce(&mut Config)) -> Result<Image, PullError> {
        let mut config = Config::new(root);
        set(&mut config);
        Store::open(config).unwrap().pull(&self.reference(), &[], None).await
    }

    /// Which bytes of the layer were asked for, in order of their beginning.
    fn asked(&self) -> Vec<String> {
        let path = format!("/v2/r/blobs/{}", self.layout.layers[0]);
        let ranges = self.server.requests().into_iter().filter(|r| r.path == path).filter_map(|r| r.range);
        let mut ranges: Vec<String> = ranges.map(|range| range.replace("bytes=", "")).collect();
        ranges.sort_by_key(|range| range.split_once('-').unwrap().0.parse::<u64>().unwrap());
        ranges
    }
}

fn in_ranges(body: Vec<u8>) -> Answer {
    Answer { ranges: true, ..Answer::ok(body) }
}

/// About 4 MiB per second for each connection.
fn slowly(body: Vec<u8>) -> Answer {
    Answer { paced: Some(4 << 10), ..in_ranges(body) }
}

#[tokio::test]
async fn a_large_layer_that_comes_slowly_comes_by_several_connections() {
    let served = Served::new(20, |body| vec![slowly(body)]);
    let root = tempfile::tempdir().unwrap();
    served.pull(root.path(), |_| {}).await.unwrap();
    let asked = served.asked();
    assert_eq!(asked[..3], ["0-4194303", "4194304-6291455", "6291456-8388607"]);
    // A tar's own blocks follow the content.
    assert_eq!(asked.len(), 1 + 9, "{asked:?}");
    assert_eq!(served.server.most_at_once(), 3);
}

#[tokio::test]
async fn what_comes_fast_or_whole_comes_by_one_connection() {
    for (what, answer, connections, expect) in [
        ("fast", in_ranges as fn(Vec<u8>) -> Answer, 3, vec!["0-4194303", "4194304-"]),
        ("told so", in_ranges, 1, vec!["0-"]),
        ("no ranges", |body| Answer::ok(body), 3, vec!["0-4194303"]),
    ] {
        // A busy machine may be slow for once.
        let mut asked = Vec::new();
        for _ in 0..10 {
            let served = Served::new(20, |body| vec![answer(body)]);
            let root = tempfile::tempdir().unwrap();
            served.pull(root.path(), |config| config.connections_per_layer = connections).await.unwrap();
            asked = served.asked();
            if asked == expect {
                break;
            }
        }
        assert_eq!(asked, expect, "{what}");
    }
}

#[tokio::test]
async fn a_piece_that_breaks_off_or_is_another_one_is_asked_for_again() {
    let all = |body: &Vec<u8>| Answer::ok(body.clone());
    let broken = |body: &Vec<u8>| Answer { cut_at: Some(1000), ..in_ranges(body.clone()) };
    let short = |body: &Vec<u8>| Answer { ranges: true, ..Answer::ok(body[..4 * MEBIBYTE + 1].to_vec()) };
    type Fault<'a> = (&'a str, &'a dyn Fn(&Vec<u8>) -> Answer);
    let faults: [Fault<'_>; 3] = [("cut off", &broken), ("all of it", &all), ("too short", &short)];
    for (what, fault) in faults {
        let served = Served::new(18, |body| {
            let mut answers = vec![slowly(body.clone()), slowly(body.clone()), fault(&body)];
            answers.push(in_ranges(body));
            answers
        });
        let root = tempfile::tempdir().unwrap();
        served.pull(root.path(), |_| {}).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let asked = served.asked();
        assert_eq!(asked[..2], ["0-4194303", "4194304-6291455"], "{what}");
        // Again from where it is known to be right.
        assert!(asked.iter().any(|range| range.ends_with('-')), "{what}: {asked:?}");
    }
}

#[tokio::test]
async fn all_layers_together_keep_the_rate_limit() {
    let served = Served::new(4, |body| vec![in_ranges(body)]);
    let root = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    served.pull(root.path(), |config| config.download_rate_limit = Some(4 << 20)).await.unwrap();
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(850), "{took:?} for 4 MiB at 4 MiB per second");
}

#[tokio::test]
async fn outside_of_the_window_no_layer_is_fetched_unless_a_person_asks() {
    let served = Served::new(1, |body| vec![in_ranges(body)]);
    let root = tempfile::tempdir().unwrap();
    let time = |hours: i64| {
        let then = jiff::Zoned::now().checked_add(jiff::SignedDuration::from_hours(hours)).unwrap();
        format!("{:02}:{:02}", then.hour(), then.minute())
    };
    let mut config = Config::new(root.path());
    config.download_window = Some(format!("{}-{}", time(2), time(3)).parse().unwrap());
    let store = Store::open(config).unwrap();
    let refused = store.pull(&served.reference(), &[], None).await.unwrap_err();
    assert!(matches!(refused, PullError::OutsideWindow { .. }), "{refused:?}");
    assert_eq!(refused.retry(), Retry::Later);
    let wait = refused.retry_after().unwrap();
    assert!(wait > Duration::from_secs(2 * 3600 - 61) && wait <= Duration::from_secs(2 * 3600), "{wait:?}");
    let text = refused.to_string();
    assert!(text.contains(&format!("from {}-{} alone", time(2), time(3))), "{text}");
    assert_eq!(served.asked().len(), 0);
    store.pull_now(&served.reference(), &[], None).await.unwrap();
    // What is here needs no network.
    store.pull(&served.reference(), &[], None).await.unwrap();
    assert_eq!(served.asked().len(), 1);
    drop(store);
    let open = format!("{}-{}", time(-1), time(1)).parse().unwrap();
    let other = tempfile::tempdir().unwrap();
    served.pull(other.path(), |config| config.download_window = Some(open)).await.unwrap();
}
