//! How a command reaches an instance and its answer comes back.
//!
//! [`Connections`] is the real way, through the `redis` crate: one multiplexed connection
//! an instance is kept between questions and thrown away at the first error. A question
//! is asked again only where a kept connection turns out to be gone, on a fresh one and
//! once: whoever asks is a reconciler and comes back. Every wait is bounded, also against
//! a server that is stopped (SIGSTOP), which accepts connections and never answers.
//! A simulation puts its own servers behind [`Line`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, Value,
};

use super::admin::{AdminError, AdminOptions, CONNECT_TIMEOUT, RESPONSE_TIMEOUT};

/// Carries commands to instances.
#[async_trait]
pub trait Line: fmt::Debug + Send + Sync {
    /// The answer of `addr` to `command`, which errors call `name`; in bounded time.
    ///
    /// # Errors
    /// [`AdminError::Connect`] or [`AdminError::Command`].
    async fn ask(&self, addr: SocketAddr, name: &'static str, command: &Cmd) -> Result<Value, AdminError>;
}

/// The connections of one agent.
pub struct Connections {
    options: AdminOptions,
    kept: Mutex<BTreeMap<SocketAddr, MultiplexedConnection>>,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("options", &self.options).finish_non_exhaustive()
    }
}

#[async_trait]
impl Line for Connections {
    async fn ask(&self, addr: SocketAddr, name: &'static str, command: &Cmd) -> Result<Value, AdminError> {
        let failed = |source| AdminError::Command { addr, command: name, source };
        let kept = self.kept().get(&addr).cloned();
        if let Some(mut connection) = kept {
            match command.query_async(&mut connection).await {
                // The server may have been restarted since: that is worth a fresh connection.
                Err(error) if error.is_io_error() && !error.is_timeout() => self.forget(addr),
                answer => return answer.inspect_err(|_| self.forget(addr)).map_err(failed),
            }
        }
        let mut connection = self.connection(addr).await?;
        let answer = command.query_async(&mut connection).await;
        answer.inspect_err(|_| self.forget(addr)).map_err(failed)
    }
}

impl Connections {
    /// None yet; they are made when needed.
    pub fn new(options: AdminOptions) -> Self {
        Self { options, kept: Mutex::default() }
    }

    /// How many are kept now.
    pub fn count(&self) -> usize {
        self.kept().len()
    }

    fn forget(&self, addr: SocketAddr) {
        self.kept().remove(&addr);
    }

    async fn connection(&self, addr: SocketAddr) -> Result<MultiplexedConnection, AdminError> {
        if let Some(connection) = self.kept().get(&addr) {
            return Ok(connection.clone());
        }
        let connection = self.connect(addr).await.map_err(|source| AdminError::Connect { addr, source })?;
        let mut kept = self.kept();
        if kept.len() >= self.options.connections_max && !kept.contains_key(&addr) {
            // Any other makes room; one in use lives on in its user's clone.
            kept.pop_first();
        }
        Ok(kept.entry(addr).or_insert(connection).clone())
    }

    async fn connect(&self, addr: SocketAddr) -> Result<MultiplexedConnection, redis::RedisError> {
        let mut settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(login) = &self.options.login {
            settings = settings.set_password(login.password());
            if let Some(user) = login.user() {
                settings = settings.set_username(user);
            }
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        if let Some(tls) = &self.options.tls {
            let dial = async {
                let stream = tls.connect(addr).await?;
                MultiplexedConnection::new_with_config(&settings, stream, config).await
            };
            let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dial).await;
            let (connection, driver) =
                dialled.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))?;
            // Ends with the last clone of the connection.
            tokio::spawn(driver);
            return Ok(connection);
        }
        let to = ConnectionAddr::Tcp(addr.ip().to_string(), addr.port());
        let client = Client::open(to.into_connection_info()?.set_redis_settings(settings))?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<SocketAddr, MultiplexedConnection>> {
        // Never held across an await or a panic that could leave the map half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
