//! The page for support.

use futures_util::future::join_all;
use tollgate::Quota;
use tollgate::store::sql::GrantState;

use super::*;
use crate::tests::log::Captured;
use crate::website::plan::PLANS;

/// The number of grants of `demo` that are not revoked or expired, and the number of their current tokens.
async fn active(site: &Site) -> (usize, i64) {
    let now = SystemTime::now();
    let grants = site.database.list(Some(&"demo".into())).await.unwrap();
    let grants = grants.iter().filter(|grant| !matches!(grant.state(now), GrantState::Revoked | GrantState::Expired));
    let tokens = "tollgate_tokens t JOIN tollgate_grants g ON g.id = t.grant_id
        WHERE g.subject = 'demo' AND g.revoked_ms IS NULL AND t.rotated_until_ms IS NULL";
    (grants.count(), site.home.count(tokens).await)
}

/// The token that the user sees.
async fn revealed(demo: &Visitor) -> String {
    tokens_in(demo.post("/account/reveal", &[("password", PASSWORD)]).await.body()).remove(0)
}

#[tokio::test]
async fn replaced_tokens_work_for_the_grace_period() {
    Home::each("replaced_tokens_work_for_the_grace_period", async |home| {
        let site = Site::start_at(home).await;
        let (support, demo) = (site.signed_in("support").await, site.signed_in("demo").await);
        for (grace, works_after) in [(0, false), (3_600, true), (86_400, true), (604_800, true)] {
            let old = revealed(&demo).await;
            let response = support.submit("/admin/users/demo/replace", &[("grace", &grace.to_string())]).await;
            assert_eq!(location(&response), "/admin/users/demo?done=replaced");
            let page = support.get("/admin/users/demo?done=replaced").await;
            assert!(page.body().contains("The token is replaced."), "{}", page.body());
            assert!(tokens_in(page.body()).is_empty(), "support sees no token");
            let new = revealed(&demo).await;
            assert_ne!(new, old);
            let store = site.database.store::<()>();
            let works = async |token: &str| {
                let grant = store.get(TokenDigest::of(token)).await.unwrap();
                grant.is_some_and(|grant| grant.is_valid_at(SystemTime::now()))
            };
            assert!(works(&new).await);
            assert_eq!(works(&old).await, works_after, "{grace}");
            let ends: Vec<_> = site.audit("rotate").await;
            assert_eq!(ends[0].actor.as_deref(), Some("support"));
            assert_eq!(active(&site).await, (1, 1));
        }
        assert_eq!(site.actors("reveal").await, ["demo"; 8]);
    })
    .await;
}

/// Two members of support have the same page open.
#[tokio::test]
async fn a_form_of_an_older_grant_changes_nothing() {
    let site = Site::start().await;
    let support = site.signed_in("support").await;
    let old = site.grant("demo").await;
    assert_eq!(location(&support.submit("/admin/users/demo/revoke", &[]).await), "/admin/users/demo?done=revoked");
    support.submit("/admin/users/demo/replace", &[("grace", "0")]).await;
    assert_ne!(site.grant("demo").await, old);
    let before = site.home.count("tollgate_audit").await;
    for (action, field) in [("revoke", ("x", "")), ("replace", ("grace", "0")), ("plan", ("plan", "Starter"))] {
        let fields = [("grant", old.as_str()), field];
        let response = support.post(&format!("/admin/users/demo/{action}"), &fields).await;
        assert!(assert_page(&response, StatusCode::CONFLICT).contains("changed at the same time"), "{action}");
    }
    assert_eq!(site.home.count("tollgate_audit").await, before);
}

#[tokio::test]
async fn invalid_forms_change_nothing() {
    let site = Site::start().await;
    let support = site.signed_in("support").await;
    let before = site.home.count("tollgate_audit").await;
    for (action, fields) in [
        ("replace", &[("grace", "1")][..]),
        ("replace", &[("grace", "-1")]),
        ("replace", &[("grace", "18446744073709551616")]),
        ("replace", &[("grace", "")]),
        ("replace", &[]),
        ("plan", &[("plan", "Gold")]),
        ("plan", &[("plan", "starter")]),
        ("plan", &[]),
    ] {
        let response = support.submit(&format!("/admin/users/demo/{action}"), fields).await;
        assert!(response.status().is_client_error(), "{action} {fields:?}: {}", response.status());
    }
    for cursor in ["x", "0", "-1", "99999999999999999999", "g1", "%00", "1;2", "a1"] {
        let response = support.get(&format!("/admin/users/demo?after={cursor}")).await;
        assert!(assert_page(&response, StatusCode::BAD_REQUEST).contains("no page of the audit trail"), "{cursor}");
    }
    for user in ["missing", "Demo", "%00", "demo%00", "..%2Fdemo"] {
        for action in ["replace", "revoke", "plan", "reset"] {
            let fields = [("grant", "x"), ("grace", "0"), ("plan", "Starter")];
            let response = support.post(&format!("/admin/users/{user}/{action}"), &fields).await;
            assert!(assert_page(&response, StatusCode::NOT_FOUND).contains("no user"), "{user}");
        }
        assert_page(&support.get(&format!("/admin/users/{user}")).await, StatusCode::NOT_FOUND);
    }
    // A member of support without a token.
    for action in ["replace", "revoke", "plan", "reset"] {
        let fields = [("grant", "x"), ("grace", "0"), ("plan", "Starter")];
        let response = support.post(&format!("/admin/users/support/{action}"), &fields).await;
        assert_page(&response, StatusCode::CONFLICT);
    }
    assert_eq!(site.home.count("tollgate_audit").await, before);
}

#[tokio::test]
async fn names_with_any_characters_have_pages() {
    Home::each("names_with_any_characters_have_pages", async |home| {
        let site = Site::start_at(home).await;
        let support = site.signed_in("support").await;
        let link = regex::Regex::new(r#"href="(/admin/users/[^"]+)""#).unwrap();
        for name in ["a/b", "a?b#c", "50% off", "zoë <b>", "\u{1f600}", "a+b&c=d", "..", "o'neil \"x\""] {
            let user = Account { name: name.to_owned(), is_support: false };
            site.website.users.set(&user, PASSWORD).await.unwrap();
            let grant = NewGrant::new(name).with_max_active(1);
            site.database.issue(&tokens::format().unwrap(), &grant).await.unwrap();
            let search = support.get(&format!("/admin?q={}", utf8_percent_encode(name, NON_ALPHANUMERIC))).await;
            let path = link.captures(search.body()).expect("the user is found")[1].to_owned();
            let shown = support.get(&path).await;
            assert!(assert_page(&shown, StatusCode::OK).contains(&maud::html! { h1 { (name) } }.into_string()));
            let response = support.submit(&format!("{path}/replace"), &[("grace", "0")]).await;
            let then = location(&response).to_owned();
            assert!(support.get(&then).await.body().contains("The token is replaced."), "{then}");
            let response = support.submit(&format!("{path}/plan"), &[("plan", "Starter")]).await;
            location(&response);
            let user = site.visitor();
            assert_eq!(location(&user.sign_in(name, PASSWORD).await), "/account");
            assert!(!tokens_in(user.post("/account/reveal", &[]).await.body()).is_empty());
            assert_eq!(site.actors("reveal").await[0], name);
        }
    })
    .await;
}

#[tokio::test]
async fn plans_and_resets_change_what_the_api_admits() {
    let site = Site::start().await;
    let (support, demo) = (site.signed_in("support").await, site.signed_in("demo").await);
    for plan in &PLANS {
        let response = support.submit("/admin/users/demo/plan", &[("plan", plan.name)]).await;
        assert_eq!(location(&response), "/admin/users/demo?done=plan");
        assert_eq!(location(&support.post("/admin/users/demo/reset", &[]).await), "/admin/users/demo?done=reset");
        let page = demo.get("/account").await;
        let left = format!(
            r#"<span id="remaining">{0}</span><span class="of"> of <span id="burst">{0}</span>"#,
            plan.quota.burst()
        );
        assert!(page.body().contains(&left), "{}", page.body());
        // The cache of the gate follows the database.
        let admitted = async {
            loop {
                let response = site.api(&site.trader).await;
                assert_eq!(response.status(), StatusCode::OK);
                let policy = response.headers()["ratelimit-policy"].to_str().unwrap().to_owned();
                if policy.contains(&format!("q={}", plan.quota.burst())) {
                    break;
                }
                location(&support.post("/admin/users/demo/reset", &[]).await);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(WATCHDOG, admitted).await.expect("the quota takes effect");
        for _ in 1..plan.quota.burst() {
            assert_eq!(site.api(&site.trader).await.status(), StatusCode::OK);
        }
        assert_eq!(site.api(&site.trader).await.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(demo.get("/account").await.body().contains(r#"<span id="remaining">0</span>"#));
    }
    assert_eq!(site.actors("quota").await.len() + site.actors("change").await.len(), 3);
}

#[tokio::test]
async fn revoked_tokens_end_and_successors_have_the_same_scopes_and_quota() {
    Home::each("revoked_tokens_end_and_successors_have_the_same_scopes_and_quota", async |home| {
        let site = Site::start_at(home).await;
        let (support, demo) = (site.signed_in("support").await, site.signed_in("demo").await);
        support.submit("/admin/users/demo/plan", &[("plan", "Professional")]).await;
        let old = site.grant("demo").await;
        let response = support.submit("/admin/users/demo/revoke", &[]).await;
        assert_eq!(location(&response), "/admin/users/demo?done=revoked");
        assert_eq!(active(&site).await.0, 0);
        assert!(demo.get("/account").await.body().contains("You have no active token."));
        assert!(support.get("/admin/users/demo").await.body().contains("Issue a new token"));
        // A second time is no error, and changes nothing.
        assert_eq!(location(&support.submit("/admin/users/demo/revoke", &[]).await), "/admin/users/demo?done=revoked");

        location(&support.submit("/admin/users/demo/replace", &[("grace", "0")]).await);
        let new = site.grant("demo").await;
        assert_ne!(new, old);
        let record = site.database.describe(&new).await.unwrap().unwrap();
        assert_eq!(record.scopes.to_string(), TRADE);
        assert_eq!(record.quota, Some(Quota::per_minute(600).with_burst(60)));
        assert_eq!(active(&site).await, (1, 1));
        assert_eq!(site.api(&revealed(&demo).await).await.status(), StatusCode::OK);
        assert_eq!(site.actors("revoke").await, ["support"]);
    })
    .await;
}

#[tokio::test]
async fn the_audit_trail_has_pages() {
    let site = Site::start().await;
    let support = site.signed_in("support").await;
    for nth in 0..45 {
        let plan = PLANS[nth % 3].name;
        location(&support.submit("/admin/users/demo/plan", &[("plan", plan)]).await);
    }
    let next = regex::Regex::new(r#"href="([^"]+\?after=[^"]+)">Older entries"#).unwrap();
    let (mut path, mut pages, mut seen) = ("/admin/users/demo".to_owned(), Vec::new(), Vec::new());
    loop {
        let response = support.get(&path).await;
        let page = assert_page(&response, StatusCode::OK).to_owned();
        let table = page.split("<tbody>").nth(1).unwrap().split("</tbody>").next().unwrap().to_owned();
        let rows: Vec<_> = table.split("<tr>").skip(1).map(str::to_owned).collect();
        pages.push(rows.len());
        seen.extend(rows);
        let Some(link) = next.captures(&page) else { break };
        path = link[1].to_owned();
    }
    assert_eq!(pages, [20, 20, 6], "45 changes, and the first token");
    assert!(seen[45].contains("issue"), "{}", seen[45]);
    assert!(seen[0].contains("support") && seen[0].contains("quota: "), "{}", seen[0]);
    // The cursor of another user's trail is no error, and shows nothing of it.
    let response = support.get(&path.replace("demo", "guest")).await;
    assert!(response.status() == StatusCode::OK || response.status() == StatusCode::BAD_REQUEST);
}

/// Eight members of support replace, revoke and replace a token at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_changes_leave_one_token_at_most() {
    Home::each("concurrent_changes_leave_one_token_at_most", async |home| {
        let site = Site::start_at(home).await;
        let members = join_all((0..8).map(|_| site.signed_in("support"))).await;
        for round in 0..6 {
            let responses = join_all(members.iter().enumerate().map(async |(nth, member)| match (nth + round) % 3 {
                0 => member.submit("/admin/users/demo/revoke", &[]).await,
                _ => member.submit("/admin/users/demo/replace", &[("grace", "3600")]).await,
            }));
            for response in responses.await {
                match response.status() {
                    StatusCode::SEE_OTHER => {}
                    // Another member was faster.
                    StatusCode::CONFLICT => {
                        let page = assert_page(&response, StatusCode::CONFLICT);
                        assert!(page.contains("changed at the same time"), "{page}");
                    }
                    other => panic!("{other}: {}", response.body()),
                }
            }
            let (grants, tokens) = active(&site).await;
            assert!(grants <= 1 && tokens == grants as i64, "{grants} grants, {tokens} tokens");
            assert_page(&members[0].get("/admin/users/demo").await, StatusCode::OK);
            location(&members[0].submit("/admin/users/demo/replace", &[("grace", "0")]).await);
            assert_eq!(active(&site).await, (1, 1));
        }
        // Only replacements, after a revocation: one successor.
        location(&members[0].submit("/admin/users/demo/revoke", &[]).await);
        let successors = site.audit("issue").await.len();
        join_all(members.iter().map(|member| member.submit("/admin/users/demo/replace", &[("grace", "0")]))).await;
        assert_eq!(active(&site).await, (1, 1));
        assert_eq!(site.audit("issue").await.len(), successors + 1);
    })
    .await;
}

/// Two members of support act on a page that is no longer current: it is no failure of the database.
#[tokio::test]
async fn changes_of_others_are_no_failures() {
    let site = Site::start().await;
    let (log, _, _guard) = Captured::start();
    let id = site.grant("demo").await;
    let grant = site.database.describe(&id).await.unwrap().unwrap();
    site.database.revoke(&id).await.unwrap();
    let now = SystemTime::now();
    let error = tokens::replace(&site.database, &grant, Duration::ZERO, now).await.map(|_| ()).unwrap_err();
    let response = axum::response::IntoResponse::into_response(error);
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert!(!log.take().join("\n").contains("WARN"));
}
