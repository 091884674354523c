//! The body that the handler reads: the sent bytes and trailers, up to the limit.

use std::convert::Infallible;
use std::sync::atomic::Ordering;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tollgate::AuthLayer;
use tollgate::gate::ReplayBody;
use tower::{Layer as _, ServiceExt as _};

use crate::kit::body::*;
use crate::kit::*;

const LIMIT: usize = 96;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_handler_reads_the_sent_body_up_to_the_limit(
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..=LIMIT + 40),
            prop::collection::vec(any::<u8>(), LIMIT - 1..=LIMIT + 1),
        ],
        cuts in cuts(),
        waits in prop::collection::vec(any::<bool>(), 0..10),
        trailers in any::<Option<u8>>(),
        hinted in any::<bool>(),
        slowly in any::<bool>(),
        removed in any::<bool>(),
    ) {
        let steps = pieces(&body, &cuts, &waits, trailers);
        let largest = steps.iter().map(|step| if let Step::Data(data) = step { data.len() } else { 0 }).max();
        let mut script = Script::new(steps);
        script.length = hinted.then_some(body.len());
        let taken = script.taken();
        let body_tokens = body_tokens().with_limit(LIMIT);
        let request = authorized(post(FORM, script));
        let (response, runs) = block_on(async {
            // With the token in the head, nothing in the body is masked either.
            match (slowly, removed) {
                (false, false) => respond(&AuthLayer::new(memory()).with_body_tokens(body_tokens), request).await,
                (false, true) => {
                    respond(&AuthLayer::new(memory()).with_credentials_removed().with_body_tokens(body_tokens), request).await
                }
                (true, _) => respond(&pending_gate().with_body_tokens(body_tokens), request).await,
            }
        });
        if body.len() > LIMIT {
            prop_assert_eq!((response.status().as_u16(), runs), (413, 0));
            let taken = taken.load(Ordering::SeqCst);
            prop_assert!(taken <= if hinted { 0 } else { LIMIT + largest.unwrap_or_default() }, "{} were read", taken);
        } else {
            prop_assert_eq!((response.status().as_u16(), runs), (200, 1));
            let seen = response.extensions().get::<Trailers>().unwrap().clone();
            prop_assert_eq!(seen, Trailers(trailers.map(sums)));
            prop_assert_eq!(block_on(response.into_body().collect()).unwrap().to_bytes(), body);
        }
    }
}

#[tokio::test]
async fn a_replayed_body_reports_its_length_and_prints_no_content() {
    let inspect = tower::service_fn(|request: Request<ReplayBody<Script>>| async move {
        let mut body = Box::pin(request.into_body());
        let mut lines = Vec::new();
        loop {
            lines.push(format!(
                "{:?} {}",
                http_body::Body::size_hint(&body).exact(),
                http_body::Body::is_end_stream(&body)
            ));
            match body.frame().await {
                Some(frame) => lines.push(if frame.unwrap().is_data() { "data" } else { "trailers" }.to_owned()),
                None => break,
            }
        }
        lines.push(format!("{body:?} {body:#?}"));
        Ok::<_, Infallible>(Response::new(Body::from(lines.join("; "))))
    });
    let body = json_with(TOKEN);
    let steps = |trailers| pieces(body.as_bytes(), &[], &[], trailers);
    let len = body.len();
    for (trailers, expected) in [
        (None, format!("Some({len}) false; data; Some(0) true; ReplayBody(read) ReplayBody(read)")),
        (
            Some(1),
            format!(
                "Some({len}) false; data; Some(0) false; trailers; Some(0) true; ReplayBody(read) ReplayBody(read)"
            ),
        ),
    ] {
        let service = gate().layer(inspect);
        let response = service.oneshot(post(JSON, Script::new(steps(trailers)))).await.unwrap();
        assert_eq!(text(response).await, expected);
    }
    let response = gate().layer(inspect).oneshot(authorized(post("image/png", Script::of("x")))).await.unwrap();
    assert!(text(response).await.ends_with("ReplayBody(untouched) ReplayBody(untouched)"));
    let never = gate().layer(inspect).oneshot(post(JSON, Script::of(json_with("unknown")))).await.unwrap();
    assert!(!format!("{never:?}").contains("unknown\""));
}
