//! What the proxy's own netlink encoder writes, asked of the kernel and read by `nft`, each test in a network namespace
//! of its own.

#![allow(clippy::unwrap_used, reason = "a panic is how these bodies fail, inside a process of their own")]

use crate::harness::{Need, ourselves, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use mesh_proxy::nft::netlink::{Netlink, NftError};
use mesh_proxy::nft::*;
use std::net::Ipv4Addr;
use std::process::Command;

/// Set in the process that runs a body.
const INSIDE: &str = "MESH_TEST_INSIDE_NAMESPACE";

/// What every test here needs.
pub(crate) const NEEDS: [Need; 4] =
    [Need::Namespaces, Need::Program("unshare"), Need::Program("ip"), Need::Program("nft")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("nft::nft_reads_what_was_written", &NEEDS, nft_reads_what_was_written),
        test("nft::a_refusal_names_the_rule_and_changes_nothing", &NEEDS, a_refusal_names_the_rule_and_changes_nothing),
        test("nft::a_large_table_is_one_transaction", &NEEDS, a_large_table_is_one_transaction),
    ]
}

/// Runs `body` inside a fresh network namespace whose loopback interface is up; `name` is the calling test's.
///
/// This program starts itself again for that one test: a network namespace belongs to a thread, a user namespace can
/// only be entered by a process with one thread.
pub(crate) fn inside(name: &str, body: impl FnOnce()) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return Ok(());
    }
    let mut again = Command::new("timeout");
    again.args(["60", "unshare", "-Urn", "sh", "-c", "ip link set lo up; exec \"$0\" \"$@\""]);
    again.arg(ourselves("mesh-tests")?.get_program()).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let ran = again.output().context("unshare")?;
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    ensure!(ran.status.success() && said.contains("1 passed"), "{name} failed in its namespace:\n{said}");
    Ok(())
}

/// What a program prints.
pub(crate) fn output_of(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Compares the kernel's rules, as `nft` prints them, with `expect`.
pub(crate) fn assert_ruleset(expect: &str) {
    // Versions of `nft` differ in whether they name well-known priorities.
    let plain =
        |text: &str| text.replace("priority dstnat", "priority -100").replace("priority srcnat", "priority 100");
    let listing = output_of("nft", &["list", "ruleset"]);
    assert_eq!(plain(&listing), plain(expect), "{listing}");
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

fn nft_reads_what_was_written() -> Result<()> {
    inside("nft::nft_reads_what_was_written", || {
        let netlink = Netlink::open().unwrap();
        let table = everything();
        netlink.replace(&table).unwrap();
        // A second time replaces, it doesn't add.
        netlink.replace(&table).unwrap();
        assert_ruleset(include_str!("nft/everything.nft"));
        netlink.apply(&table.remove()).unwrap();
        assert_eq!(netlink.rules(&table).unwrap(), Vec::new());
    })
}

fn a_refusal_names_the_rule_and_changes_nothing() -> Result<()> {
    inside("nft::a_refusal_names_the_rule_and_changes_nothing", || {
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
    })
}

fn a_large_table_is_one_transaction() -> Result<()> {
    inside("nft::a_large_table_is_one_transaction", || {
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
        let listing = output_of("nft", &["list", "ruleset"]);
        assert!(listing.contains("10.244.11.183"), "the last element is missing");
    })
}
