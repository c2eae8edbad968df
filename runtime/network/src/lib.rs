//! Addresses, bridge, veth pairs and the nftables ruleset of pods.
