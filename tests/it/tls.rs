//! TLS: a certificate that is not valid is an alert, and HTTP/2 is spoken where it is offered.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::rig::{Daemon, KEY, Place, SOON, eventually, run_with};

/// A server that shows a certificate for `localhost` and takes down what is said to it after the handshake.
struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    /// The certificate of who has issued it, PEM.
    authority: String,
}

impl Server {
    async fn start(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let chain = vec![CertificateDer::from(certificate.der().to_vec())];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut config = config.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, heard) = (listener.local_addr().unwrap(), Arc::default());
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), Arc::clone(&heard)));
        Self { address, heard, authority: authority.pem() }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, heard: Arc<Mutex<Vec<u8>>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, heard) = (acceptor.clone(), Arc::clone(&heard));
        tokio::spawn(async move {
            // A client that does not trust us ends the handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut bytes = [0; 4_096];
            while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                heard.lock().unwrap().extend_from_slice(&bytes[..length]);
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_valid_is_an_alert_and_nobody_is_told_the_key() {
    let server = Server::start("localhost").await;
    let place = Place::at(&server.url(), "");
    let daemon = Daemon::start(&place).await;
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('ast_1')", []).unwrap();
    daemon.until_logged("ALERT, paused: whoever answers at the API's address has no valid certificate").await;
    let closure = "SELECT closure FROM accounts";
    let closure = eventually(SOON, "the account is closed", async || place.ask::<String>(closure)).await;
    assert_eq!(closure, "untrusted");
    assert_eq!(place.ask::<i64>("SELECT failures FROM watches"), Some(0), "it is none of the asset's");
    assert!(server.heard().is_empty());
    let checked = run_with(&place, &["check"], "", &[]).await;
    assert!(checked.code == 1 && checked.out.contains("no valid certificate, so the key was not sent"), "{checked:?}");
    assert!(!checked.out.contains(KEY) && !daemon.log().contains(KEY));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_not_valid_either() {
    let server = Server::start("elsewhere.example").await;
    let place = Place::at(&server.url(), "");
    let authority = place.path("authority.pem");
    std::fs::write(&authority, &server.authority).unwrap();
    let variables = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    let checked = run_with(&place, &["check"], "", &variables).await;
    assert!(checked.out.contains("no valid certificate") && checked.out.contains("name"), "{checked:?}");
    assert!(server.heard().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_where_it_is_offered() {
    let server = Server::start("localhost").await;
    let place = Place::at(&server.url(), "");
    let authority = place.path("authority.pem");
    std::fs::write(&authority, &server.authority).unwrap();
    let daemon = Daemon::spawn_with(&place, &[("SSL_CERT_FILE", authority.to_str().unwrap())]);
    daemon.until_logged("started").await;
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('ast_1')", []).unwrap();
    // The preface of RFC 9113, section 3.4.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let heard = async || server.heard().starts_with(preface).then_some(());
    eventually(SOON, "the client speaks HTTP/2", heard).await;
}
