//! Commands that list and change grants, and the audit trail, on SQLite and PostgreSQL.

use tollgate::{BearerToken, TokenStore};

use crate::cli::{code, json, run, secret, stdout, tollgate, works};
use crate::servers::on_each_database;

#[tokio::test]
async fn grants_are_changed_suspended_and_resumed() {
    on_each_database("grants_are_changed_suspended_and_resumed", |home| async move {
        let database = home.database().await;
        let (token, grant) = secret(&home, &["token", "issue", "--subject", "alice", "--scope", "old"]);
        let id = grant["id"].as_str().unwrap();
        let change = ["token", "change", id, "--json"];
        let set = [
            &change[..],
            &["--label", "bot", "--scope", "trade", "--scope", "read", "--quota", "3/s burst 20"],
            &["--expires", "90d", "--principal", r#"{"plan":"pro"}"#],
        ];
        let changed = json(&home, &set.concat());
        assert_eq!((&changed["label"], &changed["scopes"]), (&"bot".into(), &serde_json::json!(["trade", "read"])));
        assert_eq!(changed["quota"]["burst"], 20);
        assert!(changed["expires_at"].is_string());
        let user = database.store::<std::collections::BTreeMap<String, String>>();
        assert_eq!(user.lookup(&BearerToken::new(&token)).await.unwrap().unwrap().principal()["plan"], "pro");

        let reset = ["--no-scopes", "--default-quota", "--never-expires", "--no-principal"];
        let changed = json(&home, &[&change[..], &reset].concat());
        assert_eq!((&changed["label"], &changed["scopes"]), (&"bot".into(), &serde_json::json!([])));
        assert!(changed["quota"].is_null() && changed["expires_at"].is_null());
        assert!(works(&database, &token).await);

        assert_eq!(stdout(&home, &["token", "suspend", id]), format!("suspended {id}\n"));
        assert!(!works(&database, &token).await);
        let shown = json(&home, &["token", "show", id, "--json"]);
        assert!(shown["state"] == "suspended" && shown["suspended_at"].is_string());
        let again = run(&home, &["token", "suspend", id]);
        assert_eq!(String::from_utf8(again.stderr).unwrap(), "error: the grant is already suspended\n");
        assert_eq!(json(&home, &["token", "resume", id, "--json"])["state"], "valid");
        assert!(works(&database, &token).await);
        let again = run(&home, &["token", "resume", id]);
        assert_eq!(String::from_utf8(again.stderr).unwrap(), "error: the grant is not suspended\n");

        secret(&home, &["token", "issue", "--subject", "alice"]);
        let all = json(&home, &["token", "change", "--subject", "alice", "--quota", "7/s", "--json"]);
        let bursts: Vec<_> = all.as_array().unwrap().iter().map(|grant| &grant["quota"]["burst"]).collect();
        assert_eq!(bursts, [7, 7]);
    })
    .await;
}

#[tokio::test]
async fn the_audit_trail_names_the_user_of_the_system() {
    on_each_database("the_audit_trail_names_the_user_of_the_system", |home| async move {
        let by = |user: &str, args: &[&str]| {
            let mut command = tollgate(args);
            command.env("TOLLGATE_DATABASE", home.url()).env("USER", user).env_remove("LOGNAME").env_remove("USERNAME");
            let output = command.output().unwrap();
            assert_eq!(code(&output), 0, "{args:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        by("maria", &["token", "issue", "--subject", "alice", "--quota", "3/s"]);
        let grant = home.database().await.list(None).await.unwrap().remove(0);
        let id = grant.id.as_str();
        by("otto", &["token", "change", id, "--quota", "7/s", "--expires", "90d"]);
        // Names that cannot be stored are omitted.
        for user in ["", "a\tb"] {
            by(user, &["token", "suspend", id]);
            by(user, &["token", "resume", id]);
        }
        let first = json(&home, &["audit", "list", "--grant", id, "--limit", "5", "--json"]);
        let next = first["next"].as_str().unwrap();
        let last = json(&home, &["audit", "list", "--subject", "alice", "--after", next, "--json"]);
        let all = [&first, &last].map(|page| page["entries"].as_array().unwrap()).into_iter().flatten();
        let found: Vec<_> = all.map(|entry| (entry["actor"].as_str(), entry["action"].as_str().unwrap())).collect();
        let unknown = [(None, "resume"), (None, "suspend"), (None, "resume"), (None, "suspend")];
        assert_eq!(found[..4], unknown);
        assert_eq!(found[4..], [(Some("otto"), "change"), (Some("maria"), "issue")]);
        assert!(last["next"].is_null());
        assert_eq!(first["entries"][4]["changes"]["quota"], serde_json::json!({ "from": "3/s", "to": "7/s" }));

        let table = stdout(&home, &["audit", "list"]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["TIME", "ACTOR", "ACTION", "GRANT", "SUBJECT", "CHANGES"]
        );
        let end =
            humantime::format_rfc3339_millis(home.database().await.list(None).await.unwrap()[0].expires_at.unwrap());
        assert!(lines[5].ends_with(&format!("alice    expires: - -> {end}, quota: 3/s -> 7/s")), "{table}");
        assert!(lines[1].contains(" - ") && lines[1].ends_with("alice    -"), "{table}");

        assert_eq!(stdout(&home, &["audit", "purge", "--older-than", "1d"]), "purged 0\n");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        assert_eq!(
            json(&home, &["audit", "purge", "--older-than", "0s", "--json"]),
            serde_json::json!({ "purged": 6 })
        );
        assert_eq!(json(&home, &["audit", "list", "--json"]), serde_json::json!({ "entries": [], "next": null }));
    })
    .await;
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    on_each_database("lists_are_filtered_and_paged", |home| async move {
        let mut ids = Vec::new();
        for label in ["bot 1", "bot 2", "bot 3", "other"] {
            let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice", "--label", label]);
            ids.push(grant["id"].clone());
        }
        stdout(&home, &["token", "suspend", ids[2].as_str().unwrap()]);
        let list = ["token", "list", "--label", "bot"];
        let first = json(&home, &[&list[..], &["--limit", "2", "--json"]].concat());
        let next = first["next"].as_str().unwrap();
        let second = json(&home, &[&list[..], &["--limit", "2", "--json", "--after", next]].concat());
        let all = first["grants"].as_array().unwrap().iter().chain(second["grants"].as_array().unwrap());
        let mut listed: Vec<_> = all.map(|grant| grant["id"].clone()).collect();
        // Grants may be issued in the same millisecond.
        listed.sort_by_key(|id| ids.iter().position(|issued| issued == id));
        assert_eq!((&listed[..], second["next"].is_null()), (&ids[..3], true));

        let page = run(&home, &[&list[..], &["--limit", "2"]].concat());
        assert_eq!(String::from_utf8(page.stderr).unwrap(), format!("next page: --after {next}\n"));
        assert_eq!(String::from_utf8(page.stdout).unwrap().lines().count(), 3);
        // The text of this cursor is Base64, but no position.
        assert_eq!(code(&run(&home, &["token", "list", "--limit", "2", "--after", "MQ"])), 2);
        let suspended = json(&home, &["token", "list", "--state", "suspended", "--prefix", "tg", "--json"]);
        assert_eq!((suspended.as_array().unwrap().len(), &suspended[0]["id"]), (1, &ids[2]));
        assert_eq!(json(&home, &["token", "list", "--prefix", "acme", "--json"]), serde_json::json!([]));

        let counts = json(&home, &["token", "count", "--label", "bot", "--json"]);
        let expected =
            serde_json::json!({ "valid": 2, "not_yet_valid": 0, "suspended": 1, "expired": 0, "revoked": 0 });
        assert_eq!(counts, expected);
        let text = stdout(&home, &["token", "count"]);
        assert!(text.starts_with("valid          3\nnot yet valid  0\nsuspended      1\n"), "{text}");
        assert_eq!(stdout(&home, &["token", "count", "--state", "suspended"]), "suspended      1\n");
        let one = json(&home, &["token", "count", "--state", "not-yet-valid", "--json"]);
        assert_eq!(one, serde_json::json!({ "not_yet_valid": 0 }));
    })
    .await;
}

#[tokio::test]
async fn no_more_grants_are_issued_than_the_maximum() {
    on_each_database("no_more_grants_are_issued_than_the_maximum", |home| async move {
        let issue = ["token", "issue", "--subject", "alice", "--max-active", "2"];
        secret(&home, &issue);
        secret(&home, &issue);
        let output = run(&home, &issue);
        assert_eq!((code(&output), output.stdout.len()), (1, 0));
        let error = "error: the subject already has 2 active grants or more\n";
        assert_eq!(String::from_utf8(output.stderr).unwrap(), error);
    })
    .await;
}

#[tokio::test]
async fn an_equal_quota_is_printed_as_stored() {
    on_each_database("an_equal_quota_is_printed_as_stored", |home| async move {
        let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice", "--quota", "1200/min burst 100"]);
        let id = grant["id"].as_str().unwrap();
        for _ in 0..2 {
            let shown = stdout(&home, &["token", "change", id, "--quota", "1200/min burst 100"]);
            assert!(shown.contains("quota      20/s burst 100\n"), "{shown}");
        }
        assert_eq!(json(&home, &["audit", "list", "--json"])["entries"].as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn separators_in_scopes_are_errors() {
    on_each_database("separators_in_scopes_are_errors", |home| async move {
        let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice", "--scope", "a:b"]);
        let id = grant["id"].as_str().unwrap();
        for scope in ["trade,stream", "trade;stream", "trade stream", "sesame,"] {
            for args in [
                &["token", "issue", "--subject", "bob", "--scope", scope][..],
                &["token", "change", id, "--scope", scope],
                &["token", "change", id, "--add-scope", scope],
                &["token", "change", id, "--remove-scope", scope],
                &["check", "--scope", scope],
            ] {
                let output = run(&home, args);
                let error = String::from_utf8(output.stderr.clone()).unwrap();
                assert_eq!((code(&output), output.stdout.len()), (2, 0), "{args:?}");
                assert!(error.contains("repeat the option") && !error.contains("sesame"), "{error}");
            }
        }
        assert_eq!(json(&home, &["token", "list", "--json"]), serde_json::json!([grant]));
    })
    .await;
}

#[tokio::test]
async fn scopes_are_added_and_removed_by_commands() {
    on_each_database("scopes_are_added_and_removed_by_commands", |home| async move {
        let (_, grant) =
            secret(&home, &["token", "issue", "--subject", "alice", "--scope", "trade", "--scope", "read"]);
        let id = grant["id"].as_str().unwrap();
        let args = ["token", "change", id, "--add-scope", "stream", "--remove-scope", "trade", "--json"];
        assert_eq!(json(&home, &args)["scopes"], serde_json::json!(["read", "stream"]));
        let all = json(&home, &["token", "change", "--subject", "alice", "--remove-scope", "read", "--json"]);
        assert_eq!(all[0]["scopes"], serde_json::json!(["stream"]));
        for others in [&["--scope", "a"][..], &["--no-scopes"]] {
            let output = run(&home, &[&["token", "change", id, "--add-scope", "b"], others].concat());
            assert_eq!(code(&output), 2, "{others:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn changes_without_effect_are_errors() {
    on_each_database("changes_without_effect_are_errors", |home| async move {
        let database = home.database().await;
        let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
        let id = grant["id"].as_str().unwrap();
        stdout(&home, &["token", "revoke", id]);
        for expiry in [&["--expires", "90d"][..], &["--never-expires"]] {
            let output = run(&home, &[&["token", "change", id], expiry].concat());
            assert_eq!(String::from_utf8(output.stderr.clone()).unwrap(), "error: the grant is revoked\n");
            assert_eq!(code(&output), 1);
        }
        assert!(database.describe(&id.into()).await.unwrap().unwrap().expires_at.is_none());
        stdout(&home, &["token", "change", id, "--label", "leaked"]);

        let past = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
        let expired = tollgate::store::sql::NewGrant::new("bob").with_expiry(past);
        database.import(tollgate::TokenDigest::of("a-token"), &expired).await.unwrap();
        let output = run(&home, &["token", "change", "--subject", "bob", "--expires", "90d"]);
        let expected = "error: the subject has no grants to change; an expired grant is changed by its id\n";
        assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    })
    .await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_named_by_lists_and_exports() {
    on_each_database("a_row_that_cannot_be_read_is_named_by_lists_and_exports", |home| async move {
        secret(&home, &["token", "issue", "--subject", "alice"]);
        let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice"]);
        let id = grant["id"].as_str().unwrap();
        crate::sql::execute(&home, format!("UPDATE tollgate_grants SET scopes = '\"' WHERE id = '{id}'")).await;
        let expected = format!("error: grant {id}: invalid value in column scopes\n");
        for args in [&["token", "list"][..], &["token", "export"], &["token", "show", id]] {
            let output = run(&home, args);
            assert_eq!((code(&output), String::from_utf8(output.stderr).unwrap()), (1, expected.clone()), "{args:?}");
        }
        let repair = "UPDATE tollgate_grants SET scopes = ''; UPDATE tollgate_tokens SET created_ms = -1";
        crate::sql::execute(&home, format!("{repair} WHERE grant_id = '{id}'")).await;
        let file = std::env::temp_dir().join(format!("tollgate-{}", crate::machine::unique()));
        let output = run(&home, &["token", "export", "--with-digests", "--output", file.to_str().unwrap()]);
        let expected = format!("error: grant {id}: invalid value in column created_ms\n");
        assert_eq!((code(&output), String::from_utf8(output.stderr).unwrap()), (1, expected));
        // Such a grant can be suspended and revoked, and the error says so.
        crate::sql::execute(&home, format!("UPDATE tollgate_grants SET scopes = '\"' WHERE id = '{id}'")).await;
        for args in [["suspend", "--subject", "alice"], ["resume", id, "--json"], ["revoke", "--subject", "alice"]] {
            let output = run(&home, &[&["token"], &args[..]].concat());
            let expected = format!("error: grant {id}: invalid value in column scopes; the change was made\n");
            assert_eq!((code(&output), String::from_utf8(output.stderr).unwrap()), (1, expected), "{args:?}");
        }
        let counts = json(&home, &["token", "count", "--json"]);
        assert_eq!(counts["revoked"], 2, "{counts}");
    })
    .await;
}

#[tokio::test]
async fn times_of_grants_are_durations_or_dates() {
    on_each_database("times_of_grants_are_durations_or_dates", |home| async move {
        let issue = ["token", "issue", "--subject", "alice", "--not-before", "2999-01-31", "--expires"];
        let (_, grant) = secret(&home, &[&issue[..], &["2999-12-31T12:30:00Z"]].concat());
        assert_eq!(grant["not_before"], "2999-01-31T00:00:00.000Z");
        assert_eq!(
            (&grant["expires_at"], &grant["state"]),
            (&"2999-12-31T12:30:00.000Z".into(), &"not_yet_valid".into())
        );
        let id = grant["id"].as_str().unwrap();
        let changed = json(&home, &["token", "change", id, "--expires", "2999-02-01", "--json"]);
        assert_eq!(changed["expires_at"], "2999-02-01T00:00:00.000Z");
        for (expiry, expected) in [
            ("2020-01-01", "must be in the future"),
            ("2999-02-30", "must be a date in UTC"),
            ("2999-1-1", "must be a date in UTC"),
            ("12999-01-01", "must be a number with a unit"),
        ] {
            let output = run(&home, &["token", "change", id, "--expires", expiry]);
            let error = String::from_utf8(output.stderr.clone()).unwrap();
            assert!(code(&output) == 2 && error.contains(expected), "{expiry}: {error}");
        }
    })
    .await;
}

#[tokio::test]
async fn spaces_at_the_ends_of_names_are_errors() {
    let home = crate::servers::Home::sqlite();
    home.database().await.migrate().await.unwrap();
    for name in [" alice", "alice ", "alice\n", "\u{a0}alice"] {
        for args in [
            &["token", "issue", "--subject", name][..],
            &["token", "show", name],
            &["token", "list", "--subject", name],
            &["token", "revoke", name],
            &["token", "revoke", "--subject", name],
            &["token", "rotate", name],
            &["token", "change", name, "--label", "bot"],
            &["token", "change", "--subject", name, "--label", "bot"],
        ] {
            let output = run(&home, args);
            let error = String::from_utf8(output.stderr.clone()).unwrap();
            assert!(code(&output) == 2 && error.contains("must not begin or end with a space"), "{args:?}: {error}");
        }
    }
}

#[tokio::test]
async fn the_principal_is_shown_by_show_only() {
    on_each_database("the_principal_is_shown_by_show_only", |home| async move {
        let (_, grant) = secret(&home, &["token", "issue", "--subject", "alice", "--principal", r#"{"plan":"pro"}"#]);
        let id = grant["id"].as_str().unwrap();
        assert_eq!(json(&home, &["token", "show", id, "--json"])["principal"]["plan"], "pro");
        assert!(stdout(&home, &["token", "show", id]).contains("\nprincipal  {\"plan\""));
        assert!(!stdout(&home, &["token", "list", "--json"]).contains("plan") && grant["principal"].is_null());
    })
    .await;
}

#[tokio::test]
async fn the_audit_trail_is_filtered_by_time_actor_and_action() {
    on_each_database("the_audit_trail_is_filtered_by_time_actor_and_action", |home| async move {
        let clock = crate::sql::Clock::new();
        let database = clock.install(home.database().await);
        let by = |actor: &str| database.acting_as(actor).unwrap();
        let hour = std::time::Duration::from_secs(3_600);
        let id =
            &database.import(tollgate::TokenDigest::of("one"), &tollgate::store::sql::NewGrant::new("alice")).await;
        let id = &id.as_ref().unwrap().id;
        clock.advance(hour);
        let time = humantime::format_rfc3339_millis(clock.now()).to_string();
        by("maria").suspend(id).await.unwrap();
        clock.advance(hour);
        by("paul").resume(id).await.unwrap();
        for (filter, expected) in [
            (&["--actor", "maria"][..], &["suspend"][..]),
            (&["--action", "resume"], &["resume"]),
            (&["--since", &time], &["resume", "suspend"]),
            (&["--until", &time], &["import"]),
            (&["--since", &time, "--actor", "paul"], &["resume"]),
            (&["--since", "2023-01-01"], &["resume", "suspend", "import"]),
            (&["--until", "2023-01-01"], &[]),
            (&["--since", "7d"], &[]),
        ] {
            let page = json(&home, &[&["audit", "list", "--json"], filter].concat());
            let actions: Vec<_> = page["entries"].as_array().unwrap().iter().map(|entry| &entry["action"]).collect();
            assert_eq!(actions, expected, "{filter:?}");
            assert_eq!(stdout(&home, &[&["audit", "export"], filter].concat()).lines().count(), expected.len());
        }
        assert_eq!(code(&run(&home, &["audit", "list", "--since", "yesterday"])), 2);
    })
    .await;
}
