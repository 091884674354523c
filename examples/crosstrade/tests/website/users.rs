//! Users and their passwords.

use futures_util::future::join_all;

use super::*;
use crate::tests::log::Captured;
use crate::website::users::MAX_HASHES;

#[tokio::test]
async fn passwords_are_stored_as_argon2_hashes_with_salts() {
    Home::each("passwords_are_stored_as_argon2_hashes_with_salts", async |home| {
        let site = Site::start_at(home).await;
        let hashes = site.home.texts("SELECT password FROM crosstrade_users ORDER BY name").await;
        assert_eq!(hashes.len(), 3);
        for hash in &hashes {
            assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
            assert!(!hash.contains(PASSWORD));
        }
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2], "equal passwords have different hashes");
    })
    .await;
}

#[tokio::test]
async fn only_the_right_name_and_password_sign_in() {
    Home::each("only_the_right_name_and_password_sign_in", async |home| {
        let site = Site::start_at(home).await;
        let long = "a".repeat(257);
        for (name, password) in [
            ("demo", "wrong"),
            ("demo", ""),
            ("demo", "correct horse "),
            ("demo", &*long),
            ("Demo", PASSWORD),
            ("demo ", PASSWORD),
            ("", PASSWORD),
            ("missing", PASSWORD),
            (&*long, PASSWORD),
            ("' OR ''='", PASSWORD),
            ("demo\0", PASSWORD),
            ("de\u{301}mo", PASSWORD),
        ] {
            let visitor = site.visitor();
            let response = visitor.sign_in(name, password).await;
            let page = assert_page(&response, StatusCode::FORBIDDEN);
            assert!(page.contains("The name or the password is wrong."), "{name:?}");
            assert!(!page.contains(PASSWORD) && visitor.cookie().is_none(), "{name:?}");
        }
        let visitor = site.visitor();
        assert_eq!(location(&visitor.sign_in("demo", PASSWORD).await), "/account");
        assert!(visitor.is_signed_in().await);
    })
    .await;
}

#[tokio::test]
async fn incomplete_forms_are_rejected() {
    let site = Site::start().await;
    for body in
        ["", "name=demo", "password=a", "name=demo&name=demo&password=a", "%ff=%ff", "name=demo&password=%ff%fe"]
    {
        let response = site.visitor().post_body("/sign-in", body.to_owned()).await;
        assert!(response.status().is_client_error(), "{body}: {}", response.status());
    }
    let visitor = site.visitor();
    let request = visitor.request("POST", "/sign-in").header("content-type", "application/json");
    let response = visitor.send(request, format!(r#"{{"name":"demo","password":"{PASSWORD}"}}"#)).await;
    assert_page(&response, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn set_changes_the_password_and_the_role_of_an_existing_user() {
    Home::each("set_changes_the_password_and_the_role_of_an_existing_user", async |home| {
        let site = Site::start_at(home).await;
        let users = &site.website.users;
        let promoted = Account { name: "demo".to_owned(), is_support: true };
        users.set(&promoted, "another").await.unwrap();
        assert_eq!(users.authenticate("demo", PASSWORD.to_owned()).await.unwrap(), None);
        assert_eq!(users.authenticate("demo", "another".to_owned()).await.unwrap().as_ref(), Some(&promoted));
        assert_eq!(users.find("demo").await.unwrap().as_ref(), Some(&promoted));
        assert_eq!(site.home.count("crosstrade_users").await, 3);
    })
    .await;
}

#[tokio::test]
async fn names_and_passwords_may_have_any_characters() {
    Home::each("names_and_passwords_may_have_any_characters", async |home| {
        let site = Site::start_at(home).await;
        for (name, password) in [("zoë <b>", "pässwörd &=+%"), ("o'neil \"x\"", " "), ("\u{1f600}", "\u{1f600}")] {
            let user = Account { name: name.to_owned(), is_support: false };
            site.website.users.set(&user, password).await.unwrap();
            let visitor = site.visitor();
            assert_eq!(location(&visitor.sign_in(name, password).await), "/account");
            let response = visitor.get("/account").await;
            let page = assert_page(&response, StatusCode::OK);
            assert!(!page.contains("<b>"), "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn search_takes_each_character_literally() {
    Home::each("search_takes_each_character_literally", async |home| {
        let site = Site::start_at(home).await;
        for name in ["50%", "a_b", "axb", "o'neil", "<i>x</i>", "zoë", "back\\slash", "\u{1f600}"] {
            let user = Account { name: name.to_owned(), is_support: false };
            site.website.users.set(&user, "a").await.unwrap();
        }
        let find = async |text: &str| {
            let users = site.website.users.search(text).await.unwrap();
            users.into_iter().map(|user| user.name).collect::<Vec<_>>()
        };
        for (text, expected) in [
            ("%", &["50%"][..]),
            ("_", &["a_b"]),
            ("'", &["o'neil"]),
            ("NEIL", &["o'neil"]),
            ("\\", &["back\\slash"]),
            ("<i>", &["<i>x</i>"]),
            ("zoë", &["zoë"]),
            ("\u{1f600}", &["\u{1f600}"]),
            ("\0", &[]),
            ("missing", &[]),
        ] {
            assert_eq!(find(text).await, expected, "{text:?}");
        }
        assert_eq!(find("").await.len(), 11);
        let support = site.signed_in("support").await;
        let response = support.get("/admin?q=%3Ci%3E").await;
        let page = assert_page(&response, StatusCode::OK);
        assert!(page.contains("&lt;i&gt;x&lt;/i&gt;") && !page.contains("<i>"), "{page}");
        assert!(page.contains(r#"href="/admin/users/%3Ci%3Ex%3C%2Fi%3E""#), "{page}");
    })
    .await;
}

#[tokio::test]
async fn search_returns_fifty_users_at_most() {
    let site = Site::start().await;
    let rows: Vec<_> = (0..60).map(|nth| format!("('user-{nth:02}', 'x', 0)")).collect();
    site.home
        .execute(&format!("INSERT INTO crosstrade_users (name, password, is_support) VALUES {}", rows.join(",")))
        .await;
    let found = site.website.users.search("user-").await.unwrap();
    assert_eq!(found.len(), 50);
    assert_eq!(found[0].name, "user-00");
}

/// Hashing is bounded, and requests without a password go on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sign_ins_at_the_same_time_leave_other_requests_undisturbed() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    let (many, others) =
        tokio::join!(join_all((0..24).map(async |_| site.visitor().sign_in("demo", PASSWORD).await.status())), async {
            for _ in 0..10 {
                assert!(demo.is_signed_in().await);
                assert_eq!(site.api(&site.trader).await.status(), StatusCode::OK);
            }
        });
    let () = others;
    assert!(many.iter().all(|status| *status == StatusCode::SEE_OTHER), "{many:?}");
}

/// Clients disconnect while their passwords are hashed. Others wait until the work is done, and not only until then.
#[tokio::test]
async fn dropped_hashes_keep_their_turn() {
    let site = Site::start().await;
    let users = &site.website.users;
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let mut ends = Vec::new();
    for _ in 0..MAX_HASHES {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let begun = begun.clone();
        let work = users.in_turn(move || {
            begun.send(()).unwrap();
            _ = ended.recv();
        });
        tokio::select! {
            _ = work => panic!("the work does not end by itself"),
            begin = begins.recv() => begin.unwrap(),
        }
        ends.push(end);
    }
    // Immediate if there is a turn.
    let mut next = std::pin::pin!(users.in_turn(|| ()));
    assert!(timeout(Duration::from_millis(300), &mut next).await.is_err(), "both turns are taken");
    assert_eq!(site.api(&site.trader).await.status(), StatusCode::OK, "other requests go on");
    ends.pop();
    timeout(WATCHDOG, next).await.expect("a turn is free").unwrap();
}

#[tokio::test]
async fn names_and_passwords_are_not_logged() {
    let site = Site::start().await;
    let (log, limit, _guard) = Captured::start();
    site.visitor().sign_in("demo", "hunter2-wrong").await;
    site.visitor().sign_in("hunter2-as-name", "a").await;
    let demo = site.signed_in("demo").await;
    demo.post("/account/reveal", &[("password", "hunter2-again")]).await;
    demo.post("/account/reveal", &[("password", PASSWORD)]).await;
    demo.post("/sign-out", &[]).await;
    limit.summarize();
    let log = log.take().join("\n");
    assert!(log.contains("sign-in failed"), "{log}");
    for secret in ["hunter2", PASSWORD, &site.trader, &demo.cookie().unwrap_or_else(|| "no cookie".to_owned())] {
        assert!(!log.contains(secret), "{log}");
    }
    let state = format!("{:?}", site.website.sessions);
    assert_eq!(state, "Sessions(..)");
}

/// Lines that any client can cause, without a session: none of them is a warning.
#[tokio::test]
async fn clients_cannot_fill_the_log_with_warnings() {
    Home::each("clients_cannot_fill_the_log_with_warnings", async |home| {
        let site = Site::start_at(home).await;
        let (log, _, _guard) = Captured::start();
        for cookie in ["", "x", "!", "AAAAAAAAAAAAAAAAAAAAAA", "\u{e9}", "a.b.c"] {
            let visitor = site.visitor();
            visitor.set_cookie(cookie);
            visitor.get("/account").await;
            visitor.post("/sign-out", &[]).await;
            visitor.sign_in("demo\0", "a").await;
            visitor.sign_in("\u{1f600}", "a\0b").await;
        }
        let log = log.take().join("\n");
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    })
    .await;
}
