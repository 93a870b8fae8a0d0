use std::fs;

/// Whether this process runs in the initial PID namespace. Only there are the PIDs of the
/// kernel those of `/proc`.
pub fn in_initial_pid_namespace() -> bool {
    // PROC_PID_INIT_INO of the kernel
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}
