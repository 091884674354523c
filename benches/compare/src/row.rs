//! A stack that was built, without its type.

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
    ask: Box<Ask>,
}

type SendAll = dyn Fn(&mut dyn Iterator<Item = &HeaderValue>) -> Duration + Send + Sync;
type Ask = dyn Fn(&HeaderValue) -> Response + Send + Sync;

impl Row {
    pub fn of<S>(service: S) -> Self
    where
        S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    {
        let asked = service.clone();
        Self {
            send: Box::new(move |headers| {
                let service = service.clone();
                run(async move {
                    let (mut sent, mut refused) = (0, 0);
                    let begin = Instant::now();
                    for header in headers {
                        // A server clones its service for each request.
                        let Ok(response) = service.clone().oneshot(request(header)).await;
                        sent += 1;
                        refused += usize::from(response.status() != StatusCode::OK);
                        black_box(response);
                    }
                    let time = begin.elapsed();
                    // A thread that is interrupted between its look at the clock and its charge comes with a time that is
                    // over, and may be refused even where there is plenty.
                    assert!(refused * 100 <= sent, "{refused} of {sent} requests were refused");
                    time
                })
            }),
            ask: Box::new(move |header| {
                let Ok(response) = run(asked.clone().oneshot(request(header)));
                response
            }),
        }
    }

    /// Sends requests with these headers, of which 99 in 100 have to be admitted. Returns the time that it took.
    pub fn send<'a>(&self, headers: impl IntoIterator<Item = &'a HeaderValue>) -> Duration {
        (self.send)(&mut headers.into_iter())
    }

    /// The answer to one request with this token.
    pub fn answer(&self, token: usize) -> (StatusCode, HeaderMap) {
        let response = (self.ask)(&bearer(token));
        (response.status(), response.headers().clone())
    }
}

type Request = http::Request<Body>;

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}
