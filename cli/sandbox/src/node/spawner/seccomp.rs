//! The filter behind the seccomp profile `RuntimeDefault`: calls that administer the machine answer EPERM.

use nix::errno::Errno;

/// What no application needs. The rest is left to capabilities and namespaces.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets of `nr` and `arch` in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump_if_equal(k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: yes, jf: no, k }
}

/// The program: foreign architectures and refused calls get EPERM, everything else is allowed.
fn program() -> Vec<libc::sock_filter> {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let give = libc::BPF_RET | libc::BPF_K;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut program = vec![
        statement(load, ARCH),
        jump_if_equal(ARCHITECTURE, 1, 0),
        statement(give, refuse),
        statement(load, NUMBER),
    ];
    for (index, number) in REFUSED.iter().enumerate() {
        // Over the remaining comparisons and the permission to the refusal at the end.
        let yes = (REFUSED.len() - index) as u8;
        program.push(jump_if_equal(*number as u32, yes, 0));
    }
    program.push(statement(give, libc::SECCOMP_RET_ALLOW));
    program.push(statement(give, refuse));
    program
}

/// Sets the filter for this process and all it becomes.
#[allow(unsafe_code)]
pub(super) fn install() -> nix::Result<()> {
    let mut filter = program();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program lives until the call, which copies it, returns.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) };
    if set == 0 { Ok(()) } else { Err(Errno::last()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program says to a call, run as the kernel would.
    fn verdict(arch: u32, number: u32) -> u32 {
        let (program, mut at, mut value) = (program(), 0, 0);
        loop {
            let step = program[at];
            let code = u32::from(step.code);
            at += 1;
            if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                value = if step.k == ARCH { arch } else { number };
            } else if code == libc::BPF_RET | libc::BPF_K {
                return step.k;
            } else {
                at += usize::from(if value == step.k { step.jt } else { step.jf });
            }
        }
    }

    #[test]
    fn only_the_listed_calls_are_refused() {
        let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for number in REFUSED {
            assert_eq!(verdict(ARCHITECTURE, *number as u32), refuse, "{number}");
        }
        for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_clone, libc::SYS_socket, libc::SYS_capset] {
            assert_eq!(verdict(ARCHITECTURE, number as u32), libc::SECCOMP_RET_ALLOW, "{number}");
        }
        assert_eq!(verdict(1, libc::SYS_read as u32), refuse);
    }
}
