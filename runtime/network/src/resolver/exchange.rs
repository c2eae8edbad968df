//! Asking nameservers, over UDP, and over TCP where an answer does not fit.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hickory_net::NetError;
use hickory_net::proto::op::{DnsRequest, DnsRequestOptions, Query, ResponseCode};
use hickory_net::proto::rr::{Name, RecordType};
use hickory_net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use hickory_net::tcp::TcpClientStream;
use hickory_net::udp::UdpClientStream;
use hickory_net::xfer::{DnsHandle as _, DnsRequestSender as _, FirstAnswer as _};
use resolv_conf::Config;
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::address;

/// glibc's MAXNS.
const MAX_SERVERS: usize = 3;

/// Why a nameserver was of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nothing came in this time.
    #[error("did not answer within {:.1} s", .0.as_secs_f32())]
    Silent(Duration),
    /// It cannot be reached.
    #[error("cannot be reached ({0})")]
    Unreachable(Arc<io::Error>),
    /// It said that it cannot tell.
    #[error("failed ({0})")]
    Code(ResponseCode),
    /// It said what cannot be read.
    #[error("sent what is no answer ({0})")]
    Malformed(NetError),
}

/// Whom to ask, and how. The bounds of numbers are glibc's.
#[derive(Debug)]
pub(super) struct Nameservers {
    pub(super) addresses: Vec<SocketAddr>,
    /// What one try may take.
    timeout: Duration,
    /// How often each is asked.
    attempts: usize,
    /// Whether TCP is spoken from the start.
    tcp: bool,
    /// Whether IPv6 addresses are asked for.
    aaaa: bool,
    options: DnsRequestOptions,
}

impl Nameservers {
    pub(super) fn new(conf: &Config, port: u16) -> Self {
        let listed = conf.nameservers.iter().filter_map(|ip| address(&ip.to_string(), port));
        let mut addresses: Vec<_> = listed.take(MAX_SERVERS).collect();
        if addresses.is_empty() {
            addresses.push((Ipv4Addr::LOCALHOST, port).into());
        }
        let mut options = DnsRequestOptions::default();
        options.use_edns = conf.edns0;
        Self {
            addresses,
            timeout: Duration::from_secs(conf.timeout.clamp(1, 30).into()),
            attempts: usize::try_from(conf.attempts).unwrap_or(usize::MAX).clamp(1, 5),
            tcp: conf.use_vc,
            aaaa: !conf.no_aaaa,
            options,
        }
    }

    /// The addresses of a whole name: of the first server that knows about it. None means that it has none.
    ///
    /// # Errors
    /// What each server did in the end, when none knew.
    pub(super) async fn ask(&self, name: &Name, until: Instant) -> Result<Vec<IpAddr>, Vec<(SocketAddr, Failure)>> {
        let mut failures: Vec<(SocketAddr, Failure)> = Vec::new();
        let tries = self.addresses.len() * self.attempts;
        for (number, &server) in self.addresses.iter().cycle().take(tries).enumerate() {
            let left = until.saturating_duration_since(Instant::now());
            // One server that is gone must not take the time of the others.
            let share = left / u32::try_from(tries - number).unwrap_or(u32::MAX);
            match self.exchange(server, name, self.timeout.min(share)).await {
                Ok(found) => return Ok(found),
                Err(failure) => {
                    failures.retain(|(failed, _)| *failed != server);
                    failures.push((server, failure));
                }
            }
        }
        Err(failures)
    }

    /// Asks one server once, for addresses of both kinds at the same time.
    async fn exchange(&self, server: SocketAddr, name: &Name, time: Duration) -> Result<Vec<IpAddr>, Failure> {
        let a = self.query(server, Query::query(name.clone(), RecordType::A), time);
        if !self.aaaa {
            return a.await;
        }
        match tokio::join!(self.query(server, Query::query(name.clone(), RecordType::AAAA), time), a) {
            (Ok(aaaa), Ok(a)) => Ok([aaaa, a].concat()),
            // Addresses of one kind are enough: some servers never answer about the other.
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => Ok(found),
            (Err(failure), _) | (_, Err(failure)) => Err(failure),
        }
    }

    async fn query(&self, server: SocketAddr, query: Query, time: Duration) -> Result<Vec<IpAddr>, Failure> {
        let request = DnsRequest::from_query(query, self.options);
        // The task that a connection has ends with it.
        let provider = Provider::default();
        let talk = async {
            if !self.tcp {
                // The kernel knows which ports are reserved, and it gives none that a pod may be about to publish.
                let udp = UdpClientStream::builder(server, provider.clone()).with_os_port_selection(true);
                let answer = udp.with_timeout(Some(time)).build().send_message(request.clone()).first_answer().await?;
                if !answer.truncation {
                    return Ok(answer);
                }
            }
            let tcp = TcpClientStream::exchange(server, None, time, None, provider.clone()).await?;
            tcp.send(request).first_answer().await
        };
        let answer = match timeout(time, talk).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(NetError::Timeout)) | Err(_) => return Err(Failure::Silent(time)),
            Ok(Err(NetError::Io(error))) => return Err(Failure::Unreachable(error)),
            Ok(Err(error)) => return Err(Failure::Malformed(error)),
        };
        match answer.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => {
                Ok(answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect())
            }
            code => Err(Failure::Code(code)),
        }
    }
}

/// tokio, with UDP sockets that are connected: the kernel tells only those that nobody listens at the other
/// end, and keeps others' datagrams away.
#[derive(Clone, Default)]
struct Provider(TokioRuntimeProvider);

impl RuntimeProvider for Provider {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Connected;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        time: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.0.connect_tcp(server, local, time)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            Ok(Connected(socket))
        })
    }
}

struct Connected(UdpSocket);

#[async_trait]
impl DnsUdpSocket for Connected {
    type Time = TokioTime;

    async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        // For an error too: tokio's own way to receive sleeps through it (epoll says EPOLLERR without EPOLLIN).
        let receive = || Ok(rustix::net::recv(&self.0, &mut *buf, RecvFlags::empty())?.0);
        let length = self.0.async_io(Interest::READABLE | Interest::ERROR, receive).await?;
        Ok((length, self.0.peer_addr()?))
    }

    fn poll_recv_from(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        DnsUdpSocket::poll_recv_from(&self.0, cx, buf)
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, buf: &[u8], _peer: SocketAddr) -> Poll<io::Result<usize>> {
        self.0.poll_send(cx, buf)
    }
}
