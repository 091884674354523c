//! Stores that keep HMACs of digests, and the rotation of peppers.

use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tollgate::store::contract::Contract;
use tollgate::store::{ImmediateStore, Pepper, PepperedStore, from_fn};
use tollgate::{Answer, AuthLayer, BearerToken, BoxStore, CurrentGrant, Grant, MemoryStore, TokenDigest, TokenStore};
use tower::Layer;

use crate::kit::*;

fn pepper(number: u8) -> Pepper {
    Pepper::new([number; 32]).unwrap()
}

const OLD_TOKEN: &str = "tg_a_token_from_before";
const GONE: &str = "tg_gone_token";

/// Returns a store with one token under the current pepper, one under an older pepper, and one revoked under all.
fn filled() -> MemoryStore<User> {
    let tokens = MemoryStore::new();
    tokens.insert(pepper(3).digest(TokenDigest::of(TOKEN)), Grant::new("alice", User("Alice"))).unwrap();
    tokens.insert(pepper(1).digest(TokenDigest::of(OLD_TOKEN)), Grant::new("bob", User("Bob"))).unwrap();
    for number in 1..=3 {
        tokens.insert(pepper(number).digest(TokenDigest::of(GONE)), Grant::new("carol", User("Carol"))).unwrap();
    }
    let revoked =
        peppered(tokens.clone()).digests(TokenDigest::of(GONE)).filter_map(|digest| tokens.revoke(digest)).count();
    assert_eq!(revoked, 3);
    tokens
}

fn peppered<T>(store: T) -> PepperedStore<T> {
    PepperedStore::new(store, pepper(3)).with_older(pepper(2)).with_older(pepper(1))
}

/// Returns the store as a pending store.
fn waiting() -> BoxStore<User> {
    let tokens = filled();
    BoxStore::new(from_fn(move |digest| {
        let tokens = tokens.clone();
        async move {
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(tokens.get(digest).map(|grant| Grant::clone(&grant)))
        }
    }))
}

async fn check<T: TokenStore + Debug>(store: T) {
    Contract::new(store).knows(TOKEN, "alice").knows(OLD_TOKEN, "bob").has_revoked(GONE).check().await;
}

#[tokio::test]
async fn peppered_stores_fulfil_the_contract() {
    check(peppered(filled())).await;
    check(peppered(waiting())).await;
    check(BoxStore::new(peppered(filled()))).await;
    let alone = PepperedStore::new(filled(), pepper(3));
    Contract::new(alone).knows(TOKEN, "alice").has_revoked(OLD_TOKEN).has_revoked(GONE).check().await;
    let alone = PepperedStore::new(waiting(), pepper(3));
    Contract::new(alone).knows(TOKEN, "alice").has_revoked(OLD_TOKEN).has_revoked(GONE).check().await;
}

#[tokio::test]
async fn a_peppered_store_returns_the_error_of_a_failing_store() {
    let down = || BoxStore::new(from_fn(|_| async { Err::<Option<Grant<()>>, _>(io::Error::other("down")) }));
    Contract::new(peppered(down())).knows(TOKEN, "alice").check_outage().await;
}

/// Checks that new tokens use the current pepper, and that lookups try all peppers from new to old.
#[test]
fn digests_are_ordered_from_the_current_pepper_to_the_oldest() {
    let store = peppered(());
    assert!(store.digest(TokenDigest::of(TOKEN)) == pepper(3).digest(TokenDigest::of(TOKEN)));
    let should_be = [3, 2, 1].map(|number| pepper(number).digest(TokenDigest::of(TOKEN)));
    assert!(store.digests(TokenDigest::of(TOKEN)).eq(should_be));
    assert!(should_be[0] != should_be[1] && should_be[0] != TokenDigest::of(TOKEN));
}

/// Checks that a memory store with peppers stays immediate, by its type and by its answers.
#[test]
fn an_immediate_store_with_peppers_is_immediate() {
    fn is_immediate<T: TokenStore + ImmediateStore>(store: &T, token: &str) -> bool {
        matches!(store.lookup(&BearerToken::new(token)).ready(), Some(Ok(Some(_))))
    }
    let store = peppered(filled());
    assert!(is_immediate(&store, TOKEN) && is_immediate(&store, OLD_TOKEN) && !is_immediate(&store, GONE));
    let _ = AuthLayer::new(store);
}

#[test]
fn peppers_below_32_bytes_return_errors() {
    for len in 0..32 {
        assert!(Pepper::new(vec![1; len]).is_err(), "{len} bytes");
    }
    for len in [32, 64, 65, 1_000] {
        assert!(Pepper::new(vec![1; len]).is_ok(), "{len} bytes");
    }
    assert_eq!(Pepper::new("short").unwrap_err().to_string(), "invalid pepper: must have at least 32 bytes");
}

/// Computed by another program: `hmac.new(bytes(range(32)), sha256(b"a-token").digest(), sha256)` in Python.
#[test]
fn digests_match_another_program() {
    let bytes: Vec<u8> = (0..32).collect();
    let digest = Pepper::new(bytes).unwrap().digest(TokenDigest::of("a-token"));
    assert_eq!(digest.to_hex(), "b71c576441eddca732dec85b3db01a36cdefee06ee50d95ca86cf68a0ce26587");
}

/// Checks that a digest from another system can be peppered without its token.
#[test]
fn imported_digests_can_be_peppered() {
    let table = [
        ("hex", TokenDigest::from_hex("BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD")),
        ("base64", TokenDigest::from_base64("ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=")),
        ("base64url", TokenDigest::from_base64url("ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0")),
    ];
    for (name, digest) in table {
        let tokens = MemoryStore::new();
        let store = PepperedStore::new(tokens.clone(), pepper(1));
        tokens.insert(store.digest(digest.unwrap()), Grant::new(name, ())).unwrap();
        let found = store.lookup(&BearerToken::new("abc")).ready().unwrap().unwrap();
        assert_eq!(found.unwrap().id().as_str(), name);
        assert!(tokens.get(TokenDigest::of("abc")).is_none(), "the store does not have the digest itself");
    }
}

/// Checks that the gate exposes the digest of the token, with which a handler finds the grant in any store.
#[tokio::test]
async fn the_gate_exposes_the_digest_without_pepper() {
    let tokens = filled();
    let store = Arc::new(peppered(tokens.clone()));
    let gate = AuthLayer::new(Arc::clone(&store)).layer(echo());
    for (token, status) in [(TOKEN, 200), (OLD_TOKEN, 200), (GONE, 401)] {
        let response = send(&gate, with_token(token)).await;
        assert_eq!(response.status(), status, "{token}");
        if let Some(current) = response.extensions().get::<CurrentGrant>() {
            let digest = current.token_digest().unwrap();
            assert!(digest == TokenDigest::of(token));
            assert_eq!(store.digests(digest).filter(|digest| tokens.get(*digest).is_some()).count(), 1);
        }
    }
}

/// A store's answer for one digest.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reply {
    Unknown,
    Grant,
    Fails,
}

/// Answers by digest, immediately or later, and records the started lookups in order.
struct Scripted {
    script: Vec<(TokenDigest, Reply, bool)>,
    started: Arc<Mutex<Vec<usize>>>,
}

type Found = Result<Option<Arc<Grant<usize>>>, io::Error>;

fn found(reply: Reply, at: usize) -> Found {
    match reply {
        Reply::Unknown => Ok(None),
        Reply::Grant => Ok(Some(Arc::new(Grant::new("alice", at)))),
        Reply::Fails => Err(io::Error::other(at.to_string())),
    }
}

impl TokenStore for Scripted {
    type Principal = usize;
    type Error = io::Error;
    /// Panics if it is polled after completion.
    type Future = Pin<Box<dyn Future<Output = Found> + Send>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        assert_eq!(token.expose(), TOKEN.as_bytes(), "the token is unchanged");
        let at = self.script.iter().position(|(digest, ..)| digest == token.digest()).expect("a digest of the script");
        let (_, reply, waits) = self.script[at];
        if !waits {
            return Answer::Ready(found(reply, at));
        }
        let started = Arc::clone(&self.started);
        Answer::Pending(Box::pin(async move {
            started.lock().unwrap().push(at);
            tokio::task::yield_now().await;
            found(reply, at)
        }))
    }
}

proptest! {
    /// Checks that the first pepper whose answer is not "unknown" decides, and that no later lookup starts.
    #[test]
    fn the_newest_pepper_with_an_answer_decides(
        script in prop::collection::vec(
            (prop::sample::select(vec![Reply::Unknown, Reply::Unknown, Reply::Grant, Reply::Fails]), any::<bool>()), 1..6),
    ) {
        let started = Arc::default();
        let digests = (0..).map(|number| pepper(number).digest(TokenDigest::of(TOKEN)));
        let looked_up = digests.zip(&script).map(|(digest, (reply, waits))| (digest, *reply, *waits)).collect();
        let mut store = PepperedStore::new(Scripted { script: looked_up, started: Arc::clone(&started) }, pepper(0));
        for number in 1..script.len() {
            store = store.with_older(pepper(u8::try_from(number).unwrap()));
        }

        let decides = script.iter().position(|(reply, _)| *reply != Reply::Unknown);
        let asked = &script[..decides.map_or(script.len(), |at| at + 1)];
        let waits: Vec<usize> = (0..asked.len()).filter(|at| asked[*at].1).collect();

        let answer = store.lookup(&BearerToken::new(TOKEN));
        prop_assert_eq!(matches!(answer, Answer::Pending(_)), !waits.is_empty());
        prop_assert!(started.lock().unwrap().is_empty(), "a lookup is lazy");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(answer.into_future());
        match decides.map(|at| (script[at].0, at)) {
            None => prop_assert!(matches!(found, Ok(None))),
            Some((Reply::Fails, at)) => prop_assert_eq!(found.unwrap_err().to_string(), at.to_string()),
            Some((_, at)) => prop_assert_eq!(*found.unwrap().unwrap().principal(), at),
        }
        prop_assert_eq!(&*started.lock().unwrap(), &waits);
    }
}
