//! The live meter.

use tokio::time::{Instant, sleep};

use super::demo::Process;
use super::*;
use crate::args::SECRET;
use crate::replicas::{Replicas, Shared};
use crate::sockets::MAX_SOCKETS;
use crate::tests::replicas::{Private, redis_server};
use crate::website::sessions::IDLE;

#[tokio::test]
async fn the_meter_shows_what_the_api_then_admits() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    let mut meter = demo.meter().await;
    assert_eq!(meter.status, StatusCode::OK);
    let state = meter.state().await;
    assert_eq!((&state["remaining"], &state["burst"]), (&20.into(), &20.into()), "{state}");
    assert_eq!(state["full_in_s"], 0.0);
    for _ in 0..2 {
        assert_eq!(site.api(&site.trader).await.status(), StatusCode::OK);
    }
    let state = meter.until(|state| state["remaining"] == 18).await;
    assert_eq!(state["full_in_s"], 1.0, "two of three a second");
    for _ in 0..18 {
        assert_eq!(site.api(&site.trader).await.status(), StatusCode::OK);
    }
    meter.until(|state| state["remaining"] == 0).await;
    assert_eq!(site.api(&site.trader).await.status(), StatusCode::TOO_MANY_REQUESTS);
    // The plan and the bucket change while the meter is open.
    let support = site.signed_in("support").await;
    support.submit("/admin/users/demo/plan", &[("plan", "Starter")]).await;
    support.post("/admin/users/demo/reset", &[]).await;
    let state = meter.until(|state| state["burst"] == 10 && state["remaining"] == 10).await;
    assert_eq!(state.as_object().unwrap().len(), 3, "{state}");
}

#[tokio::test]
async fn meters_end_with_their_session() {
    let site = Site::start().await;
    let (one, two) = (site.signed_in("demo").await, site.signed_in("demo").await);
    let (mut first, mut second) = (one.meter().await, two.meter().await);
    first.state().await;
    second.state().await;
    one.post("/sign-out", &[]).await;
    assert_eq!(first.next().await, Some(("end".to_owned(), "signed out".to_owned())));
    assert_eq!(first.next().await, None);
    // The other one goes on, and does not extend its session.
    for _ in 0..2 {
        site.advance(IDLE / 2 - MINUTE);
        site.api(&site.trader).await;
        second.state().await;
        // The session is read again.
        sleep(Duration::from_millis(2_600)).await;
        // A browser that has lost the connection opens another one by itself.
        two.meter().await.state().await;
    }
    site.advance(3 * MINUTE);
    let end = async {
        loop {
            if let Some((event, _)) = second.next().await.filter(|(event, _)| event == "end") {
                return event;
            }
        }
    };
    timeout(WATCHDOG, end).await.expect("the session ends");
    assert!(!two.is_signed_in().await);
}

#[tokio::test]
async fn each_user_may_have_some_meters() {
    let site = Site::start().await;
    let (demo, guest) = (site.signed_in("demo").await, site.signed_in("guest").await);
    let mut open = Vec::new();
    for _ in 0..MAX_SOCKETS {
        let mut meter = demo.meter().await;
        meter.state().await;
        open.push(meter);
    }
    assert_page(&demo.get("/account/usage").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(guest.meter().await.status, StatusCode::OK, "another user");
    assert!(demo.is_signed_in().await);
    open.pop();
    let again = async {
        loop {
            let mut meter = demo.meter().await;
            if meter.status == StatusCode::OK {
                return meter.state().await;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(WATCHDOG, again).await.expect("a closed meter leaves its place");
}

/// Without a limit on the time of the stop, the meter alone would hold it up.
#[tokio::test]
async fn open_meters_do_not_hold_up_the_stop() {
    let hours = Duration::from_secs(7_200);
    let limits = Limits { grace: hours, head: hours, drain: Duration::from_millis(200), ..limits() };
    let mut site = Site::start_with(Setup { limits, ..Setup::at(Home::sqlite()) }).await;
    let demo = site.signed_in("demo").await;
    let mut meter = demo.meter().await;
    meter.state().await;
    site.close.send(true).unwrap();
    assert_eq!(meter.next().await, None, "the browser opens another one, at the next replica");
    timeout(WATCHDOG, &mut site.served).await.expect("the service stops").unwrap();
}

/// On HTTP/2 the time for a client to take a response ends the connection. An open meter is no response that is not taken.
#[tokio::test]
async fn meters_stay_open_on_http2() {
    let write = Duration::from_millis(300);
    let (site, mut sender, connection) = over_http2(Limits { write, head: Duration::from_secs(60), ..limits() }).await;
    let request =
        Request::post("https://localhost/sign-in").header("content-type", "application/x-www-form-urlencoded");
    let sign_in = request.body(form(&[("name", "demo"), ("password", PASSWORD)])).unwrap();
    let response = sender.send_request(sign_in).await.unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let get = |path: &str| {
        let request = Request::get(format!("https://localhost{path}")).header("cookie", &cookie);
        request.body(String::new()).unwrap()
    };
    let response = sender.send_request(get("/account/usage")).await.unwrap();
    let mut meter = Events { status: response.status(), body: response.into_body(), text: String::new() };
    meter.state().await;
    for left in [19, 18, 17] {
        sleep(2 * write).await;
        let request = Request::get("https://localhost/v1/api/accounts");
        let request = request.header("authorization", format!("Bearer {}", site.trader)).body(String::new()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), StatusCode::OK);
        meter.until(|state| state["remaining"] == left).await;
        let page = sender.send_request(get("/account")).await.unwrap();
        assert_eq!(page.status(), StatusCode::OK);
        assert!(page.into_body().collect().await.is_ok());
    }
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn without_redis_the_meter_says_so_until_it_is_back() {
    let Some(mut redis) = Private::start("without_redis_the_meter_says_so_until_it_is_back") else { return };
    let replicas = Replicas { redis: redis.url(), count: 1.try_into().unwrap(), leases: false };
    let ledger = Shared::new(&replicas, &[7; 32], RateLimits::new(QUOTA)).unwrap();
    let site = Site::start_with(Setup { ledger: Some(Arc::new(ledger)), ..Setup::at(Home::sqlite()) }).await;
    let (demo, support) = (site.signed_in("demo").await, site.signed_in("support").await);
    let mut meter = demo.meter().await;
    assert_eq!(meter.state().await["remaining"], 20);
    redis.kill();
    meter.until(|state| state["unknown"] == true).await;
    let page = demo.get("/account").await;
    assert!(assert_page(&page, StatusCode::OK).contains(r#"<span id="remaining">–</span>"#), "{}", page.body());
    assert_page(&support.get("/admin/users/demo").await, StatusCode::OK);
    let response = support.post("/admin/users/demo/reset", &[]).await;
    assert_page(&response, StatusCode::SERVICE_UNAVAILABLE);
    redis.restart();
    meter.until(|state| state["remaining"] == 20).await;
}

/// The charges of one replica move the meter of the other.
#[tokio::test]
async fn replicas_show_the_same_state() {
    let Some(redis) = redis_server("replicas_show_the_same_state") else { return };
    let home = Home::sqlite();
    let secret = random().repeat(4);
    let args = ["--database", &home.url, "--redis", &redis, "--replicas", "2"];
    let envs = [(SECRET, secret.as_str()), (crate::demo::PASSWORD, PASSWORD)];
    let [one, two] = [0, 1].map(|_| Process::start(&args, &envs));
    let demo = Visitor { addr: two.addr, cookie: Mutex::default() };
    demo.sign_in("demo", PASSWORD).await;
    let mut meter = demo.meter().await;
    assert_eq!(meter.state().await["remaining"], 20);
    let begin = Instant::now();
    for _ in 0..20 {
        assert_eq!(one.api(&one.trader).await, StatusCode::OK);
    }
    meter.until(|state| state["remaining"].as_u64().unwrap() <= 3 + 3 * begin.elapsed().as_secs()).await;
    meter.until(|state| state["remaining"] == 20 && state["full_in_s"] == 0.0).await;
    // The session is that of both, too.
    let other = Visitor { addr: one.addr, cookie: Mutex::new(demo.cookie()) };
    assert!(other.is_signed_in().await);
    other.post("/sign-out", &[]).await;
    let end = async { while meter.next().await.is_some_and(|(event, _)| event != "end") {} };
    timeout(WATCHDOG, end).await.expect("the meter ends");
}
