//! Signing in and out, and the ends of sessions.

use super::*;

#[tokio::test]
async fn sign_in_needs_the_password_and_leads_to_the_page_asked_for() {
    let Some(story) = Story::start("sign_in_needs_the_password_and_leads_to_the_page_asked_for", TLS).await else {
        return;
    };
    let browser = story.browser().await;
    browser.goto("/").await;
    assert_eq!(browser.path().await, "/sign-in?then=%2Faccount");
    for (name, password) in [("demo", "wrong"), ("nothing", PASSWORD), ("demo", &*story.demo), ("DEMO", PASSWORD)] {
        browser.give_credentials(name, password).await;
        assert_eq!(browser.text("[role=alert]").await, "The name or the password is wrong.");
        assert_eq!(browser.client.get_all_cookies().await.unwrap().len(), 0);
    }
    browser.give_credentials("demo", PASSWORD).await;
    assert_eq!(browser.path().await, "/account");
    let cookies = browser.client.get_all_cookies().await.unwrap();
    let [cookie] = &*cookies else { panic!("{} cookies", cookies.len()) };
    assert!(cookie.name().starts_with("__Host-") && cookie.secure() == Some(true) && cookie.http_only() == Some(true));
    assert_eq!(browser.eval("return document.cookie").await, "");

    // Only support sees these pages.
    for page in ["/admin", "/admin/users/guest"] {
        browser.goto(page).await;
        assert_eq!(browser.text("main h1").await, "Forbidden");
    }
}

/// A sign-in leads to no other site, also if the browser reads an address in another way.
#[tokio::test]
async fn sign_in_leads_to_no_other_site() {
    let Some(story) = Story::start("sign_in_leads_to_no_other_site", TLS).await else { return };
    let browser = story.browser().await;
    for (then, expected) in [
        ("https%3A%2F%2Fexample.com%2F", "/account"),
        ("%2F%2Fexample.com", "/account"),
        ("%2F%5Cexample.com", "/account"),
        ("javascript%3Aalert(1)", "/account"),
        ("%2Fadmin%2Fusers%2F..%2F..%2F%2Fexample.com", "//example.com"),
        ("%2Fadmin", "/admin"),
        ("%2Fadmin%2Fusers%2Fdemo", "/admin/users/demo"),
    ] {
        browser.goto(&format!("/sign-in?then={then}")).await;
        browser.give_credentials("support", PASSWORD).await;
        assert_eq!(browser.path().await, expected, "{then}");
    }
    browser.press("form[action='/sign-out'] button").await;
    browser.goto("/admin/users/gu%65st").await;
    browser.give_credentials("support", "wrong").await;
    browser.give_credentials("support", PASSWORD).await;
    assert_eq!(browser.text("main h1").await, "guest");
}

#[tokio::test]
async fn sessions_are_listed_and_end() {
    let Some(story) = Story::start("sessions_are_listed_and_end", TLS).await else { return };
    let (first, second) = (story.signed_in("demo").await, story.signed_in("demo").await);
    let guest = story.browser().await;
    guest.sign_in("guest").await;
    first.goto("/account").await;
    assert_eq!(first.client.find_all(fantoccini::Locator::Css(".sessions li")).await.unwrap().len(), 2);
    assert_eq!(guest.client.find_all(fantoccini::Locator::Css(".sessions li")).await.unwrap().len(), 1);
    assert!(first.text(".sessions").await.contains("Chrome on Linux"));
    assert!(first.text(".sessions").await.contains("127.0.0.1"));
    assert_eq!(first.text(".sessions .badge").await, "this one");

    // The other browser's page notices it without a reload.
    until("the meter is live", async || second.has("#live.live").await).await;
    first.press(".sessions button").await;
    assert_eq!(first.client.find_all(fantoccini::Locator::Css(".sessions li")).await.unwrap().len(), 1);
    signed_out_live(&second).await;
    second.goto("/account").await;
    assert_eq!(second.path().await, "/sign-in?then=%2Faccount");
    second.give_credentials("demo", PASSWORD).await;

    // Signing out in one window ends the session of the other window.
    let window = first.client.window().await.unwrap();
    until("the meter is live", async || first.has("#live.live").await).await;
    let other = first.client.new_window(true).await.unwrap().handle;
    first.client.switch_to_window(other).await.unwrap();
    first.goto("/account").await;
    first.press("form[action='/sign-out'] button").await;
    first.client.switch_to_window(window).await.unwrap();
    signed_out_live(&first).await;
    first.goto("/account").await;
    assert_eq!(first.path().await, "/sign-in?then=%2Faccount");

    // Idle time ends a session. A visit extends it, and an open page does not.
    story.set_ahead(HALF_AN_HOUR - 10);
    second.goto("/account").await;
    assert_eq!(second.path().await, "/account");
    story.set_ahead(HALF_AN_HOUR + 10);
    guest.goto("/account").await;
    assert_eq!(guest.path().await, "/sign-in?then=%2Faccount");
    until("the meter is live", async || second.has("#live.live").await).await;
    story.set_ahead(2 * HALF_AN_HOUR);
    signed_out_live(&second).await;
    second.goto("/account").await;
    assert_eq!(second.path().await, "/sign-in?then=%2Faccount");
}

async fn signed_out_live(browser: &Browser) {
    let ended = async || browser.text("#live").await == "You are signed out. Reload the page to sign in.";
    until("the live stream ends", ended).await;
}

/// Browsers keep the `Secure` cookie of a loopback address.
#[tokio::test]
async fn sessions_work_without_tls_on_loopback() {
    let Some(story) = Story::start("sessions_work_without_tls_on_loopback", PLAINTEXT).await else { return };
    let browser = story.browser().await;
    for origin in [story.origin.clone(), story.origin.replace("localhost", "127.0.0.1")] {
        browser.goto(&format!("{origin}/sign-in")).await;
        browser.give_credentials("demo", PASSWORD).await;
        browser.press_button("Reveal").await;
        assert_eq!(browser.text("#secret").await, story.demo);
        assert!(browser.text("#curl").await.contains(&origin));
        until("the meter is live", async || browser.has("#live.live").await).await;
        browser.press("form[action='/sign-out'] button").await;
        assert!(browser.has("#password").await);
    }
    assert_eq!(story.status_of(&story.demo).await, StatusCode::OK);
}
