//! Runs a test's body in a network namespace of its own, as root or through a user namespace.
//!
//! The test binary starts itself again under `unshare -Urn`, for that one test only: a network namespace belongs to a
//! thread, a user namespace can only be entered by a process with one thread. Not every machine allows that or has the
//! programs, so these tests are ignored unless asked for (`-- --ignored`, as CI does).

use std::process::{Command, Output};

const INSIDE: &str = "MESH_TEST_INSIDE_NAMESPACE";

/// Runs `body` inside a fresh network namespace whose loopback interface is up; `test` is the calling test's full name.
pub(crate) fn inside(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let exe = std::env::current_exe().unwrap();
    let Output { status, stdout, stderr } = Command::new("timeout")
        .args(["60", "unshare", "-Urn", "sh", "-c", "ip link set lo up; exec \"$0\" \"$@\""])
        .arg(exe)
        .args(["--exact", test, "--nocapture", "--ignored"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success() && output.contains("1 passed"), "{test} failed in its namespace:\n{output}");
}
