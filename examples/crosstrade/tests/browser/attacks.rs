//! Pages of other origins, injected content, and requests of one user for the data of another.

use axum::extract::{Query, RawQuery};
use axum::response::Html;
use axum::routing::get;
use maud::{PreEscaped, html};
use serde_json::json;

use super::*;

/// Serves pages that attack the service, with the same certificate: from another port of `localhost`, and so from the same site,
/// and from another host.
struct Attacker {
    origins: [String; 2],
    _close: watch::Sender<bool>,
}

impl Attacker {
    async fn start(story: &Story) -> Self {
        let (close, closing) = watch::channel(false);
        let app = axum::Router::new().route("/form", get(form)).route("/frame", get(frame));
        let port = serve_app(app, story.tls.clone(), closing).await.port();
        let origins = ["localhost", "127.0.0.1"].map(|host| format!("https://{host}:{port}"));
        Self { origins, _close: close }
    }
}

/// Submits a form without a click. The query has the address and the fields.
async fn form(Query(fields): Query<Vec<(String, String)>>) -> Html<String> {
    let [(_, action), fields @ ..] = &*fields else { unreachable!() };
    let page = html! {
        form method="post" action=(action) {
            @for (name, value) in fields { input type="hidden" name=(name) value=(value); }
        }
        script { (PreEscaped("document.forms[0].submit()")) }
    };
    Html(page.into_string())
}

/// Shows a page in a frame.
async fn frame(RawQuery(page): RawQuery) -> Html<String> {
    Html(html! { h1 { "Framed" } iframe src=(page.unwrap_or_default()) {} }.into_string())
}

/// Opens a page that submits a form to the service, and checks that the answer is a rejection.
async fn attack(browser: &Browser, attacker: &str, story: &Story, path: &str, fields: &[(&str, &str)]) {
    let action = [("action", format!("{}{path}", story.origin))];
    let fields = action.iter().map(|(name, value)| (*name, &**value)).chain(fields.iter().copied());
    let query: Vec<String> = fields
        .map(|(name, value)| {
            format!("{name}={}", percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC))
        })
        .collect();
    browser.goto(&format!("{attacker}/form?{}", query.join("&"))).await;
    until("the form is sent", async || browser.path().await == path).await;
    assert_eq!(browser.text("main h1").await, "Forbidden", "{attacker} {path}");
}

#[tokio::test]
async fn forms_of_other_origins_do_nothing() {
    let Some(story) = Story::start("forms_of_other_origins_do_nothing", TLS).await else { return };
    let attacker = Attacker::start(&story).await;
    let browser = story.signed_in("demo").await;
    let other = story.signed_in("demo").await;
    other.goto("/account").await;
    browser.goto("/account").await;
    let id = browser.find(".sessions input").await.attr("value").await.unwrap().unwrap();
    let before = story.audit("demo").await;
    for origin in &attacker.origins {
        for (path, fields) in [
            ("/account/reveal", vec![]),
            ("/account/reveal", vec![("password", PASSWORD)]),
            ("/account/replace", vec![]),
            ("/account/sessions/end", vec![("id", &*id)]),
            ("/sign-out", vec![]),
            ("/sign-in", vec![("name", "guest"), ("password", PASSWORD)]),
        ] {
            attack(&browser, origin, &story, path, &fields).await;
        }
    }
    for browser in [&browser, &other] {
        browser.goto("/account").await;
        assert_eq!(browser.text("nav .who").await, "demo");
    }

    browser.press("form[action='/sign-out'] button").await;
    browser.sign_in("support").await;
    for origin in &attacker.origins {
        for (action, fields) in [
            ("replace", vec![("grace", "0")]),
            ("revoke", vec![]),
            ("plan", vec![("plan", "Starter")]),
            ("reset", vec![]),
        ] {
            attack(&browser, origin, &story, &format!("/admin/users/demo/{action}"), &fields).await;
        }
    }
    assert_eq!(story.audit("demo").await, before);
    assert_eq!(story.status_of(&story.demo).await, StatusCode::OK);
    browser.goto("/admin/users/demo").await;
    assert_eq!(browser.text("#limit + .badge").await, "Standard");
}

#[tokio::test]
async fn other_origins_cannot_frame_or_read_pages() {
    let Some(story) = Story::start("other_origins_cannot_frame_or_read_pages", TLS).await else { return };
    let attacker = Attacker::start(&story).await;
    let browser = story.signed_in("support").await;
    for origin in &attacker.origins {
        for page in ["/account", "/admin", "/sign-in", "/assets/style.css"] {
            browser.goto(&format!("{origin}/frame?{}{page}", story.origin)).await;
            assert_eq!(browser.text("h1").await, "Framed");
            browser.client.enter_frame(0).await.unwrap();
            let framed = browser.source().await;
            browser.client.enter_parent_frame().await.unwrap();
            assert!(!framed.contains("CrossTrade") && !framed.contains("--accent"), "{origin} {page}: {framed}");
        }
        let script = "try { return await (await fetch(args[0], args[1])).text() } catch { return 'blocked' }";
        for options in [json!({ "credentials": "include" }), json!({ "credentials": "include", "method": "POST" })] {
            let page = json!(format!("{}/account", story.origin));
            assert_eq!(browser.eval_async(script, vec![page, options]).await, "blocked");
        }
        // A window that another origin has opened is no longer connected to it.
        let opened = format!(
            "const opened = open('{}/account'); await new Promise((done) => setInterval(() => opened.closed && done(), 20));
            return opened.closed",
            story.origin
        );
        assert_eq!(browser.eval_async(&opened, Vec::new()).await, true);
    }
}

#[tokio::test]
async fn injected_content_is_text_and_injected_scripts_do_not_run() {
    let Some(story) = Story::start("injected_content_is_text_and_injected_scripts_do_not_run", TLS).await else {
        return;
    };
    const MARKUP: &str = "\"><script>injected = 1</script><img src=x onerror='injected = 2'>";
    let person = Person { name: MARKUP.to_owned(), is_support: false };
    story.website.users.set(&person, PASSWORD).await.unwrap();
    let grant = NewGrant::new(MARKUP).with_label(MARKUP);
    story.database.issue(&tokens::format().unwrap(), &grant).await.unwrap();
    let encoded = percent_encoding::utf8_percent_encode(MARKUP, percent_encoding::NON_ALPHANUMERIC).to_string();

    let browser = story.browser().await;
    browser.devtools("Network.setUserAgentOverride", json!({ "userAgent": format!("Chrome{MARKUP}") })).await;
    let assert_harmless = async |page: &str| {
        assert_eq!(browser.eval("return typeof injected").await, "undefined", "{page}");
        assert!(!browser.has("img[src=x], body script").await, "{page}");
    };
    browser.goto(&format!("/sign-in?then={encoded}")).await;
    assert_harmless("sign-in").await;
    browser.give_credentials(MARKUP, PASSWORD).await;
    assert_eq!(browser.text("nav .who").await, MARKUP);
    assert_harmless("account").await;
    browser.press("form[action='/sign-out'] button").await;
    browser.sign_in("support").await;
    for page in [format!("/admin?q={encoded}"), format!("/admin/users/{encoded}?done={encoded}")] {
        browser.goto(&page).await;
        assert!(browser.text("main").await.contains(MARKUP), "{page}");
        assert_harmless(&page).await;
    }
    for page in
        [format!("/admin/users/x{encoded}"), format!("/admin/users/demo?after={encoded}"), format!("/{encoded}")]
    {
        browser.goto(&page).await;
        assert_harmless(&page).await;
    }

    // If there was a way to inject markup, the Content-Security-Policy would stop it.
    let attacker = Attacker::start(&story).await;
    browser.goto("/account").await;
    let script = "const blocked = [];
        addEventListener('securitypolicyviolation', (event) => blocked.push(event.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'injected = 3';
        document.body.append(script);
        const image = document.createElement('div');
        image.innerHTML = '<img src=x onerror=\"injected = 4\" style=\"color: red\">';
        document.body.append(image);
        const remote = document.createElement('script');
        remote.src = args[0] + '/script.js';
        document.body.append(remote);
        const form = document.createElement('form');
        form.action = args[0] + '/form?action=x';
        document.body.append(form);
        form.submit();
        await fetch(args[0]).catch(() => {});
        while (blocked.length < 6) await new Promise((done) => setTimeout(done, 20));
        return [typeof injected, blocked.sort()]";
    let blocked = browser.eval_async(script, vec![json!(attacker.origins[0])]).await;
    let directives =
        ["connect-src", "form-action", "script-src-attr", "script-src-elem", "script-src-elem", "style-src-attr"];
    assert_eq!(blocked, json!(["undefined", directives]));
}

/// Asks for everything that `demo` has, as `guest`: every route, with the session's id, the name and the grant of `demo`.
#[tokio::test]
async fn users_never_see_or_change_what_others_have() {
    let Some(story) = Story::start("users_never_see_or_change_what_others_have", TLS).await else { return };
    let (demo, guest) = (story.signed_in("demo").await, story.signed_in("guest").await);
    let second = story.signed_in("demo").await;
    demo.goto("/account").await;
    let id = demo.find(".sessions input").await.attr("value").await.unwrap().unwrap();
    let grants = story.database.list(Some(&"demo".into())).await.unwrap();
    let grant = grants[0].id.to_string();
    let before = story.audit("demo").await;

    let ask = "const [method, path, fields] = args;
        const body = method === 'POST' ? new URLSearchParams(fields) : undefined;
        const response = await fetch(path, { method, body });
        return [response.status, response.url.slice(location.origin.length), await response.text()]";
    guest.goto("/account").await;
    let fields = json!({ "id": id, "name": "demo", "user": "demo", "subject": "demo", "grant": grant, "grace": "0",
        "plan": "Starter", "password": PASSWORD, "then": "/account" });
    let users = ["demo", "DEMO", "demo%2F", &grant, &id];
    let mut requests = vec![("GET", "/account?name=demo".to_owned(), 200), ("GET", "/admin?q=demo".to_owned(), 403)];
    for user in users {
        requests.push(("GET", format!("/admin/users/{user}"), 403));
        for action in ["replace", "revoke", "plan", "reset"] {
            requests.push(("POST", format!("/admin/users/{user}/{action}"), 403));
        }
    }
    requests.push(("POST", "/account/replace".to_owned(), 403));
    requests.push(("POST", "/account/reveal".to_owned(), 200));
    requests.push(("POST", "/account/sessions/end".to_owned(), 200));
    for (method, path, expected) in requests {
        let answer = guest.eval_async(ask, vec![json!(method), json!(path), fields.clone()]).await;
        let [status, _, body] = &*answer.as_array().unwrap().clone() else { unreachable!() };
        assert_eq!(*status, expected, "{method} {path}");
        let body = body.as_str().unwrap();
        for secret in [&*story.demo, &*grant, &*id, "sim101", "sim102", ">demo<"] {
            assert!(!body.contains(secret), "{method} {path} shows data of another user");
        }
        assert_eq!(body.contains(&story.guest), path == "/account/reveal", "{method} {path}");
    }
    // The meter of `guest` does not move with the requests of `demo`.
    for _ in 0..20 {
        story.status_of(&story.demo).await;
    }
    let usage = "const events = new EventSource('/account/usage');
        return await new Promise((done) => { events.onmessage = (event) => { events.close(); done(event.data); } })";
    let usage = guest.eval_async(usage, Vec::new()).await;
    assert!(usage.as_str().unwrap().contains(r#""remaining":20"#), "{usage}");
    // All sessions of `demo` go on, and the grant is the same.
    for browser in [&demo, &second] {
        browser.goto("/account").await;
        assert_eq!(browser.text("nav .who").await, "demo");
    }
    assert_eq!(story.audit("demo").await, before);
    assert_eq!(demo.reveal().await, story.demo);
}
