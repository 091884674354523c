//! Bounds of reading a body: timeout, size and interruption.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tollgate::gate::BodyTokens;
use tollgate::{AuthLayer, Rejection, RejectionKind, TokenLocation};
use tower::{Layer as _, ServiceExt as _};

use crate::kit::body::*;
use crate::kit::*;

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_timeout_gets_408() {
    let begun = || Step::Data(b"{\"key\":".to_vec());
    let drops = std::iter::repeat_n([Step::Data(b" ".to_vec()), Step::Pause(Duration::from_millis(100))], 10_000);
    for script in [Script::new([Step::Silence]), Script::new([begun(), Step::Silence]), Script::new(drops.flatten())] {
        let begin = tokio::time::Instant::now();
        let (response, runs) = respond(&gate(), authorized(post(JSON, script))).await;
        assert_eq!((response.status().as_u16(), runs), (408, 0));
        assert_eq!(begin.elapsed(), TIMEOUT, "single bytes do not extend the timeout");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert!(!response.headers().contains_key("www-authenticate"));
        assert_eq!(json(response).await["status"], 408);
    }
    // For Connect, 401 would mean that the token is invalid.
    let mut unary = authorized(post(JSON, Script::new([Step::Silence])));
    unary.headers_mut().insert("connect-protocol-version", "1".parse().unwrap());
    let (response, _) = respond(&gate(), unary).await;
    assert_eq!(response.status(), 400);
    assert_eq!(json(response).await["code"], "invalid_argument");
    // A slow body within the timeout is accepted.
    let body = json_with(TOKEN);
    let slowly = body.bytes().flat_map(|byte| [Step::Pause(Duration::from_millis(50)), Step::Data(vec![byte])]);
    assert_eq!(accepted(&gate(), post(JSON, Script::new(slowly))).await, (TokenLocation::JsonBody, body.into()));
}

#[tokio::test]
async fn an_interrupted_body_never_reaches_the_handler() {
    for steps in [
        vec![Step::Fail],
        vec![Step::Data(json_with(TOKEN).into()), Step::Fail],
        vec![Step::Data(json_with(TOKEN).into()), Step::Trailers(sums(1)), Step::Fail],
    ] {
        let (response, runs) = respond(&gate(), authorized(post(JSON, Script::new(steps)))).await;
        assert_eq!((response.status().as_u16(), runs), (400, 0));
        assert_eq!(response.extensions().get::<Rejection>().unwrap().kind(), RejectionKind::BodyUnreadable);
        assert_eq!(response.headers()["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn the_default_limit_is_64_kib() {
    let filled = |bytes: usize| {
        let body = json_with(TOKEN);
        body.clone() + &" ".repeat(bytes - body.len())
    };
    assert_eq!(BodyTokens::DEFAULT_LIMIT, 65_536);
    let (location, read) = accepted(&gate(), post(JSON, Script::of(filled(65_536)))).await;
    assert_eq!((location, read.len()), (TokenLocation::JsonBody, 65_536));
    let (response, runs) = respond(&gate(), post(JSON, Script::of(filled(65_537)))).await;
    assert_eq!((response.status().as_u16(), runs), (413, 0));
    assert!(!response.headers().contains_key("www-authenticate"));
    assert_eq!(json(response).await["title"], "Content Too Large");
    // An endless body is read only until the limit is exceeded.
    let endless = Script::new(std::iter::repeat_n(Step::Data(vec![b' '; 1_000]), 1_000));
    let taken = endless.taken();
    assert_eq!(rejection_kind(&gate(), post(JSON, endless)).await, RejectionKind::BodyTooLarge);
    assert_eq!(taken.load(Ordering::SeqCst), 66_000);
}

/// A body that is always ready and never ends or yields data.
struct Empties;

impl http_body::Body for Empties {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::new()))))
    }
}

#[tokio::test]
async fn a_body_that_is_always_ready_cannot_extend_the_timeout() {
    // Completes at the third poll, so that the test does not wait in real time.
    let sleep = |_| {
        let mut polls = 0;
        std::future::poll_fn(move |_| {
            polls += 1;
            if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
        })
    };
    let body_tokens = BodyTokens::with_timer(TIMEOUT, sleep).with_json("key").unwrap();
    let runs = Runs::default();
    let service = AuthLayer::new(memory()).with_body_tokens(body_tokens).layer(reader::<Empties>(&runs));
    let response = service.oneshot(post(JSON, Empties)).await.unwrap();
    assert_eq!(response.status(), 408);
    assert_eq!(runs.count(), 0);
}

#[tokio::test]
async fn an_immediate_body_starts_no_timer() {
    let started = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&started);
    let sleep = move |duration| {
        counting.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(duration)
    };
    let layer =
        AuthLayer::new(memory()).with_body_tokens(BodyTokens::with_timer(TIMEOUT, sleep).with_json("key").unwrap());
    let (response, runs) = respond(&layer, post(JSON, Body::from(json_with(TOKEN)))).await;
    assert_eq!((response.status().as_u16(), runs, started.load(Ordering::SeqCst)), (200, 1, 0));
    // The first wait starts one timer. Further waits start no other.
    let steps = [Step::Wait, Step::Data(json_with(TOKEN).into()), Step::Wait, Step::Wait];
    let (response, runs) = respond(&layer, post(JSON, Script::new(steps))).await;
    assert_eq!((response.status().as_u16(), runs, started.load(Ordering::SeqCst)), (200, 1, 1));
}
