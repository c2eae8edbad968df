//! Generates a client of CRI from the description that the agent's server is made of.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (proto, folder) = ("../agent/api/proto/cri.proto", "../agent/api/proto");
    println!("cargo::rerun-if-changed={proto}");
    let described = protox::compile([proto], [folder])?;
    tonic_prost_build::configure().build_server(false).btree_map(".").compile_fds(described)?;
    Ok(())
}
