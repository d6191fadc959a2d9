//! Several gRPC services on one listener.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tower::{Service, ServiceExt};

use super::RequestService;

/// Chooses the service by the first segment of the path, which in gRPC is the service's full name.
///
/// A path that names no service is answered with `UNIMPLEMENTED`. The look-up is linear: a listener has a handful.
#[derive(Clone, Default)]
pub struct Services {
    named: Vec<Named>,
}

#[derive(Clone)]
struct Named {
    name: &'static str,
    service: Arc<dyn Dispatch>,
}

/// A service behind a pointer.
trait Dispatch: Send + Sync {
    fn dispatch(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible>;
}

impl<S: RequestService + Sync> Dispatch for S {
    fn dispatch(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible> {
        Box::pin(self.clone().oneshot(request))
    }
}

impl Services {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a generated server. The first of two with the same name answers.
    #[must_use]
    pub fn with<S: RequestService + NamedService + Sync>(mut self, service: S) -> Self {
        self.named.push(Named {
            name: S::NAME,
            service: Arc::new(service),
        });
        self
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let wanted = request
            .uri()
            .path()
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'));
        let found = wanted.and_then(|(name, _method)| self.named.iter().find(|named| named.name == name));
        match found {
            Some(named) => named.service.dispatch(request),
            None => Box::pin(async { Ok(Status::unimplemented("this port has no such service").into_http()) }),
        }
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.named.iter().map(|named| named.name))
            .finish()
    }
}
