//! placeholder
use std::net::SocketAddr;
use std::time::Duration;
use redmesh_api::control::{ControlReply, ControlRequest, Refusal};
use redmesh_api::tls::Identity;
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Refused(Refusal),
    #[error("placeholder")]
    Other,
}
#[derive(Debug)]
pub struct Client;
impl Client {
    pub async fn connect(_a: SocketAddr, _i: &Identity, _d: Duration) -> Result<Self, ClientError> { Err(ClientError::Other) }
    pub async fn request(&mut self, _r: &ControlRequest) -> Result<ControlReply, ClientError> { Err(ClientError::Other) }
}
