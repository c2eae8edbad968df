//! How the binary is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    at_a_fixed_address();
    in_order();
}

/// Links the binary at a fixed address also where the flags of `.cargo/config.toml` do not apply
/// (`RUSTFLAGS` in the environment replaces them) and it is linked to shared libraries.
///
/// A position-independent executable of this size relocates about 0.7 MB of pointers at every
/// start: time in each shim's start, and private memory in each shim for as long as it runs.
/// The price is that the addresses of our own code are the same in every process (the stack,
/// the heap, and every library stay randomised).
fn at_a_fixed_address() {
    // Else whoever chose the flags chose `relocation-model` too: with -no-pie behind its back a static
    // position-independent program would be linked with the start code of another kind, and crash.
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if !features.split(',').any(|feature| feature == "crt-static") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}

/// Puts what a start of `portreeve runtime` calls beside each other in the release binary: the kernel maps
/// 64 KiB around every page that is touched, so that calls all over the file cost 4 MiB and a tenth of the time.
/// `e2e/order` writes the list. What it names and is not there is left out; mold and gold do not read such a list, lld and
/// GNU ld do.
fn in_order() {
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/order.ld");
    println!("cargo:rerun-if-changed={list}");
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let reads_it = !["mold", "gold"].iter().any(|linker| flags.contains(linker));
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if release && reads_it {
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{list}");
    }
}
