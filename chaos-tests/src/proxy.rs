//! One directed link that can be hurt: a TCP proxy between a process that dials and the one it dials.
//!
//! Each way of a connection has its own [`Flow`]. A silent way *holds* bytes instead of losing them: to the two ends this is a
//! half-open connection, and what was held arrives late once the way is free, as TCP would send it again. A refusing link looks
//! like a machine without the process: connections are reset and new ones refused.
//!
//! Not the same as a cut cable: a connection opened while both ways are silent is still accepted (by the kernel, for the proxy).

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes read at once.
const PIECE_BYTES: usize = 16 * 1024;
/// Pieces on their way in one direction; a full way stops reading, as a full window would.
const PIECES_MAX: usize = 64;
/// Between two attempts to take the port again, should somebody else hold it.
const REBIND_PAUSE: Duration = Duration::from_millis(20);

/// How bytes travel one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// At once.
    #[default]
    Pass,
    /// Not at all: held until the way is free again.
    Silent,
    /// Late and slowly.
    Slow {
        /// Added to every piece.
        delay: Duration,
        /// Bandwidth.
        bytes_per_second: u64,
    },
}

/// Which way of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the process that dialled.
    There,
    /// To it.
    Back,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    there: Flow,
    back: Flow,
    refusing: bool,
    /// Raised to reset the connections that exist.
    resets: u64,
}

impl State {
    fn flow(&self, way: Way) -> Flow {
        match way {
            Way::There => self.there,
            Way::Back => self.back,
        }
    }
}

/// A link. Dropping it closes its port and all its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
}

impl Proxy {
    /// Listens on `port` and leads every connection to `target`, both on loopback.
    pub async fn start(port: u16, target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let (state, seen) = watch::channel(State::default());
        tokio::spawn(serve(listener, port, target, seen));
        Ok(Self { port, state })
    }

    /// Where to dial instead of at the target.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes how bytes travel one way, also of the connections that exist.
    pub fn set(&self, way: Way, flow: Flow) {
        self.state.send_modify(|state| match way {
            Way::There => state.there = flow,
            Way::Back => state.back = flow,
        });
    }

    /// Looks as if no process listened, or as if one did again.
    pub fn set_refusing(&self, refusing: bool) {
        self.state.send_modify(|state| state.refusing = refusing);
    }

    /// Resets the connections that exist.
    pub fn reset(&self) {
        self.state.send_modify(|state| state.resets += 1);
    }
}

/// Accepts until the link is dropped; lets go of the port while the link refuses.
async fn serve(listener: TcpListener, port: u16, target: u16, mut state: watch::Receiver<State>) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        if state.wait_for(|state| !state.refusing).await.is_err() {
            return;
        }
        let mut watched = state.clone();
        let listening = match listener.take() {
            Some(listening) => listening,
            None => match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                Ok(listening) => listening,
                Err(_) => {
                    tokio::time::sleep(REBIND_PAUSE).await;
                    continue;
                }
            },
        };
        loop {
            tokio::select! {
                accepted = listening.accept() => {
                    if let Ok((dialler, _)) = accepted {
                        connections.spawn(carry(dialler, target, state.clone()));
                    }
                }
                Some(_) = connections.join_next() => {}
                refusing = watched.wait_for(|state| state.refusing) => match refusing {
                    Ok(_) => break,
                    Err(_) => return,
                },
            }
        }
    }
}

/// One connection, until both ways are closed or one of them breaks, which breaks the other.
async fn carry(mut dialler: TcpStream, target: u16, state: watch::Receiver<State>) {
    let resets = state.borrow().resets;
    let Ok(mut dialled) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
        reset(&dialler);
        return;
    };
    let _ = (dialler.set_nodelay(true), dialled.set_nodelay(true));
    let is_whole = {
        let (from_dialler, to_dialler) = dialler.split();
        let (from_dialled, to_dialled) = dialled.split();
        let ways = async {
            tokio::try_join!(
                pump(from_dialler, to_dialled, state.clone(), Way::There),
                pump(from_dialled, to_dialler, state.clone(), Way::Back),
            )
        };
        let mut watched = state.clone();
        tokio::select! {
            ended = ways => ended.is_ok(),
            _ = watched.wait_for(|state| state.refusing || state.resets != resets) => false,
        }
    };
    if !is_whole {
        reset(&dialler);
        reset(&dialled);
    }
}

/// Makes the close that follows a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// What travels one way: bytes, none of them for the end, or the error the sender's side ended with.
type Piece = (Instant, io::Result<Vec<u8>>);

async fn pump(from: ReadHalf<'_>, to: WriteHalf<'_>, state: watch::Receiver<State>, way: Way) -> io::Result<()> {
    let (pieces, queue) = mpsc::channel(PIECES_MAX);
    let ((), ended) = tokio::join!(read(from, pieces, state.clone(), way), write(to, queue, state, way));
    ended
}

/// Takes pieces in, each with the time it is due. Ends with the connection, or once nobody takes them on.
async fn read(mut from: ReadHalf<'_>, pieces: mpsc::Sender<Piece>, state: watch::Receiver<State>, way: Way) {
    loop {
        let mut bytes = vec![0; PIECE_BYTES];
        let got = tokio::select! {
            got = from.read(&mut bytes) => got,
            () = pieces.closed() => return,
        };
        let is_last = matches!(got, Ok(0) | Err(_));
        let delay = match state.borrow().flow(way) {
            Flow::Slow { delay, .. } => delay,
            Flow::Pass | Flow::Silent => Duration::ZERO,
        };
        let piece = got.map(|count| {
            bytes.truncate(count);
            bytes
        });
        if pieces.send((Instant::now() + delay, piece)).await.is_err() || is_last {
            return;
        }
    }
}

/// Passes pieces on when they are due and the way is free. Errors: either side broke.
async fn write(
    mut to: WriteHalf<'_>,
    mut queue: mpsc::Receiver<Piece>,
    mut state: watch::Receiver<State>,
    way: Way,
) -> io::Result<()> {
    while let Some((due, piece)) = queue.recv().await {
        tokio::time::sleep_until(due).await;
        let flow = match state.wait_for(|state| state.flow(way) != Flow::Silent).await {
            Ok(state) => state.flow(way),
            Err(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        let bytes = piece?;
        if bytes.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(&bytes).await?;
        if let Flow::Slow { bytes_per_second, .. } = flow {
            tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / bytes_per_second.max(1) as f64)).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::free_ports;

    /// A server that sends back what it gets, behind a link.
    async fn echo() -> (Proxy, JoinSet<()>) {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let target = server.local_addr().expect("bound").port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = server.accept().await {
                connections.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        let port = free_ports(1).expect("a port")[0];
        (Proxy::start(port, target).await.expect("starts"), tasks)
    }

    async fn dial(proxy: &Proxy) -> io::Result<TcpStream> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await
    }

    async fn ask(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        answer(stream, text.len()).await
    }

    async fn answer(stream: &mut TcpStream, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    }

    const SHORT: Duration = Duration::from_millis(150);

    #[tokio::test]
    async fn passes_bytes_and_the_end() {
        let (proxy, _server) = echo().await;
        let mut stream = dial(&proxy).await.expect("connects");
        assert_eq!(ask(&mut stream, b"hello").await.expect("echo"), b"hello");
        let large = vec![7; 300_000];
        let (mut from, mut to) = stream.split();
        let (sent, got) = tokio::join!(
            async {
                to.write_all(&large).await?;
                to.shutdown().await
            },
            async {
                let mut all = Vec::new();
                from.read_to_end(&mut all).await.map(|_| all)
            },
        );
        sent.expect("sends");
        assert_eq!(got.expect("reads to the end"), large);
    }

    #[tokio::test]
    async fn each_way_is_silent_on_its_own_and_what_was_held_arrives() {
        let (proxy, _server) = echo().await;
        for way in [Way::There, Way::Back] {
            let mut stream = dial(&proxy).await.expect("connects");
            ask(&mut stream, b"a").await.expect("echo");
            proxy.set(way, Flow::Silent);
            stream.write_all(b"b").await.expect("goes into the void");
            assert!(tokio::time::timeout(SHORT, answer(&mut stream, 1)).await.is_err(), "{way:?} is silent");
            proxy.set(way, Flow::Pass);
            assert_eq!(answer(&mut stream, 1).await.expect("late, not lost"), b"b");
        }
    }

    #[tokio::test]
    async fn a_refusing_link_resets_refuses_and_comes_back() {
        let (proxy, _server) = echo().await;
        let mut stream = dial(&proxy).await.expect("connects");
        ask(&mut stream, b"a").await.expect("echo");
        proxy.set_refusing(true);
        assert_eq!(answer(&mut stream, 1).await.expect_err("was reset").kind(), io::ErrorKind::ConnectionReset);
        let refused = crate::wait::until("refusal", Duration::from_secs(5), || async {
            match dial(&proxy).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                other => anyhow::bail!("{other:?}"),
            }
        });
        refused.await.expect("refuses");
        proxy.set_refusing(false);
        let back = crate::wait::until("the link", Duration::from_secs(5), || async { Ok(dial(&proxy).await?) });
        assert_eq!(ask(&mut back.await.expect("listens"), b"c").await.expect("echo"), b"c");
    }

    #[tokio::test]
    async fn a_slow_way_takes_its_time_and_a_reset_spares_new_connections() {
        let (proxy, _server) = echo().await;
        let mut stream = dial(&proxy).await.expect("connects");
        proxy.set(Way::There, Flow::Slow { delay: SHORT, bytes_per_second: 1_000_000 });
        let began = Instant::now();
        ask(&mut stream, b"a").await.expect("echo");
        assert!(began.elapsed() >= SHORT);
        proxy.reset();
        assert!(answer(&mut stream, 1).await.is_err(), "was reset");
        ask(&mut dial(&proxy).await.expect("connects"), b"b").await.expect("echo");
    }

    #[tokio::test]
    async fn nothing_behind_the_link_is_a_reset() {
        let ports = free_ports(2).expect("ports");
        let proxy = Proxy::start(ports[0], ports[1]).await.expect("starts");
        let mut stream = dial(&proxy).await.expect("the proxy listens");
        assert!(answer(&mut stream, 1).await.is_err());
    }
}
