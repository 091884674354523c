//! Properties of the reset times in rate limit headers, for a client that obeys them.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, Response};
use proptest::prelude::*;
use tollgate::{AuthLayer, Limit, Quota, RateLimitHeaders};
use tower::{Layer, Service};

use crate::kit::*;

const SECOND_NS: u64 = 1_000_000_000;

const DIALECTS: [RateLimitHeaders; 6] = [
    RateLimitHeaders::Draft10,
    RateLimitHeaders::Draft07,
    RateLimitHeaders::Draft06,
    RateLimitHeaders::Draft03,
    RateLimitHeaders::XEpoch,
    RateLimitHeaders::XDelta,
];

/// The remaining units and the reset time in the headers of a response.
#[derive(Debug)]
struct Advertised {
    remaining: u32,
    reset: u64,
}

fn advertised(headers: &HeaderMap, dialect: RateLimitHeaders) -> Advertised {
    let text = |name: &str| headers[name].to_str().unwrap();
    let (remaining, reset) = match dialect {
        RateLimitHeaders::Draft10 => {
            let (_, state) = text("ratelimit").split_once(";r=").unwrap();
            state.split_once(";t=").unwrap()
        }
        RateLimitHeaders::Draft07 => {
            let (_, state) = text("ratelimit").split_once("remaining=").unwrap();
            state.split_once(", reset=").unwrap()
        }
        RateLimitHeaders::XEpoch | RateLimitHeaders::XDelta => {
            (text("x-ratelimit-remaining"), text("x-ratelimit-reset"))
        }
        _ => (text("ratelimit-remaining"), text("ratelimit-reset")),
    };
    Advertised { remaining: remaining.parse().unwrap(), reset: reset.parse().unwrap() }
}

/// A client with a clock that the test controls.
struct Client<S> {
    service: S,
    dialect: RateLimitHeaders,
    hands: Hands,
    /// The wall-clock time at which the monotonic clock is 0.
    epoch_ns: u64,
    runtime: tokio::runtime::Runtime,
}

impl<S> Client<S>
where
    S: Service<http::Request<Body>, Response = Response<Body>, Error = std::convert::Infallible> + Clone,
{
    fn send(&self, cost: u32) -> Response<Body> {
        let mut request = with_token(TOKEN);
        request.headers_mut().insert("x-cost", cost.into());
        self.runtime.block_on(send(&self.service, request))
    }

    fn status(&self, cost: u32) -> u16 {
        self.send(cost).status().as_u16()
    }

    /// Returns how long an obedient client waits.
    fn wait_for(&self, reset: u64) -> Duration {
        match self.dialect {
            RateLimitHeaders::XEpoch => {
                Duration::from_nanos((reset * SECOND_NS).saturating_sub(self.epoch_ns + self.hands.ns()))
            }
            _ => Duration::from_secs(reset),
        }
    }

    /// Waits until the reset. Checks that the request is admitted then, and not one second earlier.
    fn assert_reset_is_exact(&self, reset: u64, cost: u32) {
        let wait = self.wait_for(reset);
        let earlier = wait.saturating_sub(Duration::from_secs(1));
        self.hands.advance(earlier);
        assert_eq!(self.status(cost), 429, "{:?}: the reset is a second too late", self.dialect);
        self.hands.advance(wait - earlier);
        assert_eq!(self.status(cost), 200, "{:?}: the reset is too early", self.dialect);
    }

    /// Sends a request and obeys the response.
    fn step(&self, cost: u32, limit: u32, obeys_rest: bool) {
        let response = self.send(cost);
        let advertised = advertised(response.headers(), self.dialect);
        match response.status().as_u16() {
            429 => {
                assert_eq!(advertised.remaining, 0);
                let retry_after: u64 = field(response.headers(), "retry-after").unwrap().parse().unwrap();
                match self.dialect {
                    // A time of day in whole seconds matches `Retry-After`, except for the current second.
                    RateLimitHeaders::XEpoch => {
                        let away = self.wait_for(advertised.reset).as_nanos() as u64;
                        assert!(away.abs_diff(retry_after * SECOND_NS) < SECOND_NS, "{advertised:?} {retry_after}");
                    }
                    _ => assert_eq!(advertised.reset, retry_after),
                }
                self.assert_reset_is_exact(advertised.reset, cost);
            }
            200 if advertised.remaining == 0 => self.assert_reset_is_exact(advertised.reset, 1),
            200 if obeys_rest && self.dialect != RateLimitHeaders::Draft10 => {
                self.hands.advance(self.wait_for(advertised.reset));
                assert_eq!(self.status(limit), 200, "the whole burst is available again");
            }
            status => assert_eq!(status, 200),
        }
    }
}

fn quotas() -> impl Strategy<Value = Quota> {
    let intervals = prop_oneof![1..SECOND_NS, 1..90 * SECOND_NS, Just(SECOND_NS), Just(333_333_334)];
    (intervals, 1..12_u32)
        .prop_map(|(interval, burst)| Quota::one_per(Duration::from_nanos(interval)).with_burst(burst))
}

fn by_cost(limit: Limit) -> Limit {
    limit.with_cost(|head| head.headers["x-cost"].to_str().unwrap().parse().unwrap())
}

proptest! {
    #[test]
    fn an_obedient_client_is_admitted_and_waits_no_longer_than_needed(
        quota in quotas(),
        second in prop::option::of(quotas()),
        epoch_ns in 0..2_000_000_000 * SECOND_NS,
        steps in prop::collection::vec((0..5 * SECOND_NS, any::<u32>(), any::<bool>()), 1..30),
    ) {
        for dialect in DIALECTS {
            let hands = Hands::default();
            let mut limits = hands.limits(by_cost(quota.into()));
            let mut limit = quota.burst();
            if let Some(second) = second {
                if dialect == RateLimitHeaders::Draft10 {
                    // Draft 10 lists both limits. This client reads one.
                    continue;
                }
                limits = limits.and(by_cost(Limit::new("second", second).unwrap())).unwrap();
                limit = limit.min(second.burst());
            }
            let clock = hands.clone();
            let gate = AuthLayer::new(memory())
                .with_rate_limit(limits)
                .with_rate_limit_headers(dialect)
                .with_wall_clock(move || UNIX_EPOCH + Duration::from_nanos(epoch_ns + clock.ns()));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let client = Client { service: gate.layer(empty()), dialect, hands, epoch_ns, runtime };
            for (pause, cost, obeys_rest) in &steps {
                client.hands.advance(Duration::from_nanos(*pause));
                // With two limits, the advertised one may not be the other's minimum.
                client.step(cost % limit + 1, limit, *obeys_rest && second.is_none());
            }
        }
    }
}

/// An inner service that responds without content.
fn empty()
-> impl Service<http::Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send> + Clone
{
    tower::service_fn(|_: http::Request<Body>| std::future::ready(Ok(Response::new(Body::default()))))
}

/// Clients of GitHub's API expect 429 with `X-RateLimit-Remaining: 0`.
#[tokio::test]
async fn reset_is_the_next_unit_when_nothing_remains_and_the_full_bucket_otherwise() {
    for (dialect, name, resets) in [
        (
            RateLimitHeaders::Draft10,
            "ratelimit",
            [r#""default";r=1;t=3"#, r#""default";r=0;t=3"#, r#""default";r=0;t=2"#],
        ),
        (
            RateLimitHeaders::Draft07,
            "ratelimit",
            ["limit=3, remaining=1, reset=6", "limit=3, remaining=0, reset=3", "limit=3, remaining=0, reset=2"],
        ),
        (RateLimitHeaders::Draft06, "ratelimit-reset", ["6", "3", "2"]),
        (RateLimitHeaders::Draft03, "ratelimit-reset", ["6", "3", "2"]),
        (RateLimitHeaders::XDelta, "x-ratelimit-reset", ["6", "3", "2"]),
        (RateLimitHeaders::XEpoch, "x-ratelimit-reset", ["1000007", "1000004", "1000004"]),
    ] {
        let hands = Hands::default();
        let clock = hands.clone();
        let service = AuthLayer::new(memory())
            .with_rate_limit(hands.limits(Quota::one_per(Duration::from_secs(3)).with_burst(3)))
            .with_rate_limit_headers(dialect)
            .with_wall_clock(move || {
                UNIX_EPOCH + Duration::from_millis(1_000_000_700) + Duration::from_nanos(clock.ns())
            })
            .layer(echo());
        send(&service, with_token(TOKEN)).await;
        let mut responses = Vec::new();
        responses.push(send(&service, with_token(TOKEN)).await);
        responses.push(send(&service, with_token(TOKEN)).await);
        hands.advance(Duration::from_millis(1_500));
        responses.push(send(&service, with_token(TOKEN)).await);
        assert_eq!(responses[2].status(), 429);
        assert_eq!(responses[2].headers()["retry-after"], "2");
        let advertised: Vec<_> = responses.iter().map(|response| field(response.headers(), name).unwrap()).collect();
        assert_eq!(advertised, resets, "{dialect:?}");
    }
}

/// Checks a gate and a route that both have nothing left.
#[tokio::test]
async fn of_two_limits_with_nothing_left_the_later_reset_is_advertised() {
    let one = |interval| Hands::default().limits(Quota::one_per(Duration::from_secs(interval)));
    for dialect in DIALECTS.into_iter().filter(|dialect| *dialect != RateLimitHeaders::Draft10) {
        for (outer, inner) in [(20, 5), (5, 20)] {
            let gate = AuthLayer::new(memory())
                .with_rate_limit(one(outer))
                .with_rate_limit_headers(dialect)
                .with_wall_clock(|| UNIX_EPOCH);
            let service = gate.clone().layer(gate.route_rate_limit(one(inner)).layer(echo()));
            let response: Response<Body> = send(&service, with_token(TOKEN)).await;
            let Advertised { remaining, reset } = advertised(response.headers(), dialect);
            assert_eq!((remaining, reset), (0, 20), "{dialect:?} {outer} {inner}");
        }
    }
}
