//! Any answers of a registry with TLS: a token is asked for by TLS alone, and not on this machine or link.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use portreeve_image::fuzz;

fuzz_target!(|text: &str| {
    let headers: Vec<&str> = text.split('\n').collect();
    let Some(url) = fuzz::token_server(&headers, "registry.example:5000") else { return };
    let host = url.strip_prefix("https://").expect("by TLS").split(['/', '?', '#']).next().expect("a host");
    assert!(!host.contains('@'), "{url}");
    let name = match host.find(']') {
        Some(end) => &host[1..end],
        None => host.split(':').next().expect("a name"),
    };
    let name = name.trim_end_matches('.');
    assert!(name != "localhost" && !name.ends_with(".localhost"), "{url}");
    match name.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(v4)) => {
            assert!(!v4.is_loopback() && !v4.is_link_local() && v4 != Ipv4Addr::UNSPECIFIED, "{url}");
        }
        Ok(IpAddr::V6(v6)) => {
            assert!(!v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(), "{url}")
        }
        Err(_) => {}
    }
});
