//! Generates the types and the server of CRI from its description.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/cri.proto");
    let described = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).btree_map(".").compile_fds(described)?;
    Ok(())
}
