//! Keys of a URL: rotation, concurrency, outages and slow servers.

use std::error::Error as _;
use std::time::Duration;

use http::StatusCode;
use tollgate::store::{Claims, JwtError, JwtKeys, JwtStore};
use tollgate::{AuthLayer, BearerToken, StoreError, TokenStore as _};
use tower::Layer as _;

use crate::kit::jwt::*;
use crate::kit::{Body, Hands, echo, field, send, with_token};

fn cause(error: &StoreError) -> &JwtError {
    error.source().and_then(|source| source.downcast_ref()).unwrap()
}

/// Returns a server with this key, and a store that has fetched it.
async fn fetched(signer: &Signer) -> (Jwks, Hands, JwtStore<Claims>) {
    let server = Jwks::serve(jwk_set([signer])).await;
    let hands = Hands::default();
    let store = server.store(&hands);
    assert!(accepts(&store, &signer.token(&claims())).await);
    (server, hands, store)
}

/// Starts lookups of these tokens in tasks of their own. Each has been polled when this returns.
async fn start(
    store: &JwtStore<Claims>,
    tokens: impl IntoIterator<Item = String>,
) -> Vec<tokio::task::JoinHandle<Option<bool>>> {
    let lookups = tokens.into_iter().map(|token| {
        let store = store.clone();
        tokio::spawn(async move { ask(&store, &token).await.ok().map(|found| found.is_some()) })
    });
    let lookups = lookups.collect();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    lookups
}

#[tokio::test]
async fn keys_are_fetched_for_the_first_token_and_then_known() {
    let signer = Signer::es256("a");
    let server = Jwks::serve(jwk_set([&signer])).await;
    let store = server.store(&Hands::default());
    assert_eq!(server.asked(), 0, "nothing is fetched before the first token");
    for _ in 0..3 {
        assert!(accepts(&store, &signer.token(&claims())).await);
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn rotated_keys_are_fetched_for_an_unknown_kid() {
    let (old, new) = (Signer::ed25519("a"), Signer::ed25519("b"));
    let (server, hands, store) = fetched(&old).await;
    server.set(StatusCode::OK, jwk_set([&old, &new]));
    hands.advance(FLOOR);
    assert!(accepts(&store, &new.token(&claims())).await && accepts(&store, &old.token(&claims())).await);
    assert_eq!(server.asked(), 2);
    // The issuer removes the old key. The next fetch forgets it.
    server.set(StatusCode::OK, jwk_set([&new]));
    hands.advance(FLOOR);
    assert!(!accepts(&store, &Signer::ed25519("c").token(&claims())).await);
    assert!(!accepts(&store, &old.token(&claims())).await && accepts(&store, &new.token(&claims())).await);
}

#[tokio::test]
async fn fetches_are_not_more_frequent_than_the_minimum_interval() {
    let signer = Signer::ed25519("a");
    let (server, hands, store) = fetched(&signer).await;
    for at in 0..20 {
        assert!(!accepts(&store, &Signer::ed25519(&format!("junk-{at}")).token(&claims())).await);
    }
    hands.advance(FLOOR - Duration::from_nanos(1));
    assert!(!accepts(&store, &Signer::ed25519("x").token(&claims())).await);
    assert_eq!(server.asked(), 1);
    hands.advance(Duration::from_nanos(1));
    assert!(!accepts(&store, &Signer::ed25519("x").token(&claims())).await);
    assert!(!accepts(&store, &Signer::ed25519("y").token(&claims())).await);
    assert_eq!(server.asked(), 1, "one more fetch");
}

/// Tokens for others, and tokens that no key could verify, must not reach the issuer.
#[tokio::test]
async fn tokens_of_others_cause_no_fetch() {
    let signer = Signer::ed25519("a");
    let server = Jwks::serve(jwk_set([&signer])).await;
    let store = server.store(&Hands::default());
    for changes in [serde_json::json!({"iss": "https://other.example"}), serde_json::json!({"aud": "other"})] {
        assert!(store.lookup(&BearerToken::new(&signer.token(&claims_with(changes)))).ready().is_some());
    }
    assert!(!accepts(&store, &signer.sign(r#"{"alg":"none","typ":"at+jwt"}"#, &claims().to_string())).await);
    assert!(!accepts(&store, "junk").await);
    assert_eq!(server.asked(), 0);
}

#[tokio::test]
async fn concurrent_unknown_kids_share_one_fetch() {
    let (old, new) = (Signer::ed25519("a"), Signer::ed25519("b"));
    let (server, hands, store) = fetched(&old).await;
    hands.advance(FLOOR);
    server.set(StatusCode::OK, jwk_set([&old, &new]));
    server.hold();
    assert_eq!(server.asked(), 1);
    let tokens = (0..50).map(|at| match at % 2 {
        0 => new.token(&claims()),
        _ => Signer::ed25519(&format!("junk-{at}")).token(&claims()),
    });
    let lookups = start(&store, tokens).await;
    // A slow server delays no token of a known key.
    assert!(accepts(&store, &old.token(&claims())).await);
    assert!(lookups.iter().all(|lookup| !lookup.is_finished()));
    server.has_been_asked().await;
    server.release();
    for (at, lookup) in lookups.into_iter().enumerate() {
        assert_eq!(lookup.await.unwrap(), Some(at % 2 == 0), "{at}");
    }
    assert_eq!(server.asked(), 1);
}

/// Clients that cancel their requests must not prevent the fetch for others.
#[tokio::test]
async fn a_dropped_lookup_does_not_cancel_the_fetch() {
    let signer = Signer::ed25519("a");
    let server = Jwks::serve(jwk_set([&signer])).await;
    let store = server.store(&Hands::default());
    server.hold();
    for lookup in start(&store, [signer.token(&claims())]).await {
        lookup.abort();
        assert!(lookup.await.unwrap_err().is_cancelled());
    }
    let waiting = start(&store, [signer.token(&claims())]).await;
    server.has_been_asked().await;
    server.release();
    for lookup in waiting {
        assert_eq!(lookup.await.unwrap(), Some(true));
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn an_outage_keeps_known_keys_and_rejects_unknown_ones_with_503() {
    let (old, new) = (Signer::ed25519("a"), Signer::ed25519("b"));
    let (server, hands, store) = fetched(&old).await;
    for (status, body, message) in [
        (StatusCode::INTERNAL_SERVER_ERROR, "", "the server of the JWK set responded with status 500"),
        (StatusCode::FOUND, "", "the server of the JWK set responded with status 302"),
        (StatusCode::OK, "<html>", "the response is not a JWK set"),
        (StatusCode::OK, r#"{"keys":[{"kty":"oct","k":"CANARY"}]}"#, "the JWK set contains a private or symmetric key"),
    ] {
        server.set(status, body);
        hands.advance(FLOOR);
        let error = ask(&store, &new.token(&claims())).await.unwrap_err();
        assert!(error.concerns_token(), "clients choose the kid, and keys are known");
        assert_eq!(cause(&error).to_string(), message);
        assert!(!format!("{error:?}").contains("CANARY"));
        assert_eq!(cause(&error).status(), (status != StatusCode::OK).then_some(status));
        // Until the next fetch is allowed, the error is the same, and says when to retry.
        hands.advance(Duration::from_secs(3));
        let again = ask(&store, &new.token(&claims())).await.unwrap_err();
        assert_eq!(again.retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(server.asked(), if message.ends_with("500") { 2 } else { 1 });
        assert!(accepts(&store, &old.token(&claims())).await, "{message}");
    }
    let gate = AuthLayer::with_timeout(store.clone(), Duration::from_secs(60)).layer(echo());
    for (signer, status) in [(&old, 200), (&new, 503)] {
        let response = send::<_, Body>(&gate, with_token(&signer.token(&claims()))).await;
        assert_eq!(response.status(), status);
        assert_eq!(field(response.headers(), "www-authenticate"), None);
    }
    server.set(StatusCode::OK, jwk_set([&old, &new]));
    hands.advance(FLOOR);
    assert!(accepts(&store, &new.token(&claims())).await, "the outage has ended");
    assert!(!accepts(&store, &Signer::ed25519("c").token(&claims())).await, "no error remains");
}

#[tokio::test]
async fn an_unreachable_server_is_an_outage() {
    let signer = Signer::ed25519("a");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    drop(listener);
    let store = builder(JwtKeys::url(&url)).build().unwrap();
    let error = ask(&store, &signer.token(&claims())).await.unwrap_err();
    assert!(!error.concerns_token(), "no token can be checked");
    assert_eq!(cause(&error).to_string(), "the request for the JWK set failed");
    assert!(!cause(&error).is_timeout() && cause(&error).source().is_some());
}

#[tokio::test]
async fn a_missing_response_causes_a_timeout() {
    let signer = Signer::ed25519("a");
    let server = Jwks::serve(jwk_set([&signer])).await;
    server.hold();
    let store = server.builder(&Hands::default()).with_timeout(Duration::from_secs(3)).build().unwrap();
    let lookups = start(&store, [signer.token(&claims())]).await;
    server.has_been_asked().await;
    // Paused after the request has arrived, so that the timeout passes immediately.
    tokio::time::pause();
    for lookup in lookups {
        assert_eq!(lookup.await.unwrap(), None);
    }
    let error = ask(&store, &signer.token(&claims())).await.unwrap_err();
    assert!(cause(&error).is_timeout());
}

#[tokio::test]
async fn jwk_sets_above_the_maximum_length_are_errors() {
    let signer = Signer::ed25519("a");
    let set = jwk_set([&signer]);
    let server = Jwks::serve(set.clone()).await;
    for (max, is_accepted) in [(set.len(), true), (set.len() - 1, false)] {
        let store = server.builder(&Hands::default()).with_max_answer(max).build().unwrap();
        match ask(&store, &signer.token(&claims())).await {
            Ok(found) => assert!(found.is_some() && is_accepted, "{max}"),
            Err(error) => {
                assert_eq!(cause(&error).to_string(), format!("the JWK set is larger than {max} bytes"));
                assert!(!is_accepted);
            }
        }
    }
}

/// Requests do not wait for the fetch, and keys that the issuer removed are forgotten after it.
#[tokio::test]
async fn old_keys_are_fetched_again_in_the_background() {
    let (old, new) = (Signer::ed25519("a"), Signer::ed25519("b"));
    let (server, hands, store) = fetched(&old).await;
    server.set(StatusCode::OK, jwk_set([&new]));
    hands.advance(MAX_AGE - Duration::from_nanos(1));
    assert!(accepts(&store, &old.token(&claims())).await);
    assert_eq!(server.asked(), 1, "the keys are not too old yet");
    hands.advance(Duration::from_nanos(1));
    server.hold();
    assert!(accepts(&store, &old.token(&claims())).await, "the server holds its answer, and the request does not wait");
    server.has_been_asked().await;
    let lookups = start(&store, [new.token(&claims())]).await;
    server.release();
    for lookup in lookups {
        assert_eq!(lookup.await.unwrap(), Some(true), "the fetch in the background is the one that is waited for");
    }
    assert!(!accepts(&store, &old.token(&claims())).await);
    assert_eq!(server.asked(), 1);
}

/// After a time without requests, the keys may have been removed long ago.
#[tokio::test]
async fn requests_wait_for_the_fetch_if_the_keys_are_very_old() {
    let (old, new) = (Signer::ed25519("a"), Signer::ed25519("b"));
    let (server, hands, store) = fetched(&old).await;
    hands.advance(2 * MAX_AGE);
    server.set(StatusCode::OK, jwk_set([&new]));
    assert!(!accepts(&store, &old.token(&claims())).await);
    assert_eq!(server.asked(), 2);
}

/// Otherwise a silent issuer would delay all tokens again and again.
#[tokio::test]
async fn requests_do_not_wait_for_an_issuer_that_has_failed() {
    let signer = Signer::ed25519("a");
    let (server, hands, store) = fetched(&signer).await;
    hands.advance(2 * MAX_AGE);
    server.set(StatusCode::INTERNAL_SERVER_ERROR, "");
    assert!(accepts(&store, &signer.token(&claims())).await, "after the failed fetch");
    assert_eq!(server.asked(), 2);
    hands.advance(FLOOR);
    server.hold();
    let lookups = start(&store, [signer.token(&claims())]).await;
    assert!(lookups.iter().all(|lookup| lookup.is_finished()), "while the next fetch is running");
    server.has_been_asked().await;
    server.release();
    for lookup in lookups {
        assert_eq!(lookup.await.unwrap(), Some(true));
    }
}

/// The outage may have ended during a time without requests.
#[tokio::test]
async fn a_failure_long_ago_is_no_outage() {
    let (old, new) = (Signer::ed25519("a"), Signer::ed25519("b"));
    let (server, hands, store) = fetched(&old).await;
    hands.advance(2 * MAX_AGE);
    server.set(StatusCode::INTERNAL_SERVER_ERROR, "");
    assert!(accepts(&store, &old.token(&claims())).await);
    assert_eq!(server.asked(), 2);
    hands.advance(MAX_AGE);
    server.set(StatusCode::OK, jwk_set([&new]));
    server.hold();
    let lookups = start(&store, [old.token(&claims()), old.token(&claims())]).await;
    server.has_been_asked().await;
    server.release();
    for lookup in lookups {
        assert_eq!(lookup.await.unwrap(), Some(false));
    }
    assert_eq!(server.asked(), 1);
}

/// Some issuers publish one key without a name, and replace it.
#[tokio::test]
async fn a_replaced_key_without_a_kid_is_noticed() {
    let (old, new, named) = (Signer::ed25519("a"), Signer::ed25519("a"), Signer::ed25519("c"));
    let without_kid = |signer: &Signer| {
        let mut jwk = signer.jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    };
    let set = |keys: &[serde_json::Value]| serde_json::json!({ "keys": keys }).to_string();
    let server = Jwks::serve(set(&[without_kid(&old)])).await;
    let hands = Hands::default();
    let store = server.store(&hands);
    assert!(accepts(&store, &old.token(&claims())).await);
    server.set(StatusCode::OK, set(&[without_kid(&new)]));
    assert!(!accepts(&store, &new.token(&claims())).await, "the next fetch is not allowed yet");
    hands.advance(FLOOR);
    assert!(accepts(&store, &new.token(&claims())).await && !accepts(&store, &old.token(&claims())).await);
    assert_eq!(server.asked(), 2);
    // The key without a name would verify any name, until a key with that name is found.
    server.set(StatusCode::OK, set(&[without_kid(&new), named.jwk()]));
    hands.advance(FLOOR);
    assert!(accepts(&store, &named.token(&claims())).await);
    assert_eq!(server.asked(), 1);
    // Forged signatures cause one fetch in each interval, and none for a key with a name.
    hands.advance(FLOOR);
    for _ in 0..3 {
        assert!(!accepts(&store, &Signer::ed25519("c").token(&claims())).await);
    }
    assert_eq!(server.asked(), 0);
    for _ in 0..3 {
        assert!(!accepts(&store, &Signer::ed25519("d").token(&claims())).await);
    }
    assert_eq!(server.asked(), 1);
    server.set(StatusCode::INTERNAL_SERVER_ERROR, "");
    hands.advance(FLOOR);
    assert!(!accepts(&store, &old.token(&claims())).await, "the known key rejects the token, so it is no outage");
}

/// A fetch dies with its runtime. Lookups in another runtime start a new one after the minimum interval.
#[test]
fn a_fetch_that_dies_with_its_runtime_is_an_outage() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let signer = Signer::ed25519("a");
    let (server_runtime, hands) =
        (tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(), Hands::default());
    let server = server_runtime.block_on(Jwks::serve(jwk_set([&signer])));
    let store = server.store(&hands);
    server.hold();
    let first = runtime();
    first.block_on(async {
        start(&store, [signer.token(&claims())]).await;
        server.has_been_asked().await;
    });
    drop(first);
    server.release();
    let second = runtime();
    let error = second.block_on(ask(&store, &signer.token(&claims()))).unwrap_err();
    assert_eq!(cause(&error).to_string(), "the request for the JWK set was interrupted");
    hands.advance(FLOOR);
    assert!(second.block_on(accepts(&store, &signer.token(&claims()))));
}
