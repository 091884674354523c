//! Sessions: the cookie, the rows, and how sessions end.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::website::pool::{Pool, purge};
use crate::website::sessions::{IDLE, MAX_AGE};

const SESSIONS: &str = "SELECT id FROM crosstrade_sessions ORDER BY id";

/// The ids of the sessions that the account page offers to end.
fn listed(page: &str) -> Vec<String> {
    let pattern = regex::Regex::new(r#"name="id" value="([0-9a-f]{64})""#).unwrap();
    pattern.captures_iter(page).map(|found| found[1].to_owned()).collect()
}

#[tokio::test]
async fn the_cookie_has_all_attributes_and_the_database_only_a_digest() {
    Home::each("the_cookie_has_all_attributes_and_the_database_only_a_digest", async |home| {
        let site = Site::start_at(home).await;
        let visitor = site.visitor();
        let response = visitor.sign_in("demo", PASSWORD).await;
        let cookies: Vec<_> = response.headers().get_all("set-cookie").iter().collect();
        let [cookie] = cookies[..] else { panic!("{cookies:?}") };
        let mut attributes: Vec<_> = cookie.to_str().unwrap().split("; ").collect();
        let value = attributes.remove(0).strip_prefix("__Host-crosstrade=").unwrap().to_owned();
        attributes.sort_unstable();
        assert_eq!(attributes, ["HttpOnly", "Max-Age=1800", "Path=/", "SameSite=Lax", "Secure"]);
        assert_eq!(value.len(), 22, "128 bits in Base64");

        let rows = site.home.texts("SELECT id || ' ' || user_name || ' ' || data FROM crosstrade_sessions").await;
        assert_eq!(rows.len(), 1);
        assert!(!rows[0].contains(&value) && rows[0].contains(" demo "), "{rows:?}");
        let mut id = BASE64_URL_SAFE_NO_PAD.decode(&value).unwrap();
        id.reverse();
        let digest: String = Sha256::digest(&id).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(rows[0].starts_with(&digest));

        // Who reads the table cannot take over the session.
        let thief = site.visitor();
        for stolen in [digest.clone(), BASE64_URL_SAFE_NO_PAD.encode(&digest[..16]), digest[..22].to_owned()] {
            thief.set_cookie(&stolen);
            assert!(!thief.is_signed_in().await);
        }
    })
    .await;
}

/// An attacker has set the cookie before the sign-in, with an id of their choice or with that of their session.
#[tokio::test]
async fn sign_in_takes_over_no_cookie() {
    let site = Site::start().await;
    let victim = site.visitor();
    let chosen = BASE64_URL_SAFE_NO_PAD.encode([7; 16]);
    victim.set_cookie(&chosen);
    victim.sign_in("demo", PASSWORD).await;
    assert_ne!(victim.cookie().unwrap(), chosen);
    let attacker = site.visitor();
    attacker.set_cookie(&chosen);
    assert!(!attacker.is_signed_in().await);

    let attacker = site.signed_in("guest").await;
    let victim = attacker.tab();
    victim.sign_in("demo", PASSWORD).await;
    assert_ne!(victim.cookie(), attacker.cookie());
    assert!(!attacker.is_signed_in().await, "the old session has ended");
    assert!(victim.get("/account").await.body().contains("<span class=\"who\"> demo</span>"));
    assert_eq!(site.home.count("crosstrade_sessions").await, 2, "of both victims");
}

#[tokio::test]
async fn failed_sign_ins_create_no_session_and_end_none() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    demo.sign_in("guest", "wrong").await;
    assert!(demo.is_signed_in().await);
    site.visitor().sign_in("demo", "wrong").await;
    site.visitor().get("/sign-in").await;
    site.visitor().get("/account").await;
    assert_eq!(site.home.count("crosstrade_sessions").await, 1);
}

#[tokio::test]
async fn sign_out_deletes_the_session() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    let other = site.signed_in("demo").await;
    let copied = demo.tab();
    assert_eq!(location(&demo.post("/sign-out", &[]).await), "/sign-in");
    assert_eq!(demo.cookie(), None, "the browser deletes the cookie");
    assert!(!copied.is_signed_in().await);
    assert!(other.is_signed_in().await, "the other session of the user goes on");
    assert_eq!(site.home.count("crosstrade_sessions").await, 1);
}

/// A request is in progress during the sign-out, and is answered after it.
#[tokio::test]
async fn request_in_progress_does_not_bring_the_session_back() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    Home::each("request_in_progress_does_not_bring_the_session_back", async |home| {
        let site = Site::start_at(home).await;
        let demo = site.signed_in("demo").await;
        let copied = demo.tab();
        // The session is read before the body, and saved after it.
        let body = form(&[("password", PASSWORD)]);
        let head = format!(
            "POST /account/reveal HTTP/1.1\r\nhost: {}\r\ncookie: {COOKIE}={}\r\nsec-fetch-site: same-origin\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            site.addr,
            demo.cookie().unwrap(),
            body.len()
        );
        let mut held = tokio::net::TcpStream::connect(site.addr).await.unwrap();
        held.write_all(head.as_bytes()).await.unwrap();
        // Until the handler waits for the body.
        tokio::time::sleep(Duration::from_millis(300)).await;
        demo.post("/sign-out", &[]).await;
        held.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(WATCHDOG, held.read_to_string(&mut answer)).await.expect("the server closes").unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        assert_eq!(site.home.count("crosstrade_sessions").await, 0);
        assert!(!copied.is_signed_in().await);
    })
    .await;
}

#[tokio::test]
async fn sessions_end_after_thirty_minutes_without_a_page() {
    Home::each("sessions_end_after_thirty_minutes_without_a_page", async |home| {
        let site = Site::start_at(home).await;
        let demo = site.signed_in("demo").await;
        for _ in 0..3 {
            site.advance(IDLE - MINUTE);
            assert!(demo.is_signed_in().await, "each page extends the session");
        }
        let copied = demo.tab();
        site.advance(IDLE + MINUTE);
        let response = demo.get("/account").await;
        assert_eq!(location(&response), "/sign-in?then=%2Faccount");
        assert_eq!(demo.cookie(), None);
        let response = copied.post("/account/reveal", &[("password", PASSWORD)]).await;
        assert_page(&response, StatusCode::UNAUTHORIZED);
    })
    .await;
}

#[tokio::test]
async fn sessions_end_after_twelve_hours() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    let step = 20 * MINUTE;
    for _ in 1..36 {
        site.advance(step);
        assert!(demo.is_signed_in().await);
    }
    assert_eq!(36 * step, MAX_AGE);
    site.advance(step);
    assert!(!demo.is_signed_in().await);
    // Neither does another session list it.
    let again = site.signed_in("demo").await;
    assert_eq!(listed(again.get("/account").await.body()).len(), 0);
}

#[tokio::test]
async fn deleted_users_and_changed_roles_take_effect_with_the_next_page() {
    let site = Site::start().await;
    let (demo, support) = (site.signed_in("demo").await, site.signed_in("support").await);
    assert_eq!(demo.get("/admin").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(support.get("/admin").await.status(), StatusCode::OK);
    site.home.execute("UPDATE crosstrade_users SET is_support = 1 - is_support").await;
    assert_eq!(demo.get("/admin").await.status(), StatusCode::OK);
    assert_eq!(support.get("/admin").await.status(), StatusCode::FORBIDDEN);
    let mut meter = demo.meter().await;
    meter.state().await;
    site.home.execute("DELETE FROM crosstrade_users WHERE name = 'demo'").await;
    assert!(!demo.is_signed_in().await);
    assert_eq!(meter.next().await.unwrap().0, "end");
}

#[tokio::test]
async fn users_end_their_own_sessions_only() {
    Home::each("users_end_their_own_sessions_only", async |home| {
        let site = Site::start_at(home).await;
        let (first, second, guest) =
            (site.signed_in("demo").await, site.signed_in("demo").await, site.signed_in("guest").await);
        let response = first.get("/account").await;
        let ids = listed(response.body());
        assert_eq!(ids.len(), 1, "the current session has no button");
        // The id of the list opens no session.
        let thief = site.visitor();
        thief.set_cookie(&ids[0]);
        assert!(!thief.is_signed_in().await);
        // Another user cannot end it, whatever the id is.
        for id in [&*ids[0], "", "'; DELETE FROM crosstrade_sessions; --", "%", "\0"] {
            assert_eq!(location(&guest.post("/account/sessions/end", &[("id", id)]).await), "/account");
        }
        assert!(second.is_signed_in().await && guest.is_signed_in().await);
        assert_eq!(location(&first.post("/account/sessions/end", &[("id", &ids[0])]).await), "/account");
        assert!(!second.is_signed_in().await);
        assert!(first.is_signed_in().await);
        assert_eq!(site.home.texts(SESSIONS).await.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn the_list_has_the_last_fifty_sessions() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    let copies = "INSERT INTO crosstrade_sessions (id, user_name, data, expires_ms)
        SELECT substr(crosstrade_sessions.id, 1, 56) || (10000000 + value), user_name, data, expires_ms - value
        FROM crosstrade_sessions, json_each('[";
    let numbers: Vec<_> = (1..=80).map(|nth| nth.to_string()).collect();
    site.home.execute(&format!("{copies}{}]')", numbers.join(","))).await;
    let response = demo.get("/account").await;
    assert_eq!(listed(response.body()).len(), 49, "and the current one");
    assert!(response.body().contains("this one"));
}

/// The state of a session was written by another version of the service.
#[tokio::test]
async fn unreadable_sessions_have_ended() {
    let site = Site::start().await;
    for data in ["'{}'", r#"'{"state":{"user":"demo"}}'"#, r#"'{"state":7}'"#] {
        let demo = site.signed_in("demo").await;
        site.home.execute(&format!("UPDATE crosstrade_sessions SET data = {data}")).await;
        assert!(!demo.is_signed_in().await, "{data}");
    }
}

#[tokio::test]
async fn the_list_shows_only_known_names_of_browsers() {
    let site = Site::start().await;
    for (agent, expected) in [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140 Safari/537.36 Edg/140", "Edge on Windows"),
        ("<script>alert(1)</script>", "Unknown browser"),
        (&*format!("{} curl", "a".repeat(8_000)), "curl"),
    ] {
        let visitor = site.visitor();
        let request = visitor.request("POST", "/sign-in").header("user-agent", agent);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        visitor.send(request, form(&[("name", "demo"), ("password", PASSWORD)])).await;
        let response = visitor.get("/account").await;
        let page = assert_page(&response, StatusCode::OK);
        assert!(page.contains(&format!("<strong>{expected}</strong> <span class=\"badge\">this one</span>")), "{page}");
        assert!(!page.contains("alert(1)"));
    }
    let longest =
        site.home.texts("SELECT data FROM crosstrade_sessions").await.into_iter().map(|data| data.len()).max();
    assert!(longest.unwrap() < 300, "{longest:?}");
}

#[tokio::test]
async fn purge_deletes_ended_rows_only() {
    Home::each("purge_deletes_ended_rows_only", async |home| {
        let site = Site::start_at(home).await;
        site.signed_in("demo").await;
        let day = 86_400_000_i64;
        let now = crate::website::pool::unix_ms(SystemTime::now());
        for (id, last) in [("old", now - day - 60_000), ("recent", now - day + 60_000)] {
            let insert = format!("INSERT INTO crosstrade_rejections VALUES ('{id}', 'over_limit', 0, {last}, 1)");
            site.home.execute(&insert).await;
        }
        site.home.execute("INSERT INTO crosstrade_sessions VALUES ('ended', 'demo', '{}', 1)").await;
        let pool = Pool::open(&site.home.url).await.unwrap();
        let purging = tokio::spawn(purge(pool, SystemTime::now));
        let purged = async {
            while site.home.count("crosstrade_sessions").await > 1 || site.home.count("crosstrade_rejections").await > 1
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(WATCHDOG, purged).await.expect("old rows disappear");
        assert_eq!(site.home.texts("SELECT grant_id FROM crosstrade_rejections").await, ["recent"]);
        assert!(!site.home.texts(SESSIONS).await.contains(&"ended".to_owned()));
        purging.abort();
    })
    .await;
}

/// Two tabs share a session. None of them undoes what the other does.
#[tokio::test]
async fn two_tabs_share_a_session() {
    let site = Site::start().await;
    let first = site.signed_in("demo").await;
    let second = first.tab();
    let (one, two) = tokio::join!(first.get("/account"), second.get("/account"));
    assert!(one.status() == StatusCode::OK && two.status() == StatusCode::OK);
    assert_eq!(site.home.count("crosstrade_sessions").await, 1);
    second.post("/sign-out", &[]).await;
    assert!(!first.is_signed_in().await);
}

/// The clock goes backwards. Sessions go on, and the password is not valid for longer.
#[tokio::test]
async fn clocks_that_go_backwards_extend_no_confirmation() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    site.offset_ms.store(-3_600_000, Ordering::SeqCst);
    assert!(demo.is_signed_in().await);
    let response = demo.post("/account/reveal", &[]).await;
    let page = assert_page(&response, StatusCode::OK);
    assert!(page.contains("Your password") && tokens_in(page).is_empty(), "{page}");
}
