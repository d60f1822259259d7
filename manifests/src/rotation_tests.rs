//! A rotation from its beginning to its end, and everything that may come between.

use super::*;
use std::time::Duration;

fn now() -> SystemTime {
    SystemTime::now()
}

fn authority(name: &str) -> Issuer {
    Issuer::generate(name, now()).unwrap()
}

fn state(issuer: &Issuer) -> IssuerState {
    let pair = issuer.pair.clone().unwrap();
    let texts = [(CERTIFICATE, pair.certificate_pem), (KEY, pair.key_pem), (ANCHORS, issuer.anchors_pem.clone())];
    IssuerState { progress: None, texts: texts.map(|(key, text)| (key.to_owned(), text)).into() }
}

fn print(issuer: &Issuer) -> String {
    fingerprints(&issuer.anchors_pem).unwrap().remove(0)
}

/// As it would be read back from the Secret.
fn reread(state: &IssuerState) -> IssuerState {
    let annotation = state.annotation();
    IssuerState::read(annotation.as_deref(), state.texts().iter().map(|(key, text)| (key, text.as_bytes()))).unwrap()
}

fn phase(state: &IssuerState) -> Option<Phase> {
    state.progress().map(|progress| progress.phase)
}

fn sorted(mut prints: Vec<String>) -> Vec<String> {
    prints.sort();
    prints
}

#[test]
fn a_rotation_goes_through_its_phases_and_leaves_nothing_behind() {
    let (old, new) = (authority("a"), authority("a"));
    let (old_print, new_print) = (print(&old), print(&new));
    let both = sorted(vec![old_print.clone(), new_print.clone()]);
    let idle = state(&old);
    assert_eq!(idle.goal(), Ok(None));

    let trust = reread(&idle.begin(&new, now()).unwrap());
    assert_eq!((phase(&trust), trust.issuer()), (Some(Phase::Trust), Ok(old_print)));
    assert_eq!(trust.goal(), Ok(Some(Goal::Trusts(both.clone()))));
    assert_eq!(trust.begin(&authority("a"), now()).err(), Some(RotationError::UnderWay(Phase::Trust)));

    let issue = reread(&trust.advanced(now()).unwrap());
    assert_eq!((phase(&issue), issue.issuer()), (Some(Phase::Issue), Ok(new_print.clone())));
    assert_eq!(issue.anchors(), Ok(both));
    assert_eq!(issue.goal(), Ok(Some(Goal::IssuedBy(new_print.clone()))));
    assert!(issue.vouched());

    let retire = reread(&issue.advanced(now()).unwrap());
    assert_eq!(retire.goal(), Ok(Some(Goal::TrustsOnly(vec![new_print.clone()]))));

    let done = reread(&retire.advanced(now()).unwrap());
    assert_eq!((done.goal(), done.annotation()), (Ok(None), None));
    let keys: Vec<_> = done.texts().keys().map(String::as_str).collect();
    assert_eq!(keys, [ANCHORS, CROSS_KEY, CERTIFICATE, KEY]);
    assert_eq!((done.issuer(), done.anchors()), (Ok(new_print.clone()), Ok(vec![new_print])));
    assert!(done.advanced(now()).is_err());
}

#[test]
fn there_is_a_way_back_until_the_new_issuer_signs() {
    let old = state(&authority("a"));
    let trust = old.begin(&authority("a"), now()).unwrap();
    assert!(trust.aborted().unwrap() == old);
    assert_eq!(old.aborted().err(), Some(RotationError::None));
    let issue = trust.advanced(now()).unwrap();
    assert_eq!(issue.aborted().err(), Some(RotationError::TooLate(Phase::Issue)));
    assert_eq!(issue.advanced(now()).unwrap().aborted().err(), Some(RotationError::TooLate(Phase::Retire)));
}

#[test]
fn what_was_applied_in_between_is_put_right() {
    let old = state(&authority("a"));
    let trust = old.begin(&authority("a"), now()).unwrap();
    let issue = trust.advanced(now()).unwrap();
    for right in [&trust, &issue, &issue.advanced(now()).unwrap()] {
        let mut spoiled = right.clone();
        for (key, text) in old.texts() {
            spoiled.put(key, text.clone());
        }
        assert!(reread(&spoiled).settled().unwrap() == *right, "{:?}", phase(right));
        assert!(right.settled().unwrap() == *right);
    }
}

#[test]
fn the_same_issuer_is_no_rotation_and_what_is_missing_is_named() {
    let (present, next) = (authority("a"), authority("a"));
    let idle = state(&present);
    assert_eq!(idle.begin(&present, now()).err(), Some(RotationError::Same));
    let mut trust = idle.begin(&next, now()).unwrap();
    trust.texts.remove(NEXT_KEY);
    assert_eq!(trust.advanced(now()).err(), Some(RotationError::Missing(NEXT_KEY)));
    let data: BTreeMap<String, Vec<u8>> = [(KEY.to_owned(), vec![0xff])].into();
    let read = |annotation| IssuerState::read(annotation, data.iter().map(|(key, value)| (key, value.as_slice())));
    assert!(matches!(read(None).err(), Some(RotationError::Unreadable { key, .. }) if key == KEY));
    assert!(matches!(read(Some("{")).err(), Some(RotationError::Annotation(_))));
}

#[test]
fn goals_say_what_is_missing() {
    let report = |anchors: &[&str], issuer: Option<&str>, connected| Trust {
        anchors: anchors.iter().map(|print| (*print).to_owned()).collect(),
        issuer: issuer.map(str::to_owned),
        expires_at: None,
        connected,
    };
    let check = |goal: Goal, report: &Trust, expect: &str| {
        assert_eq!(goal.unmet(report).unwrap_or_default(), expect, "{goal:?}");
    };
    let both = || vec!["a".to_owned(), "b".to_owned()];
    check(Goal::Trusts(both()), &report(&["a", "b", "c"], None, true), "");
    check(Goal::Trusts(both()), &report(&["a"], None, true), "it does not trust b yet");
    let away = "it does not trust a yet, and it is not connected to the control plane";
    check(Goal::Trusts(both()), &report(&[], None, false), away);
    check(Goal::IssuedBy("b".to_owned()), &report(&[], Some("b"), true), "");
    check(Goal::IssuedBy("b".to_owned()), &report(&[], Some("a"), true), "its certificate is still signed by a");
    check(Goal::IssuedBy("b".to_owned()), &report(&[], None, true), "it cannot tell who signed its certificate");
    check(Goal::TrustsOnly(both()), &report(&["b"], None, false), "");
    check(Goal::TrustsOnly(both()), &report(&["a", "c"], None, true), "it still trusts c");
}

#[test]
fn earlier_authorities_vouch_for_later_ones() {
    let rotate = |from: &IssuerState, next: &Issuer, at| {
        let issue = from.begin(next, at).unwrap().advanced(at).unwrap();
        issue.advanced(at).unwrap().advanced(at).unwrap()
    };
    let parsed = |pem: &str| blocks(CROSS_KEY, pem).unwrap();
    let all: Vec<Issuer> = ["same", "same", "other", "same", "same"].map(authority).into();
    let mut present = state(&all[0]);
    for (index, next) in all.iter().enumerate().skip(1) {
        present = rotate(&present, next, now());
        let cross = parsed(&present.texts()[CROSS_KEY]);
        assert_eq!(cross.len(), index.min(KEPT_CROSS));
        // The newest stands first: signed by the authority before, for the key of this one.
        let (_, made) = X509Certificate::from_der(&cross[0].0).unwrap();
        let before = blocks(ANCHORS, &all[index - 1].anchors_pem).unwrap();
        let this = blocks(ANCHORS, &next.anchors_pem).unwrap();
        let (_, before) = X509Certificate::from_der(&before[0].0).unwrap();
        let (_, this) = X509Certificate::from_der(&this[0].0).unwrap();
        made.verify_signature(Some(before.public_key())).unwrap();
        assert_eq!(made.public_key().raw, this.public_key().raw);
        assert_eq!(made.subject().as_raw(), this.subject().as_raw());
        assert!(made.is_ca());
    }
    // What has ended vouches for nobody.
    let late = now() + Duration::from_secs(11 * 365 * 24 * 3600);
    assert!(!rotate(&present, &authority("z"), late).vouched());
}

#[test]
fn only_an_issuer_under_the_same_anchors_retires_nobody() {
    let old = authority("a");
    let next = Issuer { anchors_pem: old.anchors_pem.clone(), ..authority("a") };
    let begun = state(&old).begin(&next, now()).unwrap();
    assert_eq!(begun.anchors(), Ok(vec![print(&old)]), "each anchor once");
    assert!(!begun.advanced(now()).unwrap().vouched());
}
