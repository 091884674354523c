//! Tokens that are sealed in the database, and revealed again.

use tollgate::store::sql::{Database, NewGrant, Sealer, SealingKey};

use crate::servers::on_each_database;
use crate::sql::format;

/// A sealer whose keys have these ids. The first one seals. The bytes of a key depend on its id only.
fn sealer(ids: &[&str]) -> Sealer {
    let key = |id: &str| SealingKey::new(id, tollgate::TokenDigest::of(id).to_bytes()).unwrap();
    let first = Sealer::new(key(ids[0]));
    ids[1..].iter().fold(first, |sealer, id| sealer.with_previous_key(key(id)).unwrap())
}

async fn reveal(database: &Database, id: &tollgate::GrantId) -> String {
    database.reveal(id).await.unwrap().expose().to_owned()
}

#[tokio::test]
async fn issued_and_rotated_tokens_are_revealed() {
    on_each_database("issued_and_rotated_tokens_are_revealed", |home| async move {
        let database = home.database().await.with_sealer(sealer(&["new", "old"]));
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let id = &issued.grant.id;
        assert_eq!(reveal(&database, id).await, issued.secret.expose());
        let rotated = database.rotate(id, &format(), std::time::Duration::from_secs(60)).await.unwrap();
        assert_eq!(reveal(&database, id).await, rotated.secret.expose());
        let next = home.database().await.with_sealer(sealer(&["newest", "new"]));
        assert_eq!(reveal(&next, id).await, rotated.secret.expose());
        assert_eq!((next.reseal().await.unwrap(), next.reseal().await.unwrap()), (1, 0));
        let last = home.database().await.with_sealer(sealer(&["newest"]));
        assert_eq!(reveal(&last, id).await, rotated.secret.expose());
    })
    .await;
}
