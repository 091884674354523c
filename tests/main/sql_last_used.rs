//! The location of the token in the last use of a grant.

use std::time::Duration;

use tollgate::store::CachedStore;
use tollgate::store::sql::{LastUsed, NewGrant};
use tollgate::{AuthLayer, BearerToken, GrantId, TokenDigest, TokenLocation, TokenStore};
use tower::ServiceBuilder;

use crate::kit::body::{body_tokens, json_with, post, respond};
use crate::kit::location::{HEAD_LOCATIONS, with_all_locations, with_token_at};
use crate::kit::*;
use crate::servers::on_each_database;
use crate::sql::{Clock, execute, find};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_location_of_the_token_is_recorded_with_its_last_use() {
    on_each_database("the_location_of_the_token_is_recorded_with_its_last_use", |home| async move {
        let clock = Clock::new();
        let database = clock.install(home.database().await);
        let last_used = LastUsed::new(&database);
        let id = database.import(TokenDigest::of(TOKEN), &NewGrant::new("alice")).await.unwrap().id;
        let used = async |id: &GrantId| {
            last_used.flush().await.unwrap();
            let record = database.describe(id).await.unwrap().unwrap();
            (record.last_used, record.last_used_location)
        };
        // The store behind a cache gets the location too.
        let behind = last_used.wrap(database.store::<()>());
        let before = last_used.wrap(CachedStore::new(database.store::<()>(), MINUTE).unwrap());
        for store in [tollgate::BoxStore::new(behind.clone()), tollgate::BoxStore::new(before)] {
            let gate = with_all_locations(AuthLayer::with_timeout(store.clone(), MINUTE));
            let service = ServiceBuilder::new().layer(gate).service(echo());
            for location in HEAD_LOCATIONS {
                clock.advance(MINUTE);
                let request = with_token_at(get(), location, TOKEN);
                assert_eq!(send(&service, request).await.status(), 200, "{location}");
                assert_eq!(used(&id).await, (Some(clock.now()), Some(location)));
            }
            clock.advance(MINUTE);
            let layer = AuthLayer::with_timeout(store, MINUTE).with_body_tokens(body_tokens());
            let (response, _) = respond(&layer, post("application/json", Body::from(json_with(TOKEN)))).await;
            assert_eq!(response.status(), 200);
            assert_eq!(used(&id).await, (Some(clock.now()), Some(TokenLocation::JsonBody)));
        }
        // Outside of a gate, the location is unknown. It belongs to the use, so an earlier location does not remain.
        clock.advance(MINUTE);
        _ = behind.lookup(&BearerToken::new(TOKEN)).await.unwrap();
        assert_eq!(used(&id).await, (Some(clock.now()), None));
        // A name of a newer version is unknown, and the token stays valid.
        execute(&home, "UPDATE tollgate_grants SET last_used_location = 'telepathy'".to_owned()).await;
        assert_eq!(used(&id).await, (Some(clock.now()), None));
        assert!(find(&database.store::<()>(), TOKEN).await.is_some());
    })
    .await;
}

#[test]
fn locations_are_found_by_their_names() {
    for location in
        HEAD_LOCATIONS.into_iter().chain([TokenLocation::FormBody, TokenLocation::JsonBody, TokenLocation::TextBody])
    {
        assert_eq!(TokenLocation::from_name(location.as_str()), Some(location));
    }
    assert_eq!(TokenLocation::from_name("Query"), None);
    assert_eq!(TokenLocation::from_name(""), None);
}
