//! Whether the application beside this proxy still runs, as far as that can be seen from here.
//!
//! Containers of a pod share their network but not their processes, so what shows is sockets: an application that can
//! still want something of its proxy listens, or is connected to something. One that holds no TCP socket for a while
//! counts as ended; one that goes on computing without any, and connects to something later, is mistaken for it.

use crate::limits;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::linux::fs::MetadataExt;
use tokio::time::Instant;

/// Where the kernel lists the TCP sockets of this network namespace.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// The field of a socket's line with its inode, counted from 0 (proc_net_tcp of the kernel's documentation).
const INODE: usize = 9;

/// Resolves when nobody else in this pod has held a TCP socket for a while; at once if that cannot be seen.
pub async fn ended() {
    let mut last_seen = Instant::now();
    loop {
        match tokio::task::spawn_blocking(others_have_sockets).await {
            Ok(Ok(true)) => last_seen = Instant::now(),
            Ok(Ok(false)) if last_seen.elapsed() >= limits::APPLICATION_SETTLE => return,
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot see whether the application still runs; not waiting for it");
                return;
            }
            // The runtime is ending, and we with it.
            Err(_) => return,
        }
        tokio::time::sleep(limits::APPLICATION_POLL).await;
    }
}

/// True if another process of this network namespace has a TCP socket.
fn others_have_sockets() -> io::Result<bool> {
    let own = own_sockets()?;
    for path in TABLES {
        match File::open(path) {
            Ok(table) => {
                if has_others(BufReader::new(table), &own)? {
                    return Ok(true);
                }
            }
            // No IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Inodes of our open files; among them those of our sockets.
fn own_sockets() -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for file in std::fs::read_dir("/proc/self/fd")? {
        // One that was closed meanwhile is none of ours any more.
        if let Ok(metadata) = std::fs::metadata(file?.path()) {
            inodes.insert(metadata.st_ino());
        }
    }
    Ok(inodes)
}

/// True if a socket table lists one that is not in `own`. Those without an inode belong to nobody: they wait for their
/// time to be over, or to be accepted.
fn has_others(table: impl BufRead, own: &HashSet<u64>) -> io::Result<bool> {
    for line in table.lines().skip(1) {
        let inode = line?.split_ascii_whitespace().nth(INODE).and_then(|inode| inode.parse().ok());
        if inode.is_some_and(|inode| inode != 0 && !own.contains(&inode)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    #[test]
    fn sockets_of_others_are_told_from_our_own_and_from_nobodys() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 00000000:102C 00000000:0000 0A 00000000:00000000 00:00000000 00000000  2102        0 71 1 0 100 0 0 10 0\n   \
                     1: 0100007F:8AE6 0100007F:102F 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0\n   \
                     2: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 72 1 0 100 0 0 10 0\n";
        let check = |own: &[u64]| has_others(table.as_bytes(), &own.iter().copied().collect()).unwrap();
        assert!(check(&[71]) && check(&[]));
        assert!(!check(&[71, 72]));
    }

    #[test]
    fn our_own_sockets_are_known() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = File::from(listener.as_fd().try_clone_to_owned().unwrap());
        assert!(own_sockets().unwrap().contains(&file.metadata().unwrap().st_ino()));
    }
}
