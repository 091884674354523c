//! Stores that keep HMACs of digests, while peppers are rotated.

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

/// One token under the current pepper, one under an older one, and one that was revoked under both.
fn filled() -> MemoryStore<User> {
    let tokens = MemoryStore::new();
    tokens.insert(pepper(3).digest(TOKEN), Grant::new("alice", User("Alice"))).unwrap();
    tokens.insert(pepper(1).digest(OLD_TOKEN), Grant::new("bob", User("Bob"))).unwrap();
    for number in 1..=3 {
        tokens.insert(pepper(number).digest(GONE), Grant::new("carol", User("Carol"))).unwrap();
    }
    let revoked = peppered(tokens.clone()).digests(GONE).filter_map(|digest| tokens.revoke(digest)).count();
    assert_eq!(revoked, 3);
    tokens
}

fn peppered<T>(store: T) -> PepperedStore<T> {
    PepperedStore::new(store, pepper(3)).with_older(pepper(2)).with_older(pepper(1))
}

/// The same store, which is waited for.
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
async fn peppered_stores_keep_the_contract() {
    check(peppered(filled())).await;
    check(peppered(waiting())).await;
    check(BoxStore::new(peppered(filled()))).await;
    let alone = PepperedStore::new(filled(), pepper(3));
    Contract::new(alone).knows(TOKEN, "alice").has_revoked(OLD_TOKEN).has_revoked(GONE).check().await;
    let alone = PepperedStore::new(waiting(), pepper(3));
    Contract::new(alone).knows(TOKEN, "alice").has_revoked(OLD_TOKEN).has_revoked(GONE).check().await;
}

#[tokio::test]
async fn a_peppered_store_that_is_down_says_so() {
    let down = || BoxStore::new(from_fn(|_| async { Err::<Option<Grant<()>>, _>(io::Error::other("down")) }));
    Contract::new(peppered(down())).knows(TOKEN, "alice").check_outage().await;
}

/// New tokens are kept under the current pepper, and looked for under all, from new to old.
#[test]
fn digests_are_those_of_the_peppers() {
    let store = peppered(());
    assert!(store.digest(TOKEN) == pepper(3).digest(TOKEN));
    let should_be = [3, 2, 1].map(|number| pepper(number).digest(TOKEN));
    assert!(store.digests(TOKEN).eq(should_be));
    assert!(should_be[0] != should_be[1] && should_be[0] != TokenDigest::of(TOKEN));
}

/// A store in memory stays one that needs no deadline: by its type, and as it answers.
#[test]
fn who_never_waits_does_not_wait_with_peppers() {
    fn at_once<T: ImmediateStore>(store: &T, token: &str) -> bool {
        matches!(store.lookup(&BearerToken::new(token)).ready(), Some(Ok(Some(_))))
    }
    let store = peppered(filled());
    assert!(at_once(&store, TOKEN) && at_once(&store, OLD_TOKEN) && !at_once(&store, GONE));
    let _ = AuthLayer::new(store);
}

#[test]
fn peppers_are_checked_when_they_are_built() {
    for len in 0..32 {
        assert!(Pepper::new(vec![1; len]).is_err(), "{len} bytes");
    }
    for len in [32, 64, 65, 1_000] {
        assert!(Pepper::new(vec![1; len]).is_ok(), "{len} bytes");
    }
    assert_eq!(Pepper::new("short").unwrap_err().to_string(), "a pepper has 32 bytes or more");
}

/// By another program: `hmac.new(bytes(range(32)), sha256(b"a-token").digest(), sha256)` in Python.
#[test]
fn digests_are_those_of_another_program() {
    let bytes: Vec<u8> = (0..32).collect();
    let digest = Pepper::new(bytes).unwrap().digest("a-token");
    assert_eq!(digest.to_hex(), "b71c576441eddca732dec85b3db01a36cdefee06ee50d95ca86cf68a0ce26587");
}

/// A digest that another system kept gets a pepper without its token.
#[test]
fn foreign_digests_get_a_pepper() {
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
        assert!(tokens.get("abc").is_none(), "the store does not have the digest itself");
    }
}

/// What the gate tells of the token is its digest, whatever the store keeps, so that a handler finds the grant with it.
#[tokio::test]
async fn behind_a_gate_the_digest_is_that_of_the_token() {
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

/// How a store answers for one digest.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Unknown,
    Grant,
    Fails,
}

/// Answers by digest, at once or later, and notes which look-ups were begun, in order.
struct Scripted {
    script: Vec<(TokenDigest, Says, bool)>,
    begun: Arc<Mutex<Vec<usize>>>,
}

type Found = Result<Option<Arc<Grant<usize>>>, io::Error>;

fn found(says: Says, at: usize) -> Found {
    match says {
        Says::Unknown => Ok(None),
        Says::Grant => Ok(Some(Arc::new(Grant::new("alice", at)))),
        Says::Fails => Err(io::Error::other(at.to_string())),
    }
}

impl TokenStore for Scripted {
    type Principal = usize;
    type Error = io::Error;
    /// Panics if it is polled when it is done.
    type Future = Pin<Box<dyn Future<Output = Found> + Send>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        assert_eq!(token.expose(), TOKEN.as_bytes(), "the token stays what it is");
        let at = self.script.iter().position(|(digest, ..)| digest == token.digest()).expect("a digest of the script");
        let (_, says, waits) = self.script[at];
        if !waits {
            return Answer::Ready(found(says, at));
        }
        let begun = Arc::clone(&self.begun);
        Answer::Pending(Box::pin(async move {
            begun.lock().unwrap().push(at);
            tokio::task::yield_now().await;
            found(says, at)
        }))
    }
}

proptest! {
    /// The first pepper that is not unknown decides, and no look-up behind it begins.
    #[test]
    fn the_newest_pepper_that_knows_decides(
        script in prop::collection::vec(
            (prop::sample::select(vec![Says::Unknown, Says::Unknown, Says::Grant, Says::Fails]), any::<bool>()), 1..6),
    ) {
        let begun = Arc::default();
        let digests = (0..).map(|number| pepper(number).digest(TOKEN));
        let looked_up = digests.zip(&script).map(|(digest, (says, waits))| (digest, *says, *waits)).collect();
        let mut store = PepperedStore::new(Scripted { script: looked_up, begun: Arc::clone(&begun) }, pepper(0));
        for number in 1..script.len() {
            store = store.with_older(pepper(u8::try_from(number).unwrap()));
        }

        let decides = script.iter().position(|(says, _)| *says != Says::Unknown);
        let asked = &script[..decides.map_or(script.len(), |at| at + 1)];
        let waits: Vec<usize> = (0..asked.len()).filter(|at| asked[*at].1).collect();

        let answer = store.lookup(&BearerToken::new(TOKEN));
        prop_assert_eq!(matches!(answer, Answer::Pending(_)), !waits.is_empty());
        prop_assert!(begun.lock().unwrap().is_empty(), "a look-up is lazy");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(answer.into_future());
        match decides.map(|at| (script[at].0, at)) {
            None => prop_assert!(matches!(found, Ok(None))),
            Some((Says::Fails, at)) => prop_assert_eq!(found.unwrap_err().to_string(), at.to_string()),
            Some((_, at)) => prop_assert_eq!(*found.unwrap().unwrap().principal(), at),
        }
        prop_assert_eq!(&*begun.lock().unwrap(), &waits);
    }
}
