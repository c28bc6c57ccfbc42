//! The network between simulated hosts: turmoil's, with losses, copies and cuts of our
//! own at the sending socket, all by dice that the seed has cast.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use turmoil::net::UdpSocket;

/// Address of a simulated host.
pub fn ip(host: usize) -> IpAddr {
    Ipv4Addr::new(10, 7, (host / 250) as u8, (host % 250 + 1) as u8).into()
}

/// The host at an address that [`ip`] made.
pub fn host_at(ip: IpAddr) -> Option<usize> {
    let IpAddr::V4(ip) = ip else { return None };
    let [10, 7, block, number] = ip.octets() else { return None };
    (usize::from(block) * 250 + usize::from(number)).checked_sub(1)
}

/// What is wrong with the network for a while.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// Nothing gets from one of `from` to one of `to`.
    Cut {
        /// Senders.
        from: Vec<usize>,
        /// Receivers.
        to: Vec<usize>,
    },
    /// Nothing passes between these and all others.
    Split(Vec<usize>),
    /// So many of 100 packets are lost.
    Loss(u8),
    /// So many of 100 packets arrive twice.
    Copies(u8),
}

/// What becomes of packets; shared by all sockets and the driver.
#[derive(Debug)]
pub struct Net {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    troubles: BTreeMap<u64, Trouble>,
    rng: SmallRng,
    packets: u64,
    bytes: u64,
}

impl Net {
    /// A healthy network.
    pub fn new(seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self { state: Mutex::new(State { troubles: BTreeMap::new(), rng, packets: 0, bytes: 0 }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a trouble under a number of the caller's.
    pub fn begin(&self, number: u64, trouble: Trouble) {
        self.state().troubles.insert(number, trouble);
    }

    /// Ends it.
    pub fn end(&self, number: u64) {
        self.state().troubles.remove(&number);
    }

    /// Ends all troubles.
    pub fn heal(&self) {
        self.state().troubles.clear();
    }

    /// Packets and bytes that were sent so far, those that were lost included.
    pub fn sent(&self) -> (u64, u64) {
        let state = self.state();
        (state.packets, state.bytes)
    }

    /// How often a packet arrives that is sent now.
    fn copies(&self, from: usize, to: SocketAddr, bytes: usize) -> u8 {
        let mut state = self.state();
        let state = &mut *state;
        state.packets += 1;
        state.bytes += bytes as u64;
        let mut copies = 1;
        let Some(to) = host_at(to.ip()) else { return 0 };
        for trouble in state.troubles.values() {
            match trouble {
                Trouble::Cut { from: senders, to: receivers } => {
                    if senders.contains(&from) && receivers.contains(&to) {
                        return 0;
                    }
                }
                Trouble::Split(group) => {
                    if group.contains(&from) != group.contains(&to) {
                        return 0;
                    }
                }
                Trouble::Loss(percent) => {
                    if state.rng.random_range(0..100) < *percent {
                        return 0;
                    }
                }
                Trouble::Copies(percent) => {
                    if state.rng.random_range(0..100) < *percent {
                        copies = 2;
                    }
                }
            }
        }
        copies
    }
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A host's UDP socket as quinn wants it.
pub struct SimSocket {
    io: Arc<UdpSocket>,
    host: usize,
    net: Arc<Net>,
    waiting: Mutex<Option<Readable>>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSocket").field("host", &self.host).finish_non_exhaustive()
    }
}

impl SimSocket {
    /// Binds `port` on the host that this is called on.
    pub async fn bind(host: usize, port: u16, net: Arc<Net>) -> io::Result<Arc<Self>> {
        let io = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?);
        Ok(Arc::new(Self { io, host, net, waiting: Mutex::new(None) }))
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        for _ in 0..self.net.copies(self.host, transmit.destination, transmit.contents.len()) {
            match self.io.try_send_to(transmit.contents, transmit.destination) {
                // Nobody is there: a network says nothing.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                sent => drop(sent?),
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(readable) = waiting.as_mut() {
                ready!(readable.as_mut().poll(cx))?;
                *waiting = None;
            }
            match self.io.try_recv_from(&mut bufs[0]) {
                Ok((len, addr)) => {
                    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let io = self.io.clone();
                    *waiting = Some(Box::pin(async move { io.readable().await }));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
