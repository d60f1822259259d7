//! Gives memory back while nothing happens: free heap, and pages of the program that only its start or traffic long
//! past needed. They stay in the kernel's page cache, shared by all proxies of a node, and come back when touched.

use std::ops::Range;

/// Whether memory was given back since the last connection.
#[derive(Debug, Default)]
pub struct Thrift {
    done: bool,
}

impl Thrift {
    /// Called now and then with the number of open connections; gives memory back when the last one is gone.
    pub fn look(&mut self, connections: usize) {
        if connections > 0 {
            self.done = false;
        } else if !std::mem::replace(&mut self.done, true) {
            give_back();
        }
    }
}

fn give_back() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    // SAFETY: the allocator may return free memory at any time; this only tells it when.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for range in maps.lines().filter_map(program_text) {
        #[allow(unsafe_code)]
        // SAFETY: the range is a private mapping of a file's code that nobody can have written to, so what is dropped
        // is read from the file again when it is next needed. A refusal changes nothing.
        unsafe {
            libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED);
        }
    }
}

/// The range of a line of `/proc/PID/maps` that maps code of a file. Read-only data is left alone: part of it was
/// written before it was protected.
fn program_text(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (mode, file) = (fields.next()?, fields.nth(3)?);
    let address = |hex| usize::from_str_radix(hex, 16).ok();
    (mode == "r-xp" && file.starts_with('/')).then_some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_dropped() {
        let code = "55d0c0a3d000-55d0c1144000 r-xp 0023c000 fe:00 1234   /usr/bin/mesh-proxy";
        assert_eq!(program_text(code), Some(0x55d0_c0a3_d000..0x55d0_c114_4000));
        for line in [
            "55d0c0800000-55d0c0a3d000 r--p 00000000 fe:00 1234   /usr/bin/mesh-proxy",
            "55d0c1146000-55d0c117e000 rw-p 00944000 fe:00 1234   /usr/bin/mesh-proxy",
            "7ffc0d5f2000-7ffc0d5f4000 r-xp 00000000 00:00 0      [vdso]",
            "7f0000000000-7f0000001000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(program_text(line), None, "{line}");
        }
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let mut thrift = Thrift::default();
        for connections in [0, 0, 1, 0] {
            thrift.look(connections);
        }
        assert_eq!(format!("{thrift:?}"), "Thrift { done: true }");
    }
}
