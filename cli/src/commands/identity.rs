//! `meshctl identity`: certificates of proxies, issuer and trust anchors, and when they end; [`rotation`] replaces them.
//!
//! Proxies are asked themselves; issuer and anchors are read from the secret, by those who may. No key is read.

use super::diagnostics::{print_rows, read};
use super::rotation;
use crate::args::{Global, Identity, IdentityWhat};
use crate::cluster::Cluster;
use crate::error::{Context, Error, Outcome, Result};
use crate::output::{Printer, RowFormat, words};
use crate::proxies;
use crate::resource::Resource;
use comfy_table::{Cell, Color};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use mesh_api::identity::fingerprint;
use mesh_manifests::install::ISSUER_SECRET;
use mesh_manifests::rotation::{Progress, ROTATION_ANNOTATION};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;

/// A certificate.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    kind: &'static str,
    namespace: String,
    name: String,
    identity: String,
    expires_at: Option<String>,
    expires_in_s: Option<i64>,
    /// Of the certificate of an issuer or anchor.
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    /// Fingerprint of the issuer that signed a proxy's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    /// Fingerprints of the anchors that a proxy trusts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trusts: Vec<String>,
}

/// Prints certificates.
pub async fn run(global: &Global, args: &Identity, printer: &Printer) -> Result<Outcome> {
    if let Some(IdentityWhat::Rotate(args)) = &args.what {
        return rotation::run(global, args, printer).await;
    }
    let cluster = Cluster::connect(global).await?;
    let now = Timestamp::now().as_second();
    let mut rows = match authority(&cluster, now).await {
        Ok((rows, under_way)) => {
            under_way.iter().for_each(|progress| printer.note(&rotation::under_way(progress, now)));
            rows
        }
        Err(error) => {
            printer.note(&format!("issuer and anchors are not shown: {error}"));
            Vec::new()
        }
    };
    let resource = Resource::read(&args.resource)?;
    let scope = cluster.scope(&args.namespaces);
    let mut silent = Vec::new();
    match proxies::of(&cluster, scope.as_deref(), &resource).await {
        Ok(all) => {
            let answers = proxies::ask_all(&cluster, &all, "/config").await;
            for (proxy, answer) in all.into_iter().zip(answers) {
                match answer.and_then(|text| read(&text)) {
                    Ok(config) => {
                        let end = config.identity_expires_at.map(u64::cast_signed);
                        let identity = config.identity.unwrap_or_default();
                        let row = Row::of("proxy", (proxy.namespace, proxy.pod), identity, end, now);
                        rows.push(Row { issuer: config.trust.issuer, trusts: config.trust.anchors, ..row });
                    }
                    Err(error) => silent.push(error),
                }
            }
        }
        // A whole namespace without proxies is no error; a name that is not there is.
        Err(error) if resource.name.is_none() => printer.note(&error.to_string()),
        Err(error) => return Err(error),
    }
    print(&rows, args.output, printer)?;
    silent.iter().for_each(|error| printer.warn(&error.to_string()));
    let expired = rows.iter().any(|row| row.expires_in_s.is_none_or(|left| left <= 0));
    Ok(if expired || !silent.is_empty() { Outcome::Problems } else { Outcome::Well })
}

/// The issuer's and the anchors' certificates, and the rotation under way.
async fn authority(cluster: &Cluster, now: i64) -> Result<(Vec<Row>, Option<Progress>)> {
    let namespace = &cluster.system_namespace;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let secret = secrets.get(ISSUER_SECRET).await.during(|| format!("read secret {ISSUER_SECRET} in {namespace}"))?;
    let annotation = secret.metadata.annotations.and_then(|mut all| all.remove(ROTATION_ANNOTATION));
    let progress = annotation.map(|text| Progress::read(&text)).transpose();
    let progress = progress.during(|| "understand how far the rotation is")?;
    let data = secret.data.unwrap_or_default();
    let field = |key: &str| data.get(key).map(|value| value.0.as_slice()).unwrap_or_default();
    let mut rows = certificates("issuer", namespace, field("tls.crt"), now)?;
    // What follows the issuer in its file only leads to an anchor.
    rows.truncate(1);
    rows.extend(certificates("anchor", namespace, field("ca.crt"), now)?);
    Ok((rows, progress))
}

fn certificates(kind: &'static str, namespace: &str, pem: &[u8], now: i64) -> Result<Vec<Row>> {
    let tried = || format!("understand the {kind}'s certificate");
    CertificateDer::pem_slice_iter(pem)
        .map(|der| {
            let der = der.map_err(|error| Error::new(error.to_string())).during(tried)?;
            let (_, certificate) =
                X509Certificate::from_der(&der).map_err(|error| Error::new(error.to_string())).during(tried)?;
            let subject = certificate.subject().to_string();
            let end = certificate.validity().not_after.timestamp();
            let row = Row::of(kind, (namespace.to_owned(), ISSUER_SECRET.to_owned()), subject, Some(end), now);
            Ok(Row { fingerprint: Some(fingerprint(&der)), ..row })
        })
        .collect()
}

impl Row {
    fn of(
        kind: &'static str,
        (namespace, name): (String, String),
        identity: String,
        end: Option<i64>,
        now: i64,
    ) -> Self {
        let (expires_at, expires_in_s) = (end.map(written), end.map(|end| end - now));
        let (fingerprint, issuer, trusts) = (None, None, Vec::new());
        Self { kind, namespace, name, identity, expires_at, expires_in_s, fingerprint, issuer, trusts }
    }
}

/// A time in seconds since 1970 as RFC 3339 writes it.
pub(super) fn written(at: i64) -> String {
    Timestamp::from_second(at).map_or_else(|_| at.to_string(), |at| at.to_string())
}

fn print(rows: &[Row], output: RowFormat, printer: &Printer) -> Result<()> {
    let mut columns =
        vec![words("KIND"), words("NAMESPACE"), words("NAME"), words("IDENTITY"), words("EXPIRES"), words("LEFT")];
    let wide = output == RowFormat::Wide;
    if wide {
        columns.extend([words("FINGERPRINT"), words("SIGNED BY"), words("TRUSTS")]);
    }
    let cells = |row: &Row| {
        let left = Cell::new(row.expires_in_s.map_or("no certificate".to_owned(), left));
        let mut cells = vec![
            Cell::new(row.kind),
            Cell::new(&row.namespace),
            Cell::new(&row.name),
            Cell::new(if row.identity.is_empty() { "-" } else { &row.identity }),
            Cell::new(row.expires_at.as_deref().unwrap_or("-")),
            match row.expires_in_s {
                Some(s) if s > HOUR_S => left,
                _ => left.fg(Color::Red),
            },
        ];
        if wide {
            let or_dash = |text: Option<&str>| Cell::new(text.filter(|text| !text.is_empty()).unwrap_or("-"));
            cells.push(or_dash(row.fingerprint.as_deref()));
            cells.push(or_dash(row.issuer.as_deref()));
            cells.push(or_dash(Some(&row.trusts.join(","))));
        }
        cells
    };
    print_rows(rows, &columns, cells, output, printer)
}

fn left(seconds: i64) -> String {
    match seconds {
        s if s <= 0 => "expired".to_owned(),
        s if s < HOUR_S => format!("{}m", s / 60),
        s if s < 2 * DAY_S => format!("{}h", s / HOUR_S),
        s => format!("{}d", s / DAY_S),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_listed_with_what_is_left() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "root");
        params.not_after = rcgen::date_time_ymd(2036, 1, 1);
        let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        let end = 2_082_758_400;
        let rows = certificates("anchor", "mesh-system", pem.repeat(2).as_bytes(), end - 3 * DAY_S - 5).unwrap();
        assert_eq!(rows.len(), 2);
        let (printer, told) = Printer::memory();
        print(&rows[..1], RowFormat::Table, &printer).unwrap();
        assert_eq!(
            told().0,
            "KIND     NAMESPACE     NAME                   IDENTITY   EXPIRES                LEFT\n\
             anchor   mesh-system   mesh-identity-issuer   CN=root    2036-01-01T00:00:00Z   3d\n"
        );
        assert!(
            certificates("anchor", "x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0).is_err()
        );
    }

    #[test]
    fn what_is_left_is_told_in_the_unit_that_fits() {
        for (seconds, expect) in [(-1, "expired"), (120, "2m"), (7200, "2h"), (2 * DAY_S, "2d"), (400 * DAY_S, "400d")]
        {
            assert_eq!(left(seconds), expect);
        }
    }
}
