//! Changes by this process reach the caches that watch the database before the method returns, without any notification.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use sqlx::{Connection as _, PgConnection};
use tokio::sync::{Semaphore, mpsc};
use tollgate::mint::Secret;
use tollgate::store::sql::{Database, GrantChange, GrantImport, ImportOptions, NewGrant, SqlStore};
use tollgate::store::{CachedStore, Invalidation, Lookup};
use tollgate::{Answer, BearerToken, Grant, GrantId, StoreError, TokenDigest, TokenStore};

use crate::servers::{Home, on_each_database};
use crate::sql::{execute, format};

const HOUR: Duration = Duration::from_secs(3_600);

/// Cuts the reports of the database: changes fire no trigger any more.
async fn cut(home: &Home) {
    let statements = match home.is_postgres() {
        true => {
            "CREATE OR REPLACE FUNCTION tollgate_notify() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
                .to_owned()
        }
        false => ["grant_changed", "grant_deleted", "token_added", "token_changed", "token_deleted", "grant_resumed"]
            .map(|trigger| format!("DROP TRIGGER tollgate_{trigger};"))
            .concat(),
    };
    execute(home, statements).await;
}

/// Watches a database whose reports are cut, until the task is aborted. The watch has begun when this function returns.
async fn watch(database: &Database, home: &Home, mut on_change: impl FnMut(Invalidation) + Send + 'static) {
    cut(home).await;
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let watched = database.clone();
    let on_change = move |change| {
        _ = begun.send(());
        on_change(change);
    };
    tokio::spawn(async move { watched.watch(HOUR, on_change).await });
    has_begun.recv().await.expect("the first report");
}

/// A cache of a watched database whose reports are cut.
async fn cache(database: &Database, home: &Home) -> CachedStore<SqlStore<()>> {
    let cache = CachedStore::builder(database.store::<()>(), HOUR).with_unknown_ttl(HOUR).build().unwrap();
    let invalidated = cache.clone();
    watch(database, home, move |change| invalidated.invalidate(&change)).await;
    cache
}

async fn lookup<T: TokenStore<Error: std::fmt::Debug>>(store: &T, token: &Secret) -> Option<Arc<Grant<T::Principal>>> {
    store.lookup(&BearerToken::new(token.expose())).await.unwrap()
}

#[tokio::test]
async fn the_database_reports_nothing_after_the_cut() {
    on_each_database("the_database_reports_nothing_after_the_cut", |home| async move {
        // The other tests prove something only if a change by another process is not reported.
        let (here, there) = (home.database().await, home.database().await);
        let cache = cache(&here, &home).await;
        let issued = here.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        assert!(lookup(&cache, &issued.secret).await.is_some());
        there.revoke(&issued.grant.id).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(lookup(&cache, &issued.secret).await.is_some());
    })
    .await;
}

#[tokio::test]
async fn each_change_takes_effect_before_its_method_returns() {
    on_each_database("each_change_takes_effect_before_its_method_returns", |home| async move {
        let database = home.database().await;
        let cache = cache(&database, &home).await;
        // Changes by other handles of the same database.
        let admin = database.acting_as("support:maria").unwrap().with_admin_timeout(HOUR);
        let (alice, end) = ("alice".into(), SystemTime::now() + HOUR);

        let secret = format().mint().unwrap();
        assert!(lookup(&cache, &secret).await.is_none());
        let grant = admin.import(secret.digest(), &NewGrant::new("alice")).await.unwrap();
        let id = &grant.id;
        assert!(lookup(&cache, &secret).await.is_some(), "import");
        admin.suspend(id).await.unwrap();
        assert!(lookup(&cache, &secret).await.is_none(), "suspend");
        admin.resume(id).await.unwrap();
        assert!(lookup(&cache, &secret).await.is_some(), "resume");
        admin.suspend_subject(&alice).await.unwrap();
        assert!(lookup(&cache, &secret).await.is_none(), "suspend_subject");
        admin.resume_subject(&alice).await.unwrap();
        assert!(lookup(&cache, &secret).await.is_some(), "resume_subject");
        admin.change(id, &GrantChange::new().with_scopes(["trade"]).unwrap()).await.unwrap();
        assert_eq!(lookup(&cache, &secret).await.unwrap().scopes().to_string(), "trade");
        admin.change_subject(&alice, &GrantChange::new().with_expiry(end)).await.unwrap();
        assert!(lookup(&cache, &secret).await.unwrap().expires_at().is_some());
        admin.set_expiry(id, None).await.unwrap();
        assert_eq!(lookup(&cache, &secret).await.unwrap().expires_at(), None);
        let second = admin.rotate(id, &format(), HOUR).await.unwrap().secret;
        assert!(lookup(&cache, &secret).await.unwrap().is_rotated() && lookup(&cache, &second).await.is_some());
        admin.purge(SystemTime::now() + 2 * HOUR).await.unwrap();
        assert!(lookup(&cache, &secret).await.is_none(), "its grace period was purged");
        admin.rotate(id, &format(), Duration::ZERO).await.unwrap();
        let ended = lookup(&cache, &second).await.unwrap();
        assert!(ended.is_rotated() && !ended.is_valid_at(SystemTime::now()), "rotate");

        let [third, fourth] = [(); 2].map(|()| format().mint().unwrap());
        for secret in [&third, &fourth] {
            assert!(lookup(&cache, secret).await.is_none());
        }
        let imports = [&third, &fourth]
            .map(|secret| Ok(GrantImport::new(NewGrant::new("bob").with_expiry(end)).with_token(secret.digest())));
        admin.import_all(imports, ImportOptions::new().with_dry_run()).await.unwrap();
        assert!(lookup(&cache, &third).await.is_none());
        admin.import_all(imports_of(&[&third, &fourth], end), ImportOptions::new()).await.unwrap();
        assert!(lookup(&cache, &third).await.is_some() && lookup(&cache, &fourth).await.is_some(), "import_all");
        let id = lookup(&cache, &third).await.unwrap().id().clone();
        admin.revoke(&id).await.unwrap();
        assert!(lookup(&cache, &third).await.is_none(), "revoke");
        admin.revoke_subject(&"bob".into()).await.unwrap();
        assert!(lookup(&cache, &fourth).await.is_none(), "revoke_subject");

        let fifth = admin.issue(&format(), &NewGrant::new("carol").with_expiry(end)).await.unwrap().secret;
        assert!(lookup(&cache, &fifth).await.is_some());
        admin.purge(end + HOUR).await.unwrap();
        assert!(lookup(&cache, &fifth).await.is_none(), "purge");
    })
    .await;
}

fn imports_of(secrets: &[&Secret], end: SystemTime) -> Vec<Result<GrantImport, tollgate::store::sql::SqlError>> {
    let import =
        |secret: &&Secret| Ok(GrantImport::new(NewGrant::new("bob").with_expiry(end)).with_token(secret.digest()));
    secrets.iter().map(import).collect()
}

/// A store whose lookups have read their row, and return it when the test allows it.
struct Held {
    store: SqlStore<()>,
    read: Arc<Semaphore>,
    released: Arc<Semaphore>,
}

impl TokenStore for Held {
    type Principal = ();
    type Error = StoreError;
    type Future = Pin<Box<dyn Future<Output = Lookup<(), StoreError>> + Send>>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        let found = self.store.get(*token.digest());
        let (read, released) = (Arc::clone(&self.read), Arc::clone(&self.released));
        Answer::Pending(Box::pin(async move {
            let found = found.await;
            read.add_permits(1);
            released.acquire().await.unwrap().forget();
            found
        }))
    }
}

/// A lookup that has read the old row when the change is made must not leave its answer in the cache.
#[tokio::test]
async fn lookups_in_flight_do_not_restore_the_old_grant() {
    on_each_database("lookups_in_flight_do_not_restore_the_old_grant", |home| async move {
        let database = home.database().await;
        let (read, released) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let held = Held { store: database.store(), read: Arc::clone(&read), released: Arc::clone(&released) };
        let cache = CachedStore::builder(held, HOUR).with_unknown_ttl(HOUR).build().unwrap();
        let invalidated = cache.clone();
        watch(&database, &home, move |change| invalidated.invalidate(&change)).await;
        let issued = database.issue(&format(), &NewGrant::new("alice")).await.unwrap();
        let id = &issued.grant.id;
        let start = || {
            let (cache, token) = (cache.clone(), issued.secret.expose().to_owned());
            tokio::spawn(async move { cache.lookup(&BearerToken::new(&token)).await.unwrap().is_some() })
        };
        for was_known in [true, false, true, false, true, false] {
            let before = start();
            read.acquire().await.unwrap().forget();
            match was_known {
                true => assert!(database.suspend(id).await.unwrap()),
                false => assert!(database.resume(id).await.unwrap()),
            }
            // It begins after the change, and must not join the lookup before.
            let after = start();
            let is_read = tokio::time::timeout(Duration::from_secs(30), read.acquire()).await;
            is_read.expect("a lookup of its own").unwrap().forget();
            released.add_permits(2);
            assert_eq!(before.await.unwrap(), was_known);
            assert_eq!(after.await.unwrap(), !was_known);
            // The answer of the cache, if it has one.
            released.add_permits(1);
            assert_eq!(start().await.unwrap(), !was_known);
            // Start the next round without an entry.
            cache.clear();
            while let Ok(permit) = read.try_acquire() {
                permit.forget();
            }
            while let Ok(permit) = released.try_acquire() {
                permit.forget();
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lookup_that_begins_after_a_revocation_finds_the_grant() {
    on_each_database("no_lookup_that_begins_after_a_revocation_finds_the_grant", |home| async move {
        let database = home.database().await;
        let cache = cache(&database, &home).await;
        let mut grants = Vec::new();
        for number in 0..30 {
            let token = format!("token-{number}");
            let id = database.import(TokenDigest::of(&*token), &NewGrant::new("alice")).await.unwrap().id;
            grants.push((token, id));
        }
        let grants: Arc<[(String, GrantId)]> = grants.into();
        // Grants with a smaller number are revoked.
        let revoked = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let (cache, grants, revoked) = (cache.clone(), Arc::clone(&grants), Arc::clone(&revoked));
                tokio::spawn(async move {
                    let mut number = client;
                    while revoked.load(Ordering::SeqCst) < grants.len() {
                        let begun = revoked.load(Ordering::SeqCst);
                        // Mostly the grant that is revoked next.
                        let at = if number % 4 == 0 { number % grants.len() } else { begun.min(grants.len() - 1) };
                        let is_known = cache.lookup(&BearerToken::new(&grants[at].0)).await.unwrap().is_some();
                        assert!(!is_known || at >= begun, "grant {at} was found after its revocation");
                        if number % 16 == 0 {
                            cache.clear();
                        }
                        number += 1;
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for (number, (_, id)) in grants.iter().enumerate() {
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert!(database.revoke(id).await.unwrap());
            revoked.store(number + 1, Ordering::SeqCst);
        }
        for client in clients {
            client.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn watchers_are_those_of_the_same_tables_and_end_with_their_task() {
    on_each_database("watchers_are_those_of_the_same_tables_and_end_with_their_task", |home| async move {
        let database = home.database().await;
        let other = database.clone().with_table_prefix("other_").unwrap();
        other.migrate().await.unwrap();
        let (report, mut reported) = mpsc::unbounded_channel();
        let watched = database.clone();
        let watching = tokio::spawn(async move { watched.watch(HOUR, move |change| _ = report.send(change)).await });
        assert_eq!(reported.recv().await, Some(Invalidation::Everything));
        other.import(TokenDigest::of("other"), &NewGrant::new("alice")).await.unwrap();
        let id = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap().id;
        assert_eq!(reported.try_recv(), Ok(Invalidation::Added));
        watching.abort();
        assert!(watching.await.unwrap_err().is_cancelled());
        while reported.try_recv().is_ok() {}
        assert_eq!(reported.recv().await, None, "the function is dropped with the task");
        assert!(database.revoke(&id).await.unwrap());
    })
    .await;
}

/// A change whose future is dropped while the server commits is reported, because it is made.
#[tokio::test]
async fn a_cancelled_change_is_reported() {
    let Some(home) = Home::postgres("a_cancelled_change_is_reported").await else { return };
    let database = home.database().await;
    database.migrate().await.unwrap();
    let (report, mut reported) = mpsc::unbounded_channel();
    watch(&database, &home, move |change| _ = report.send(change)).await;
    let id = database.import(TokenDigest::of("a-token"), &NewGrant::new("alice")).await.unwrap().id;
    while reported.try_recv().is_ok() {}

    // The commit waits for a lock.
    let mut holder = PgConnection::connect(home.url()).await.unwrap();
    let key: i64 = sqlx::query_scalar("SELECT CAST(CAST('tollgate_grants'::regclass AS oid) AS BIGINT)")
        .fetch_one(&mut holder)
        .await
        .unwrap();
    let trigger = format!(
        "CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_advisory_xact_lock({key}); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER wait_at_commit AFTER UPDATE ON tollgate_grants DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION wait_at_commit()"
    );
    execute(&home, trigger).await;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(key).execute(&mut holder).await.unwrap();
    let (revoking, revoked) = (database.clone(), id.clone());
    let revocation = tokio::spawn(async move { revoking.revoke(&revoked).await });
    let waiting = "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = $1";
    while sqlx::query_scalar::<_, i64>(waiting).bind(key).fetch_one(&mut holder).await.unwrap() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(reported.try_recv(), Err(mpsc::error::TryRecvError::Empty), "nothing is committed yet");
    revocation.abort();
    assert!(revocation.await.unwrap_err().is_cancelled());
    assert_eq!(reported.try_recv(), Ok(Invalidation::Grant(id.clone())));
    drop(holder);
    while database.describe(&id).await.unwrap().unwrap().revoked_at.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
