//! Port lists as users write them. Redirected connections are in the end-to-end tests.

use super::*;

#[test]
fn ports_are_read_and_written() {
    for (text, expect) in [
        ("", Ok("")),
        ("22", Ok("22")),
        (" 22 , 8000-8010,", Ok("22,8000-8010")),
        ("1-65535", Ok("1-65535")),
        ("0", Err("0")),
        ("65536", Err("65536")),
        ("9-8", Err("9-8")),
        ("22,ssh", Err("ssh")),
        ("-5", Err("-5")),
    ] {
        let read = text.parse::<PortRanges>();
        assert_eq!(read.map(|r| r.to_string()), expect.map(str::to_owned).map_err(|e| InvalidPorts(e.to_owned())));
    }
}

#[test]
fn overlapping_ranges_are_joined() {
    for (text, expect) in [
        ("22,80", "22,80"),
        ("8010-8020,8000-8009", "8000-8020"),
        ("1-100,50,60-200", "1-200"),
        ("65535,65534", "65534-65535"),
        ("1-65535,443", "1-65535"),
    ] {
        let merged = PortRanges(merge(text.parse::<PortRanges>().unwrap().0));
        assert_eq!(merged.to_string(), expect);
    }
}
