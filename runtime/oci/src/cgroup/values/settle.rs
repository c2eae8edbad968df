//! What an update means, beside the limits that it does not name.

use oci_spec::runtime::LinuxResources;

/// `change`, with what it says of nothing left out (a zero stands for no word on most limits; of processes as well, since
/// whoever changes limits does not say by which version of the specification), and with what follows from it and from the limits `stored` that it is put over:
///
/// - memory without a limit has none of memory and swap together either;
/// - the limit of memory and swap together stays when that of memory alone changes, on version 2 as it does by itself on
///   version 1; and so does the wish to have a limit compared with what is in use.
///
/// Source: runc, `update`.
pub(crate) fn settle(change: &LinuxResources, stored: Option<&LinuxResources>) -> LinuxResources {
    let mut settled = change.clone();
    if let Some(given) = *change.memory() {
        let mut memory = given;
        memory.set_limit(said(given.limit())).set_reservation(said(given.reservation()));
        memory.set_swap(said(given.swap())).set_kernel_tcp(said(given.kernel_tcp()));
        let before = stored.and_then(|stored| *stored.memory());
        if let Some(limit) = memory.limit() {
            let both = before.and_then(|before| said(before.swap()));
            memory.set_swap(memory.swap().or(if limit < 0 { Some(-1) } else { both }));
            let check = before.and_then(|before| before.check_before_update());
            memory.set_check_before_update(memory.check_before_update().or(check));
        }
        settled.set_memory(Some(memory));
    }
    if let Some(given) = change.cpu() {
        let mut cpu = given.clone();
        cpu.set_shares(said(given.shares())).set_quota(said(given.quota())).set_period(said(given.period()));
        cpu.set_realtime_runtime(said(given.realtime_runtime())).set_realtime_period(said(given.realtime_period()));
        settled.set_cpu(Some(cpu));
    }
    if let Some(given) = change.block_io() {
        let mut block = given.clone();
        block.set_weight(said(given.weight())).set_leaf_weight(said(given.leaf_weight()));
        settled.set_block_io(Some(block));
    }
    settled.set_pids(change.pids().filter(|pids| pids.limit() != 0));
    settled
}

fn said<T: Default + PartialEq>(number: Option<T>) -> Option<T> {
    number.filter(|number| *number != T::default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(change: Value, stored: Value, expected: Value) {
        let read = |value: Value| serde_json::from_value::<LinuxResources>(value).expect("resources");
        let settled = settle(&read(change.clone()), Some(&read(stored)));
        assert_eq!(serde_json::to_value(settled).expect("JSON"), expected, "{change}");
    }

    #[test]
    fn memory_and_swap_together_stay_when_memory_changes() {
        let stored = json!({"memory": {"limit": 100, "swap": 300, "checkBeforeUpdate": true}});
        let expected = json!({"memory": {"limit": 200, "swap": 300, "checkBeforeUpdate": true}});
        check(json!({"memory": {"limit": 200}}), stored.clone(), expected);
        let given = json!({"memory": {"limit": 200, "swap": 200, "checkBeforeUpdate": false}});
        check(given.clone(), stored.clone(), given);
        check(json!({"memory": {"reservation": 5}}), stored, json!({"memory": {"reservation": 5}}));
        for stored in [json!({}), json!({"memory": {"limit": 5}}), json!({"memory": {"swap": 0}})] {
            check(json!({"memory": {"limit": 200}}), stored, json!({"memory": {"limit": 200}}));
        }
    }

    #[test]
    fn memory_without_a_limit_has_none_on_both_together() {
        let stored = json!({"memory": {"limit": 100, "swap": 300}});
        check(json!({"memory": {"limit": -1}}), stored, json!({"memory": {"limit": -1, "swap": -1}}));
    }

    #[test]
    fn zeros_say_nothing() {
        let zeros = json!({
            "memory": {"limit": 0, "reservation": 0, "swap": 0, "kernelTCP": 0, "swappiness": 0},
            "cpu": {"shares": 0, "quota": 0, "period": 0, "realtimeRuntime": 0, "realtimePeriod": 0, "burst": 0, "idle": 0},
            "blockIO": {"weight": 0, "leafWeight": 0}, "pids": {"limit": 0},
        });
        let stored = json!({"memory": {"limit": 100, "swap": 300}, "pids": {"limit": 5}});
        let expected = json!({"memory": {"swappiness": 0}, "cpu": {"burst": 0, "idle": 0}, "blockIO": {}});
        check(zeros, stored, expected);
    }
}
