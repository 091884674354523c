//! The rejected requests of the last day.

use super::*;
use crate::website::pool::{DAY, Pool};
use crate::website::rejections::Rejections;

/// The rejections of a user's grant: the reasons and their counts.
async fn recent(site: &Site, rejections: &Rejections, user: &str) -> Vec<(String, i64)> {
    let grant = site.grant(user).await;
    rejections.of(&grant).await.unwrap().into_iter().map(|recent| (recent.kind, recent.count)).collect()
}

async fn order(site: &Site, token: &str) -> StatusCode {
    let request = Request::post(format!("http://{}/v1/api/accounts/sim201/positions/flatten", site.addr));
    send(request.header("authorization", format!("Bearer {token}")).body(String::new()).unwrap()).await.status()
}

async fn alert(site: &Site, token: &str) -> StatusCode {
    let request = Request::post(format!("http://{}/v1/webhook", site.addr)).header("content-type", "text/plain");
    send(request.body(format!("key={token};command=CANCELALLORDERS;")).unwrap()).await.status()
}

#[tokio::test]
async fn rejections_are_counted_by_reason_for_their_grant() {
    Home::each("rejections_are_counted_by_reason_for_their_grant", async |home| {
        let site = Site::start_at(home).await;
        let rejections = &site.website.rejections;
        for _ in 0..2 {
            assert_eq!(order(&site, &site.reader).await, StatusCode::FORBIDDEN);
        }
        // The webhook rejects by itself.
        assert_eq!(alert(&site, &site.reader).await, StatusCode::FORBIDDEN);
        while site.api(&site.reader).await.status() == StatusCode::OK {}
        for _ in 0..3 {
            assert_eq!(site.api(&site.reader).await.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(alert(&site, &site.reader).await, StatusCode::TOO_MANY_REQUESTS);
        }
        // Unknown tokens belong to no user, and neither do requests without one.
        for token in ["ct_unknown", "", &site.reader[..site.reader.len() - 1]] {
            assert_ne!(site.api(token).await.status(), StatusCode::OK);
        }
        rejections.flush().await.unwrap();
        let expected = [("over_limit".to_owned(), 7), ("insufficient_scope".to_owned(), 3)];
        assert_eq!(recent(&site, rejections, "guest").await, expected);
        assert_eq!(recent(&site, rejections, "demo").await, []);
        let grants = site.home.texts("SELECT DISTINCT grant_id FROM crosstrade_rejections").await;
        assert_eq!(grants, [site.grant("guest").await.as_str()]);

        let guest = site.signed_in("guest").await;
        let page = guest.get("/account").await;
        for (reason, count) in [("Rate limit exhausted", 7), ("Token may not trade", 3)] {
            let row = format!(r#"<td>{reason}</td><td class="number">{count}</td>"#);
            assert!(page.body().contains(&row), "{}", page.body());
        }
        let demo = site.signed_in("demo").await;
        assert!(demo.get("/account").await.body().contains("None in the last 24 hours."));
        // A day later they are gone.
        site.advance(DAY);
        assert_eq!(recent(&site, rejections, "guest").await, []);
    })
    .await;
}

/// Expired and revoked tokens: the owner of the first is known.
#[tokio::test]
async fn rejections_of_ended_tokens_belong_to_their_grant() {
    let site = Site::start().await;
    let id = site.grant("guest").await;
    let soon = tollgate::store::sql::GrantChange::new().with_expiry(SystemTime::now() + MINUTE);
    site.database.change(&id, &soon).await.unwrap();
    site.advance(2 * MINUTE);
    let rejected = async { while site.api(&site.reader).await.status() != StatusCode::UNAUTHORIZED {} };
    timeout(WATCHDOG, rejected).await.expect("the token expires");
    site.website.rejections.flush().await.unwrap();
    let kinds = site.home.texts("SELECT kind FROM crosstrade_rejections").await;
    assert!(kinds.contains(&"expired_token".to_owned()), "{kinds:?}");
}

#[tokio::test]
async fn replicas_add_to_the_same_rows() {
    Home::each("replicas_add_to_the_same_rows", async |home| {
        let site = Site::start_at(home).await;
        let one = &site.website.rejections;
        let behind = SystemTime::now() - MINUTE;
        let two = Rejections::new(Pool::open(&site.home.url).await.unwrap(), Arc::new(move || behind));
        let grant = site.grant("demo").await;
        let rejection = tollgate::Rejection::insufficient_scope(tollgate::Scopes::new([TRADE]).unwrap());
        let rejection = rejection.of_grant(&grant);
        for _ in 0..3 {
            one.count(&rejection);
            two.count(&rejection);
        }
        one.flush().await.unwrap();
        let last = one.of(&grant).await.unwrap()[0].last;
        two.flush().await.unwrap();
        let both = one.of(&grant).await.unwrap();
        assert_eq!(both[0].count, 6);
        assert_eq!(both[0].last, last, "a replica whose clock is late moves no time back");
        two.flush().await.unwrap();
        assert_eq!(one.of(&grant).await.unwrap()[0].count, 6, "each is written once");
    })
    .await;
}

#[tokio::test]
async fn counts_wait_while_the_database_fails() {
    let site = Site::start().await;
    // Not that of the service, which writes every second.
    let rejections = Rejections::new(Pool::open(&site.home.url).await.unwrap(), Arc::new(SystemTime::now));
    let grants: Vec<GrantId> = (0..5).map(|nth| format!("grant-{nth}").into()).collect();
    let count = |times: usize| {
        for grant in &grants {
            let rejection = tollgate::Rejection::insufficient_scope(tollgate::Scopes::new([TRADE]).unwrap());
            for _ in 0..times {
                rejections.count(&rejection.clone().of_grant(grant));
            }
        }
    };
    count(2);
    site.home.execute("ALTER TABLE crosstrade_rejections RENAME TO hidden").await;
    rejections.flush().await.map(|()| "written").unwrap_err();
    count(1);
    rejections.flush().await.map(|()| "written").unwrap_err();
    site.home.execute("ALTER TABLE hidden RENAME TO crosstrade_rejections").await;
    rejections.flush().await.unwrap();
    for grant in &grants {
        let recent = rejections.of(grant).await.unwrap();
        assert_eq!(recent.iter().map(|recent| recent.count).sum::<i64>(), 3);
    }
}

#[tokio::test]
async fn the_number_of_waiting_counts_is_bounded() {
    let site = Site::start().await;
    let rejections = Rejections::new(Pool::open(&site.home.url).await.unwrap(), Arc::new(SystemTime::now));
    let scopes = tollgate::Scopes::new([TRADE]).unwrap();
    for nth in 0..12_000 {
        let grant: GrantId = format!("grant-{nth}").into();
        rejections.count(&tollgate::Rejection::insufficient_scope(scopes.clone()).of_grant(&grant));
    }
    assert_eq!(rejections.waiting().len(), 10_000);
    // A grant that waits already is counted further.
    let first: GrantId = "grant-0".into();
    rejections.count(&tollgate::Rejection::insufficient_scope(scopes).of_grant(&first));
    assert_eq!(rejections.waiting().values().map(|count| count.count).sum::<i64>(), 10_001);
}
