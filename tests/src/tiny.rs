//! A controller over NVMe/TCP that has no thread of its own: whoever polls it serves. What it answers can be replaced by anything,
//! so that a test can be the target of its own initiator, on one thread, and a hostile one.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use nvmf_core::TransportId;
use nvmf_core::spec::fabrics::{self, ConnectFields, FabricsType};
use nvmf_core::spec::identify::{Cns, ControllerType, IdentifyController, IdentifyNamespace};
use nvmf_core::spec::log_page::GetLogPage;
use nvmf_core::spec::tcp::{CommonHeader, DataPdu, FLAG_LAST, IcResp, PduType, R2t};
use nvmf_core::spec::{AdminOpcode, Cqe, NvmOpcode, Sqe, Status};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Bytes of a block.
pub const BLOCK: usize = 512;
/// Blocks of namespace 1.
pub const BLOCKS: usize = 1024;
/// Most data of a write: all of it comes with its command.
pub const IN_CAPSULE: u32 = 8192;
// Properties (NVMe Base 2.1 Figure 33).
const CAP: u32 = 0x00;
const VS: u32 = 0x08;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;

/// What a command gets.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Data, cut to what the command has room for, and success.
    Data(Vec<u8>),
    /// This status.
    Status(Status),
    /// Success, with this in dword 0.
    Dword0(u32),
    /// An R2T for this much data at this offset, and nothing more.
    Request(u32, u32),
    /// Nothing.
    Silence,
}

/// Answers commands instead of the controller: given the queue and the command; `None` leaves it to the controller.
pub type Hook = Box<dyn FnMut(u16, &Sqe) -> Option<Answer> + Send>;

/// The controller.
pub struct Tiny {
    listener: TcpListener,
    address: SocketAddr,
    connections: Vec<Connection>,
    shared: Shared,
}

struct Shared {
    identify: IdentifyController,
    hook: Hook,
    blocks: Vec<u8>,
    cc: u32,
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    to_send: VecDeque<u8>,
    qid: u16,
    sqhd: u16,
    entries: u16,
}

impl Tiny {
    /// Listens on a free port of 127.0.0.1. With `discovery` it is a discovery controller, else it has namespace 1.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn listen(discovery: bool, hook: Hook) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let mut identify = IdentifyController::new_zeroed();
        identify.cntlid = U16::new(1);
        identify.sqes = 0x66;
        identify.cqes = 0x44;
        identify.aerl_z = 3;
        identify.kas = U16::new(1);
        identify.nn = U32::new(1);
        identify.oaes = U32::new(1 << 8 | 1 << 31);
        identify.ioccsz = U32::new(4 + IN_CAPSULE / 16);
        identify.iorcsz = U32::new(1);
        identify.sgls = U32::new(1 | 1 << 20 | 1 << 21);
        identify.cntrltype = if discovery { ControllerType::DISCOVERY } else { ControllerType::IO };
        let shared = Shared { identify, hook, blocks: vec![0; BLOCK * BLOCKS], cc: 0 };
        Ok(Self { listener, address, connections: Vec::new(), shared })
    }

    /// Changes what it says of itself.
    #[must_use]
    pub fn identify(mut self, change: impl FnOnce(&mut IdentifyController)) -> Self {
        change(&mut self.shared.identify);
        self
    }

    /// Its address, without a subsystem.
    ///
    /// # Errors
    /// None that can be thought of.
    pub fn trid(&self) -> Result<TransportId> {
        Ok(TransportId::tcp_socket(self.address)?)
    }

    /// Does what there is to do, and never waits. Whether there was anything.
    ///
    /// # Errors
    /// When the host breaks the protocol.
    pub fn poll(&mut self) -> Result<bool> {
        let mut busy = false;
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let (received, to_send) = (Vec::new(), VecDeque::new());
            self.connections.push(Connection { stream, received, to_send, qid: 0, sqhd: 0, entries: 1 });
            busy = true;
        }
        let shared = &mut self.shared;
        let mut failure = Ok(());
        self.connections.retain_mut(|connection| match connection.poll(shared, &mut busy) {
            Ok(open) => open,
            Err(error) => {
                failure = Err(error);
                false
            }
        });
        failure.map(|()| busy)
    }

    /// Serves on a thread until the result is dropped.
    #[must_use]
    pub fn serve(mut self) -> Serving {
        let stop = Arc::new(AtomicBool::new(false));
        let failure = Arc::new(Mutex::new(None));
        let (stopped, failed) = (Arc::clone(&stop), Arc::clone(&failure));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                match self.poll() {
                    Ok(true) => {}
                    Ok(false) => std::thread::sleep(Duration::from_micros(200)),
                    Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
                }
            }
        });
        Serving { stop, failure, thread: Some(thread) }
    }
}

/// A controller on a thread.
pub struct Serving {
    stop: Arc<AtomicBool>,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Serving {
    /// What the host did wrong.
    #[must_use]
    pub fn failure(&self) -> Option<anyhow::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Connection {
    /// False once it is over.
    fn poll(&mut self, shared: &mut Shared, busy: &mut bool) -> Result<bool> {
        let mut open = true;
        let mut buffer = [0; 16384];
        // A host that does not read what it is sent is not read either.
        while self.to_send.len() < 1 << 20 {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    open = false;
                    break;
                }
                Ok(n) => self.received.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Ok(false),
            }
            *busy = true;
            while let Some(pdu) = self.next_pdu()? {
                self.pdu(&pdu, shared)?;
            }
        }
        while !self.to_send.is_empty() {
            match self.stream.write(self.to_send.as_slices().0) {
                Ok(0) => return Ok(false),
                Ok(n) => drop(self.to_send.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Ok(false),
            }
            *busy = true;
        }
        Ok(open)
    }

    fn next_pdu(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(plen) = self.received.get(4..8).and_then(|b| b.first_chunk()) else { return Ok(None) };
        let plen = u32::from_le_bytes(*plen) as usize;
        ensure!((8..1 << 20).contains(&plen), "a PDU of {plen} bytes");
        Ok((self.received.len() >= plen).then(|| self.received.drain(..plen).collect()))
    }

    fn pdu(&mut self, pdu: &[u8], shared: &mut Shared) -> Result<()> {
        match PduType(pdu[0]) {
            PduType::IC_REQ => {
                let ch = header(PduType::IC_RESP, 0, 128, 0, 128);
                let resp = IcResp { ch, maxh2cdata: U32::new(1 << 20), ..IcResp::new_zeroed() };
                self.to_send.extend(resp.as_bytes());
            }
            PduType::CAPSULE_CMD => {
                ensure!(pdu.len() >= 72, "a command capsule of {} bytes", pdu.len());
                let sqe = Sqe::read_from_bytes(&pdu[8..72]).map_err(|_| anyhow::anyhow!("no command"))?;
                let data = pdu.get(usize::from(pdu[3])..).filter(|_| pdu[3] != 0).unwrap_or_default();
                let answer = match (shared.hook)(self.qid, &sqe) {
                    Some(answer) => answer,
                    None => self.command(&sqe, data, shared),
                };
                self.answer(&sqe, answer);
            }
            // What a hook has asked for.
            PduType::H2C_DATA | PduType::H2C_TERM_REQ => {}
            other => anyhow::bail!("a PDU of type {other:?}"),
        }
        Ok(())
    }

    fn command(&mut self, sqe: &Sqe, data: &[u8], shared: &mut Shared) -> Answer {
        if sqe.opcode == AdminOpcode::FABRICS.0 {
            return self.fabrics(sqe, shared);
        }
        if self.qid == 0 { admin(sqe, shared) } else { io(sqe, data, shared) }
    }

    fn fabrics(&mut self, sqe: &Sqe, shared: &mut Shared) -> Answer {
        let offset = sqe.cdw11.get();
        match FabricsType(sqe.fctype()) {
            FabricsType::CONNECT => {
                let fields = ConnectFields::of(sqe);
                (self.qid, self.entries) = (fields.qid, fields.sqsize_z.saturating_add(1));
                Answer::Dword0(1)
            }
            FabricsType::PROPERTY_SET => {
                if offset == CC {
                    shared.cc = fabrics::property_set_value(sqe) as u32;
                }
                Answer::Dword0(0)
            }
            FabricsType::PROPERTY_GET => Answer::Dword0(match offset {
                // MQES 128 entries, CQR, TO 10 s. Bit 37, the NVM command set, is in the other half, which comes out as 0.
                CAP => 127 | 1 << 16 | 20 << 24,
                VS => 0x0002_0000,
                CC => shared.cc,
                // Ready as it is enabled, and shut down as soon as it is told to.
                CSTS => shared.cc & 1 | if shared.cc >> 14 & 3 != 0 { 2 << 2 } else { 0 },
                _ => return Answer::Status(Status::INVALID_FIELD),
            }),
            _ => Answer::Dword0(0),
        }
    }

    fn answer(&mut self, sqe: &Sqe, answer: Answer) {
        let cid = sqe.cid.get();
        self.sqhd = (self.sqhd + 1) % self.entries.max(1);
        let cqe = Cqe::new(cid, self.sqhd, Status::SUCCESS);
        let cqe = match answer {
            Answer::Silence => return,
            Answer::Request(offset, length) => {
                let r2t = R2t {
                    ch: header(PduType::R2T, 0, 24, 0, 24),
                    cccid: U16::new(cid),
                    r2to: U32::new(offset),
                    r2tl: U32::new(length),
                    ..R2t::new_zeroed()
                };
                return self.to_send.extend(r2t.as_bytes());
            }
            Answer::Status(status) => Cqe::new(cid, self.sqhd, status),
            Answer::Dword0(dw0) => {
                let mut cqe = cqe.with_dw0(dw0);
                if sqe.opcode == AdminOpcode::FABRICS.0
                    && sqe.fctype() == FabricsType::PROPERTY_GET.0
                    && sqe.cdw11.get() == CAP
                {
                    // CSS bit 0: the NVM command set.
                    cqe = cqe.with_result64(u64::from(dw0) | 1 << 37);
                }
                cqe
            }
            Answer::Data(data) => {
                let len = data.len() as u32;
                let pdu = DataPdu {
                    ch: header(PduType::C2H_DATA, FLAG_LAST, 24, 24, 24 + len),
                    cccid: U16::new(cid),
                    datal: U32::new(len),
                    ..DataPdu::new_zeroed()
                };
                self.to_send.extend(pdu.as_bytes());
                self.to_send.extend(data);
                cqe
            }
        };
        self.to_send.extend(header(PduType::CAPSULE_RESP, 0, 24, 0, 24).as_bytes());
        self.to_send.extend(cqe.as_bytes());
    }
}

fn header(pdu_type: PduType, flags: u8, hlen: u8, pdo: u8, plen: u32) -> CommonHeader {
    CommonHeader { pdu_type: pdu_type.0, flags, hlen, pdo, plen: U32::new(plen) }
}

fn admin(sqe: &Sqe, shared: &Shared) -> Answer {
    match AdminOpcode(sqe.opcode) {
        AdminOpcode::IDENTIFY => {
            let mut page = match (Cns(sqe.cdw10.get() as u8), sqe.nsid.get()) {
                (Cns::CONTROLLER, _) => shared.identify.as_bytes().to_vec(),
                (Cns::NAMESPACE, 1) => namespace().as_bytes().to_vec(),
                (Cns::ACTIVE_NAMESPACE_LIST, after) => u32::from(after == 0).to_le_bytes().to_vec(),
                // Type 3, a UUID.
                (Cns::NAMESPACE_DESCRIPTORS, 1) => [&[3, 16, 0, 0][..], &[0x77; 16]].concat(),
                _ => return Answer::Status(Status::INVALID_FIELD),
            };
            page.resize(4096, 0);
            Answer::Data(page)
        }
        AdminOpcode::ASYNC_EVENT_REQUEST => Answer::Silence,
        AdminOpcode::GET_LOG_PAGE => Answer::Data(vec![0; log_length(sqe)]),
        // One queue of each kind; everything else is as it should be.
        _ => Answer::Dword0(0),
    }
}

/// Bytes a Get Log Page command asks for.
#[must_use]
pub fn log_length(sqe: &Sqe) -> usize {
    let dwords = [sqe.cdw10.get(), sqe.cdw11.get(), sqe.cdw12.get(), sqe.cdw13.get()];
    usize::try_from(GetLogPage::from_cdw10_13(dwords).length()).unwrap_or(usize::MAX)
}

/// Where in the log page it wants them from.
#[must_use]
pub fn log_offset(sqe: &Sqe) -> u64 {
    u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32
}

fn namespace() -> IdentifyNamespace {
    let mut data = IdentifyNamespace::new_zeroed();
    let blocks = U64::new(BLOCKS as u64);
    (data.nsze, data.ncap, data.nuse) = (blocks, blocks, blocks);
    data.lbaf[0].lbads = 9;
    data
}

fn io(sqe: &Sqe, data: &[u8], shared: &mut Shared) -> Answer {
    let start = (sqe.cdw10.get() as usize).saturating_mul(BLOCK);
    let len = (sqe.cdw12.get() as u16 as usize + 1) * BLOCK;
    let range = start..start.saturating_add(len);
    match NvmOpcode(sqe.opcode) {
        NvmOpcode::READ => match shared.blocks.get(range) {
            Some(bytes) => Answer::Data(bytes.to_vec()),
            None => Answer::Status(Status::LBA_OUT_OF_RANGE),
        },
        NvmOpcode::WRITE => match shared.blocks.get_mut(range) {
            Some(bytes) if data.len() == len => {
                bytes.copy_from_slice(data);
                Answer::Dword0(0)
            }
            Some(_) => Answer::Status(Status::DATA_TRANSFER_ERROR),
            None => Answer::Status(Status::LBA_OUT_OF_RANGE),
        },
        NvmOpcode::FLUSH => Answer::Dword0(0),
        _ => Answer::Status(Status::INVALID_OPCODE),
    }
}
