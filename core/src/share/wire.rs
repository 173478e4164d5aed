//! The messages between a primary and its secondaries: one packet each, a header, a fixed part, and what is left is text or data.
//!
//! Nothing here does I/O. Numbers are little endian. Whatever arrives is hostile until [`Request::decode`] or [`Reply::decode`] has
//! accepted it: every length is checked, and nothing is allocated but the data that came.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::spec::{Sqe, Status};

/// Version of the protocol; both sides must have the same.
pub const VERSION: u16 = 2;
/// First word of a connection.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NVMS");
/// Most bytes of data of an admin command.
pub const MAX_DATA: usize = 128 << 10;
/// Most bytes of a text: an error, a transport identifier.
pub const MAX_TEXT: usize = 2048;
/// Most bytes of what a transport says about a function.
pub const MAX_FUNCTION: usize = 16 << 10;
/// Most bytes of a packet.
pub const MAX_PACKET: usize = MAX_DATA + 256;
/// Most descriptors that come with a packet.
pub const MAX_FDS: usize = 4;

/// Why a packet is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// It has fewer bytes than every message.
    #[error("a packet of {0} bytes, too short for a header")]
    Header(usize),
    /// There is no such message.
    #[error("a message of kind {0}, which this version does not have")]
    Kind(u16),
    /// Its length is not one that a message of its kind has.
    #[error("a message of kind {kind} with {len} bytes")]
    Length {
        /// What it claims to be.
        kind: u16,
        /// Bytes behind the header.
        len: usize,
    },
    /// Something that is no UTF-8, or a value that has no meaning.
    #[error("a message of kind {0} with a value that means nothing")]
    Value(u16),
    /// It does not begin as this protocol does.
    #[error("something else than this protocol")]
    Magic,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    kind: U16,
    reserved: U16,
    reserved4: U32,
    tag: U64,
}

const HEADER: usize = size_of::<Header>();

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct AdminHead {
    sqe: [u8; 64],
    data_in: U32,
    timeout_ms: U32,
}

/// What a primary says about itself, and a process about who it is.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`VERSION`].
    pub version: U16,
    /// Zero.
    pub reserved: U16,
    /// Process identifier of who says it.
    pub pid: U32,
}

impl Hello {
    /// This process's.
    #[must_use]
    pub fn ours() -> Self {
        Self {
            magic: U32::new(MAGIC),
            version: U16::new(VERSION),
            reserved: U16::new(0),
            pid: U32::new(std::process::id()),
        }
    }
}

/// How a shared controller is; the fixed part of [`Reply::Controller`], [`Reply::Attached`] and [`Reply::Up`].
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug, Default,
)]
#[repr(C)]
pub struct Facts {
    /// The primary's number of it.
    pub id: U32,
    /// Controller identifier.
    pub cntlid: U16,
    /// [`Facts::READY`], [`Facts::HEADER_DIGEST`], [`Facts::DATA_DIGEST`], [`Facts::MEMORY`].
    pub flags: U16,
    /// CAP.
    pub cap: U64,
    /// VS.
    pub vs: U32,
    /// Zero.
    pub reserved: U32,
    /// Counts its associations; a queue belongs to one.
    pub association: U64,
    /// Host identifier it is connected with.
    pub hostid: [u8; 16],
}

impl Facts {
    /// It can be used.
    pub const READY: u16 = 1;
    /// Its connections ask for header digests.
    pub const HEADER_DIGEST: u16 = 1 << 2;
    /// Its connections ask for data digests.
    pub const DATA_DIGEST: u16 = 1 << 3;
    /// Its I/O queues are in memory that the primary maps for it.
    pub const MEMORY: u16 = 1 << 4;

    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags.get() & flag != 0
    }
}

/// A process of an instance; the fixed part of [`Reply::Process`].
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug, Default,
)]
#[repr(C)]
pub struct ProcessFacts {
    /// Process identifier.
    pub pid: U32,
    /// Whether it is the primary.
    pub primary: U16,
    /// Controllers it has attached.
    pub controllers: U16,
    /// I/O queues leased to it.
    pub queues: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct ControllerHead {
    facts: Facts,
    hostnqn: U16,
    reserved: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct MappedHead {
    iova: U64,
    memory: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Done {
    status: U16,
    lost: U16,
    reserved: U32,
    value: U64,
}

/// What a secondary asks for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Request<'a> {
    /// First message of a connection.
    Hello(Hello),
    /// The controllers that are shared.
    List,
    /// The processes of the instance.
    Processes,
    /// From now on this connection is about this controller.
    Attach(u32),
    /// An admin command.
    Admin {
        /// The command; its data pointer and identifier mean nothing.
        sqe: Sqe,
        /// Bytes wanted back.
        data_in: u32,
        /// Its deadline, milliseconds.
        timeout_ms: u32,
        /// Bytes that go along.
        data: &'a [u8],
    },
    /// Is anybody there?
    Ping,
    /// An I/O queue identifier.
    Lease,
    /// It is not needed any more.
    Return(u16),
    /// What is needed to ring doorbells of the controller.
    Function,
    /// What an I/O queue sleeps on.
    Vector(u16),
    /// Memory for the controller to access, all of the memfd that comes along.
    Map,
    /// This memory is not needed any more.
    Unmap(u32),
    /// All I/O queues of this connection are to be deleted.
    Quit,
}

/// What a primary answers, or says of its own accord.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Reply<'a> {
    /// To [`Request::Hello`].
    Welcome(Hello),
    /// It cannot be done: why.
    Refused(&'a str),
    /// One shared controller.
    Controller {
        /// How it is.
        facts: Facts,
        /// Host NQN it is connected with.
        hostnqn: &'a str,
        /// Where it is.
        trid: &'a str,
    },
    /// One process.
    Process(ProcessFacts),
    /// The last one was the last.
    End,
    /// To [`Request::Attach`]; a socket for requests that are answered at once comes along.
    Attached(Facts),
    /// To [`Request::Admin`].
    AdminDone {
        /// What the controller says; `None` when the command was lost with the admin queue.
        status: Option<Status>,
        /// DW1:DW0.
        value: u64,
        /// What came back.
        data: &'a [u8],
    },
    /// To [`Request::Ping`].
    Pong,
    /// To [`Request::Lease`].
    Leased(u16),
    /// To [`Request::Return`] and [`Request::Unmap`].
    Done,
    /// To [`Request::Function`]: what the transport says; its descriptors come along.
    Function(&'a [u8]),
    /// To [`Request::Vector`]: an eventfd comes along, if the queue has an interrupt.
    Vector,
    /// To [`Request::Map`].
    Mapped {
        /// What the memory is called from now on.
        memory: u32,
        /// Its bus address.
        iova: u64,
    },
    /// To [`Request::Quit`]: no I/O queue of this connection exists any more.
    Ended,
    /// An asynchronous event: DW0.
    Event(u32),
    /// The controller cannot be used for now, and none of its queues exists any more: why.
    Down(&'a str),
    /// It can be used again.
    Up(Facts),
    /// It is lost for good: why.
    Removed(&'a str),
}

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const LIST: u16 = 2;
    pub(super) const PROCESSES: u16 = 3;
    pub(super) const ATTACH: u16 = 4;
    pub(super) const ADMIN: u16 = 5;
    pub(super) const PING: u16 = 6;
    pub(super) const LEASE: u16 = 7;
    pub(super) const RETURN: u16 = 8;
    pub(super) const FUNCTION: u16 = 9;
    pub(super) const VECTOR: u16 = 10;
    pub(super) const MAP: u16 = 11;
    pub(super) const UNMAP: u16 = 12;
    pub(super) const QUIT: u16 = 13;

    pub(super) const WELCOME: u16 = 0x101;
    pub(super) const REFUSED: u16 = 0x102;
    pub(super) const CONTROLLER: u16 = 0x103;
    pub(super) const PROCESS: u16 = 0x104;
    pub(super) const END: u16 = 0x105;
    pub(super) const ATTACHED: u16 = 0x106;
    pub(super) const ADMIN_DONE: u16 = 0x107;
    pub(super) const PONG: u16 = 0x108;
    pub(super) const LEASED: u16 = 0x109;
    pub(super) const DONE: u16 = 0x10a;
    pub(super) const EVENT: u16 = 0x10b;
    pub(super) const DOWN: u16 = 0x10c;
    pub(super) const UP: u16 = 0x10d;
    pub(super) const REMOVED: u16 = 0x10e;
    pub(super) const FUNCTION_IS: u16 = 0x10f;
    pub(super) const VECTOR_IS: u16 = 0x110;
    pub(super) const MAPPED: u16 = 0x111;
    pub(super) const ENDED: u16 = 0x112;
}

fn packet(kind: u16, tag: u64, parts: &[&[u8]]) -> Vec<u8> {
    let header =
        Header { kind: U16::new(kind), reserved: U16::new(0), reserved4: U32::new(0), tag: U64::new(tag) };
    let mut bytes = Vec::with_capacity(HEADER + parts.iter().map(|part| part.len()).sum::<usize>());
    bytes.extend_from_slice(header.as_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// As much of a text as a message holds.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The body of a packet, being taken apart.
struct Body<'a> {
    kind: u16,
    bytes: &'a [u8],
}

impl<'a> Body<'a> {
    fn open(packet: &'a [u8]) -> Result<(u64, Self), WireError> {
        let (header, bytes) =
            Header::read_from_prefix(packet).map_err(|_| WireError::Header(packet.len()))?;
        let kind = header.kind.get();
        if packet.len() > MAX_PACKET {
            return Err(WireError::Length { kind, len: bytes.len() });
        }
        Ok((header.tag.get(), Self { kind, bytes }))
    }

    fn length(&self) -> WireError {
        WireError::Length { kind: self.kind, len: self.bytes.len() }
    }

    /// Exactly this.
    fn whole<T: FromBytes>(&self) -> Result<T, WireError> {
        T::read_from_bytes(self.bytes).map_err(|_| self.length())
    }

    /// This, and the rest.
    fn prefix<T: FromBytes>(&self) -> Result<(T, &'a [u8]), WireError> {
        T::read_from_prefix(self.bytes).map_err(|_| self.length())
    }

    fn nothing(&self) -> Result<(), WireError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.length()) }
    }

    fn text(&self, bytes: &'a [u8]) -> Result<&'a str, WireError> {
        if bytes.len() > MAX_TEXT {
            return Err(self.length());
        }
        std::str::from_utf8(bytes).map_err(|_| WireError::Value(self.kind))
    }

    fn data(&self, bytes: &'a [u8]) -> Result<&'a [u8], WireError> {
        if bytes.len() > MAX_DATA { Err(self.length()) } else { Ok(bytes) }
    }

    fn hello(&self) -> Result<Hello, WireError> {
        let hello: Hello = self.whole()?;
        if hello.magic.get() == MAGIC { Ok(hello) } else { Err(WireError::Magic) }
    }
}

impl<'a> Request<'a> {
    /// The packet.
    #[must_use]
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        match self {
            Self::Hello(hello) => packet(kind::HELLO, tag, &[hello.as_bytes()]),
            Self::List => packet(kind::LIST, tag, &[]),
            Self::Processes => packet(kind::PROCESSES, tag, &[]),
            Self::Attach(id) => packet(kind::ATTACH, tag, &[&id.to_le_bytes()]),
            Self::Admin { sqe, data_in, timeout_ms, data } => {
                let head = AdminHead {
                    sqe: zerocopy::transmute!(*sqe),
                    data_in: U32::new(*data_in),
                    timeout_ms: U32::new(*timeout_ms),
                };
                packet(kind::ADMIN, tag, &[head.as_bytes(), data])
            }
            Self::Ping => packet(kind::PING, tag, &[]),
            Self::Lease => packet(kind::LEASE, tag, &[]),
            Self::Return(qid) => packet(kind::RETURN, tag, &[&qid.to_le_bytes()]),
            Self::Function => packet(kind::FUNCTION, tag, &[]),
            Self::Vector(qid) => packet(kind::VECTOR, tag, &[&qid.to_le_bytes()]),
            Self::Map => packet(kind::MAP, tag, &[]),
            Self::Unmap(memory) => packet(kind::UNMAP, tag, &[&memory.to_le_bytes()]),
            Self::Quit => packet(kind::QUIT, tag, &[]),
        }
    }

    /// What a packet says, with its tag.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn decode(packet: &'a [u8]) -> Result<(u64, Self), WireError> {
        let (tag, body) = Body::open(packet)?;
        let request = match body.kind {
            kind::HELLO => Self::Hello(body.hello()?),
            kind::LIST => body.nothing().map(|()| Self::List)?,
            kind::PROCESSES => body.nothing().map(|()| Self::Processes)?,
            kind::ATTACH => Self::Attach(body.whole::<U32>()?.get()),
            kind::ADMIN => {
                let (head, data) = body.prefix::<AdminHead>()?;
                let data_in = head.data_in.get();
                if data_in as usize > MAX_DATA || (data_in > 0 && !data.is_empty()) {
                    return Err(WireError::Value(body.kind));
                }
                Self::Admin {
                    sqe: zerocopy::transmute!(head.sqe),
                    data_in,
                    timeout_ms: head.timeout_ms.get(),
                    data: body.data(data)?,
                }
            }
            kind::PING => body.nothing().map(|()| Self::Ping)?,
            kind::LEASE => body.nothing().map(|()| Self::Lease)?,
            kind::RETURN => Self::Return(body.whole::<U16>()?.get()),
            kind::FUNCTION => body.nothing().map(|()| Self::Function)?,
            kind::VECTOR => Self::Vector(body.whole::<U16>()?.get()),
            kind::MAP => body.nothing().map(|()| Self::Map)?,
            kind::UNMAP => Self::Unmap(body.whole::<U32>()?.get()),
            kind::QUIT => body.nothing().map(|()| Self::Quit)?,
            kind => return Err(WireError::Kind(kind)),
        };
        Ok((tag, request))
    }
}

impl<'a> Reply<'a> {
    /// The packet. A text that is too long is cut.
    #[must_use]
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        match self {
            Self::Welcome(hello) => packet(kind::WELCOME, tag, &[hello.as_bytes()]),
            Self::Refused(why) => packet(kind::REFUSED, tag, &[cut(why).as_bytes()]),
            Self::Controller { facts, hostnqn, trid } => {
                let (hostnqn, trid) = (cut(hostnqn), cut(trid));
                let head = ControllerHead {
                    facts: *facts,
                    hostnqn: U16::new(hostnqn.len() as u16),
                    reserved: U16::new(0),
                };
                packet(kind::CONTROLLER, tag, &[head.as_bytes(), hostnqn.as_bytes(), trid.as_bytes()])
            }
            Self::Process(facts) => packet(kind::PROCESS, tag, &[facts.as_bytes()]),
            Self::End => packet(kind::END, tag, &[]),
            Self::Attached(facts) => packet(kind::ATTACHED, tag, &[facts.as_bytes()]),
            Self::AdminDone { status, value, data } => {
                let done = Done {
                    status: U16::new(status.map_or(0, |status| status.0)),
                    lost: U16::new(u16::from(status.is_none())),
                    reserved: U32::new(0),
                    value: U64::new(*value),
                };
                packet(kind::ADMIN_DONE, tag, &[done.as_bytes(), data])
            }
            Self::Pong => packet(kind::PONG, tag, &[]),
            Self::Leased(qid) => packet(kind::LEASED, tag, &[&qid.to_le_bytes()]),
            Self::Done => packet(kind::DONE, tag, &[]),
            Self::Function(bytes) => packet(kind::FUNCTION_IS, tag, &[bytes]),
            Self::Vector => packet(kind::VECTOR_IS, tag, &[]),
            Self::Mapped { memory, iova } => {
                let head =
                    MappedHead { iova: U64::new(*iova), memory: U32::new(*memory), reserved: U32::new(0) };
                packet(kind::MAPPED, tag, &[head.as_bytes()])
            }
            Self::Ended => packet(kind::ENDED, tag, &[]),
            Self::Event(dw0) => packet(kind::EVENT, tag, &[&dw0.to_le_bytes()]),
            Self::Down(why) => packet(kind::DOWN, tag, &[cut(why).as_bytes()]),
            Self::Up(facts) => packet(kind::UP, tag, &[facts.as_bytes()]),
            Self::Removed(why) => packet(kind::REMOVED, tag, &[cut(why).as_bytes()]),
        }
    }

    /// What a packet says, with its tag.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn decode(packet: &'a [u8]) -> Result<(u64, Self), WireError> {
        let (tag, body) = Body::open(packet)?;
        let reply = match body.kind {
            kind::WELCOME => Self::Welcome(body.hello()?),
            kind::REFUSED => Self::Refused(body.text(body.bytes)?),
            kind::CONTROLLER => {
                let (head, rest) = body.prefix::<ControllerHead>()?;
                let split = rest.split_at_checked(head.hostnqn.get().into());
                let (hostnqn, trid) = split.ok_or_else(|| body.length())?;
                Self::Controller { facts: head.facts, hostnqn: body.text(hostnqn)?, trid: body.text(trid)? }
            }
            kind::PROCESS => Self::Process(body.whole()?),
            kind::END => body.nothing().map(|()| Self::End)?,
            kind::ATTACHED => Self::Attached(body.whole()?),
            kind::ADMIN_DONE => {
                let (done, data) = body.prefix::<Done>()?;
                let status = match done.lost.get() {
                    0 => Some(Status(done.status.get())),
                    1 => None,
                    _ => return Err(WireError::Value(body.kind)),
                };
                Self::AdminDone { status, value: done.value.get(), data: body.data(data)? }
            }
            kind::PONG => body.nothing().map(|()| Self::Pong)?,
            kind::LEASED => Self::Leased(body.whole::<U16>()?.get()),
            kind::DONE => body.nothing().map(|()| Self::Done)?,
            kind::FUNCTION_IS if body.bytes.len() > MAX_FUNCTION => return Err(body.length()),
            kind::FUNCTION_IS => Self::Function(body.bytes),
            kind::VECTOR_IS => body.nothing().map(|()| Self::Vector)?,
            kind::MAPPED => {
                let head = body.whole::<MappedHead>()?;
                Self::Mapped { memory: head.memory.get(), iova: head.iova.get() }
            }
            kind::ENDED => body.nothing().map(|()| Self::Ended)?,
            kind::EVENT => Self::Event(body.whole::<U32>()?.get()),
            kind::DOWN => Self::Down(body.text(body.bytes)?),
            kind::UP => Self::Up(body.whole()?),
            kind::REMOVED => Self::Removed(body.text(body.bytes)?),
            kind => return Err(WireError::Kind(kind)),
        };
        Ok((tag, reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::AdminOpcode;

    #[test]
    fn requests_come_back_as_they_were_sent() {
        let data = vec![7; MAX_DATA];
        let sqe = Sqe::admin(AdminOpcode::IDENTIFY, 3).with_cdw10(0x1234);
        for request in [
            Request::Hello(Hello::ours()),
            Request::List,
            Request::Processes,
            Request::Attach(9),
            Request::Admin { sqe, data_in: 4096, timeout_ms: 30_000, data: &[] },
            Request::Admin { sqe, data_in: 0, timeout_ms: 1, data: &data },
            Request::Ping,
            Request::Lease,
            Request::Return(65_535),
            Request::Function,
            Request::Vector(7),
            Request::Map,
            Request::Unmap(u32::MAX),
            Request::Quit,
        ] {
            assert_eq!(Request::decode(&request.encode(77)), Ok((77, request)));
        }
    }

    #[test]
    fn replies_come_back_as_they_were_sent() {
        let facts = Facts { id: U32::new(1), cntlid: U16::new(2), ..Facts::default() };
        for reply in [
            Reply::Welcome(Hello::ours()),
            Reply::Refused("no"),
            Reply::Controller { facts, hostnqn: "nqn.2014-08.org.example:h", trid: "trtype:TCP" },
            Reply::Process(ProcessFacts::default()),
            Reply::End,
            Reply::Attached(facts),
            Reply::AdminDone { status: Some(Status::INVALID_FIELD), value: u64::MAX, data: b"data" },
            Reply::AdminDone { status: None, value: 0, data: &[] },
            Reply::Pong,
            Reply::Leased(3),
            Reply::Done,
            Reply::Function(b"where it is"),
            Reply::Vector,
            Reply::Mapped { memory: 3, iova: 1 << 40 },
            Reply::Ended,
            Reply::Event(0x0102_0304),
            Reply::Down("reset"),
            Reply::Up(facts),
            Reply::Removed("gone"),
        ] {
            assert_eq!(Reply::decode(&reply.encode(u64::MAX)), Ok((u64::MAX, reply)));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(Request::decode(&[0; 15]), Err(WireError::Header(15)));
        assert_eq!(Request::decode(&packet(99, 0, &[])), Err(WireError::Kind(99)));
        assert_eq!(
            Request::decode(&packet(kind::LIST, 0, &[b"x"])),
            Err(WireError::Length { kind: kind::LIST, len: 1 })
        );
        assert_eq!(Request::decode(&packet(kind::HELLO, 0, &[&[0; 12]])), Err(WireError::Magic));
        let both = Request::Admin { sqe: Sqe::default(), data_in: 4, timeout_ms: 1, data: b"four" };
        assert_eq!(Request::decode(&both.encode(0)), Err(WireError::Value(kind::ADMIN)));
        let much = Request::Admin { sqe: Sqe::default(), data_in: u32::MAX, timeout_ms: 1, data: &[] };
        assert_eq!(Request::decode(&much.encode(0)), Err(WireError::Value(kind::ADMIN)));
        assert_eq!(Reply::decode(&packet(kind::DOWN, 0, &[&[0xff]])), Err(WireError::Value(kind::DOWN)));
        let long = "é".repeat(MAX_TEXT);
        let encoded = Reply::Refused(&long).encode(0);
        let Ok((_, Reply::Refused(text))) = Reply::decode(&encoded) else {
            panic!("a long text is cut");
        };
        assert_eq!(text.len(), MAX_TEXT);
    }
}
