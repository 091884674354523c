//! The whole road: requests through the real layers, against a model of them.
//!
//! The input is three bytes of [`Options`] and a request as text, or else in words of which each is a byte. It is sent, then one of another caller of the same
//! gate, then it is sent again, all under a clock that is turned between.

mod answer;
mod gate;
mod model;
mod options;
mod seen;
mod words;

pub use options::Options;

use crate::request::Sent;
use answer::Vocabulary;
use gate::Gate;
use model::Model;

/// More is not looked at, so that a run is short: the work is linear in the input, and libFuzzer's own limit is lower.
const MAX_INPUT: usize = 1 << 18;

pub fn check(data: &[u8]) {
    let Some((options, text)) = data.split_first_chunk().map(|(bytes, text)| (Options::of(*bytes), text)) else {
        return;
    };
    let sent = Sent::parse(text).or_else(|| words::sentence(text));
    let Some(mut sent) = sent.filter(|_| data.len() <= MAX_INPUT) else { return };
    sent.is_http_2 = options.http_2;
    if sent.to_http(()).is_none() {
        return;
    }
    let (gate, mut model) = (Gate::new(&options), Model::new(&options));
    let vocabulary = Vocabulary::of(&sent);
    for (number, request) in [&sent, &Sent::of("Bearer canned"), &sent, &sent].into_iter().enumerate() {
        let now = number as i128 * options.step_ns;
        let expected = model.expect(request, now);
        let (answer, seen) = gate.send(request, now);
        answer::check(&answer, &expected, request, &options);
        vocabulary.check(&answer);
        seen::check(seen.as_ref(), &expected, request, &options);
    }
}

impl Sent {
    /// A request with these credentials and nothing else.
    fn of(credentials: &str) -> Self {
        let headers = vec![("authorization".to_owned(), credentials.to_owned())];
        Self { method: "GET".to_owned(), target: "/".to_owned(), headers, ..Self::default() }
    }
}
