//! The limit of wrong passwords, which is that of wrong tokens.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::*;
use crate::peers::FAILURES;
use crate::proxies::Proxies;

#[tokio::test]
async fn wrong_passwords_and_wrong_tokens_share_one_limit() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    // The cache has the token. Others are not looked up for a throttled address.
    assert_eq!(site.api(&site.trader).await.status(), StatusCode::OK);
    for nth in 0..FAILURES.burst() {
        let (status, expected) = match nth % 3 {
            0 => (site.api(&format!("ct_guess_{nth}")).await.status(), StatusCode::UNAUTHORIZED),
            1 => (site.visitor().sign_in("demo", "wrong").await.status(), StatusCode::FORBIDDEN),
            _ => (demo.post("/account/reveal", &[("password", "wrong")]).await.status(), StatusCode::FORBIDDEN),
        };
        assert_eq!(status, expected, "{nth}");
    }
    assert_eq!(site.api("ct_guess").await.status(), StatusCode::TOO_MANY_REQUESTS);
    for response in [
        site.visitor().sign_in("demo", "wrong").await,
        // The right one too: otherwise a guess would be seen.
        site.visitor().sign_in("demo", PASSWORD).await,
        demo.post("/account/reveal", &[("password", PASSWORD)]).await,
    ] {
        let page = assert_page(&response, StatusCode::TOO_MANY_REQUESTS);
        assert!(page.contains("There were too many attempts."), "{page}");
        assert!(tokens_in(page).is_empty());
        assert_eq!(response.headers()["retry-after"], "2");
    }
    assert_eq!(site.home.count("crosstrade_sessions").await, 1);
    // Sessions and tokens go on.
    assert!(demo.is_signed_in().await);
    assert_eq!(site.api(&site.trader).await.status(), StatusCode::OK);
    site.seconds.store(2, Ordering::SeqCst);
    assert_eq!(location(&site.visitor().sign_in("demo", PASSWORD).await), "/account");
}

#[tokio::test]
async fn right_passwords_do_not_count() {
    let site = Site::start().await;
    for _ in 0..FAILURES.burst() + 5 {
        assert_eq!(location(&site.visitor().sign_in("demo", PASSWORD).await), "/account");
    }
}

#[tokio::test]
async fn behind_proxies_the_address_of_the_client_counts() {
    let proxies = Proxies::new(&["127.0.1.0/24".parse().unwrap()]).unwrap();
    let limits = Limits { proxies: Some(proxies.clone()), ..limits() };
    let setup = Setup { access: Access::behind(proxies), limits, ..Setup::at(Home::sqlite()) };
    let site = Site::start_with(setup).await;
    let body = form(&[("name", "demo"), ("password", "wrong")]);
    let sign_in = async |from: [u8; 4], client: &str, body: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(Ipv4Addr::from(from).into(), 0)).unwrap();
        let mut stream = socket.connect(site.addr).await.unwrap();
        let request = format!(
            "POST /sign-in HTTP/1.1\r\nhost: broker.example\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             origin: https://broker.example\r\nx-forwarded-for: {client}\r\nx-forwarded-proto: https\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(WATCHDOG, stream.read_to_string(&mut answer)).await.expect("the server closes").unwrap();
        answer[9..12].parse::<u16>().unwrap()
    };
    const PROXY: [u8; 4] = [127, 0, 1, 1];
    for _ in 0..FAILURES.burst() {
        // The client sends another address itself each time.
        assert_eq!(sign_in(PROXY, "198.51.100.7, 192.0.2.1", &body).await, 403);
    }
    assert_eq!(sign_in(PROXY, "198.51.100.8, 192.0.2.1", &body).await, 429);
    assert_eq!(sign_in(PROXY, "192.0.2.2", &body).await, 403, "another client");
    let right = form(&[("name", "demo"), ("password", PASSWORD)]);
    assert_eq!(sign_in(PROXY, "192.0.2.2", &right).await, 303);
    let address = site.home.texts("SELECT data FROM crosstrade_sessions").await;
    assert!(address[0].contains("192.0.2.2"), "{address:?}");
    // Not through the proxy, so not over HTTPS.
    assert_eq!(sign_in([127, 0, 0, 1], "192.0.2.3", &right).await, 403);
}
