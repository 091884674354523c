//! Clients that wait for the times in rate limit headers are admitted, and not a second earlier.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, Response};
use proptest::prelude::*;
use tollgate::Limit;
use tollgate::{AuthLayer, Quota, RateLimitHeaders};
use tower::{Layer, Service};

use crate::kit::*;

const SECOND_NS: u64 = 1_000_000_000;

const FORMATS: [RateLimitHeaders; 6] = [
    RateLimitHeaders::Draft11,
    RateLimitHeaders::Draft07,
    RateLimitHeaders::Draft06,
    RateLimitHeaders::Draft03,
    RateLimitHeaders::XEpoch,
    RateLimitHeaders::XDelta,
];

/// The remaining units and the reset that a response advertises.
#[derive(Debug)]
struct Advertised {
    remaining: u32,
    reset: u64,
}

fn advertised(headers: &HeaderMap, format: RateLimitHeaders) -> Advertised {
    let text = |name: &str| headers[name].to_str().unwrap();
    let (remaining, reset) = match format {
        RateLimitHeaders::Draft11 => {
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

/// A client with a clock that the test advances.
struct Client<S> {
    service: S,
    format: RateLimitHeaders,
    hands: Hands,
    /// The time of the wall clock when the monotonic clock is 0.
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

    /// Returns how long a client has to wait for this reset.
    fn wait_for(&self, reset: u64) -> Duration {
        match self.format {
            RateLimitHeaders::XEpoch => {
                Duration::from_nanos((reset * SECOND_NS).saturating_sub(self.epoch_ns + self.hands.ns()))
            }
            _ => Duration::from_secs(reset),
        }
    }

    /// Waits for the reset. Checks that the request is admitted then, and not a second earlier.
    fn assert_reset_is_exact(&self, reset: u64, cost: u32) {
        let wait = self.wait_for(reset);
        let earlier = wait.saturating_sub(Duration::from_secs(1));
        self.hands.advance(earlier);
        assert_eq!(self.status(cost), 429, "{:?}: the reset is too late", self.format);
        self.hands.advance(wait - earlier);
        assert_eq!(self.status(cost), 200, "{:?}: the reset is too early", self.format);
    }

    /// Sends a request and waits as the response advertises.
    fn step(&self, cost: u32, limit: u32, waits_for_full: bool) {
        let response = self.send(cost);
        let advertised = advertised(response.headers(), self.format);
        match response.status().as_u16() {
            429 => {
                assert_eq!(advertised.remaining, 0);
                let retry_after: u64 = field(response.headers(), "retry-after").unwrap().parse().unwrap();
                match self.format {
                    // A time of day in whole seconds may differ from `Retry-After` by less than a second.
                    RateLimitHeaders::XEpoch => {
                        let away = self.wait_for(advertised.reset).as_nanos() as u64;
                        assert!(away.abs_diff(retry_after * SECOND_NS) < SECOND_NS, "{advertised:?} {retry_after}");
                    }
                    _ => assert_eq!(advertised.reset, retry_after),
                }
                self.assert_reset_is_exact(advertised.reset, cost);
            }
            200 if advertised.remaining == 0 => self.assert_reset_is_exact(advertised.reset, 1),
            200 if waits_for_full && self.format != RateLimitHeaders::Draft11 => {
                self.hands.advance(self.wait_for(advertised.reset));
                assert_eq!(self.status(limit), 200, "the whole limit is available");
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
    fn waiting_for_the_reset_is_enough_and_never_a_second_too_long(
        quota in quotas(),
        second in prop::option::of(quotas()),
        epoch_ns in 0..2_000_000_000 * SECOND_NS,
        steps in prop::collection::vec((0..5 * SECOND_NS, any::<u32>(), any::<bool>()), 1..30),
    ) {
        for format in FORMATS {
            let hands = Hands::default();
            let mut limits = hands.limits(by_cost(quota.into()));
            let mut limit = quota.burst();
            if let Some(second) = second {
                if format == RateLimitHeaders::Draft11 {
                    // Both policies are listed, and this client reads one.
                    continue;
                }
                limits = limits.and(by_cost(Limit::new("second", second).unwrap())).unwrap();
                limit = limit.min(second.burst());
            }
            let clock = hands.clone();
            let gate = AuthLayer::new(memory())
                .with_rate_limit(limits)
                .with_rate_limit_headers(format)
                .with_wall_clock(move || UNIX_EPOCH + Duration::from_nanos(epoch_ns + clock.ns()));
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let client = Client { service: gate.layer(empty_service()), format, hands, epoch_ns, runtime };
            for (pause, cost, waits_for_full) in &steps {
                client.hands.advance(Duration::from_nanos(*pause));
                // With two policies, the advertised one need not be the one with the lower burst.
                client.step(cost % limit + 1, limit, *waits_for_full && second.is_none());
            }
        }
    }
}

proptest! {
    /// draft-11 defines `t` as the effective window: no more than `r` units should be used within `t` seconds.
    ///
    /// `t` is the time until the next unit, rounded up. Until then the limiter admits exactly `r` requests, at any times. So a
    /// client that uses `r` requests within `t` seconds is never rejected, and `t` is the shortest such window.
    #[test]
    fn exactly_r_requests_are_admitted_within_t_seconds(
        quota in quotas(),
        used in 1..12_u32,
        pause in 0..5 * SECOND_NS,
        times in prop::collection::vec(0.0..1.0_f64, 12),
    ) {
        let (format, hands) = (RateLimitHeaders::Draft11, Hands::default());
        let gate = AuthLayer::new(memory()).with_rate_limit(hands.limits(quota));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let client = Client { service: gate.layer(empty_service()), format, hands, epoch_ns: 0, runtime };
        for _ in 1..used {
            client.status(1);
        }
        client.hands.advance(Duration::from_nanos(pause));
        let response = client.send(1);
        prop_assume!(response.status() == 200);
        let Advertised { remaining, reset } = advertised(response.headers(), format);

        let start = client.hands.ns();
        let wait_until = |ns| client.hands.advance(Duration::from_nanos(ns - (client.hands.ns() - start)));
        // The last whole second before the next unit.
        let window = (reset - 1) * SECOND_NS;
        let mut times: Vec<u64> = times.iter().map(|share| (share * window as f64) as u64).collect();
        times.sort_unstable();
        for time in times.into_iter().take(remaining as usize) {
            wait_until(time);
            prop_assert_eq!(client.status(1), 200, "one of {} requests within {} s", remaining, reset);
        }
        wait_until(window);
        prop_assert_eq!(client.status(1), 429, "more than {} requests within {} s", remaining, reset);
        wait_until(reset * SECOND_NS);
        prop_assert_eq!(client.status(1), 200, "no further request after {} s", reset);
    }
}

/// Returns an inner service with empty responses.
fn empty_service()
-> impl Service<http::Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send> + Clone
{
    tower::service_fn(|_: http::Request<Body>| std::future::ready(Ok(Response::new(Body::default()))))
}

/// Clients of GitHub's API rely on this for a 429 with `X-RateLimit-Remaining: 0`.
#[tokio::test]
async fn reset_is_the_next_unit_at_zero_remaining_and_the_full_limit_otherwise() {
    for (format, name, resets) in [
        (
            RateLimitHeaders::Draft11,
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
            .with_rate_limit_headers(format)
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
        let values: Vec<_> = answers.iter().map(|answer| field(answer.headers(), name).unwrap()).collect();
        assert_eq!(values, resets, "{format:?}");
    }
}

/// If the limits of a gate and of a route are both exhausted, a client must wait for the later reset.
#[tokio::test]
async fn two_exhausted_limits_advertise_the_later_reset() {
    let one = |interval| Hands::default().limits(Quota::one_per(Duration::from_secs(interval)));
    for format in FORMATS.into_iter().filter(|format| *format != RateLimitHeaders::Draft11) {
        for (outer, inner) in [(20, 5), (5, 20)] {
            let gate = AuthLayer::new(memory())
                .with_rate_limit(one(outer))
                .with_rate_limit_headers(format)
                .with_wall_clock(|| UNIX_EPOCH);
            let service = gate.clone().layer(gate.route_rate_limit(one(inner)).layer(echo()));
            let response: Response<Body> = send(&service, with_token(TOKEN)).await;
            let Advertised { remaining, reset } = advertised(response.headers(), format);
            assert_eq!((remaining, reset), (0, 20), "{format:?} {outer} {inner}");
        }
    }
}
