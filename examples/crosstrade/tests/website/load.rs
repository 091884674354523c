//! The website beside a busy API, on SQLite.

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::*;

/// Users browse while the API has 200 requests a second, whose last uses and rejections are written too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_api_and_eight_users_share_one_file() {
    const TIME: Duration = Duration::from_secs(8);
    let site = Site::start().await;
    let users = join_all((0..8).map(|nth| site.signed_in(["demo", "guest", "support"][nth % 3]))).await;
    let (grant, plans) = (site.grant("guest").await, AtomicU64::new(0));
    // Each change of a plan writes an entry of the audit trail.
    let plan = || ["Starter", "Standard"][plans.fetch_add(1, Ordering::SeqCst) as usize % 2];
    let end = Instant::now() + TIME;
    let api = join_all((0..8).map(async |nth| {
        let mut failed = Vec::new();
        while Instant::now() < end {
            let token = if nth % 2 == 0 { &site.trader } else { &site.reader };
            let status = site.api(token).await.status();
            failed.extend(status.is_server_error().then_some(status));
            sleep(Duration::from_millis(40)).await;
        }
        failed
    }));
    let browse = join_all(users.iter().map(async |user| {
        let mut failed = Vec::new();
        while Instant::now() < end {
            for response in [
                user.get("/account").await,
                user.post("/account/reveal", &[]).await,
                user.post("/admin/users/guest/plan", &[("grant", grant.as_str()), ("plan", plan())]).await,
                user.get("/admin/users/demo").await,
            ] {
                failed.extend(response.status().is_server_error().then(|| response.status()));
            }
        }
        failed
    }));
    let (api, browse) = tokio::join!(api, browse);
    assert!(api.concat().is_empty(), "{api:?}");
    assert!(browse.concat().is_empty(), "{browse:?}");
    assert!(!site.audit("change").await.is_empty() && !site.audit("reveal").await.is_empty());
}
