//! What the times in rate limit headers are worth to a client that obeys them.

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

/// What a response says of the limit: what remains, and the time that goes with it.
#[derive(Debug)]
struct Told {
    remaining: u32,
    reset: u64,
}

fn told(headers: &HeaderMap, dialect: RateLimitHeaders) -> Told {
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
    Told { remaining: remaining.parse().unwrap(), reset: reset.parse().unwrap() }
}

/// A client with a clock that a test turns.
struct Client<S> {
    service: S,
    dialect: RateLimitHeaders,
    hands: Hands,
    /// The wall clock where the monotonic one is 0.
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

    /// How long a client waits that obeys this time.
    fn wait_for(&self, reset: u64) -> Duration {
        match self.dialect {
            RateLimitHeaders::XEpoch => {
                Duration::from_nanos((reset * SECOND_NS).saturating_sub(self.epoch_ns + self.hands.ns()))
            }
            _ => Duration::from_secs(reset),
        }
    }

    /// Waits as told, and checks that the request is admitted then and not a second earlier.
    fn assert_told_exactly(&self, reset: u64, cost: u32) {
        let wait = self.wait_for(reset);
        let earlier = wait.saturating_sub(Duration::from_secs(1));
        self.hands.advance(earlier);
        assert_eq!(self.status(cost), 429, "{:?}: a second less would do", self.dialect);
        self.hands.advance(wait - earlier);
        assert_eq!(self.status(cost), 200, "{:?}: the time was too short", self.dialect);
    }

    /// Sends a request and obeys the answer.
    fn step(&self, cost: u32, limit: u32, obeys_rest: bool) {
        let response = self.send(cost);
        let told = told(response.headers(), self.dialect);
        match response.status().as_u16() {
            429 => {
                assert_eq!(told.remaining, 0);
                let retry_after: u64 = field(response.headers(), "retry-after").unwrap().parse().unwrap();
                match self.dialect {
                    // A time of day in whole seconds is as far away as Retry-After says, but for the started second.
                    RateLimitHeaders::XEpoch => {
                        let away = self.wait_for(told.reset).as_nanos() as u64;
                        assert!(away.abs_diff(retry_after * SECOND_NS) < SECOND_NS, "{told:?} {retry_after}");
                    }
                    _ => assert_eq!(told.reset, retry_after),
                }
                self.assert_told_exactly(told.reset, cost);
            }
            200 if told.remaining == 0 => self.assert_told_exactly(told.reset, 1),
            200 if obeys_rest && self.dialect != RateLimitHeaders::Draft10 => {
                self.hands.advance(self.wait_for(told.reset));
                assert_eq!(self.status(limit), 200, "the limit is there again");
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
    fn a_client_that_obeys_is_admitted_and_waits_no_longer_than_needed(
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
                    // It lists both, which this client does not read.
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
            let client = Client { service: gate.layer(echo_but_cost()), dialect, hands, epoch_ns, runtime };
            for (pause, cost, obeys_rest) in &steps {
                client.hands.advance(Duration::from_nanos(*pause));
                // With two policies what remains of the one that is told need not be the limit of the other.
                client.step(cost % limit + 1, limit, *obeys_rest && second.is_none());
            }
        }
    }
}

/// An inner service that answers with nothing.
fn echo_but_cost()
-> impl Service<http::Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send> + Clone
{
    tower::service_fn(|_: http::Request<Body>| std::future::ready(Ok(Response::new(Body::default()))))
}

/// The case that clients of GitHub's API know: 429 with `X-RateLimit-Remaining: 0`.
#[tokio::test]
async fn reset_is_the_next_unit_where_nothing_remains_and_the_full_limit_otherwise() {
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
        let mut answers = Vec::new();
        answers.push(send(&service, with_token(TOKEN)).await);
        answers.push(send(&service, with_token(TOKEN)).await);
        hands.advance(Duration::from_millis(1_500));
        answers.push(send(&service, with_token(TOKEN)).await);
        assert_eq!(answers[2].status(), 429);
        assert_eq!(answers[2].headers()["retry-after"], "2");
        let told: Vec<_> = answers.iter().map(|answer| field(answer.headers(), name).unwrap()).collect();
        assert_eq!(told, resets, "{dialect:?}");
    }
}

/// Where a gate and a route both have nothing left, the later time is the one to obey.
#[tokio::test]
async fn of_two_limits_with_nothing_left_the_later_reset_is_told() {
    let one = |interval| Hands::default().limits(Quota::one_per(Duration::from_secs(interval)));
    for dialect in DIALECTS.into_iter().filter(|dialect| *dialect != RateLimitHeaders::Draft10) {
        for (outer, inner) in [(20, 5), (5, 20)] {
            let gate = AuthLayer::new(memory())
                .with_rate_limit(one(outer))
                .with_rate_limit_headers(dialect)
                .with_wall_clock(|| UNIX_EPOCH);
            let service = gate.clone().layer(gate.route_rate_limit(one(inner)).layer(echo()));
            let response: Response<Body> = send(&service, with_token(TOKEN)).await;
            let Told { remaining, reset } = told(response.headers(), dialect);
            assert_eq!((remaining, reset), (0, 20), "{dialect:?} {outer} {inner}");
        }
    }
}
