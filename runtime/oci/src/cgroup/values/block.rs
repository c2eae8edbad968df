//! Block devices: shares of them, and how fast they may be used.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::{Absent, CgroupError, Plan, Write, value_error, write};

const WEIGHT: &str = "blockIO.weight";
const WEIGHT_DEVICE: &str = "blockIO.weightDevice";

/// Weights are the BFQ scheduler's since Linux 5.0, and were CFQ's before.
pub(super) fn v1(block: &LinuxBlockIo, plan: &mut Plan) -> Result<(), CgroupError> {
    let weights = weights(block)?;
    plan.writes.extend(weights.of_all.map(|weight| {
        let value = weight.to_string();
        write("blkio", "blkio.bfq.weight", &value, WEIGHT).or(Absent::Instead("blkio.weight".into(), value))
    }));
    plan.writes.extend(weights.leaf.map(|weight| write("blkio", "blkio.leaf_weight", weight, "blockIO.leafWeight")));
    for (device, weight) in weights.of_one {
        let value = format!("{device} {weight}");
        let instead = Absent::Instead("blkio.weight_device".into(), value.clone());
        plan.writes.push(write("blkio", "blkio.bfq.weight_device", value, WEIGHT_DEVICE).or(instead));
    }
    for (device, weight) in weights.leaf_of_one {
        plan.writes.push(write("blkio", "blkio.leaf_weight_device", format!("{device} {weight}"), WEIGHT_DEVICE));
    }
    plan.writes.extend(throttle(block, |device, name, field, _| {
        let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
        write("blkio", &format!("blkio.throttle.{name}_device"), value, field)
    }));
    Ok(())
}

/// BFQ's weights are the configuration's; those of the cost model (`io.weight`) have a scale of their own.
pub(super) fn v2(block: &LinuxBlockIo, plan: &mut Plan) -> Result<(), CgroupError> {
    let weights = weights(block)?;
    if weights.leaf.is_some() || !weights.leaf_of_one.is_empty() {
        return Err(value_error("blockIO.leafWeight", "cgroup v2 has no weight of a cgroup against its children"));
    }
    plan.writes.extend(weights.of_all.map(|weight| {
        let instead = Absent::Instead("io.weight".into(), cost_weight(weight).to_string());
        write("io", "io.bfq.weight", weight, WEIGHT).or(instead)
    }));
    for (device, weight) in weights.of_one {
        let instead = Absent::Instead("io.weight".into(), format!("{device} {}", cost_weight(weight)));
        plan.writes.push(write("io", "io.bfq.weight", format!("{device} {weight}"), WEIGHT_DEVICE).or(instead));
    }
    plan.writes.extend(throttle(block, |device, _, field, key| {
        // Version 1 takes a rate of 0 for none, version 2 refuses it.
        let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
        let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
        write("io", "io.max", value, field)
    }));
    Ok(())
}

struct Weights {
    of_all: Option<u16>,
    leaf: Option<u16>,
    /// `MAJOR:MINOR` and weight.
    of_one: Vec<(String, u16)>,
    leaf_of_one: Vec<(String, u16)>,
}

/// The weights asked for; 0 is none.
fn weights(block: &LinuxBlockIo) -> Result<Weights, CgroupError> {
    let checked = |weight: Option<u16>, field: &str| match weight.filter(|weight| *weight != 0) {
        Some(weight) if !(10..=1000).contains(&weight) => {
            Err(value_error(field, format!("{weight} is not between 10 and 1000")))
        }
        weight => Ok(weight),
    };
    let mut weights = Weights {
        of_all: checked(block.weight(), WEIGHT)?,
        leaf: checked(block.leaf_weight(), "blockIO.leafWeight")?,
        of_one: Vec::new(),
        leaf_of_one: Vec::new(),
    };
    for device in block.weight_device().iter().flatten() {
        let name = format!("{}:{}", device.major(), device.minor());
        weights.of_one.extend(checked(device.weight(), WEIGHT_DEVICE)?.map(|weight| (name.clone(), weight)));
        weights.leaf_of_one.extend(checked(device.leaf_weight(), WEIGHT_DEVICE)?.map(|weight| (name, weight)));
    }
    Ok(weights)
}

/// 10 to 1000 as 1 to 10000, the ends meeting, as runc and crun convert.
pub(super) fn cost_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

fn throttle<'a>(
    block: &'a LinuxBlockIo,
    each: impl Fn(&LinuxThrottleDevice, &str, &'static str, &str) -> Write + Copy + 'a,
) -> impl Iterator<Item = Write> + 'a {
    let lists = [
        (block.throttle_read_bps_device(), "read_bps", "blockIO.throttleReadBpsDevice", "rbps"),
        (block.throttle_write_bps_device(), "write_bps", "blockIO.throttleWriteBpsDevice", "wbps"),
        (block.throttle_read_iops_device(), "read_iops", "blockIO.throttleReadIOPSDevice", "riops"),
        (block.throttle_write_iops_device(), "write_iops", "blockIO.throttleWriteIOPSDevice", "wiops"),
    ];
    lists.into_iter().flat_map(move |(devices, name, field, key)| {
        devices.iter().flatten().map(move |device| each(device, name, field, key))
    })
}
