//! HTTP clients of other languages that are said to obey `Retry-After` or a rate limit header: they are admitted at their first
//! retry. The guide `clients` lists them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use tollgate::limit::RateLimits;
use tollgate::{AuthLayer, CurrentGrant, Grant, Quota, RateLimitHeaders};

use crate::kit::{ONE, TOKEN, memory, run, serve, skip};

/// A service that rejects the first request, and admits one after two seconds.
struct Service {
    url: String,
    statuses: Arc<Mutex<Vec<u16>>>,
}

impl Service {
    async fn start(dialect: RateLimitHeaders, has_retry_after: bool) -> Self {
        let limits = RateLimits::new(Quota::one_per(Duration::from_secs(2)).with_burst(1));
        let gate = AuthLayer::new(memory()).with_rate_limit(limits.clone()).with_rate_limit_headers(dialect);
        let statuses = Arc::<Mutex<Vec<u16>>>::default();
        let (recorded, is_first) = (Arc::clone(&statuses), Arc::new(AtomicBool::new(true)));
        let observe = from_fn(move |request: Request, next: Next| {
            // A client may take long to start, so the bucket is emptied just before its first request.
            if is_first.swap(false, Ordering::SeqCst) {
                let alice = CurrentGrant::new(Grant::new("alice", ()));
                assert!(limits.charge(&alice, ONE).is_admitted());
            }
            let recorded = Arc::clone(&recorded);
            async move {
                let mut response = next.run(request).await;
                if !has_retry_after {
                    response.headers_mut().remove("retry-after");
                }
                recorded.lock().unwrap().push(response.status().as_u16());
                response
            }
        });
        let app = Router::new().fallback(|| async { axum::Json("admitted") }).layer(gate).layer(observe);
        Self { url: format!("http://{}/orders", serve(app).await), statuses }
    }

    fn statuses(&self) -> Vec<u16> {
        self.statuses.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_waits_for_retry_after() {
    let service = Service::start(RateLimitHeaders::Draft11, true).await;
    let token = format!("Authorization: Bearer {TOKEN}");
    let arguments = ["-s", "-f", "--retry", "3", "-H", &token, &service.url];
    if run("curl", &arguments, "curl_waits_for_retry_after").await.is_some() {
        assert_eq!(service.statuses(), [429, 200]);
    }
}

/// urllib3 does so by default, and `requests` with an adapter.
#[tokio::test(flavor = "multi_thread")]
async fn python_clients_wait_for_retry_after() {
    const URLLIB3: &str = "
import sys
try:
    import urllib3
except ImportError:
    sys.exit()
urllib3.PoolManager().request('GET', sys.argv[1], headers={'authorization': 'Bearer ' + sys.argv[2]})
print('done')";
    const REQUESTS: &str = "
import sys
try:
    import requests
except ImportError:
    sys.exit()
session = requests.Session()
session.mount('http://', requests.adapters.HTTPAdapter(max_retries=requests.adapters.Retry(total=3)))
session.get(sys.argv[1], headers={'authorization': 'Bearer ' + sys.argv[2]})
print('done')";
    let test = "python_clients_wait_for_retry_after";
    for (library, script) in [("urllib3", URLLIB3), ("requests", REQUESTS)] {
        let service = Service::start(RateLimitHeaders::Draft11, true).await;
        match run("python3", &["-c", script, &service.url, TOKEN], test).await.as_deref() {
            None => {}
            Some("done\n") => assert_eq!(service.statuses(), [429, 200], "{library}"),
            Some(_) => skip(library, test),
        }
    }
}

const NODE: &str = "
const [library, url, token] = process.argv.slice(1);
const headers = { authorization: `Bearer ${token}` };
const load = async (name) => (await import(name)).default;
await {
    got: async () => (await load('got'))(url, { headers }),
    ky: async () => (await load('ky'))(url, { headers }),
    'axios-retry': async () => {
        const axios = (await load('axios')).create();
        (await load('axios-retry'))(axios);
        await axios.get(url, { headers });
    },
    undici: async () => {
        const { Agent, RetryAgent, fetch } = await import('undici');
        await (await fetch(url, { headers, dispatcher: new RetryAgent(new Agent()) })).text();
    },
    octokit: async () => {
        const { Octokit } = await import('@octokit/core');
        const { throttling } = await import('@octokit/plugin-throttling');
        const again = (after, options, octokit, count) => count < 3;
        const throttle = { onRateLimit: again, onSecondaryRateLimit: again };
        const octokit = new (Octokit.plugin(throttling))({ throttle });
        await octokit.request(url, { headers });
    },
}[library]();
process.exit(0);";

#[tokio::test(flavor = "multi_thread")]
async fn node_clients_wait_for_the_fields_that_they_read() {
    use RateLimitHeaders::{Draft03, Draft06, Draft11, XDelta, XEpoch};

    let test = "node_clients_wait_for_the_fields_that_they_read";
    let modules = std::env::var("TOLLGATE_NODE_MODULES").unwrap_or_else(|_| "target/node/node_modules".to_owned());
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join(modules);
    let folder = modules.parent().unwrap().display().to_string();
    let mut calls = Vec::new();
    for (library, package, dialect, has_retry_after) in [
        ("got", "got", Draft11, true),
        ("ky", "ky", Draft11, true),
        ("ky", "ky", Draft06, false),
        ("ky", "ky", Draft03, false),
        ("ky", "ky", XDelta, false),
        ("ky", "ky", XEpoch, false),
        ("axios-retry", "axios-retry", Draft11, true),
        ("undici", "undici", Draft11, true),
        ("octokit", "@octokit/plugin-throttling", XEpoch, true),
    ] {
        if !modules.join(package).exists() {
            skip(package, test);
            continue;
        }
        let folder = folder.clone();
        calls.push(tokio::spawn(async move {
            let service = Service::start(dialect, has_retry_after).await;
            let command = "cd \"$1\" && shift && exec node --input-type=module --eval \"$@\"";
            let arguments = ["-c", command, "sh", &folder, NODE, library, &service.url, TOKEN];
            if run("sh", &arguments, test).await.is_some() {
                assert_eq!(service.statuses(), [429, 200], "{library} {dialect:?}");
            }
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
}
