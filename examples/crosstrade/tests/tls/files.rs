//! The files of the certificate: errors at the start, and changes while the service runs.

use std::error::Error as _;

use super::super::log::Captured;
use super::*;

/// The certificate that a new connection gets.
async fn served(secure: &Secure) -> CertificateDer<'static> {
    // Any of the certificates, valid or not, must be seen here, so the roots are those of the files that were written.
    let stream = secure.connect(&[]).await;
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

fn certificate(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()
}

/// Waits until the service has another certificate than this one.
async fn changed(secure: &Secure, roots: &RootCertStore) {
    let replaced = async {
        while connect(secure.server.addr, config(roots.clone(), &[])).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(WATCHDOG, replaced).await.expect("the certificate is replaced");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_errors() {
    let folder = Folder::new();
    let (pair, other) = (Pair::new(), Pair::new());
    let broken = format!("{}AAAA", &pair.cert[..200]);
    for (cert, key, expected) in [
        (None, Some(&pair.key), "cannot read the file of --tls-cert"),
        (Some(&pair.cert), None, "cannot read the file of --tls-key"),
        (Some(&pair.key), Some(&pair.key), "no certificate in the file of --tls-cert"),
        (Some(&String::new()), Some(&pair.key), "no certificate in the file of --tls-cert"),
        (Some(&pair.cert), Some(&pair.cert), "no key in the file of --tls-key"),
        (Some(&broken), Some(&pair.key), "invalid PEM in the file of --tls-cert"),
        (Some(&pair.cert), Some(&pair.key.replace('M', "!")), "invalid PEM in the file of --tls-key"),
        (Some(&pair.cert), Some(&other.key), "the key of --tls-key does not match"),
    ] {
        for (file, content) in [(folder.files().cert, cert), (folder.files().key, key)] {
            match content {
                Some(content) => std::fs::write(file, content).unwrap(),
                None => std::fs::remove_file(file).unwrap(),
            }
        }
        let error = Tls::open(folder.files()).await.err().expect(expected);
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(matches!(error, TlsError::Unreadable { .. }), error.source().is_some());
        std::fs::write(folder.files().cert, "").unwrap();
        std::fs::write(folder.files().key, "").unwrap();
    }
}

#[tokio::test]
async fn expired_certificates_are_served_with_a_warning_and_rejected_by_clients() {
    let (log, _, _guard) = Captured::start();
    let secure = Secure::start().await;
    let valid = secure.folder.roots();
    assert_eq!(log.take(), [] as [&str; 0]);
    for (change, expected) in [
        ((|params| params.not_after = rcgen::date_time_ymd(2021, 1, 1)) as fn(&mut CertificateParams), "Expired"),
        (|params| params.not_before = rcgen::date_time_ymd(4000, 1, 1), "NotValidYet"),
    ] {
        secure.folder.write(&Pair::with(change));
        secure.tls.reload().await;
        let lines = log.take();
        assert!(lines[0].starts_with("WARN crosstrade::tls: TLS certificate is not valid now"), "{lines:?}");
        let rejected = connect(secure.server.addr, config(secure.folder.roots(), &[])).await.unwrap_err();
        assert!(format!("{rejected:?}").contains(expected), "{rejected:?}");
    }
    assert!(connect(secure.server.addr, config(valid, &[])).await.is_err());
}

#[tokio::test]
async fn changed_files_are_served_and_open_connections_go_on() {
    let secure = Secure::start_limited(Limits { head: WATCHDOG, ..limits() }).await;
    let watched = Arc::clone(&secure.tls);
    let watch = tokio::spawn(async move { watched.watch().await });
    let mut open = secure.connect(&[HTTP1]).await;
    let pair = Pair::new();
    assert_ne!(served(&secure).await, certificate(&pair));
    secure.folder.write(&pair);
    changed(&secure, &secure.folder.roots()).await;
    assert_eq!(served(&secure).await, certificate(&pair));
    open.write_all(HEALTH).await.unwrap();
    assert!(rest(&mut open).await.starts_with("HTTP/1.1 200 "));
    watch.abort();
}

/// The log goes to this thread, on which the whole test runs.
#[tokio::test]
async fn broken_files_leave_the_old_certificate_and_are_logged_once() {
    let secure = Secure::start().await;
    let (log, limit, _guard) = Captured::start();
    let old = served(&secure).await;
    let roots = secure.folder.roots();
    let watched = Arc::clone(&secure.tls);
    let watch = tokio::spawn(async move { watched.watch().await });
    let served_with = async || {
        let stream = connect(secure.server.addr, config(roots.clone(), &[])).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let logged = async |expected: &str| {
        let wait = async {
            loop {
                let lines = log.take();
                if !lines.is_empty() {
                    return lines;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let lines = timeout(WATCHDOG, wait).await.expect(expected);
        assert!(lines.len() == 1 && lines[0].contains(expected), "{expected}: {lines:?}");
    };
    let (pair, other) = (Pair::new(), Pair::new());
    secure.folder.write(&Pair { cert: pair.cert.clone(), key: other.key });
    logged("ERROR crosstrade::tls: TLS certificate not loaded: the old one stays in use error=the key of --tls-key")
        .await;
    assert_eq!(served_with().await, old);
    std::fs::remove_file(secure.folder.files().key).unwrap();
    logged("cannot read the file of --tls-key source=\"No such file").await;
    assert_eq!(served_with().await, old);
    // Not logged at each poll.
    sleep(Duration::from_secs(3)).await;
    limit.summarize();
    assert_eq!(log.take(), [] as [&str; 0]);
    secure.folder.write(&pair);
    logged("TLS certificate loaded").await;
    assert_eq!(served(&secure).await, certificate(&pair));
    watch.abort();
}
