//! The whole pipeline: requests through the real layers, compared with a model.
//!
//! The input is three bytes of [`Options`] and a request, as text or as fragments, one for each byte. The request is
//! sent, then one of another caller of the same gate, then the first one twice more. The clock advances between them.

mod answer;
mod fragments;
mod gate;
mod model;
mod options;
mod received;

pub use options::Options;

use crate::request::Sent;
use answer::Secrets;
use gate::Gate;
use model::Model;

/// Larger inputs are skipped to keep runs short. The work is linear in the input, and libFuzzer's own limit is lower.
const MAX_INPUT: usize = 1 << 18;

pub fn check(data: &[u8]) {
    let Some((options, text)) = data.split_first_chunk().map(|(bytes, text)| (Options::of(*bytes), text)) else {
        return;
    };
    let sent = Sent::parse(text).or_else(|| fragments::request(text));
    let Some(mut sent) = sent.filter(|_| data.len() <= MAX_INPUT) else { return };
    sent.is_http_2 = options.http_2;
    if sent.to_http(()).is_none() {
        return;
    }
    let (gate, mut model) = (Gate::new(&options), Model::new(&options));
    let secrets = Secrets::of(&sent);
    for (number, request) in [&sent, &Sent::of("Bearer canned"), &sent, &sent].into_iter().enumerate() {
        let now = number as i128 * options.step_ns;
        let expected = model.expect(request, now);
        let (answer, received) = gate.send(request, now);
        answer::check(&answer, &expected, request, &options);
        secrets.check(&answer);
        received::check(received.as_ref(), &expected, request, &options);
    }
}

impl Sent {
    /// Creates a request with these credentials and nothing else.
    fn of(credentials: &str) -> Self {
        let headers = vec![("authorization".to_owned(), credentials.to_owned())];
        Self { method: "GET".to_owned(), target: "/".to_owned(), headers, ..Self::default() }
    }
}
