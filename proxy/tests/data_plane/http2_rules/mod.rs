//! Every rule of RFC 9113 about a peer that misbehaves, one case each: what a client sends, and what must come back.
//! Frames are sent to a proxy that expects HTTP/2; behind it stands an ordinary application.
//!
//! After whatever is not an error of the whole connection, an ordinary request on the same connection must be served.
//! Where the proxy's HTTP/2 library answers otherwise than the RFC asks, the case says so: [`Case::instead`] holds what
//! does come and why that is borne. Such a case fails as soon as the library changes its mind.

mod connection;
mod fields;
mod frame_types;
mod messages;
mod streams;

use crate::frames::*;
use crate::world::{App, Proxy, endpoint, towards};
use mesh_api::Protocol;

/// The stream on which a request must be served after the misbehaviour; rules about order leave room below it.
pub const HEALTHY: u32 = 101;

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Back {
    /// GOAWAY with this code, and the connection ends.
    Goaway(u32),
    /// The connection ends without a word.
    Closed,
    /// RST_STREAM with this code on stream 1.
    Reset(u32),
    /// A response with this status on stream 1.
    Status(u16),
    /// Nothing on stream 1.
    Nothing,
}

/// One rule.
pub struct Case {
    /// Section of RFC 9113, unless another is named.
    section: &'static str,
    /// What the client does.
    what: &'static str,
    /// What it sends; between two pieces it waits until stream 1 has ended.
    pieces: Vec<Vec<u8>>,
    /// What must come back.
    back: Back,
    /// What comes instead, and why that is borne.
    instead: Option<(Back, &'static str)>,
    /// True if an error of one stream ends the connection, as section 5.4.1 allows.
    for_all_streams: bool,
    /// True if preface and settings are part of `pieces`.
    without_greeting: bool,
}

pub fn case(section: &'static str, what: &'static str, bytes: impl Into<Vec<u8>>, back: Back) -> Case {
    Case {
        section,
        what,
        pieces: vec![bytes.into()],
        back,
        instead: None,
        for_all_streams: false,
        without_greeting: false,
    }
}

impl Case {
    /// Sends this once stream 1 has ended.
    pub fn then(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.pieces.push(bytes.into());
        self
    }

    /// Is sent right after connecting.
    pub fn without_greeting(mut self) -> Self {
        self.without_greeting = true;
        self
    }

    /// Marks an error of a stream that ends the connection, with the same code: section 5.4.1 allows that.
    pub fn for_all_streams(mut self) -> Self {
        self.for_all_streams = true;
        self
    }

    /// What does come back.
    fn expect(&self) -> Back {
        match (&self.instead, &self.back) {
            (Some((back, _)), _) => back.clone(),
            (None, Back::Reset(code)) if self.for_all_streams => Back::Goaway(*code),
            (None, back) => back.clone(),
        }
    }

    /// Marks a deviation from the RFC.
    pub fn instead(mut self, back: Back, why: &'static str) -> Self {
        self.instead = Some((back, why));
        self
    }

    /// Sends everything and says what came back; an error if the connection is then worse off than it should be.
    async fn run(&self, proxy: &Proxy) -> Result<Back, String> {
        let mut peer = if self.without_greeting {
            Peer::connect(proxy.outbound).await
        } else {
            Peer::client(proxy.outbound).await
        };
        let expect = self.expect();
        let mut seen = Vec::new();
        for (at, piece) in self.pieces.iter().enumerate() {
            if at > 0 {
                seen.extend(peer.collect(|all| all.last().is_some_and(|s| s.stream == 1 && s.ends())).await.0);
            }
            peer.send(piece).await;
        }
        peer.send(&get(HEALTHY, "/")).await;
        let before = seen.len();
        let (more, closed) = peer
            .collect(|all| {
                let settled = match expect {
                    Back::Reset(_) => all.iter().any(|s| s.is(RST_STREAM, 1)),
                    Back::Status(_) => before > 0 || all.iter().any(|s| s.is(HEADERS, 1) || s.is(RST_STREAM, 1)),
                    _ => true,
                };
                settled && all.iter().any(|s| s.stream == HEALTHY && s.ends())
            })
            .await;
        seen.extend(more);
        if closed {
            let last = seen.iter().rfind(|s| s.kind == GOAWAY);
            return Ok(last.map_or(Back::Closed, |goaway| Back::Goaway(goaway.code())));
        }
        let healthy = seen.iter().find(|s| s.is(HEADERS, HEALTHY)).map(Seen::status);
        if healthy != Some(200) {
            return Err(format!("afterwards a request was answered with {healthy:?}; came: {seen:?}"));
        }
        // NO_ERROR only stops an upload after its answer.
        let reset = seen.iter().find(|s| s.is(RST_STREAM, 1) && s.code() != NO_ERROR).map(|s| Back::Reset(s.code()));
        let status = || seen.iter().find(|s| s.is(HEADERS, 1)).map(|s| Back::Status(s.status()));
        Ok(reset.or_else(status).unwrap_or(Back::Nothing))
    }
}

/// Runs a table; all that went wrong is said at once.
async fn check(cases: Vec<Case>) {
    let app = App::start().await;
    let proxy = Proxy::start(towards(Protocol::Http2, vec![endpoint(app.address, None)]), None);
    let mut wrong = Vec::new();
    for case in &cases {
        let expect = case.expect();
        match case.run(&proxy).await {
            Ok(back) if back == expect => {}
            Ok(back) => wrong.push(format!("{} {}: {back:?} came back instead of {expect:?}", case.section, case.what)),
            Err(why) => wrong.push(format!("{} {}: {why}", case.section, case.what)),
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[tokio::test]
async fn the_connection_is_set_up_as_agreed() {
    check(connection::cases()).await;
}

#[tokio::test]
async fn frames_are_what_they_should_be() {
    check(frame_types::cases()).await;
}

#[tokio::test]
async fn streams_go_through_their_states() {
    check(streams::cases()).await;
}

#[tokio::test]
async fn header_blocks_are_whole_and_compressed_right() {
    check(fields::cases()).await;
}

#[tokio::test]
async fn messages_are_well_formed() {
    check(messages::cases()).await;
}

#[test]
fn no_rule_is_left_out_and_deviations_are_few() {
    let all: Vec<Case> =
        [connection::cases(), frame_types::cases(), streams::cases(), fields::cases(), messages::cases()]
            .into_iter()
            .flatten()
            .collect();
    assert!(all.len() >= 80, "{} cases", all.len());
    for case in all.iter().filter(|case| case.for_all_streams) {
        assert!(matches!(case.back, Back::Reset(_)) && case.instead.is_none(), "{} {}", case.section, case.what);
    }
    let deviations: Vec<&Case> = all.iter().filter(|case| case.instead.is_some()).collect();
    let mut lenient = 0;
    for case in &deviations {
        let (back, why) = case.instead.as_ref().unwrap();
        assert!(*back != case.back && !why.is_empty(), "{} {}", case.section, case.what);
        // Mostly it is only the code that differs.
        lenient += usize::from(!matches!(back, Back::Goaway(_) | Back::Reset(_)));
    }
    assert!(deviations.len() <= 34 && lenient <= 3, "{} deviations, {lenient} of them lenient", deviations.len());
}
