//! How much of an agent operators may have at once: connections, by all and by name,
//! and control requests, by all and by connection.
//!
//! Operators are trusted, their scripts may run wild. Whoever goes beyond a bound is told
//! so at once; waiting in a line that nobody sees would end in a timeout instead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use redmesh_api::codec::{self, CodecError};
use redmesh_api::control::{ControlReply, Refusal, RefusalKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of operators.
pub const CONNECTIONS_MAX: usize = 128;

/// Connections of operators with one name.
pub const CONNECTIONS_PER_NAME_MAX: usize = 32;

/// Control requests in service, until their answers are sent.
pub const REQUESTS_MAX: usize = 64;

/// Control requests in service that came on one connection.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 16;

#[derive(Debug, Default)]
struct Connected {
    all: usize,
    by_name: HashMap<String, usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Operators {
    connected: Arc<Mutex<Connected>>,
    requests: Arc<Semaphore>,
}

impl Default for Operators {
    fn default() -> Self {
        Self { connected: Arc::default(), requests: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }
}

/// An operator's connection, counted until it is dropped.
#[derive(Debug)]
pub struct Seat {
    connected: Arc<Mutex<Connected>>,
    name: String,
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

/// A control request in service, counted until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
}

impl Operators {
    /// Takes a connection of the operator `name` in, or says why not.
    pub fn seat(&self, name: &str) -> Result<Seat, String> {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if connected.all >= CONNECTIONS_MAX {
            return Err(format!(
                "busy: {CONNECTIONS_MAX} connections of operators are open already; try again in a moment, or ask \
                 another agent"
            ));
        }
        let own = connected.by_name.get(name).copied().unwrap_or(0);
        if own >= CONNECTIONS_PER_NAME_MAX {
            return Err(format!(
                "busy: {CONNECTIONS_PER_NAME_MAX} connections of operator {name} are open already; end some, or ask \
                 another agent"
            ));
        }
        connected.all += 1;
        connected.by_name.insert(name.to_owned(), own + 1);
        Ok(Seat {
            connected: self.connected.clone(),
            name: name.to_owned(),
            all: self.requests.clone(),
            own: Arc::new(Semaphore::new(REQUESTS_PER_CONNECTION_MAX)),
        })
    }
}

impl Seat {
    /// Leave to serve one more request; else the reply that says why not.
    pub fn turn(&self) -> Result<Turn, Result<Vec<u8>, CodecError>> {
        let busy = |of: &str, max: usize| {
            let message = format!(
                "busy: this agent serves {max} requests{of} already, nothing was done; try again in a moment, or ask \
                 another agent"
            );
            codec::encode(&ControlReply::Refused(Refusal { kind: RefusalKind::Busy, message }))
        };
        let own = self.own.clone().try_acquire_owned();
        let own = own.map_err(|_| busy(" of this connection", REQUESTS_PER_CONNECTION_MAX))?;
        let all = self.all.clone().try_acquire_owned().map_err(|_| busy("", REQUESTS_MAX))?;
        Ok(Turn { _all: all, _own: own })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        connected.all -= 1;
        if let Some(own) = connected.by_name.get_mut(&self.name) {
            *own -= 1;
            if *own == 0 {
                connected.by_name.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_by_name_and_in_all_and_come_free_again() {
        let operators = Operators::default();
        let mut seats: Vec<_> = (0..CONNECTIONS_PER_NAME_MAX).map(|_| operators.seat("a").unwrap()).collect();
        assert!(operators.seat("a").unwrap_err().contains("operator a"));
        for n in CONNECTIONS_PER_NAME_MAX..CONNECTIONS_MAX {
            seats.push(operators.seat(&format!("n{n}")).unwrap());
        }
        assert!(operators.seat("z").unwrap_err().contains("128 connections"));
        seats.clear();
        operators.seat("a").unwrap();
        assert!(operators.connected.lock().unwrap().by_name.is_empty());
    }

    #[test]
    fn requests_beyond_the_bounds_are_told_that_the_agent_is_busy() {
        let operators = Operators::default();
        let words = |seat: &Seat| {
            let Err(reply) = seat.turn() else { return String::new() };
            match codec::decode(&reply.unwrap()).unwrap() {
                ControlReply::Refused(Refusal { kind: RefusalKind::Busy, message }) => message,
                other => panic!("{other:?}"),
            }
        };
        let seats: Vec<_> = (0..5).map(|n| operators.seat(&format!("n{n}")).unwrap()).collect();
        let mut turns = Vec::new();
        for seat in &seats[..4] {
            turns.extend((0..REQUESTS_PER_CONNECTION_MAX).map(|_| seat.turn().unwrap()));
            assert!(words(seat).contains("16 requests of this connection"));
        }
        assert!(words(&seats[4]).contains("64 requests already"));
        turns.pop();
        assert_eq!(words(&seats[4]), "");
    }
}
