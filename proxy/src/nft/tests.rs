//! The encoder against the kernel and, where it is installed, `nft`; the reader against nonsense.

use super::netlink::{Answer, Netlink, NftError, answers};
use super::*;
use proptest::prelude::*;
use std::process::Command;

/// What a program prints; `None` if it isn't installed.
pub(crate) fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Compares the kernel's rules, as `nft` prints them, with `expect`; does nothing where `nft` isn't installed.
pub(crate) fn assert_ruleset(expect: &str) {
    // Versions of `nft` differ in whether they name well-known priorities.
    let plain =
        |text: &str| text.replace("priority dstnat", "priority -100").replace("priority srcnat", "priority 100");
    if let Some(listing) = output_of("nft", &["list", "ruleset"]) {
        assert_eq!(plain(&listing), plain(expect), "{listing}");
    }
}

/// One of everything the sandbox's services need.
fn everything() -> Table {
    let key = |port: u16, index: u32| concat(&[&[10, 96, 0, 7], &[TCP], &port.to_be_bytes(), &index.to_ne_bytes()]);
    let endpoint = |last: u8| concat(&[&[10, 244, 0, last], &8080u16.to_be_bytes()]);
    Table {
        family: Family::Ipv4,
        name: "everything".to_owned(),
        sets: vec![
            Set {
                name: "endpoints-2".to_owned(),
                key: vec![Type::Ipv4Address, Type::Protocol, Type::Port, Type::Number],
                kind: SetKind::Values(vec![Type::Ipv4Address, Type::Port]),
                elements: vec![Element::value(key(80, 0), endpoint(2)), Element::value(key(80, 1), endpoint(3))],
            },
            Set {
                name: "ports".to_owned(),
                key: vec![Type::Port],
                kind: SetKind::Ranges,
                elements: Element::range(22, 22).chain(Element::range(8000, u16::MAX)).collect(),
            },
            Set {
                name: "dispatch".to_owned(),
                key: vec![Type::Protocol],
                kind: SetKind::Verdicts,
                elements: vec![Element {
                    key: vec![UDP],
                    data: ElementData::Verdict(Verdict::Jump("refuse".to_owned())),
                }],
            },
        ],
        chains: vec![
            Chain { name: "refuse".to_owned(), hook: None, rules: Vec::new() }
                .rule(Rule::new("tcp").protocol_is(TCP).with(Expr::Reject(Reject::TcpReset)))
                .rule(Rule::new("other").with(Expr::Reject(Reject::PortUnreachable))),
            Chain::hooked("filter", ChainType::Filter, HookPoint::Output, 0)
                .rule(
                    Rule::new("by protocol")
                        .new_connection()
                        .with(Expr::Meta { key: Meta::Protocol, to: Reg(0) })
                        .with(Expr::VerdictMap { map: "dispatch".to_owned(), key: Reg(0) }),
                )
                .rule(
                    Rule::new("ports").protocol_is(TCP).destination_port_in("ports").with(Expr::Verdict(Verdict::Drop)),
                )
                .rule(
                    Rule::new("range")
                        .protocol_is(UDP)
                        .with(destination_port(Reg(0)))
                        .with(Expr::Range { reg: Reg(0), low: vec![0, 5], high: vec![0, 9] })
                        .with(Expr::Verdict(Verdict::Goto("refuse".to_owned()))),
                ),
            Chain::hooked("services", ChainType::Nat, HookPoint::Output, PRIORITY_DNAT).rule(
                Rule::new("two endpoints")
                    .with(ipv4_destination(Reg(0)))
                    .with(Expr::Meta { key: Meta::Protocol, to: Reg(1) })
                    .with(destination_port(Reg(2)))
                    .with(Expr::Random { to: Reg(3), modulus: 2 })
                    .with(Expr::Lookup {
                        set: "endpoints-2".to_owned(),
                        key: Reg(0),
                        invert: false,
                        value: Some(Reg(8)),
                    })
                    .with(Expr::DestinationNat { address: Reg(8), port: Reg(9) }),
            ),
            Chain::hooked("sources", ChainType::Nat, HookPoint::Postrouting, PRIORITY_SNAT)
                .rule(Rule::new("rewritten").destination_rewritten().with(Expr::Masquerade)),
        ],
    }
}

#[test]
fn nft_reads_what_was_written() {
    namespace::inside("nft::tests::nft_reads_what_was_written", || {
        let netlink = Netlink::open().unwrap();
        let table = everything();
        netlink.replace(&table).unwrap();
        // A second time replaces, it doesn't add.
        netlink.replace(&table).unwrap();
        assert_ruleset(include_str!("everything.nft"));
        netlink.apply(&table.remove()).unwrap();
        assert_eq!(netlink.rules(&table).unwrap(), Vec::new());
    });
}

#[test]
fn a_refusal_names_the_rule_and_changes_nothing() {
    namespace::inside("nft::tests::a_refusal_names_the_rule_and_changes_nothing", || {
        let netlink = Netlink::open().unwrap();
        let table = everything();
        netlink.replace(&table).unwrap();
        let mut wrong = table.clone();
        wrong.chains[1].rules.push(Rule::new("leads nowhere").with(Expr::Verdict(Verdict::Jump("nowhere".to_owned()))));
        let error = netlink.replace(&wrong).unwrap_err().to_string();
        assert!(error.contains("rule \"leads nowhere\" of chain filter of table everything: ENOENT"), "{error}");
        netlink.verify(&table).unwrap();
        let error = netlink.verify(&wrong).unwrap_err();
        assert!(matches!(&error, NftError::Mismatch { chain, .. } if chain == "filter"), "{error}");
    });
}

#[test]
fn a_large_table_is_one_transaction() {
    namespace::inside("nft::tests::a_large_table_is_one_transaction", || {
        let elements = (0..3000u32).map(|n| Element::address(Ipv4Addr::from(0x0af4_0000 + n)));
        let table = Table {
            family: Family::Ipv4,
            name: "large".to_owned(),
            sets: vec![Set {
                name: "addresses".to_owned(),
                key: vec![Type::Ipv4Address],
                kind: SetKind::Keys,
                elements: elements.collect(),
            }],
            chains: Vec::new(),
        };
        Netlink::open().unwrap().replace(&table).unwrap();
        if let Some(listing) = output_of("nft", &["list", "ruleset"]) {
            assert!(listing.contains("10.244.11.183"), "the last element is missing");
        }
    });
}

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

proptest! {
    #[test]
    fn reading_answers_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        answers(&bytes);
    }

    #[test]
    fn reading_damaged_rules_never_panics(cut in 0usize..400, at in 0usize..400, byte in any::<u8>()) {
        let mut bytes = everything().replace().bytes().to_vec();
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
