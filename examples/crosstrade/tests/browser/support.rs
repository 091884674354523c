//! The meter, the plan and the rejections of a user, and what support does about the token.

use super::*;

async fn number(browser: &Browser, css: &str) -> u32 {
    browser.text(css).await.parse().unwrap()
}

async fn order(story: &Story, token: &str) -> StatusCode {
    let request = Request::post(format!("{}/v1/api/accounts/sim201/positions/flatten", story.origin));
    let request = request.header("host", "localhost").header("authorization", format!("Bearer {token}"));
    story.send(request.body(String::new()).unwrap()).await.status()
}

async fn choose(browser: &Browser, css: &str, value: &str) {
    browser.find(css).await.select_by_value(value).await.unwrap();
}

/// The page of `demo` is not reloaded: the meter follows by itself.
#[tokio::test]
async fn the_meter_follows_requests_and_plans() {
    let Some(story) = Story::start("the_meter_follows_requests_and_plans", TLS).await else { return };
    let user = story.signed_in("demo").await;
    let live = async |end: &str| user.text("#live").await.ends_with(end);
    until("the bucket is full", async || live("The bucket is full.").await).await;
    assert_eq!(number(&user, "#remaining").await, 20);
    assert_eq!(user.eval("return document.getElementById('meter').value").await, 20);
    for _ in 0..15 {
        assert_eq!(story.status_of(&story.demo).await, StatusCode::OK);
    }
    let moved = async || {
        let value = user.eval("return document.getElementById('meter').value").await;
        number(&user, "#remaining").await < 15 && value.as_u64().unwrap() < 15
    };
    until("the meter moves", moved).await;
    until("the meter recovers", async || number(&user, "#remaining").await == 20).await;
    until("the bucket is full", async || live("The bucket is full.").await).await;

    let support = story.signed_in("support").await;
    for (plan, burst) in [("Professional", 60), ("Starter", 10)] {
        support.goto("/admin/users/demo").await;
        choose(&support, "#plan", plan).await;
        support.press_button("Change plan").await;
        assert_eq!(support.text("main > [role=status]").await, "The plan is changed.");
        assert_eq!(support.text("#limit + .badge").await, plan);
        until("the meter shows the plan", async || number(&user, "#burst").await == burst).await;
        let max = "return document.getElementById('meter').max";
        assert_eq!(user.eval(max).await, burst);
    }
    user.goto("/account").await;
    assert_eq!(user.text("#limit + .badge").await, "Starter");

    // With 60 a minute, the bucket is not full again before support fills it.
    while story.status_of(&story.demo).await == StatusCode::OK {}
    support.goto("/admin/users/demo").await;
    support.press_button("Fill the bucket").await;
    assert_eq!(support.text("main > [role=status]").await, "The bucket is full.");
    assert_eq!(story.status_of(&story.demo).await, StatusCode::OK);
    let changes: Vec<_> = story.audit("demo").await.into_iter().filter(|(_, action)| action == "change").collect();
    assert_eq!(changes, vec![("support".to_owned(), "change".to_owned()); 2]);
}

#[tokio::test]
async fn rejected_requests_appear_by_reason() {
    let Some(story) = Story::start("rejected_requests_appear_by_reason", TLS).await else { return };
    let (guest, demo) = (story.signed_in("guest").await, story.signed_in("demo").await);
    assert_eq!(guest.text("#rejections + p").await, "None in the last 24 hours.");
    assert_eq!(order(&story, &story.guest).await, StatusCode::FORBIDDEN);
    assert_eq!(order(&story, &story.guest).await, StatusCode::FORBIDDEN);
    while story.status_of(&story.guest).await == StatusCode::OK {}
    let appear = async || {
        guest.goto("/account").await;
        let text = guest.text("section[aria-labelledby=rejections]").await;
        text.contains("Token may not trade 2 ") && text.contains("Rate limit exhausted 1 ")
    };
    until("the rejections appear", appear).await;
    demo.goto("/account").await;
    assert_eq!(demo.text("#rejections + p").await, "None in the last 24 hours.");
}

/// The whole life of a token: found, replaced with a grace period, revealed, revoked, and issued again.
#[tokio::test]
async fn support_replaces_and_revokes_a_token() {
    let Some(story) = Story::start("support_replaces_and_revokes_a_token", TLS).await else { return };
    let (user, support) = (story.signed_in("demo").await, story.signed_in("support").await);
    assert_eq!(user.reveal().await, story.demo);
    support.press("nav a[href='/admin']").await;
    support.fill("#q", "EM").await;
    support.press_button("Find").await;
    assert_eq!(support.text(".users").await, "demo");
    support.press(".users a").await;
    assert_eq!(support.text("main h1").await, "demo");
    choose(&support, "#grace", "86400").await;
    support.press_button("Replace token").await;
    let done = "main > [role=status]";
    assert_eq!(support.text(done).await, "The token is replaced. The user can reveal the new one.");

    let new = user.reveal().await;
    assert_ne!(new, story.demo);
    assert!(!support.source().await.contains(&new) && !support.source().await.contains(&story.demo));
    for (ahead, expected) in [(86_390, StatusCode::OK), (86_410, StatusCode::UNAUTHORIZED)] {
        story.set_ahead(ahead);
        assert_eq!(story.status_of(&story.demo).await, expected, "{ahead}");
        assert_eq!(story.status_of(&new).await, StatusCode::OK);
    }
    story.set_ahead(0);

    // Without a grace period the old token ends, as soon as the database reports it.
    user.sign_in("demo").await;
    support.sign_in("support").await;
    support.goto("/admin/users/demo").await;
    choose(&support, "#grace", "0").await;
    support.press_button("Replace token").await;
    until("the old token ends", async || story.status_of(&new).await == StatusCode::UNAUTHORIZED).await;
    let third = user.reveal().await;
    assert_eq!(story.status_of(&third).await, StatusCode::OK);

    support.find("summary").await.click().await.unwrap();
    support.press_button("Revoke now").await;
    assert_eq!(support.text(done).await, "The token is revoked.");
    assert_eq!(support.text("#token + .badge").await, "revoked");
    until("the token ends", async || story.status_of(&third).await == StatusCode::UNAUTHORIZED).await;
    user.goto("/account").await;
    assert_eq!(user.text("#token + p").await, "You have no active token. Ask support for a new one.");
    assert!(!user.has("form[action='/account/reveal']").await);

    support.press_button("Issue a new token").await;
    let fourth = user.reveal().await;
    assert_eq!(story.status_of(&fourth).await, StatusCode::OK);
    support.goto("/admin/users/demo").await;
    let entries = support.client.find_all(fantoccini::Locator::Css("#audit ~ div tbody tr")).await.unwrap();
    let mut shown = Vec::new();
    for entry in entries {
        let mut cells = Vec::new();
        for cell in entry.find_all(fantoccini::Locator::Css("td")).await.unwrap() {
            cells.push(cell.text().await.unwrap());
        }
        shown.push((cells[1].clone(), cells[2].clone()));
    }
    let expected = [
        ("demo", "reveal"),
        ("support", "issue"),
        ("support", "revoke"),
        ("demo", "reveal"),
        ("support", "rotate"),
        ("demo", "reveal"),
        ("support", "rotate"),
        ("demo", "reveal"),
    ];
    let expected: Vec<_> = expected.iter().map(|(actor, action)| (actor.to_string(), action.to_string())).collect();
    assert_eq!(shown[..expected.len()], expected);
    for token in [&story.demo, &new, &third, &fourth] {
        assert!(!support.source().await.contains(token));
    }
}
