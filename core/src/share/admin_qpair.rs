//! The admin queue of a secondary: commands go to the primary as messages. What belongs to connecting a controller is answered
//! here, because the primary has done it.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use zerocopy::little_endian::U16;

use super::client::{Primary, Standing, Told};
use super::wire::{Facts, Request};
use crate::error::{Error, Result};
use crate::proto::Tracker;
use crate::spec::command::DataDirection;
use crate::spec::fabrics::{FabricsType, property_set_value};
use crate::spec::registers::{ControllerConfig, PropertyOffset, Shn, Shst};
use crate::spec::{AdminOpcode, Cqe, Sqe, Status};
use crate::transport::{ConnectProgress, Quiesce, TransportQpair, TransportStats};

/// Events kept for requests to come.
const MAX_EVENTS: usize = 256;
/// Slot in the tag of a request that is none of the tracker's.
const NO_SLOT: u64 = 0xffff_ffff;

/// How far the queue is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Not,
    /// The primary deletes the I/O queues.
    Asked,
    Over,
}

pub(super) struct AdminQpair {
    link: Arc<Primary>,
    /// What tags of this queue begin with; answers to another one's commands are nobody's.
    epoch: u32,
    cc: ControllerConfig,
    /// Answers that were found here, by command identifier.
    answers: VecDeque<Cqe>,
    /// Asynchronous event requests.
    requests: VecDeque<u16>,
    events: VecDeque<u32>,
    /// Commands the primary is asked to do, by slot: identifier.
    asked: Vec<Option<u16>>,
    ending: Ending,
    stats: TransportStats,
}

impl AdminQpair {
    pub(super) fn new(link: Arc<Primary>, slots: u16) -> Self {
        Self {
            epoch: link.next_epoch(),
            link,
            cc: ControllerConfig(0),
            answers: VecDeque::new(),
            requests: VecDeque::new(),
            events: VecDeque::new(),
            asked: vec![None; usize::from(slots)],
            ending: Ending::Not,
            stats: TransportStats::default(),
        }
    }

    fn answer(&mut self, cid: u16, status: Status, value: u64) {
        self.answers.push_back(Cqe::new(cid, 0, status).with_result64(value));
    }

    /// A Fabrics command: Connect and properties of the virtual controller.
    fn fabrics(&mut self, cid: u16, sqe: &Sqe) {
        let offset = PropertyOffset(sqe.cdw11.get());
        match FabricsType(sqe.fctype()) {
            FabricsType::CONNECT => {
                let cntlid = self.link.facts().cntlid.get();
                self.answer(cid, Status::SUCCESS, cntlid.into());
            }
            FabricsType::PROPERTY_GET => match self.property(offset) {
                Some(value) => self.answer(cid, Status::SUCCESS, value),
                None => self.answer(cid, Status::INVALID_FIELD.with_dnr(), 0),
            },
            FabricsType::PROPERTY_SET if offset == PropertyOffset::CC => {
                self.cc = ControllerConfig(property_set_value(sqe) as u32);
                self.answer(cid, Status::SUCCESS, 0);
            }
            _ => self.answer(cid, Status::INVALID_FIELD.with_dnr(), 0),
        }
    }

    fn property(&self, offset: PropertyOffset) -> Option<u64> {
        let facts = self.link.facts();
        Some(match offset {
            PropertyOffset::CAP => facts.cap.get(),
            PropertyOffset::VS => facts.vs.get().into(),
            PropertyOffset::CC => self.cc.0.into(),
            PropertyOffset::CSTS => {
                // RDY in bit 0, SHST in bits 3:2: to shut down the virtual controller is to let go of it.
                let shut = if self.cc.shn() == Shn::NONE { Shst::NORMAL } else { Shst::COMPLETE };
                u64::from(self.cc.en()) | u64::from(shut.0) << 2
            }
            _ => return None,
        })
    }

    fn ask(&mut self, slot: u16, cid: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()> {
        let len = tracker.data_len(slot) as usize;
        let mut data = Vec::new();
        let data_in = match tracker.direction(slot) {
            DataDirection::ControllerToHost => len as u32,
            DataDirection::HostToController => {
                while data.len() < len {
                    let chunk = tracker.chunk(slot, data.len() as u32);
                    if chunk.is_empty() {
                        return Err(Error::exhausted("the command's buffers are shorter than its data"));
                    }
                    data.extend_from_slice(chunk);
                }
                0
            }
            DataDirection::None | DataDirection::Bidirectional => 0,
        };
        if let Some(asked) = self.asked.get_mut(usize::from(slot)) {
            *asked = Some(cid);
        }
        let request = if sqe.opcode == AdminOpcode::KEEP_ALIVE.0 {
            Request::Ping
        } else {
            // The primary waits as long as its own deadline at least; this side's ends the queue here.
            Request::Admin { sqe: *sqe, data_in, timeout_ms: 0, data: &data }
        };
        let packet = request.encode(u64::from(self.epoch) << 32 | u64::from(slot) << 16 | u64::from(cid));
        self.stats.bytes_sent += packet.len() as u64;
        self.link.queue(packet)
    }

    /// The slot of a command that was asked for under this tag and is outstanding.
    fn asked_as(&mut self, tag: u64, tracker: &Tracker) -> Result<Option<(u16, u16)>> {
        if tag >> 32 != u64::from(self.epoch) {
            return Ok(None);
        }
        let (slot, cid) = ((tag >> 16) as u16, tag as u16);
        let asked = self.asked.get_mut(usize::from(slot)).filter(|asked| **asked == Some(cid));
        match asked {
            Some(asked) if tracker.lookup(cid) == Some(slot) => {
                *asked = None;
                Ok(Some((slot, cid)))
            }
            _ => Err(Error::peer_misbehaved("the primary answers a command that is not outstanding")),
        }
    }

    /// Asks for the end of the I/O queues, where that is needed.
    fn quit(&self) -> Ending {
        // Whoever is not up has none.
        if !self.link.facts().has(Facts::MEMORY) || self.link.failure().is_some() || !self.link.is_up() {
            return Ending::Over;
        }
        self.link.tell(Standing::Ending);
        let asked = self.link.queue(Request::Quit.encode(u64::from(self.epoch) << 32 | NO_SLOT));
        if asked.and_then(|()| self.link.flush()).is_ok() { Ending::Asked } else { Ending::Over }
    }

    /// Looks whether the I/O queues have ended.
    fn await_end(&mut self) {
        let _ = self.link.flush();
        while self.ending == Ending::Asked {
            match self.link.next() {
                Ok(None) => break,
                Ok(Some(Told::Ended { tag })) if tag >> 32 == u64::from(self.epoch) => {
                    self.ending = Ending::Over;
                }
                // The controller was stopped; or there is nobody to end them, which is for each of them to deal with.
                Ok(Some(Told::Down(_))) | Err(_) => self.ending = Ending::Over,
                Ok(Some(_)) => {}
            }
        }
    }

    fn told(&mut self, told: Told, tracker: &mut Tracker) -> Result<()> {
        match told {
            Told::Done { tag, status, value, data } => {
                // Without a status the primary lost it with its admin queue, and will say so.
                let (Some((slot, cid)), Some(status)) = (self.asked_as(tag, tracker)?, status) else {
                    return Ok(());
                };
                self.stats.bytes_received += data.len() as u64;
                if tracker.direction(slot) == DataDirection::ControllerToHost && status.is_success() {
                    let whole = data.len() == tracker.data_len(slot) as usize;
                    if !whole || !tracker.write(slot, 0, &data) {
                        return Err(Error::peer_misbehaved("the primary returned data of another length"));
                    }
                }
                tracker.complete(slot, Cqe::new(cid, 0, status).with_result64(value));
            }
            Told::Pong { tag } => {
                if let Some((slot, cid)) = self.asked_as(tag, tracker)? {
                    tracker.complete(slot, Cqe::new(cid, 0, Status::SUCCESS));
                }
            }
            Told::Event(dw0) => {
                if self.events.len() == MAX_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(dw0);
            }
            // To a queue before this one.
            Told::Ended { .. } => {}
            Told::Down(why) => return Err(Error::disconnected(format!("in the primary: {why}"))),
        }
        Ok(())
    }
}

impl TransportQpair for AdminQpair {
    fn poll_connect(&mut self, _now: Instant) -> Result<ConnectProgress> {
        // Whatever it says before it is up belongs to a life before.
        while !self.link.is_up() {
            if self.link.next()?.is_none() {
                return Ok(ConnectProgress::Pending);
            }
        }
        if let Some(error) = self.link.failure() {
            return Err(error);
        }
        Ok(ConnectProgress::Established)
    }

    fn submit(&mut self, slot: u16, sqe: &Sqe, tracker: &Tracker) -> Result<()> {
        if self.ending != Ending::Not {
            return Err(Error::disconnected("the admin queue was given up"));
        }
        let cid = sqe.cid.get();
        match AdminOpcode(sqe.opcode) {
            AdminOpcode::FABRICS => self.fabrics(cid, sqe),
            AdminOpcode::ASYNC_EVENT_REQUEST => self.requests.push_back(cid),
            _ => self.ask(slot, cid, &Sqe { cid: U16::new(0), ..*sqe }, tracker)?,
        }
        Ok(())
    }

    fn flush(&mut self, _tracker: &Tracker) -> Result<()> {
        self.stats.sends += 1;
        self.link.flush()
    }

    fn poll(&mut self, tracker: &mut Tracker, budget: usize) -> Result<()> {
        self.link.flush()?;
        while tracker.completed() < budget
            && let Some(told) = self.link.next()?
        {
            self.stats.receives += 1;
            self.told(told, tracker)?;
        }
        while let (Some(&cid), Some(&dw0)) = (self.requests.front(), self.events.front()) {
            self.requests.pop_front();
            self.events.pop_front();
            self.answer(cid, Status::SUCCESS, dw0.into());
        }
        while tracker.completed() < budget
            && let Some(cqe) = self.answers.pop_front()
        {
            if let Some(slot) = tracker.lookup(cqe.cid.get()) {
                tracker.complete(slot, cqe);
            }
        }
        Ok(())
    }

    /// Data is only touched by our own calls; but where I/O queues are in memory they end with the admin queue, as they do when a
    /// controller is disabled.
    fn disconnect(&mut self, _now: Instant) -> Quiesce {
        self.answers.clear();
        if self.ending == Ending::Not {
            self.ending = self.quit();
        }
        if self.ending == Ending::Asked {
            self.await_end();
        }
        if self.ending == Ending::Over { Quiesce::Done } else { Quiesce::Pending }
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.link.raw_fd())
    }

    fn wants_write(&self) -> bool {
        self.link.wants_write()
    }

    fn has_local_work(&self) -> bool {
        !self.answers.is_empty() || !self.requests.is_empty() && !self.events.is_empty()
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}
