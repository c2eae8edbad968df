//! On a directory in the place of the file system: what the kernel does by itself (files appear with a group, and go with
//! it) is done by the tests.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;

fn planned(rdt: Value) -> Result<Plan, PlanError> {
    plan(&serde_json::from_value(rdt).expect("intelRdt"))
}

fn check(rdt: Value, expected: &Expect) {
    let text = match planned(rdt) {
        Ok(plan) => {
            let path = plan.path("box");
            let writes = plan.schemata.iter().map(|value| format!("{}/schemata <- {value:?}\n", path.display()));
            let own = plan.own("box").map(|path| format!("goes with it: {path}\n"));
            writes.chain(own).collect::<String>()
        }
        Err(error) => format!("{error}\n"),
    };
    expected.assert_eq(&text);
}

#[test]
fn schemas_are_combined_and_schemata_come_last() {
    check(
        json!({"l3CacheSchema": "L3:0=7f0;1=1f", "memBwSchema": "MB:0=20;1=70"}),
        &expect![[r#"
            box/schemata <- "L3:0=7f0;1=1f\nMB:0=20;1=70\n"
            goes with it: box
        "#]],
    );
    check(
        json!({"closID": "gold", "l3CacheSchema": "L3:0=f\nMB:0=10", "memBwSchema": "MB:0=20", "schemata": ["L2:0=3", "L3:0=ff"]}),
        &expect![[r#"
            gold/schemata <- "L3:0=f\nMB:0=20\n"
            gold/schemata <- "L2:0=3\nL3:0=ff\n"
        "#]],
    );
    check(
        json!({"l3CacheSchema": "MB:0=10"}),
        &expect![[r#"
            goes with it: box
        "#]],
    );
    check(
        json!({"closID": "gold", "enableMonitoring": true}),
        &expect![[r#"
            goes with it: gold/mon_groups/box
        "#]],
    );
    check(
        json!({"closID": "/", "enableMonitoring": true}),
        &expect![[r#"
            goes with it: mon_groups/box
        "#]],
    );
    check(
        json!({"closID": "", "l3CacheSchema": "", "memBwSchema": "", "enableMonitoring": false}),
        &expect![[r#"
            goes with it: box
        "#]],
    );
}

#[test]
fn what_would_leave_the_group_or_the_line_is_refused() {
    for name in ["..", ".", "a/b", "../a", "info", "mon_groups", "mon_data", "a\nb"] {
        let error = planned(json!({"closID": name})).expect_err(name).to_string();
        assert_eq!(error, format!("linux.intelRdt.closID: {name:?} is no name of a group"));
    }
    for schema in ["L3:0=f", "MB:0=10\nL3:0=1", "mb:0=10"] {
        let error = planned(json!({"memBwSchema": schema})).expect_err(schema).to_string();
        assert_eq!(error, "linux.intelRdt.memBwSchema: is not one line that begins with MB:");
    }
    for line in ["", "L3:0=1\nMB:0=1"] {
        let error = planned(json!({"schemata": [line]})).expect_err(line).to_string();
        assert_eq!(error, "linux.intelRdt.schemata: has an entry that is not one line");
    }
}

#[test]
fn the_file_system_is_found_where_it_is_mounted() {
    let text = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                41 23 0:38 / /sys/fs/res\\040ctrl rw,relatime shared:9 - resctrl resctrl rw\n";
    assert_eq!(mount_point(text).as_deref(), Some(Path::new("/sys/fs/res ctrl")));
    assert_eq!(mount_point("30 23 0:26 / /resctrl rw - cgroup2 resctrl rw\n"), None);
    assert!(RdtError::NotMounted.to_string().contains("mount -t resctrl resctrl /sys/fs/resctrl"));
}

struct Fixture {
    directory: tempfile::TempDir,
    resctrl: Resctrl,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let root = directory.path().to_owned();
        std::fs::create_dir(root.join("info")).expect("make");
        std::fs::create_dir(root.join("mon_groups")).expect("make");
        std::fs::write(root.join("schemata"), "    L3:0=7ff;1=7ff\n    MB:0=100;1=100\n").expect("write");
        Self { directory, resctrl: Resctrl { root } }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).expect("a file")
    }

    /// A group with what the kernel gives it.
    fn group(&self, name: &str, schemata: &str) {
        std::fs::create_dir_all(self.path(name).join("mon_groups")).expect("make");
        std::fs::write(self.path(name).join("schemata"), schemata).expect("write");
    }

    /// Below the root, or the error.
    fn make(&self, rdt: Value) -> Result<Vec<PathBuf>, String> {
        let made = self.resctrl.make(&planned(rdt).expect("plan"), "box").map_err(|error| error.to_string())?;
        Ok(made.iter().map(|path| path.strip_prefix(self.directory.path()).expect("below").to_owned()).collect())
    }
}

#[test]
fn a_container_gets_a_group_of_its_own_which_goes_with_it() {
    let fixture = Fixture::new();
    let tasks = fixture.make(json!({"l3CacheSchema": "L3:0=f"})).expect("make");
    assert_eq!(tasks, [Path::new("box/tasks")]);
    assert_eq!(fixture.text("box/schemata"), "L3:0=f\n");
    std::fs::remove_file(fixture.path("box/schemata")).expect("as the kernel does");
    fixture.resctrl.remove("box").expect("remove");
    assert!(!fixture.path("box").exists());
    fixture.resctrl.remove("box").expect("absent is success");
}

#[test]
fn a_shared_group_is_made_once_and_then_has_to_be_the_same() {
    let fixture = Fixture::new();
    let wanted = json!({"closID": "gold", "l3CacheSchema": "L3:0=00F;1=1f", "memBwSchema": "MB:0=20"});
    fixture.make(wanted.clone()).expect("make");
    assert_eq!(fixture.text("gold/schemata"), "L3:0=00F;1=1f\nMB:0=20\n");
    // As the kernel shows it.
    let shown = "    L3:0=  f;1= 1f\n    MB:0= 20;1=100\n";
    fixture.group("gold", shown);
    assert_eq!(fixture.make(wanted).expect("the same"), [Path::new("gold/tasks")]);
    assert_eq!(fixture.text("gold/schemata"), shown, "nothing is written to what others use");
    let other = fixture.make(json!({"closID": "gold", "l3CacheSchema": "L3:1=ff"})).expect_err("another");
    assert!(other.ends_with("gold is there already, with L3:1=1f instead of L3:1=ff"), "{other}");
    let other = fixture.make(json!({"closID": "gold", "schemata": ["L2:0=1"]})).expect_err("another");
    assert!(other.ends_with("gold is there already, with nothing instead of L2:0=1"), "{other}");
    // What comes last is what is compared.
    fixture.make(json!({"closID": "gold", "l3CacheSchema": "L3:0=1", "schemata": ["L3:0=f"]})).expect("the same");
}

#[test]
fn a_shared_group_without_a_schema_has_to_be_there() {
    let fixture = Fixture::new();
    let error = fixture.make(json!({"closID": "gold"})).expect_err("absent");
    assert!(error.starts_with("there is no group") && !fixture.path("gold").exists(), "{error}");
    fixture.group("gold", "L3:0=1\n");
    assert_eq!(fixture.make(json!({"closID": "gold"})).expect("there"), [Path::new("gold/tasks")]);
    assert_eq!(fixture.text("gold/schemata"), "L3:0=1\n");
}

#[test]
fn the_default_group_is_joined_and_never_changed() {
    let fixture = Fixture::new();
    let before = fixture.text("schemata");
    assert_eq!(fixture.make(json!({"closID": "/"})).expect("join"), [Path::new("tasks")]);
    fixture.make(json!({"closID": "/", "l3CacheSchema": "L3:0=7ff"})).expect("the same");
    assert!(fixture.make(json!({"closID": "/", "l3CacheSchema": "L3:0=1"})).is_err());
    let plan = planned(json!({"closID": "/", "l3CacheSchema": "L3:0=1"})).expect("plan");
    assert!(fixture.resctrl.change(&plan, "box").is_err());
    assert_eq!(fixture.text("schemata"), before);
}

#[test]
fn a_container_that_is_counted_joins_its_group_before_the_one_that_counts() {
    let fixture = Fixture::new();
    fixture.group("gold", "L3:0=1\n");
    let tasks = fixture.make(json!({"closID": "gold", "enableMonitoring": true})).expect("make");
    assert_eq!(tasks, [Path::new("gold/tasks"), Path::new("gold/mon_groups/box/tasks")]);
    assert!(fixture.path("gold/mon_groups/box").is_dir());
    fixture.resctrl.remove("gold/mon_groups/box").expect("remove");
    assert!(fixture.path("gold").is_dir() && !fixture.path("gold/mon_groups/box").exists());
    std::fs::remove_dir(fixture.path("mon_groups")).expect("a machine that does not count");
    let error = fixture.make(json!({"closID": "/", "enableMonitoring": true})).expect_err("refused");
    assert!(error.contains("has no monitoring groups"), "{error}");
}

#[test]
fn a_group_that_cannot_be_furnished_is_not_left_and_the_kernels_words_are_told() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("info/last_cmd_status"), "Non-consecutive 1-bits in the mask\n").expect("write");
    // No group has monitoring groups here: they come with a real one.
    let error = fixture.make(json!({"enableMonitoring": true})).expect_err("refused");
    assert!(error.contains("box/mon_groups is not there"), "{error}");
    assert!(!fixture.path("box").exists(), "it is removed again");
    std::fs::create_dir_all(fixture.path("box/schemata")).expect("cannot be written to");
    let error = fixture.make(json!({"l3CacheSchema": "L3:0=5"})).expect_err("refused");
    assert!(error.contains("writing \"L3:0=5\"") && error.ends_with("(Non-consecutive 1-bits in the mask)"), "{error}");
    assert!(fixture.path("box").is_dir(), "what was there stays");
}

#[test]
fn a_further_process_enters_what_the_first_is_in() {
    let resctrl = Resctrl { root: "/r".into() };
    let tasks =
        |text: &str| -> Vec<String> { resctrl.tasks_of(text).iter().map(|path| path.display().to_string()).collect() };
    assert_eq!(tasks("res:gold\nmon:box\n"), ["/r/gold/tasks", "/r/gold/mon_groups/box/tasks"]);
    assert_eq!(tasks("res:/\nmon:box\n"), ["/r/tasks", "/r/mon_groups/box/tasks"]);
    assert_eq!(tasks("res:box\nmon:\n"), ["/r/box/tasks"]);
    assert_eq!(tasks("res:\nmon:\n"), Vec::<String>::new());
}

#[test]
fn an_update_writes_the_schemata_of_the_containers_group() {
    let fixture = Fixture::new();
    fixture.group("box", "L3:0=f\n");
    let plan = planned(json!({"l3CacheSchema": "L3:0=3"})).expect("plan");
    let before = fixture.resctrl.change(&plan, "box").expect("change");
    assert_eq!(fixture.text("box/schemata"), "L3:0=3\n");
    before.write().expect("put back");
    assert_eq!(fixture.text("box/schemata"), "L3:0=f\n");
    assert!(matches!(fixture.resctrl.change(&plan, "gone"), Err(RdtError::Read { .. })));
}

#[test]
fn an_update_of_a_container_without_a_group_makes_one_that_all_of_its_tasks_enter() {
    let fixture = Fixture::new();
    let plan = planned(json!({"l3CacheSchema": "L3:0=3", "memBwSchema": "MB:0=20"})).expect("plan");
    assert_eq!(fixture.resctrl.new_group(&plan, "box").as_deref(), Some("box"));
    let files = fixture.resctrl.make(&plan, "box").expect("make");
    assert_eq!(fixture.text("box/schemata"), "L3:0=3\nMB:0=20\n");
    assert_eq!(fixture.resctrl.new_group(&plan, "box"), None, "what is there already does not go with the container");
    std::fs::write(fixture.path("box/tasks"), "").expect("as the kernel does");
    // The second list has a thread that was born before its maker was moved.
    let rounds = std::cell::RefCell::new(vec![vec![7, 8, 9], vec![7, 8, 9], vec![7, 8]]);
    let tasks = || Ok(rounds.borrow_mut().pop().expect("no further round"));
    fixture.resctrl.move_in(&files, tasks).expect("move");
    assert_eq!(fixture.text("box/tasks"), "7\n8\n9\n", "each once, in a line of its own");
    // One that never stops forking: what is born inside is there already.
    let born = std::cell::Cell::new(10);
    let forking = || {
        born.set(born.get() + 1);
        let text = format!("{}{}\n", fixture.text("box/tasks"), born.get());
        std::fs::write(fixture.path("box/tasks"), text).expect("as the kernel does");
        Ok(vec![7, 8, 9, 10, born.get()])
    };
    fixture.resctrl.move_in(&files, forking).expect("move");
    assert_eq!(fixture.text("box/tasks"), "7\n8\n9\n11\n10\n12\n", "one is moved, and then there is nobody outside");
    let refused = fixture.resctrl.move_in(&[fixture.path("nowhere/tasks")], || Ok(vec![1])).expect_err("no group");
    assert!(matches!(refused, CgroupError::Resctrl(RdtError::Read { .. })), "{refused}");
    fixture.resctrl.move_in(&[fixture.path("nowhere/tasks")], || Ok(Vec::new())).expect("nobody has to move");
}

#[test]
fn figures_are_printed_as_runc_prints_them() {
    let fixture = Fixture::new();
    let file = |path: &str, text: &str| {
        let path = fixture.path(path);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("make");
        std::fs::write(path, text).expect("write");
    };
    for (path, text) in [
        ("info/L3/cbm_mask", "7ff\n"),
        ("info/L3/min_cbm_bits", "1\n"),
        ("info/L3/num_closids", "16\n"),
        ("info/MB/bandwidth_gran", "10\n"),
        ("info/MB/min_bandwidth", "10\n"),
        ("info/MB/num_closids", "8\n"),
        ("box/schemata", "    MB:0= 20;1= 70\n    L3:0=7f0;1=01f\n"),
        ("box/mon_data/mon_L3_01/llc_occupancy", "4096\n"),
        ("box/mon_data/mon_L3_00/llc_occupancy", "8192\n"),
        ("box/mon_data/mon_L3_00/mbm_total_bytes", "10\n"),
        ("box/mon_data/mon_L3_00/mbm_local_bytes", "Unavailable\n"),
    ] {
        file(path, text);
    }
    let figures = fixture.resctrl.figures(&planned(json!({})).expect("plan"), "box");
    let expected = json!({
        "l3_cache_info": {"cbm_mask": "7ff", "min_cbm_bits": 1, "num_closids": 16},
        "l3_cache_schema_root": "L3:0=7ff;1=7ff", "l3_cache_schema": "L3:0=7f0;1=01f",
        "mem_bw_info": {"bandwidth_gran": 10, "delay_linear": 0, "min_bandwidth": 10, "num_closids": 8},
        "mem_bw_schema_root": "MB:0=100;1=100", "mem_bw_schema": "MB:0= 20;1= 70",
        "mbm_stats": [{"mbm_total_bytes": 10, "mbm_local_bytes": 0}, {"mbm_total_bytes": 0, "mbm_local_bytes": 0}],
        "cmt_stats": [{"llc_occupancy": 8192}, {"llc_occupancy": 4096}],
    });
    assert_eq!(serde_json::to_value(figures).expect("JSON"), expected);
    let empty = Fixture::new().resctrl.figures(&planned(json!({})).expect("plan"), "box");
    assert_eq!(serde_json::to_value(empty).expect("JSON"), json!({}));
}
