//! clone3, in a process with one thread.

use std::os::fd::AsFd;

use portreeve_sys::clone::{Clone3, NEW_USER, clone3, thread_count};
use portreeve_sys::process::{Exit, peek_exit, pidfd_pid, pidfd_send_signal, wait};
use portreeve_sys::socket::{message_pair, receive, send};

fn main() {
    assert_eq!(thread_count().expect("count"), 1);
    a_child_ends_with_the_code_of_its_closure();
    a_panicking_child_ends_without_unwinding_into_the_caller();
    a_signal_through_a_pidfd_is_how_the_child_ended();
    a_sibling_is_a_child_of_the_first_process();
    println!("test result: ok. 4 passed; 0 failed");
}

fn a_child_ends_with_the_code_of_its_closure() {
    let child = clone3(&Clone3::default(), || 7).expect("clone");
    assert_eq!(pidfd_pid(child.pidfd.as_fd()).expect("pid"), Some(child.pid));
    assert_eq!(wait(child.pidfd.as_fd()).expect("wait"), Exit::Code(7));
}

fn a_panicking_child_ends_without_unwinding_into_the_caller() {
    let child = clone3(&Clone3::default(), || {
        std::panic::set_hook(Box::new(|_| {}));
        panic!("on purpose")
    })
    .expect("clone");
    assert_eq!(wait(child.pidfd.as_fd()).expect("wait"), Exit::Code(255));
}

fn a_signal_through_a_pidfd_is_how_the_child_ended() {
    let child = clone3(&Clone3::default(), || {
        std::thread::sleep(std::time::Duration::from_secs(100));
        0
    })
    .expect("clone");
    assert_eq!(peek_exit(child.pidfd.as_fd()).expect("peek"), None);
    pidfd_send_signal(child.pidfd.as_fd(), 9).expect("kill");
    assert_eq!(wait(child.pidfd.as_fd()).expect("wait"), Exit::Signal(9));
}

fn a_sibling_is_a_child_of_the_first_process() {
    let (ours, theirs) = message_pair().expect("pair");
    let between = clone3(&Clone3::default(), || {
        let sibling = clone3(&Clone3 { sibling: true, ..Clone3::default() }, || 9);
        sibling.and_then(|sibling| send(theirs.as_fd(), &[], &[sibling.pidfd.as_fd()])).map_or(1, |_| 0)
    })
    .expect("clone");
    let user = clone3(&Clone3 { namespaces: NEW_USER, ..Clone3::default() }, || 0);
    let (_, fds) = receive(ours.as_fd(), &mut [0; 8]).expect("receive");
    assert_eq!(wait(between.pidfd.as_fd()).expect("wait"), Exit::Code(0));
    let sibling = fds.first().expect("its pidfd");
    assert_eq!(wait(sibling.as_fd()).expect("wait"), Exit::Code(9), "it is ours to wait for");
    if let Ok(user) = user {
        assert_eq!(wait(user.pidfd.as_fd()).expect("wait"), Exit::Code(0));
    }
}
