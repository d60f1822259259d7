//! Recordings that are whole, cut off, newer, or none.

use super::*;
use crate::golden::tests::{SHOP, frame};

fn header() -> Header {
    Header::of("demo", &Query { namespace: Some("shop".into()), ..Query::default() }, 10)
}

fn golden(at_ms: u64) -> Entry {
    Entry { at_ms, golden: Some(Box::new(frame(SHOP, at_ms, 1000))), ..Entry::default() }
}

/// A recording of so many seconds, from second 100 on.
fn recorded(header: &Header, seconds: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop");
    let mut writer = Writer::create(&path, header).unwrap();
    for second in 100..100 + seconds {
        writer.add(golden(second * 1000)).unwrap();
    }
    let length = writer.finish().unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, length);
    bytes
}

#[test]
fn what_was_recorded_is_read_from_any_minute() {
    let bytes = recorded(&header(), 200);
    assert!(bytes.len() < 200 * 600, "{} bytes for 200 s of the shop", bytes.len());
    let recording = Recording::read(bytes).unwrap();
    assert_eq!(recording.header, header());
    assert_eq!((recording.from_ms, recording.to_ms, recording.entries), (100_000, 299_000, 200));
    assert_eq!(recording.damage, None);
    assert_eq!(recording.members.iter().map(|m| m.from_ms).collect::<Vec<_>>(), [100_000, 160_000, 220_000, 280_000]);
    let first = |at_ms| recording.from(at_ms).next().unwrap();
    assert_eq!(first(0), golden(100_000));
    assert_eq!(first(229_000), golden(220_000));
    assert_eq!(recording.from(229_000).count(), 80);
}

#[test]
fn wherever_it_is_cut_what_came_before_is_read() {
    let bytes = recorded(&header(), 70);
    let mut counts = Vec::new();
    for length in (0..bytes.len()).step_by(97) {
        let Ok(recording) = Recording::read(bytes[..length].to_vec()) else { continue };
        assert_eq!(recording.from(0).count() as u64, recording.entries);
        let damage = recording.damage.unwrap_or_default();
        let at_border = recording.entries == 60;
        assert!(at_border || damage.starts_with("the recording breaks off here: "), "{length}: {damage}");
        counts.push(recording.entries);
    }
    assert!(counts.is_sorted() && *counts.last().unwrap() >= 68, "{counts:?}");
}

#[test]
fn a_newer_one_is_shown_as_far_as_it_is_understood() {
    let newer = Header { version: 7, meshctl: "9.9.9".into(), ..header() };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("newer");
    let mut writer = Writer::create(&path, &newer).unwrap();
    writer.add(golden(1000)).unwrap();
    writer.line(&serde_json::json!({"at_ms": 2000, "hologram": {}})).unwrap();
    writer.line(&serde_json::json!(["other"])).unwrap();
    writer.add(golden(3000)).unwrap();
    writer.finish().unwrap();
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.from(0).map(|entry| entry.at_ms).collect::<Vec<_>>(), [1000, 3000]);
    let damage = recording.damage.unwrap();
    assert!(damage.contains("meshctl 9.9.9 in format 7") && damage.contains("1 lines could not be read"), "{damage}");
}

#[test]
fn what_is_no_recording_is_refused_with_a_reason() {
    let refusal = |bytes: &[u8]| Recording::read(bytes.to_vec()).unwrap_err().to_string();
    assert!(refusal(b"").contains("it is empty"));
    assert!(refusal(b"hello\n").contains("it is not a recording of meshctl"));
    assert!(refusal(&recorded(&header(), 0)).contains("nothing was recorded"));
    let missing = Recording::open(Path::new("/nowhere/x")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot replay /nowhere/x: "), "{missing}");
}

#[test]
fn a_file_that_is_there_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "x").unwrap();
    assert!(Writer::create(&path, &header()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
}

proptest::proptest! {
    #[test]
    fn nonsense_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        gzip.extend(&bytes);
        let _ = Recording::read(bytes);
        let _ = Recording::read(gzip);
    }
}
