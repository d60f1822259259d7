//! The layout of messages, and the reader against nonsense. The kernel itself is asked in the end-to-end tests.

use super::netlink::{Answer, answers};
use super::*;
use proptest::prelude::*;

#[test]
fn a_message_is_laid_out_as_netlink_wants_it() {
    let table = Table { family: Family::Inet, name: "t".to_owned(), sets: Vec::new(), chains: Vec::new() };
    let batch = table.remove();
    // Begin (20 bytes), create (20 + name 8 + flags 8), delete (20 + name 8), end (20).
    assert_eq!(batch.bytes().len(), 20 + 36 + 28 + 20);
    let create = &batch.bytes()[20..56];
    assert_eq!(u32::from_ne_bytes(create[..4].try_into().unwrap()), 36);
    assert_eq!(u16::from_ne_bytes(create[4..6].try_into().unwrap()), 0x0a00);
    assert_eq!(create[16..20], [1, 0, 0, 0], "family, version, resource");
    assert_eq!(create[24..26], *b"t\0");
    assert_eq!(batch.last_sequence(), 2);
    assert_eq!(batch.subject(2), Some("table t"));
    let delete_flags = u16::from_ne_bytes(batch.bytes()[62..64].try_into().unwrap());
    assert_eq!(i32::from(delete_flags), libc::NLM_F_REQUEST | libc::NLM_F_ACK);
}

#[test]
fn long_comments_are_cut_at_a_character() {
    let rule = Rule::new("ü".repeat(100));
    assert_eq!(rule.summary(), format!("{}:", "ü".repeat(63)));
}

/// A table as a pod has it.
fn written() -> Table {
    crate::redirect::rules(&crate::redirect::RedirectArgs {
        proxy_uid: 2102,
        outbound_port: 4140,
        inbound_port: 4143,
        skip_inbound_ports: "22,4190-4192".parse().unwrap(),
        skip_outbound_ports: "25".parse().unwrap(),
    })
}

proptest! {
    #[test]
    fn reading_answers_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        answers(&bytes);
    }

    #[test]
    fn reading_damaged_rules_never_panics(cut in 0usize..400, at in 0usize..400, byte in any::<u8>()) {
        let mut bytes = written().replace().bytes().to_vec();
        let start = bytes.len() - 800;
        bytes.drain(..start);
        // A rule's header in front, so that the damage is in what is read as attributes.
        let mut message = Vec::new();
        encode::write_message(&mut message, 0x0a06, 0, 1, 2, 0, |a| a.bytes(4, &bytes[cut..]));
        let at = (20 + at).min(message.len() - 1);
        message[at] = byte;
        answers(&message);
    }
}

#[test]
fn an_error_answer_carries_sequence_and_errno() {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&36u32.to_ne_bytes());
    bytes.extend_from_slice(&[2, 0, 0, 0]);
    bytes.extend_from_slice(&7u32.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(-1i32).to_ne_bytes());
    bytes.extend_from_slice(&[0; 16]);
    let errno = Some(nix::errno::Errno::EPERM);
    assert_eq!(answers(&bytes), [Answer::Result { sequence: 7, errno }]);
}
