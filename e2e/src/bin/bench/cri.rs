//! Pods as a kubelet asks for them, by CRI: of us, and of containerd with runc and the CNI's bridge, in the same run.

use portreeve_e2e::Peers;
use portreeve_e2e::measure::{Figures, machine};

use crate::pods::{ALL_REMOVED, ALL_UP, CYCLE, PSS_PER_POD, UP};
use crate::{OURS, Settings, containerd, judge, pods};

pub(crate) fn measure(settings: &Settings) {
    let peers = Peers::find().expect("PORTREEVE_PEERS=$(e2e/peers) names what this is compared with");
    let containerd = containerd::name(&peers);
    let mut figures = Figures::default();
    println!("{}", machine());
    pods::ours(settings, &mut figures);
    containerd::measure(settings, peers, &containerd, &mut figures);
    println!("load at the end {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    figures.print_beside(&[OURS, &containerd]);
    figures.save();
    let value = |program: &str, figure: &str, part: &str| figures.get(program, figure, part).expect("a figure");
    let share = |figure: &str, part: &str| value(OURS, figure, part) / value(&containerd, figure, part);
    println!("\nmany pods removed: {:.3} of containerd's time", share(ALL_REMOVED, "value"));
    judge(
        settings,
        &[
            ("CPU per cycle, of containerd's", 0.1, share(CYCLE, "value")),
            ("up at best, ms", 20.0, value(OURS, UP, "min")),
            ("many pods started, of containerd's time", 0.2, share(ALL_UP, "value")),
            ("PSS per pod, all told, MiB", 0.8, value(OURS, PSS_PER_POD, "value")),
        ],
    );
}
