//! A built stack, with its type erased.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode};
use tower::{Service, ServiceExt};

use crate::floor::{bearer, request};

pub struct Row {
    send: Box<SendAll>,
    send_one: Box<SendOne>,
}

type SendAll = dyn Fn(&mut dyn Iterator<Item = &HeaderValue>) -> Duration + Send + Sync;
type SendOne = dyn Fn(&HeaderValue) -> Response + Send + Sync;

impl Row {
    pub fn of<S>(service: S) -> Self
    where
        S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    {
        let single = service.clone();
        Self {
            send: Box::new(move |headers| {
                let service = service.clone();
                run(async move {
                    let (mut sent, mut rejected) = (0, 0);
                    let begin = Instant::now();
                    for header in headers {
                        // A server clones its service for each request.
                        let Ok(response) = service.clone().oneshot(request(header)).await;
                        sent += 1;
                        rejected += usize::from(response.status() != StatusCode::OK);
                        black_box(response);
                    }
                    let time = begin.elapsed();
                    // A thread that is interrupted between reading the clock and charging has an outdated time. It may
                    // be rejected within any quota.
                    assert!(rejected * 100 <= sent, "{rejected} of {sent} requests were rejected");
                    time
                })
            }),
            send_one: Box::new(move |header| {
                let Ok(response) = run(single.clone().oneshot(request(header)));
                response
            }),
        }
    }

    /// Sends requests with these headers and returns the elapsed time. Asserts that at least 99 % are admitted.
    pub fn send<'a>(&self, headers: impl IntoIterator<Item = &'a HeaderValue>) -> Duration {
        (self.send)(&mut headers.into_iter())
    }

    /// Returns the response to one request with this token.
    pub fn answer(&self, token: usize) -> (StatusCode, HeaderMap) {
        let response = (self.send_one)(&bearer(token));
        (response.status(), response.headers().clone())
    }
}

type Request = http::Request<Body>;

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}
