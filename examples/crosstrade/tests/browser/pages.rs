//! Every page in every state: accessibility, phones, the console, and requests.

use serde_json::json;

use super::*;

/// Read when the test runs: the published package does not contain it.
const AXE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/crosstrade/tests/browser/axe.min.js");
/// The narrowest phones in use, a common one, and a desktop.
const WIDTHS: [u32; 3] = [320, 390, 1280];

/// Checks pages, and collects the defects.
struct Inspector<'a> {
    browser: &'a Browser,
    axe: String,
    findings: Vec<String>,
}

impl Inspector<'_> {
    /// Looks at the page that is open. `status` is that of its response.
    async fn look(&mut self, state: &str, status: u16) {
        let Self { browser, axe, findings } = self;
        browser.eval(axe).await;
        // In the second scheme only the colors are others.
        for (scheme, rules) in [("light", json!({})), ("dark", json!({ "runOnly": ["color-contrast"] }))] {
            let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
            browser.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
            // Without colors that are in transition.
            let check = "await Promise.all(document.getAnimations().map((animation) => animation.finished));
                const { violations, passes } = await axe.run(args[0]);
                const text = ({ id, nodes }) => id + ': ' + nodes.map(({ html }) => html.slice(0, 200)).join(' | ');
                return [passes.length, violations.map(text)]";
            let result = browser.eval_async(check, vec![rules]).await;
            assert!(result[0].as_u64().unwrap() > 0, "{state}: axe has checked nothing");
            findings.extend(result[1].as_array().unwrap().iter().map(|text| format!("{state}, {scheme}: {text}")));
        }
        for width in WIDTHS {
            let metrics = json!({ "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 1000 });
            browser.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
            let widths = browser.eval("return [document.documentElement.scrollWidth, innerWidth, screen.width]").await;
            if widths[0].as_f64() > widths[1].as_f64() || widths[1] != width {
                findings.push(format!("{state}: {widths} at {width}"));
            }
        }
        browser.devtools("Emulation.clearDeviceMetricsOverride", json!({})).await;
        for entry in browser.log("browser").await {
            let message = entry["message"].as_str().unwrap_or_default();
            // The browser reports the status of the page itself.
            let is_status =
                status >= 400 && message.contains(&format!("the server responded with a status of {status} "));
            if !is_status {
                findings.push(format!("{state}: console: {message}"));
            }
        }
    }
}

/// Returns the addresses of all requests to servers since the last call.
async fn requests(browser: &Browser) -> Vec<String> {
    let mut addresses = Vec::new();
    for entry in browser.log("performance").await {
        let entry: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        let message = &entry["message"];
        if message["method"] == "Network.requestWillBeSent" {
            let address = message["params"]["request"]["url"].as_str().unwrap();
            // The page of a new tab is a part of the browser.
            if !address.starts_with("chrome:") && !address.starts_with("data:") {
                addresses.push(address.to_owned());
            }
        }
    }
    addresses
}

#[tokio::test]
async fn every_page_is_accessible_fits_phones_and_has_a_clean_console() {
    const TEST: &str = "every_page_is_accessible_fits_phones_and_has_a_clean_console";
    let Ok(axe) = std::fs::read_to_string(AXE) else {
        return skip("no axe.min.js", TEST, "TOLLGATE_REQUIRE_BROWSER");
    };
    let Some(story) = Story::start(TEST, SELF_SERVICE).await else { return };
    // A long name, which must not widen pages.
    let long = "a.very.long.name.that.no.phone.shows.on.one.line@customers.of.the.broker.example";
    let person = Person { name: long.to_owned(), is_support: true };
    story.website.users.set(&person, PASSWORD).await.unwrap();
    story.database.issue(&tokens::format().unwrap(), &NewGrant::new(long).with_max_active(1)).await.unwrap();
    let browser = story.browser().await;
    let mut pages = Inspector { browser: &browser, axe, findings: Vec::new() };

    browser.goto("/account").await;
    pages.look("sign-in", 200).await;
    browser.give_credentials("demo", "wrong").await;
    pages.look("sign-in with a wrong password", 403).await;
    browser.sign_in("demo").await;
    until("the meter is live", async || browser.has("#live.live").await).await;
    pages.look("account", 200).await;
    browser.goto("/admin").await;
    pages.look("a page of support", 403).await;
    browser.reveal().await;
    pages.look("revealed", 200).await;
    browser.eval("dispatchEvent(new PageTransitionEvent('pagehide'))").await;
    pages.look("hidden again", 200).await;
    browser.goto("/account").await;
    browser.press_button("Replace my token").await;
    pages.look("replaced", 200).await;
    story.set_ahead(FIVE_MINUTES + 10);
    for action in ["Reveal", "Replace my token"] {
        browser.goto("/account").await;
        browser.press_button(action).await;
        pages.look("asked for the password", 200).await;
        browser.fill("#password", "wrong").await;
        browser.press_button(action).await;
        pages.look("asked again for the password", 403).await;
    }
    // Rejections, and a second session.
    let second = story.signed_in("demo").await;
    let token = second.reveal().await;
    while story.status_of(&token).await == StatusCode::OK {}
    let appear = async || {
        browser.goto("/account").await;
        browser.has("section[aria-labelledby=rejections] table").await
    };
    until("the rejections appear", appear).await;
    pages.look("account with rejections", 200).await;
    let grants = story.database.list(Some(&"demo".into())).await.unwrap();
    let demo = &grants.iter().find(|grant| tokens::is_active(grant, SystemTime::now())).unwrap().id;
    story.database.suspend(demo).await.unwrap();
    browser.goto("/account").await;
    pages.look("suspended", 200).await;
    browser.press("form[action='/sign-out'] button").await;

    browser.sign_in("support").await;
    pages.look("account without a token", 200).await;
    for (page, status) in [
        ("/admin", 200),
        ("/admin?q=nothing", 200),
        ("/admin/users/demo", 200),
        ("/admin/users/support", 200),
        ("/admin/users/nothing", 404),
        ("/admin/users/demo?after=x", 400),
    ] {
        browser.goto(page).await;
        pages.look(page, status).await;
    }
    browser.goto("/admin/users/demo").await;
    browser.find("summary").await.click().await.unwrap();
    pages.look("about to revoke", 200).await;
    browser.press_button("Revoke now").await;
    pages.look("revoked", 200).await;
    for _ in 0..12 {
        browser.press_button("Issue a new token").await;
        browser.find("summary").await.click().await.unwrap();
        browser.press_button("Revoke now").await;
    }
    browser.press("#audit ~ p a").await;
    pages.look("older entries", 200).await;
    browser.press("form[action='/sign-out'] button").await;

    browser.sign_in(long).await;
    browser.reveal().await;
    pages.look("a long name", 200).await;
    browser.goto(&format!("/admin/users/{long}")).await;
    pages.look("support for a long name", 200).await;

    let findings = pages.findings;
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    let requests = requests(&browser).await;
    let elsewhere: Vec<_> = requests.iter().filter(|address| !address.starts_with(&story.origin)).collect();
    assert!(requests.len() > 50 && elsewhere.is_empty(), "{elsewhere:?}");
}
