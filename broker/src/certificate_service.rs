//! Certificates on the control plane's port: which ones are in use, and new ones for clients.

use std::sync::Arc;

use lockbox_rpc::api::control::certificate_service_server::{CertificateService, CertificateServiceServer};
use lockbox_rpc::api::control::{
    ListCertificatesRequest, ListCertificatesResponse, RenewCertificateRequest, RenewCertificateResponse,
};
use lockbox_rpc::transport::PeerIdentity;
use tonic::{Request, Response, Status};

use crate::broker::Broker;
use crate::clock::{now_ms, rfc3339};
use crate::control_service::requester;
use crate::pki::{Certificate, PkiError};
use crate::port_certificates::PortCertificates;

/// Answers clients.
pub struct CertificatePort {
    broker: Arc<Broker>,
    certificates: Arc<PortCertificates>,
}

/// For the control plane's port.
pub fn service(broker: Arc<Broker>, certificates: Arc<PortCertificates>) -> CertificateServiceServer<CertificatePort> {
    CertificateServiceServer::new(CertificatePort { broker, certificates })
}

#[tonic::async_trait]
impl CertificateService for CertificatePort {
    async fn list_certificates(
        &self,
        request: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        requester(&self.broker, &request)?;
        let in_use = self.certificates.in_use();
        Ok(Response::new(ListCertificatesResponse {
            server_chain: in_use.server_chain,
            client_ca: in_use.client_ca,
            trust_bundle: in_use.trust_bundle,
            renews_clients: self.certificates.can_issue(),
        }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let requester = requester(&self.broker, &request)?;
        // `requester` has read this certificate already.
        let old = match request.extensions().get() {
            Some(PeerIdentity::Certificate(der)) => Certificate::from_der(der),
            _ => None,
        };
        let old = old.ok_or_else(|| Status::unauthenticated("the client certificate can't be read"))?;
        let now_ms = now_ms();
        // It may have expired since the connection was made.
        if old.is_expired(now_ms) {
            return Err(Status::unauthenticated("the client certificate has expired"));
        }
        let authority = self.certificates.authority().map_err(|error| refused(&error))?;
        let authority = authority.ok_or_else(|| {
            Status::failed_precondition(
                "this broker has no CA key (control.ca_key in broker.toml); renew the certificate where it was issued",
            )
        })?;
        let certificate = authority
            .renew_for(&old, &request.get_ref().signing_request, now_ms)
            .map_err(|error| match error {
                PkiError::Make(_) => Status::invalid_argument("signing_request: must be a signed PKCS#10 request, DER"),
                error => refused(&error),
            })?;
        tracing::info!(
            requester,
            expired = rfc3339(old.not_after_ms),
            "a client's certificate was renewed"
        );
        Ok(Response::new(RenewCertificateResponse {
            certificate,
            trust_bundle: self.certificates.in_use().trust_bundle,
        }))
    }
}

/// What is wrong with this machine's files is for its log.
fn refused(error: &PkiError) -> Status {
    tracing::error!(%error, "a client's certificate can't be renewed");
    Status::unavailable("the broker's CA can't be used; its log says why")
}
