//! A socket that sends in one packet what its connection writes over a few turns.
//!
//! hyper's HTTP/2 client writes a request in three pieces, each in another turn of the connection's task: the head, because a stream
//! must have been opened before its body is asked for; the body; and an empty frame that ends it. Sent one by one each is a system call
//! here and a wake-up at the node, together a fifth of what a small search costs. Here they are held until the task was asked
//! twice for more, which it is as soon as the tasks that are ready have had their turn: microseconds, and no timer.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes held at most; what is more is written as it comes.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// How often the task was asked for more since the oldest byte was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turns {
    /// The turn that wrote is not over.
    None,
    /// Who waited for that turn may have added something in the one under way.
    One,
}

/// `S`, corked.
pub(super) struct Corked<S> {
    socket: S,
    held: Vec<u8>,
    turns: Turns,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Corked<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, held: Vec::new(), turns: Turns::None }
    }

    /// Writes what is held.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..sent);
        }
        self.turns = Turns::None;
        Poll::Ready(Ok(()))
    }
}

/// Has the task polled again once the tasks that are ready now had their turn.
fn poll_again_later(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<S> {
    /// HTTP/2 connections read at the beginning of each turn.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            match this.turns {
                Turns::None => {
                    this.turns = Turns::One;
                    poll_again_later(cx);
                }
                // Where the socket takes no more, it wakes the task once it does.
                Turns::One => {
                    if let Poll::Ready(sent) = this.poll_send(cx) {
                        sent?;
                    }
                }
            }
        }
        Pin::new(&mut this.socket).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.held.len() + bytes.len() > HELD_BYTES_MAX {
            ready!(this.poll_send(cx))?;
            if bytes.len() > HELD_BYTES_MAX {
                return Pin::new(&mut this.socket).poll_write(cx, bytes);
            }
        }
        this.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Ready at once: what is held follows by itself.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_empty() {
            return Pin::new(&mut this.socket).poll_flush(cx);
        }
        poll_again_later(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
