//! Writes the definitions of this crate's kinds, as files of `helm/crds`.
//!
//!     crdgen DIRECTORY

use std::path::Path;

fn main() -> std::io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: crdgen DIRECTORY");
        std::process::exit(2);
    };
    std::fs::create_dir_all(&directory)?;
    for (name, text) in portreeve_crds::files() {
        std::fs::write(Path::new(&directory).join(name), text)?;
    }
    Ok(())
}
