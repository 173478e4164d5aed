//! What the machine's loopback can do at best: requests and replies of fixed sizes between two loops on non-blocking sockets, with
//! nothing in them. `cargo xtask bench` sets an initiator's figures beside these.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use nvmf_tests::program;
use rustix::net::{RecvFlags, recv};

const HELP: &str = "\
wire_limit serve REQUEST REPLY                        answers each REQUEST bytes with REPLY bytes; prints its address
wire_limit drive ADDRESS REQUEST REPLY DEPTH SECONDS  keeps DEPTH requests outstanding; prints what came of it as JSON

Both poll without sleeping; pin each to a core of its own. Sizes are bytes, 1 to 16777216; the depth is 1 to 4096.
";

/// What one receive takes at most, as an initiator's does.
const RECEIVE: usize = 256 << 10;
/// Requests of this size are not copied by who answers them.
const DROPPED: usize = 32 << 10;
/// Largest message.
const MAX_MESSAGE: usize = 16 << 20;
/// Seconds before measuring begins.
const WARM_UP: Duration = Duration::from_millis(200);
/// So long the peer may send nothing.
const SILENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    program::by_words("wire_limit", HELP, |words| match words {
        ["serve", request, reply] => Some(serve(request, reply)),
        ["drive", address, request, reply, depth, seconds] => {
            Some(drive(address, request, reply, depth, seconds))
        }
        _ => None,
    })
}

fn size(text: &str) -> Result<usize> {
    let size = text.parse().with_context(|| format!("{text}: not a number"))?;
    ensure!((1..=MAX_MESSAGE).contains(&size), "{size} bytes: not within 1..={MAX_MESSAGE}");
    Ok(size)
}

/// One end of the exchange: messages of one size come in, messages of another go out.
struct End {
    stream: TcpStream,
    /// Bytes of an incoming message.
    incoming: usize,
    /// Bytes of the incoming message that have arrived.
    arrived: usize,
    /// Bytes that are still to be sent.
    unsent: usize,
    from: Vec<u8>,
    into: Vec<u8>,
    /// What comes is taken off the socket and not copied.
    drops: bool,
}

impl End {
    fn new(stream: TcpStream, incoming: usize, outgoing: usize) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let from = vec![0x5a; outgoing.max(RECEIVE)];
        Ok(Self { stream, incoming, arrived: 0, unsent: 0, from, into: vec![0; RECEIVE], drops: false })
    }

    /// Sends what the socket takes.
    fn send(&mut self) -> Result<()> {
        while self.unsent > 0 {
            let length = self.unsent.min(self.from.len());
            match self.stream.write(&self.from[..length]) {
                Ok(sent) => self.unsent -= sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("sending"),
            }
        }
        Ok(())
    }

    /// Receives once. Returns how many messages are complete with that; `None` when the peer has closed.
    fn receive(&mut self) -> Result<Option<usize>> {
        let received = match self.drops {
            true => recv(&self.stream, &mut *self.into, RecvFlags::TRUNC).map(|(_, n)| n).map_err(Into::into),
            false => self.stream.read(&mut self.into),
        };
        match received {
            Ok(0) => Ok(None),
            Ok(received) => {
                let all = self.arrived + received;
                self.arrived = all % self.incoming;
                Ok(Some(all / self.incoming))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Some(0)),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error).context("receiving"),
        }
    }
}

fn serve(request: &str, reply: &str) -> Result<()> {
    let (request, reply) = (size(request)?, size(reply)?);
    let listener = TcpListener::bind("127.0.0.1:0").context("listening")?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().context("accepting")?;
        let mut end = End::new(stream, request, reply)?;
        // As our target does with what its null namespace discards (TCP on Linux, tcp(7)).
        end.drops = request >= DROPPED;
        while let Some(requests) = end.receive()? {
            end.unsent += requests * reply;
            if end.send().is_err() {
                // The other side has what it wanted.
                break;
            }
        }
    }
}

fn drive(address: &str, request: &str, reply: &str, depth: &str, seconds: &str) -> Result<()> {
    let (request, reply, depth) = (size(request)?, size(reply)?, size(depth)?);
    ensure!(depth <= 4096, "a depth of {depth} is more than 4096");
    let seconds: f64 = seconds.parse().with_context(|| format!("{seconds}: not a number"))?;
    ensure!((0.1..=3600.0).contains(&seconds), "{seconds} seconds: not within 0.1..=3600");
    let time = Duration::from_secs_f64(seconds);
    let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    let mut end = End::new(stream, reply, request)?;

    let mut latency = Histogram::<u64>::new_with_bounds(1, 100_000_000_000, 3)?;
    // Replies come in the order of their requests: when each batch went, and how many were in it.
    let mut batches = VecDeque::with_capacity(depth);
    let (mut replies, start) = (0u64, Instant::now());
    batches.push_back((start, depth));
    end.unsent = request * depth;
    let mut heard = start;
    loop {
        end.send()?;
        let Some(mut complete) = end.receive()? else { bail!("{address} has closed the connection") };
        if complete == 0 {
            if heard.elapsed() > SILENCE {
                bail!("{address} has not answered for {SILENCE:?}");
            }
            continue;
        }
        let now = Instant::now();
        heard = now;
        let measured = now.duration_since(start).saturating_sub(WARM_UP);
        let measuring = !measured.is_zero();
        if measured > time {
            break;
        }
        end.unsent += request * complete;
        batches.push_back((now, complete));
        if measuring {
            replies += complete as u64;
        }
        while let Some((sent, count)) = batches.front_mut()
            && complete > 0
        {
            let answered = complete.min(*count);
            if measuring {
                latency.saturating_record_n(now.duration_since(*sent).as_nanos() as u64, answered as u64);
            }
            complete -= answered;
            *count -= answered;
            if *count == 0 {
                batches.pop_front();
            }
        }
    }
    let us = |nanoseconds: f64| (nanoseconds / 10.0).round() / 100.0;
    println!(
        "{{\"iops\": {:.0}, \"latency_us\": {{\"mean\": {}, \"p50\": {}, \"p99\": {}}}}}",
        replies as f64 / seconds,
        us(latency.mean()),
        us(latency.value_at_quantile(0.5) as f64),
        us(latency.value_at_quantile(0.99) as f64),
    );
    Ok(())
}
