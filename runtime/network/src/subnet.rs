//! Choosing a subnet that nobody else on this machine uses. Pure.

use ipnet::Ipv4Net;

/// A subnet that is in use, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) net: Ipv4Net,
    pub(crate) owner: String,
}

/// Whether two subnets have an address in common.
pub(crate) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// What stands in the way of `subnet`.
pub(crate) fn taken_by(subnet: Ipv4Net, taken: &[Taken]) -> Option<&Taken> {
    taken.iter().find(|taken| overlap(taken.net, subnet))
}

/// The first /24 of the pool that overlaps nothing; the whole pool when it is not larger.
pub(crate) fn first_free(pool: Ipv4Net, taken: &[Taken]) -> Option<Ipv4Net> {
    let length = pool.prefix_len().max(24);
    pool.trunc().subnets(length).ok()?.find(|subnet| taken_by(*subnet, taken).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(nets: &[&str]) -> Vec<Taken> {
        nets.iter().map(|net| Taken { net: net.parse().unwrap(), owner: "eth0".to_owned() }).collect()
    }

    #[test]
    fn the_first_subnet_without_overlap_is_chosen() {
        let cases: [(&[&str], Option<&str>); 5] = [
            (&[], Some("10.85.0.0/24")),
            (&["10.85.0.0/24"], Some("10.85.1.0/24")),
            (&["10.85.0.128/25", "10.85.1.7/32"], Some("10.85.2.0/24")),
            (&["192.168.0.0/16"], Some("10.85.0.0/24")),
            (&["10.0.0.0/8"], None),
        ];
        for (nets, expected) in cases {
            let chosen = first_free("10.85.0.0/16".parse().unwrap(), &taken(nets));
            assert_eq!(chosen, expected.map(|net| net.parse().unwrap()), "{nets:?}");
        }
    }
}
