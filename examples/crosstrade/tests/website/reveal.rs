//! The token on the account page.

use super::*;
use crate::tests::log::Captured;
use crate::website::ATTEMPTS;
use tollgate::store::sql::GrantChange;

const FIVE_MINUTES: Duration = Duration::from_secs(300);

#[tokio::test]
async fn the_token_is_shown_after_the_password_and_nowhere_else() {
    Home::each("the_token_is_shown_after_the_password_and_nowhere_else", async |home| {
        let site = Site::start_at(home).await;
        let demo = site.signed_in("demo").await;
        let account = demo.get("/account").await;
        assert!(tokens_in(account.body()).is_empty());
        let revealed = demo.post("/account/reveal", &[("password", PASSWORD)]).await;
        let page = assert_page(&revealed, StatusCode::OK);
        let shown = tokens_in(page);
        assert!(!shown.is_empty() && shown.iter().all(|token| *token == site.trader), "{shown:?}");
        // Each place can be masked, except for the one in Base64, which is computed in the browser.
        let secret = r#"<(?:code|span) (?:class="[a-z ]*secret"|id="secret"| |data-mask="[^"]+")+>([^<]+)<"#;
        let secrets =
            regex::Regex::new(secret).unwrap().captures_iter(page).filter(|found| found[1] == site.trader).count();
        assert_eq!(secrets, shown.len(), "{page}");
        assert!(page.contains(r#"<noscript><meta http-equiv="refresh" content="30; url=/account"></noscript>"#));
        assert_eq!(site.api(&shown[0]).await.status(), StatusCode::OK);
        assert!(tokens_in(demo.get("/account").await.body()).is_empty());
        assert_eq!(site.actors("reveal").await, ["demo"]);
        // The address of the form, opened again, reveals nothing.
        let opened = demo.get("/account/reveal").await;
        assert_eq!(
            (opened.status(), &opened.headers()["location"]),
            (StatusCode::SEE_OTHER, &"/account".parse().unwrap())
        );
        assert_eq!(site.actors("reveal").await, ["demo"]);
    })
    .await;
}

#[tokio::test]
async fn the_password_is_asked_again_after_five_minutes() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    site.advance(FIVE_MINUTES - Duration::from_secs(5));
    assert!(!tokens_in(demo.post("/account/reveal", &[]).await.body()).is_empty());
    site.advance(Duration::from_secs(5));
    let response = demo.post("/account/reveal", &[]).await;
    let page = assert_page(&response, StatusCode::OK);
    assert!(page.contains("Your password") && tokens_in(page).is_empty(), "{page}");
    // Pages do not extend the time, and neither does a wrong password.
    let response = demo.post("/account/reveal", &[("password", "wrong")]).await;
    let page = assert_page(&response, StatusCode::FORBIDDEN);
    assert!(page.contains("The password is wrong.") && tokens_in(page).is_empty());
    assert!(tokens_in(demo.post("/account/reveal", &[("password", "")]).await.body()).is_empty());
    assert!(tokens_in(demo.post("/account/reveal", &[]).await.body()).is_empty());
    assert_eq!(site.actors("reveal").await.len(), 1);
    // The right one does.
    assert!(!tokens_in(demo.post("/account/reveal", &[("password", PASSWORD)]).await.body()).is_empty());
    site.advance(FIVE_MINUTES - Duration::from_secs(5));
    assert!(!tokens_in(demo.post("/account/reveal", &[]).await.body()).is_empty());
    assert_eq!(site.actors("reveal").await, ["demo"; 3]);
}

/// Exactly at the boundary.
#[tokio::test]
async fn five_minutes_end_with_the_fifth_minute() {
    use crate::website::is_recent;
    for (age_ms, expected) in [(0, true), (299_999, true), (300_000, false), (-299_999, true), (-300_000, false)] {
        let at = 1_700_000_000_000_i64;
        assert_eq!(is_recent(at, at + age_ms), expected, "{age_ms}");
    }
    assert!(!is_recent(0, i64::MAX) && !is_recent(i64::MIN, i64::MAX));
}

/// The password of another user does not help, whatever name the form has.
#[tokio::test]
async fn only_the_own_password_reveals() {
    let site = Site::start().await;
    let guest = Account { name: "guest".to_owned(), is_support: false };
    site.website.users.set(&guest, "another").await.unwrap();
    let demo = site.signed_in("demo").await;
    site.advance(FIVE_MINUTES);
    let response = demo.post("/account/reveal", &[("name", "guest"), ("password", "another")]).await;
    assert_page(&response, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn tokens_that_cannot_be_shown_have_clear_pages() {
    Home::each("tokens_that_cannot_be_shown_have_clear_pages", async |home| {
        let site = Site::start_at(home).await;
        let demo = site.signed_in("demo").await;
        let reveal = async || {
            let response = demo.post("/account/reveal", &[("password", PASSWORD)]).await;
            assert!(response.status() == StatusCode::OK || tokens_in(response.body()).is_empty());
            response
        };
        let database = &site.database;
        let id = site.grant("demo").await;

        // A suspended token is shown, and the page says that it is suspended.
        database.suspend(&id).await.unwrap();
        let response = reveal().await;
        assert!(response.body().contains("Your token is suspended."));
        assert_eq!(tokens_in(response.body())[0], site.trader);
        database.resume(&id).await.unwrap();

        // Another key, or a row that was changed.
        let sealed = "SELECT sealed FROM tollgate_tokens WHERE sealed IS NOT NULL AND grant_id = 'X'";
        let sealed = site.home.texts(&sealed.replace('X', id.as_str())).await.remove(0);
        let set = async |sealed: &str| {
            let set = format!("UPDATE tollgate_tokens SET sealed = {sealed} WHERE grant_id = '{id}'");
            site.home.execute(&set).await;
        };
        let (log, _, _guard) = Captured::start();
        for other in [sealed.replace("first", "other"), sealed.replace(&sealed[20..30], "AAAAAAAAAA"), "x".to_owned()] {
            set(&format!("'{other}'")).await;
            let response = reveal().await;
            let page = assert_page(&response, StatusCode::INTERNAL_SERVER_ERROR);
            assert!(page.contains("Your token cannot be shown. Ask support to replace it."), "{page}");
            assert!(!page.contains("other"), "no part of the row");
        }
        // Operators must know.
        let lines = log.take().join("\n");
        assert!(lines.contains("WARN") && !lines.contains(&sealed[10..]), "{lines}");
        // Imported, so not sealed.
        set("NULL").await;
        let response = reveal().await;
        let page = assert_page(&response, StatusCode::CONFLICT);
        assert!(page.contains("Your token cannot be shown. Ask support to replace it."), "{page}");
        assert_eq!(log.take().join("\n"), "", "users cannot fill the log");
        set(&format!("'{sealed}'")).await;

        // Expired and revoked ones have no token.
        let expired = GrantChange::new().with_expiry(SystemTime::now() - MINUTE);
        database.change(&id, &expired).await.unwrap();
        let page = reveal().await;
        assert!(assert_page(&page, StatusCode::CONFLICT).contains("This account has no active token."));
        assert!(demo.get("/account").await.body().contains("You have no active token."));
        database.revoke(&id).await.unwrap();
        let page = reveal().await;
        assert!(assert_page(&page, StatusCode::CONFLICT).contains("This account has no active token."));
        assert_eq!(site.actors("reveal").await, ["demo"]);
    })
    .await;
}

#[tokio::test]
async fn users_replace_their_token_only_where_they_may() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    assert!(!demo.get("/account").await.body().contains("/account/replace"));
    let response = demo.post("/account/replace", &[("password", PASSWORD)]).await;
    assert!(assert_page(&response, StatusCode::FORBIDDEN).contains("Ask support to replace your token."));
    assert_eq!(site.audit("rotate").await.len(), 0);

    let site = Site::start_with(Setup { self_service: true, ..Setup::at(Home::sqlite()) }).await;
    let demo = site.signed_in("demo").await;
    assert!(demo.get("/account").await.body().contains("/account/replace"));
    site.advance(FIVE_MINUTES);
    let response = demo.post("/account/replace", &[]).await;
    assert!(response.body().contains(r#"action="/account/replace""#) && tokens_in(response.body()).is_empty());
    assert_eq!(site.audit("rotate").await.len(), 0);
    let response = demo.post("/account/replace", &[("password", PASSWORD)]).await;
    // A reload of the page after it replaces nothing.
    assert_eq!(location(&response), "/account?done=replaced");
    for _ in 0..2 {
        let page = demo.get("/account?done=replaced").await;
        assert!(assert_page(&page, StatusCode::OK).contains("Your token is replaced."));
        assert!(tokens_in(page.body()).is_empty());
    }
    let new = tokens_in(demo.post("/account/reveal", &[]).await.body()).remove(0);
    assert_ne!(new, site.trader);
    assert_eq!(site.actors("rotate").await, ["demo"]);
    for token in [&new, &site.trader] {
        assert_eq!(site.api(token).await.status(), StatusCode::OK, "the old token works for an hour");
    }
}

/// Whatever the address: a thief of a session may have many. Others are not affected.
#[tokio::test]
async fn each_user_has_a_limit_on_reveals_and_passwords() {
    let site = Site::start().await;
    let (demo, guest) = (site.signed_in("demo").await, site.signed_in("guest").await);
    for _ in 0..ATTEMPTS.burst() {
        assert_page(&demo.post("/account/reveal", &[]).await, StatusCode::OK);
    }
    for fields in [&[][..], &[("password", PASSWORD)], &[("password", "wrong")]] {
        let response = demo.post("/account/reveal", fields).await;
        assert_page(&response, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "10");
    }
    assert_eq!(site.audit("reveal").await.len(), ATTEMPTS.burst() as usize);
    assert_page(&guest.post("/account/reveal", &[]).await, StatusCode::OK);
    site.seconds.store(10, Ordering::SeqCst);
    assert_page(&demo.post("/account/reveal", &[("password", PASSWORD)]).await, StatusCode::OK);
}

/// A grant may end in a year that has more than four digits.
#[tokio::test]
async fn dates_in_the_far_future_are_shown() {
    let site = Site::start().await;
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(400_000_000_000);
    let expiry = GrantChange::new().with_expiry(far);
    site.database.change(&site.grant("demo").await, &expiry).await.unwrap();
    let (demo, support) = (site.signed_in("demo").await, site.signed_in("support").await);
    assert_page(&demo.get("/account").await, StatusCode::OK);
    assert_page(&support.get("/admin/users/demo").await, StatusCode::OK);
}
