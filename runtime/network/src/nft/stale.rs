//! Connection tracking remembers where the packets of a UDP flow went. A client that goes on
//! sending from the same port would, after a published port was added or removed, still reach
//! what was behind it before; so these flows are forgotten.

use std::net::Ipv4Addr;

use crate::netlink::{Batch, Refusal, Socket, Writer, attributes, find};
use crate::{PortMapping, Protocol};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET` and `_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const NLM_F_DUMP: u16 = 0x300;
const AF_INET: u8 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_F_CTA_PROTO_NUM | CTA_FILTER_F_CTA_PROTO_DST_PORT`.
const BY_PORT: u32 = 1 << 3 | 1 << 5;

/// A flow that is to be forgotten: its original tuple as the kernel wrote it, and its id.
#[derive(Debug)]
struct Flow {
    tuple: Vec<u8>,
    id: Vec<u8>,
}

/// Forgets the UDP flows to these published ports.
pub(crate) fn forget_flows(socket: &mut Socket, ports: &[PortMapping]) -> Result<(), Refusal> {
    for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let flows = flows(socket, port)?;
        if flows.is_empty() {
            continue;
        }
        let mut batch = Batch::new();
        for flow in &flows {
            batch.push(DELETE, 0, "forgetting a flow", |w| {
                w.raw(&[AF_INET, 0, 0, 0]);
                w.bytes(CTA_TUPLE_ORIG | 1 << 15, &flow.tuple);
                w.bytes(CTA_ID, &flow.id);
            });
        }
        // A flow that ended meanwhile is refused, which is as good.
        socket.run_all(&batch)?;
    }
    Ok(())
}

/// The flows to a published port.
fn flows(socket: &mut Socket, port: &PortMapping) -> Result<Vec<Flow>, Refusal> {
    let mut request = Batch::new();
    // The kernel filters since 5.8; an older one lists everything, and we filter below.
    request.push(GET, NLM_F_DUMP, "listing flows", |w| {
        w.raw(&[AF_INET, 0, 0, 0]);
        w.nest(CTA_TUPLE_ORIG, |w| write_port(w, port));
        w.nest(CTA_FILTER, |w| {
            w.u32(CTA_FILTER_ORIG_FLAGS, BY_PORT);
            w.u32(CTA_FILTER_REPLY_FLAGS, 0);
        });
    });
    socket.collect(&request, |message| {
        let of_flow = message.payload.get(4..)?;
        let tuple = find(of_flow, CTA_TUPLE_ORIG)?;
        let protocol = find(tuple.value, CTA_TUPLE_PROTO)?;
        let number = *find(protocol.value, CTA_PROTO_NUM)?.value.first()?;
        let to_port = find(protocol.value, CTA_PROTO_DST_PORT)?.value;
        if number != port.protocol.number() || to_port != port.host_port.to_be_bytes() {
            return None;
        }
        if let Some(host_ip) = port.host_ip {
            let ip =
                attributes(find(tuple.value, CTA_TUPLE_IP)?.value).find(|attribute| attribute.kind == CTA_IP_V4_DST)?;
            if Ipv4Addr::from(*ip.value.first_chunk::<4>()?) != host_ip {
                return None;
            }
        }
        Some(Flow { tuple: tuple.value.to_vec(), id: find(of_flow, CTA_ID)?.value.to_vec() })
    })
}

fn write_port(writer: &mut Writer, port: &PortMapping) {
    writer.nest(CTA_TUPLE_PROTO, |w| {
        w.u8(CTA_PROTO_NUM, port.protocol.number());
        w.bytes(CTA_PROTO_DST_PORT, &port.host_port.to_be_bytes());
    });
}
