//! The token on the account page: masked, revealed, hidden again, copied and used.

use fantoccini::key::Key;
use serde_json::json;

use super::*;

/// The ids of the places with the token.
const PLACES: [&str; 5] = ["secret", "curl", "alert-text", "alert-json", "websocket"];

/// Returns the text of an element, visible or not.
async fn content(browser: &Browser, id: &str) -> String {
    let text = browser.eval(&format!("return document.getElementById('{id}').textContent")).await;
    text.as_str().unwrap().to_owned()
}

/// Clicks on the copy button of an element, and returns the text of the clipboard.
async fn copied(browser: &Browser, id: &str) -> String {
    let css = format!("[data-copy='{id}']");
    browser.find(&css).await.click().await.unwrap();
    until("the button confirms", async || browser.text(&css).await.starts_with("Copied")).await;
    let text = browser.eval_async("return await navigator.clipboard.readText()", Vec::new()).await;
    text.as_str().unwrap().to_owned()
}

async fn allow_clipboard(browser: &Browser, story: &Story) {
    let permissions =
        json!({ "origin": story.origin, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"] });
    browser.devtools("Browser.grantPermissions", permissions).await;
}

/// Really waits for 30 seconds.
#[tokio::test]
async fn the_token_is_shown_after_reveal_and_hidden_after_30_seconds() {
    let Some(story) = Story::start("the_token_is_shown_after_reveal_and_hidden_after_30_seconds", TLS).await else {
        return;
    };
    let browser = story.signed_in("demo").await;
    let html = "return await (await fetch('/account')).text()";
    let fetched = browser.eval_async(html, Vec::new()).await;
    assert!(fetched.as_str().unwrap().contains("API token") && !fetched.to_string().contains(&story.demo));
    assert!(!browser.source().await.contains(&story.demo));
    assert!(content(&browser, "curl").await.contains("Bearer YOUR_TOKEN'"));

    assert_eq!(browser.reveal().await, story.demo);
    for id in PLACES {
        assert!(content(&browser, id).await.contains(&story.demo), "{id}");
    }
    assert_eq!(browser.source().await.matches(&story.demo).count(), PLACES.len());
    // Not the page of a response, but the one that the script has changed.
    assert_eq!(browser.path().await, "/account/reveal");
    until("the token is hidden", async || !browser.source().await.contains(&story.demo)).await;
    assert_eq!(browser.path().await, "/account/reveal");
    for id in PLACES {
        assert!(!content(&browser, id).await.is_empty(), "{id}");
    }
    assert!(browser.text("#secret").await.starts_with("ct_•"));
    assert_eq!(browser.text("#countdown").await, "Hidden. Reveal the token again to see it.");
    assert_eq!(story.status_of(&story.demo).await, StatusCode::OK);
}

#[tokio::test]
async fn pages_with_the_token_do_not_come_back_by_the_history() {
    let Some(story) = Story::start("pages_with_the_token_do_not_come_back_by_the_history", TLS).await else { return };
    let browser = story.signed_in("demo").await;
    let assert_gone = async |step: &str| {
        assert!(!browser.source().await.contains(&story.demo), "{step}");
        let text = browser.eval("return document.documentElement.textContent").await;
        assert!(!text.to_string().contains(&story.demo), "{step}");
    };
    browser.reveal().await;
    browser.press("nav a[href='/account']").await;
    assert_gone("another page").await;
    browser.leaving(async || browser.client.back().await.unwrap()).await;
    assert_gone("back").await;
    browser.leaving(async || browser.client.back().await.unwrap()).await;
    assert_eq!(browser.path().await, "/account");
    assert_gone("back again").await;
    browser.leaving(async || browser.client.forward().await.unwrap()).await;
    assert_gone("forward").await;

    // A browser may keep the page in memory in spite of `no-store`.
    browser.reveal().await;
    browser.eval("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))").await;
    assert_gone("kept").await;

    browser.reveal().await;
    browser.press("form[action='/sign-out'] button").await;
    assert_eq!(browser.path().await, "/sign-in");
    for step in ["back after sign-out", "back again after sign-out"] {
        browser.leaving(async || browser.client.back().await.unwrap()).await;
        assert_gone(step).await;
    }
    // The server was asked, and knows no session.
    assert!(browser.path().await.starts_with("/sign-in"), "{}", browser.path().await);
}

#[tokio::test]
async fn the_password_is_asked_again_after_five_minutes() {
    let Some(story) = Story::start("the_password_is_asked_again_after_five_minutes", TLS).await else { return };
    let browser = story.signed_in("demo").await;
    story.set_ahead(FIVE_MINUTES - 10);
    assert_eq!(browser.reveal().await, story.demo);
    story.set_ahead(FIVE_MINUTES + 10);
    browser.goto("/account").await;
    browser.press_button("Reveal").await;
    assert!(!browser.has("#secret").await);
    let focused = "return document.activeElement.id";
    assert_eq!(browser.eval(focused).await, "password");
    for wrong in ["wrong", "A password of the tests", &story.demo] {
        browser.fill("#password", wrong).await;
        browser.press_button("Reveal").await;
        assert_eq!(browser.text("[role=alert]").await, "The password is wrong.");
        assert!(!browser.source().await.contains(&story.demo));
    }
    browser.press("main a.button").await;
    assert_eq!(browser.path().await, "/account");
    assert!(!browser.source().await.contains(&story.demo));
    browser.press_button("Reveal").await;
    browser.fill("#password", PASSWORD).await;
    browser.press_button("Reveal").await;
    assert_eq!(browser.text("#secret").await, story.demo);
    // The address of the form is a page too.
    browser.goto("/account/reveal").await;
    assert_eq!(browser.path().await, "/account");
    // For five more minutes it is not asked.
    assert_eq!(browser.reveal().await, story.demo);
    let revealed =
        story.audit("demo").await.into_iter().filter(|(actor, action)| actor == "demo" && action == "reveal");
    assert_eq!(revealed.count(), 3);
}

/// Copies each text by its button, and uses it as it is.
#[tokio::test]
async fn copied_texts_work() {
    let Some(story) = Story::start("copied_texts_work", TLS).await else { return };
    let browser = story.signed_in("demo").await;
    allow_clipboard(&browser, &story).await;
    browser.reveal().await;
    let token = copied(&browser, "secret").await;
    assert_eq!(story.status_of(&token).await, StatusCode::OK);

    let alert = async |content_type: &str, body: String| {
        let request = Request::post(format!("{}/v1/webhook", story.origin)).header("host", "localhost");
        story.send(request.header("content-type", content_type).body(body).unwrap()).await
    };
    let text = alert("text/plain; charset=utf-8", copied(&browser, "alert-text").await).await;
    assert_eq!(text.status(), StatusCode::OK, "{text:?}");
    let response = alert("application/json; charset=utf-8", copied(&browser, "alert-json").await).await;
    assert_eq!(response.status(), StatusCode::OK, "{response:?}");

    if is_installed("curl", "--version") {
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", &copied(&browser, "curl").await]).env("CURL_CA_BUNDLE", story.folder.files().cert);
        let output = timeout(WATCHDOG, shell.output()).await.expect("curl ends").unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && answer.contains("sim101"), "{answer}");
    } else {
        skip("no curl", "copied_texts_work", "TOLLGATE_REQUIRE_CLIENTS");
    }

    // In the console, where the Content-Security-Policy holds too. Both alerts have bought one contract.
    browser.log("browser").await;
    let script = copied(&browser, "websocket").await;
    let run = browser.devtools("Runtime.evaluate", json!({ "expression": script, "replMode": true })).await;
    assert!(run.get("exceptionDetails").is_none(), "{run}");
    let answered = async || {
        let entries = browser.log("browser").await;
        entries.iter().any(|entry| entry["message"].as_str().unwrap().contains(r#"\"qty\":2"#))
    };
    until("the socket answers", answered).await;

    // Masked again, each button copies what is shown.
    browser.goto("/account").await;
    assert!(copied(&browser, "curl").await.contains("YOUR_TOKEN"));
    assert!(!browser.has("[data-copy=secret]").await);
}

#[tokio::test]
async fn users_replace_their_token_where_this_is_allowed() {
    let Some(story) = Story::start("users_replace_their_token_where_this_is_allowed", SELF_SERVICE).await else {
        return;
    };
    let browser = story.signed_in("demo").await;
    browser.press_button("Replace my token").await;
    assert_eq!(
        browser.text("main > [role=status]").await,
        "Your token is replaced. The old one works for one more hour."
    );
    assert!(!browser.has("#secret").await);
    // A reload sends no form again.
    browser.client.refresh().await.unwrap();
    let new = browser.reveal().await;
    assert_ne!(new, story.demo);
    assert!(!browser.source().await.contains(&story.demo));
    assert_eq!(story.audit("demo").await.iter().filter(|(_, action)| action == "rotate").count(), 1);
    for token in [&new, &story.demo] {
        assert_eq!(story.status_of(token).await, StatusCode::OK);
    }
    story.set_ahead(3_590);
    assert_eq!(story.status_of(&story.demo).await, StatusCode::OK);
    story.set_ahead(3_610);
    assert_eq!(story.status_of(&story.demo).await, StatusCode::UNAUTHORIZED);
    assert_eq!(story.status_of(&new).await, StatusCode::OK);

    story.set_ahead(FIVE_MINUTES + 10);
    browser.goto("/account").await;
    browser.press_button("Replace my token").await;
    browser.fill("#password", "wrong").await;
    browser.press_button("Replace my token").await;
    assert_eq!(browser.text("[role=alert]").await, "The password is wrong.");
    assert_eq!(story.audit("demo").await.iter().filter(|(_, action)| action == "rotate").count(), 1);
}

#[tokio::test]
async fn only_support_replaces_tokens_without_self_service() {
    let Some(story) = Story::start("only_support_replaces_tokens_without_self_service", TLS).await else { return };
    let browser = story.signed_in("demo").await;
    assert!(!browser.has("form[action='/account/replace']").await);
    let post = "return (await fetch('/account/replace', { method: 'POST', body: new URLSearchParams() })).status";
    assert_eq!(browser.eval_async(post, Vec::new()).await, 403);
    assert_eq!(browser.reveal().await, story.demo);
}

/// Presses Tab until an element has the focus. Returns the number of keys, after checks that the focus can be seen.
async fn tab_to(browser: &Browser, css: &str) -> usize {
    const VISIBLE: &str = "const style = getComputedStyle(document.activeElement);
        return document.activeElement.matches(':focus-visible')
            && style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2";
    for keys in 1..30 {
        browser.client.active_element().await.unwrap().send_keys(&Key::Tab).await.unwrap();
        assert_eq!(browser.eval(VISIBLE).await, true, "{keys}");
        if browser.eval(&format!("return document.activeElement.matches(`{css}`)")).await == true {
            return keys;
        }
    }
    panic!("no key leads to {css}");
}

#[tokio::test]
async fn the_keyboard_is_enough() {
    let Some(story) = Story::start("the_keyboard_is_enough", TLS).await else { return };
    let browser = story.browser().await;
    allow_clipboard(&browser, &story).await;
    let enter = async || {
        let focused = browser.client.active_element().await.unwrap();
        browser.leaving(async || focused.send_keys(&Key::Enter).await.unwrap()).await;
    };
    browser.goto("/account").await;
    let typed = async |text: &str| browser.client.active_element().await.unwrap().send_keys(text).await.unwrap();
    typed("demo").await;
    assert_eq!(tab_to(&browser, "#password").await, 1);
    typed(PASSWORD).await;
    enter().await;
    assert_eq!(browser.path().await, "/account");

    // The first key leads to a link that skips the menu.
    assert_eq!(tab_to(&browser, "a.skip").await, 1);
    assert_eq!(browser.eval("return document.activeElement.getBoundingClientRect().height > 10").await, true);
    browser.client.active_element().await.unwrap().send_keys(&Key::Enter).await.unwrap();
    assert_eq!(tab_to(&browser, "form[action='/account/reveal'] button").await, 1);
    enter().await;
    assert_eq!(browser.text("#secret").await, story.demo);
    tab_to(&browser, "[data-copy=secret]").await;
    browser.client.active_element().await.unwrap().send_keys(&Key::Enter).await.unwrap();
    until("the button confirms", async || browser.text("[data-copy=secret]").await.starts_with("Copied")).await;
    let text = browser.eval_async("return await navigator.clipboard.readText()", Vec::new()).await;
    assert!(text == *story.demo, "the clipboard has another text");
    // Each further button of the page, in its order.
    for id in ["curl", "alert-text", "alert-json", "websocket"] {
        tab_to(&browser, &format!("[data-copy='{id}']")).await;
    }
}

/// Really waits for 30 seconds.
#[tokio::test]
async fn pages_work_without_scripts() {
    let Some(story) = Story::start("pages_work_without_scripts", SELF_SERVICE).await else { return };
    let without = json!({ "profile.managed_default_content_settings.javascript": 2 });
    let browser = story.browser_with(without).await;
    browser.sign_in("demo").await;
    assert_eq!(browser.text("#live").await, "Reload the page for the current state.");
    assert!(!browser.find(".copy").await.is_displayed().await.unwrap());
    browser.press_button("Reveal").await;
    assert_eq!(browser.text("#secret").await, story.demo);
    let masked = async || browser.path().await == "/account" && !browser.source().await.contains(&story.demo);
    until("the masked token is back", masked).await;
    browser.press_button("Replace my token").await;
    browser.press_button("Reveal").await;
    let new = browser.text("#secret").await;
    assert_ne!(new, story.demo);
    assert_eq!(story.status_of(&new).await, StatusCode::OK);
    browser.press("form[action='/sign-out'] button").await;
    assert_eq!(browser.path().await, "/sign-in");
    browser.goto("/account").await;
    assert_eq!(browser.path().await, "/sign-in?then=%2Faccount");
}
