//! Pulls an image into an empty store and says what it cost: `cold_pull REFERENCE DIRECTORY [BEFORE]`. With `BEFORE`,
//! an image that the store is to have before that, in another run, layers are pulled in parts.

use std::{env, error::Error, path::PathBuf, time::Instant};

use portreeve_image::{Config, ImageRef, Progress, Store};
use tokio::sync::watch;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let (Some(reference), Some(root)) = (args.next(), args.next()) else {
        return Err("usage: cold_pull REFERENCE DIRECTORY [BEFORE]".into());
    };
    let before: Option<ImageRef> = args.next().map(|before| before.parse()).transpose()?;
    let reference: ImageRef = reference.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let config = Config { partial_pulls: before.is_some(), ..Config::new(PathBuf::from(root)) };
    if let Some(before) = before {
        let store = Store::open(config.clone())?;
        if store.lookup(&before).is_none() {
            runtime.block_on(store.pull(&before, &[], None))?;
            println!("{before} is there now");
            return Ok(());
        }
    }
    let begun = Instant::now();
    let store = Store::open(config)?;
    let opened = begun.elapsed();
    let (sink, progress) = watch::channel(Progress::default());
    let image = runtime.block_on(store.pull(&reference, &[], Some(sink)))?;
    let pulled = begun.elapsed();
    drop(store);
    let synced = begun.elapsed();
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    println!(
        "{} layers, {} MiB unpacked: opened after {opened:.2?}, pulled after {pulled:.2?}, on disk after {synced:.2?}; \
         cpu {:.2} s user, {:.2} s system; peak RSS {} MiB",
        image.layers.len(),
        image.size_bytes >> 20,
        seconds(usage.user_time()),
        seconds(usage.system_time()),
        usage.max_rss() >> 10,
    );
    for layer in &progress.borrow().layers {
        let whole = layer.whole.as_deref().map(|reason| format!(", whole: {reason}")).unwrap_or_default();
        println!("{} bytes fetched, {} reused{whole}", layer.fetched_bytes, layer.reused_bytes);
    }
    Ok(())
}

fn seconds(time: nix::sys::time::TimeVal) -> f64 {
    std::time::Duration::new(time.tv_sec().unsigned_abs(), u32::try_from(time.tv_usec()).unwrap_or(0) * 1000)
        .as_secs_f64()
}
