//! Who may talk to whom: certificates of the same mesh, exactly the expected identity, and nothing else.

use crate::world::*;
use bytes::Bytes;
use mesh_api::SpiffeId;
use mesh_proxy::credentials::{Credentials, Told};
use mesh_proxy::stream::Rewound;
use mesh_proxy::tls::{Alpn, Current, provider};
use rustls::{HandshakeKind, NamedGroup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, TlsStream};

fn credentials(pems: &Pems) -> Current {
    Current::from_pem(&pems.chain, &pems.key, &pems.anchors).unwrap()
}

/// One handshake over a socket, then a byte from the server, so that the client has its session ticket.
async fn shake(
    client: &Current,
    server: &Current,
    expected: &SpiffeId,
) -> std::io::Result<(TlsStream<TcpStream>, mesh_proxy::tls::Peer)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let accept = async {
        let (tcp, _) = listener.accept().await?;
        let (mut tls, peer) = server.accept(Rewound::new(Bytes::new(), tcp)).await?;
        tls.write_u8(1).await?;
        Ok::<_, std::io::Error>((tls, peer))
    };
    let connect = async {
        let mut tls = client.connect(TcpStream::connect(address).await?, expected, Alpn::Http2, Some(8080)).await?;
        tls.read_u8().await?;
        Ok::<_, std::io::Error>(tls)
    };
    let (accepted, connected) = tokio::join!(accept, connect);
    let tls = connected?;
    Ok((tls, accepted?.1))
}

#[tokio::test]
async fn the_handshake_is_post_quantum_mutual_and_resumable() {
    let authority = Authority::new();
    let (web, load) = (authority.issue(&account("web")), authority.issue(&account("load")));
    let (web, load) = (credentials(&web), credentials(&load));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (tls, peer) = shake(&load, &web, &account("web")).await.unwrap();
        let connection = tls.get_ref().1;
        assert_eq!(connection.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(connection.handshake_kind(), Some(kind));
        assert_eq!((peer.identity, peer.alpn, peer.port), (account("load"), Alpn::Http2, Some(8080)));
    }
    let error = shake(&load, &web, &account("other")).await.unwrap_err();
    assert!(error.to_string().contains("expected spiffe://cluster.local/ns/shop/sa/other"), "{error}");
}

#[tokio::test]
async fn another_authority_or_trust_domain_is_refused() {
    let authority = Authority::new();
    let web = credentials(&authority.issue(&account("web")));
    let forged = credentials(&Authority::new().issue(&account("load")));
    assert!(shake(&forged, &web, &account("web")).await.is_err());

    // The server trusts both authorities, yet the other one's trust domain is not ours.
    let stranger = SpiffeId::new("elsewhere.example", "shop", "load");
    let stranger = credentials(&authority.issue(&stranger));
    assert!(shake(&stranger, &web, &account("web")).await.is_err());
}

#[tokio::test]
async fn other_anchors_are_taken_over_with_certificate_and_key() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = old.anchors() + &new.anchors();
    let web = Credentials::default();
    web.set(Some(credentials(&old.issue(&account("web"))).issued_by(Some("old".to_owned()))));
    let ahead = credentials(&Pems { anchors: both.clone(), ..new.issue(&account("load")) });
    let behind = credentials(&Pems { anchors: both.clone(), ..old.issue(&account("load")) });
    let current = || web.current().unwrap();
    let tell = |anchors: &str, issuer: &str| {
        let renew_within = std::time::Duration::from_secs(7);
        web.trust(Told { anchors: anchors.to_owned(), issuer: issuer.to_owned(), renew_within })
    };
    assert!(shake(&ahead, &current(), &account("web")).await.is_err(), "the new authority is not known yet");
    let (kept, _) = shake(&behind, &current(), &account("web")).await.unwrap();

    tell(&both, "old").unwrap();
    assert_eq!((web.report(true).anchors.len(), web.renewal()), (2, None));
    for peer in [&ahead, &behind] {
        shake(peer, &current(), &account("web")).await.unwrap();
        shake(&current(), peer, &account("load")).await.unwrap();
    }
    tell(&both, "new").unwrap();
    assert_eq!(web.renewal(), Some(std::time::Duration::from_secs(7)));
    assert!(tell("nonsense", "newer").is_err());
    assert_eq!(web.report(true).anchors.len(), 2, "what cannot be used changes nothing");

    let renewed = Pems { anchors: both, ..new.issue(&account("web")) };
    web.set(Some(credentials(&renewed).issued_by(Some("new".to_owned()))));
    assert_eq!(web.renewal(), None);
    // What was begun under the old anchor is not resumed once that is gone.
    let (resumable, _) = shake(&behind, &current(), &account("web")).await.unwrap();
    drop(resumable);
    tell(&new.anchors(), "new").unwrap();
    shake(&ahead, &current(), &account("web")).await.unwrap();
    assert!(shake(&behind, &current(), &account("web")).await.is_err(), "the old authority is retired");
    assert_eq!(kept.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
}

#[tokio::test]
async fn a_certificate_without_exactly_one_identity_is_no_credential() {
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let error = Current::from_pem(&chain, &key.serialize_pem(), &chain).unwrap_err();
    assert!(error.to_string().contains("exactly one SPIFFE URI"), "{error}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let app = App::start().await;
    let web = server(&authority, "web", app.address);
    let mut roots = rustls::RootCertStore::empty();
    for anchor in rustls_pki_types::pem::PemObject::pem_slice_iter(authority.anchors().as_bytes()) {
        roots.add(anchor.unwrap()).unwrap();
    }
    #[derive(Debug)]
    struct Trusting;
    impl rustls::client::danger::ServerCertVerifier for Trusting {
        fn verify_server_cert(
            &self,
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &[rustls_pki_types::CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    }
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(Trusting))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"mesh-h1".to_vec()];
    let tcp = TcpStream::connect(web.inbound).await.unwrap();
    let name = account("web").server_name(None).try_into().unwrap();
    // With TLS 1.3 the client may believe itself connected; its first read tells.
    let refused = match TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await {
        Err(_) => true,
        Ok(mut tls) => {
            let _ = tls.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
            tls.read_u8().await.is_err()
        }
    };
    assert!(refused);
    assert_eq!(app.count(), 0);
    web.expect_metric("mesh_access_decisions_total", &["decision=\"deny\""], 1.0).await;
}

#[tokio::test]
async fn requests_to_or_from_the_wrong_identity_fail_and_say_so() {
    let authority = Authority::new();
    let app = App::start().await;
    let web = server(&authority, "web", app.address);
    let expects_other = client(&authority, vec![endpoint(web.inbound, Some(account("other")))]);
    let foreign = client(&Authority::new(), vec![endpoint(web.inbound, Some(account("web")))]);
    for load in [&expects_other, &foreign] {
        for mut http in [Http::one(load.outbound).await, Http::two(load.outbound).await] {
            let got = http.get("/").await;
            assert_eq!((got.status, got.error()), (503, Some("tls-failed")));
        }
    }
    assert_eq!(app.count(), 0);
}
