//! The expressions that our rules are made of, written as `nft --debug=netlink` prints them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::protocol::{
    NF_ACCEPT, NF_DROP, NFPROTO_IPV4, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME,
    NFTA_LIST_ELEM, NFTA_VERDICT_CODE,
};
use crate::netlink::Writer;

/// The first 16-byte register; concatenations start here.
const REG_1: u32 = 1;
/// The second and third 4-byte quarter of `REG_1`.
const REG32_01: u32 = 9;
const REG32_02: u32 = 10;
const REG_VERDICT: u32 = 0;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const DESTINATION_PORT: u32 = 2;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const CT_STATUS: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5;
const NAT_DNAT: u32 = 1;

/// The expressions of one rule, in the order in which the kernel evaluates them.
#[derive(Debug, Default)]
pub(super) struct Expressions {
    writer: Writer,
}

impl Expressions {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The encoded list.
    pub(super) fn bytes(&self) -> &[u8] {
        self.writer.as_bytes()
    }

    /// `iifname NAME`
    pub(super) fn arrives_on(self, link: &str) -> Self {
        self.meta(META_IIFNAME, REG_1).compare(CMP_EQ, &name_bytes(link))
    }

    /// `oifname NAME`
    pub(super) fn leaves_on(self, link: &str) -> Self {
        self.meta(META_OIFNAME, REG_1).compare(CMP_EQ, &name_bytes(link))
    }

    /// `oifname != NAME`
    pub(super) fn leaves_not_on(self, link: &str) -> Self {
        self.meta(META_OIFNAME, REG_1).compare(CMP_NEQ, &name_bytes(link))
    }

    /// `ip saddr NET`
    pub(super) fn sent_by(self, net: Ipv4Net) -> Self {
        self.payload(NETWORK_HEADER, IPV4_SOURCE, 4, REG_1).within(net)
    }

    /// `ip daddr NET`
    pub(super) fn sent_to(self, net: Ipv4Net) -> Self {
        self.payload(NETWORK_HEADER, IPV4_DESTINATION, 4, REG_1).within(net)
    }

    /// `fib daddr type local`
    pub(super) fn sent_to_this_host(self) -> Self {
        self.expression("fib", |w| {
            w.be32(1, REG_1).be32(2, FIB_RESULT_ADDRTYPE).be32(3, FIB_F_DADDR);
        })
        .compare(CMP_EQ, &RTN_LOCAL.to_ne_bytes())
    }

    /// `ct status dnat`
    pub(super) fn was_redirected(self) -> Self {
        self.expression("ct", |w| {
            w.be32(1, REG_1).be32(2, CT_STATUS);
        })
        .mask(&IPS_DST_NAT.to_ne_bytes())
        .compare(CMP_NEQ, &0_u32.to_ne_bytes())
    }

    /// `dnat ip to meta l4proto . th dport map @MAP`
    pub(super) fn redirect_by_port(self, map: &str) -> Self {
        self.meta(META_L4PROTO, REG_1).payload(TRANSPORT_HEADER, DESTINATION_PORT, 2, REG32_01).redirect(map)
    }

    /// `dnat ip to ip daddr . meta l4proto . th dport map @MAP`
    pub(super) fn redirect_by_address_and_port(self, map: &str) -> Self {
        self.payload(NETWORK_HEADER, IPV4_DESTINATION, 4, REG_1)
            .meta(META_L4PROTO, REG32_01)
            .payload(TRANSPORT_HEADER, DESTINATION_PORT, 2, REG32_02)
            .redirect(map)
    }

    /// `masquerade`
    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", |_| {})
    }

    /// `drop`
    pub(super) fn drop(self) -> Self {
        self.verdict(NF_DROP)
    }

    /// `accept`
    pub(super) fn accept(self) -> Self {
        self.verdict(NF_ACCEPT)
    }

    fn expression(mut self, name: &str, content: impl FnOnce(&mut Writer)) -> Self {
        self.writer.nest(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, name);
            w.nest(NFTA_EXPR_DATA, content);
        });
        self
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expression("meta", |w| {
            w.be32(1, register).be32(2, key);
        })
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        self.expression("payload", |w| {
            w.be32(1, register).be32(2, base);
            w.be32(3, offset).be32(4, length);
        })
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        self.expression("cmp", |w| {
            w.be32(1, REG_1).be32(2, operator);
            w.nest(3, |w| {
                w.bytes(NFTA_DATA_VALUE, value);
            });
        })
    }

    fn mask(self, mask: &[u8; 4]) -> Self {
        self.expression("bitwise", |w| {
            w.be32(1, REG_1).be32(2, REG_1).be32(3, 4);
            w.nest(4, |w| {
                w.bytes(NFTA_DATA_VALUE, mask);
            });
            w.nest(5, |w| {
                w.bytes(NFTA_DATA_VALUE, &[0; 4]);
            });
        })
    }

    fn within(self, net: Ipv4Net) -> Self {
        let mask: Ipv4Addr = net.netmask();
        self.mask(&mask.octets()).compare(CMP_EQ, &net.network().octets())
    }

    fn redirect(self, map: &str) -> Self {
        self.expression("lookup", |w| {
            w.string(1, map).be32(2, REG_1).be32(3, REG_1);
        })
        .expression("nat", |w| {
            w.be32(1, NAT_DNAT).be32(2, u32::from(NFPROTO_IPV4));
            w.be32(3, REG_1).be32(5, REG32_01);
        })
    }

    /// `dnat ip to ADDRESS`
    pub(super) fn redirect_to(self, address: Ipv4Addr) -> Self {
        self.expression("immediate", |w| {
            w.be32(1, REG_1);
            w.nest(2, |w| {
                w.bytes(NFTA_DATA_VALUE, &address.octets());
            });
        })
        .expression("nat", |w| {
            w.be32(1, NAT_DNAT).be32(2, u32::from(NFPROTO_IPV4));
            w.be32(3, REG_1);
        })
    }

    fn verdict(self, code: u32) -> Self {
        self.expression("immediate", |w| {
            w.be32(1, REG_VERDICT);
            w.nest(2, |w| {
                w.nest(NFTA_DATA_VERDICT, |w| {
                    w.be32(NFTA_VERDICT_CODE, code);
                });
            });
        })
    }
}

/// An interface name as the kernel compares it: 16 bytes, filled up with zeros.
fn name_bytes(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    bytes
}
