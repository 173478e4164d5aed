//! What is posted, what the controller may still answer, and when a command is really over.
//!
//! A command occupies a request of the send queue, a receive of the controller, a receive of ours for its response, and, with
//! flow control, an entry of the controller's submission queue. The ledger keeps account of all four, so that none is ever
//! overrun whatever the controller does, and says when a slot is free: when its response is there *and* the device is done
//! with its capsule.

use std::collections::VecDeque;

use nvmf_core::spec::Cqe;

/// SQHD of a response that says that there is no SQ flow control (NVMe Base 2.1 §6.3).
const NO_FLOW_CONTROL: u16 = u16::MAX;

/// How a SEND is to be posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// With a completion that belongs to the command: its slot waits for it.
    Command,
    /// With a completion that only accounts for requests.
    Account,
    /// Without one.
    None,
}

/// Something that cannot be: a rule the controller or its device broke.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A response to a command that was never sent, or was answered already.
    #[error("a response to a command that is not outstanding")]
    NotOutstanding,
    /// A completion of a SEND that was not posted, or completed already.
    #[error("a completion of a request that was not posted")]
    NotPosted,
    /// More messages than receives were posted.
    #[error("more messages than receives were posted")]
    NoReceive,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum State {
    /// No command.
    #[default]
    Free,
    /// Taken, not posted.
    Waiting,
    /// Posted, not answered.
    Sent,
    /// Answered; the device may still read the capsule.
    Answered,
}

#[derive(Clone, Copy, Default, Debug)]
struct Slot {
    state: State,
    /// The completion of its SEND is awaited.
    sending: bool,
    /// The controller has a key for its data that is to be ended.
    keyed: bool,
    response: Option<Cqe>,
}

impl Slot {
    /// The response, if there is nothing else to wait for. The slot is free then.
    fn take_if_over(&mut self) -> Option<Cqe> {
        if self.state != State::Answered || self.sending || self.keyed {
            return None;
        }
        self.state = State::Free;
        self.response.take()
    }
}

/// What follows from a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// The command is over, with this completion.
    Over(Cqe),
    /// It is over when the device is done with its capsule.
    Wait,
    /// The controller still has the key for its data: to be ended, and announced by [`Ledger::post_end_of_key`].
    EndKey,
}

/// The submission queue as its SQHD shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flow {
    head: u32,
    tail: u32,
}

/// Accounts of one queue pair.
#[derive(Debug)]
pub struct Ledger {
    slots: Vec<Slot>,
    /// Entries of the submission queue.
    entries: u32,
    /// Commands the controller has receives for.
    window: u32,
    /// Commands sent and not answered.
    in_flight: u32,
    waiting: VecDeque<u16>,
    /// Requests the send queue has room for.
    sends: u32,
    /// Requests a command takes at most, other than for the end of its key.
    requests: u32,
    /// Requests posted and not known to be done.
    unreaped: u32,
    /// Requests posted since the last one with a completion.
    unsignalled: u32,
    /// Number of requests each awaited completion accounts for, in order.
    signals: VecDeque<u32>,
    /// Receives posted.
    receives: u32,
    flow: Option<Flow>,
}

impl Ledger {
    /// Accounts of `slots` commands on a submission queue of `entries`, with room for `sends` requests. No receive is posted.
    #[must_use]
    pub fn new(slots: u16, entries: u16, sends: u32) -> Self {
        Self {
            slots: vec![Slot::default(); usize::from(slots)],
            entries: u32::from(entries.max(2)),
            window: u32::from(slots),
            in_flight: 0,
            waiting: VecDeque::with_capacity(usize::from(slots)),
            sends: sends.max(1),
            requests: 1,
            unreaped: 0,
            unsignalled: 0,
            signals: VecDeque::with_capacity(usize::from(slots)),
            receives: 0,
            flow: None,
        }
    }

    /// The controller takes `commands` at once (CRQSIZE).
    pub fn set_window(&mut self, commands: u32) {
        self.window = commands.max(1);
    }

    /// Commands with data have keys of their own, each given by a request of the send queue, and ended by another, for which
    /// there is room beyond that for `sends` requests.
    pub fn with_keys(&mut self) {
        self.requests = 2;
        self.sends = self.sends.max(2);
    }

    /// Commands the controller takes at once.
    #[must_use]
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Commands sent and not answered.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Commands that wait for a credit.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Receives posted and not used.
    #[must_use]
    pub fn receives(&self) -> u32 {
        self.receives
    }

    /// Whether `slot` holds a command.
    #[must_use]
    pub fn is_busy(&self, slot: u16) -> bool {
        self.slots.get(usize::from(slot)).is_some_and(|slot| slot.state != State::Free)
    }

    // --- sending -------------------------------------------------------------------------------------------------------

    /// Takes a command. Whether it may be posted now; otherwise [`Ledger::release`] gives it out when it may.
    pub fn submit(&mut self, slot: u16) -> bool {
        let Some(entry) = self.slots.get_mut(usize::from(slot)) else { return false };
        debug_assert!(entry.state == State::Free, "slot {slot} taken twice");
        entry.state = State::Waiting;
        if self.waiting.is_empty() && self.has_credit() {
            return true;
        }
        self.waiting.push_back(slot);
        false
    }

    /// The command that has waited longest, if it may be posted now.
    pub fn release(&mut self) -> Option<u16> {
        if self.waiting.is_empty() || !self.has_credit() {
            return None;
        }
        self.waiting.pop_front()
    }

    fn has_credit(&mut self) -> bool {
        let room = self.sends.saturating_sub(self.unreaped);
        if self.in_flight >= self.window || self.in_flight >= self.receives || room < self.requests {
            return false;
        }
        let (entries, idle) = (self.entries, self.in_flight == 0);
        let Some(flow) = &mut self.flow else { return true };
        if (flow.tail + 1) % entries != flow.head {
            return true;
        }
        // Whoever has answered every command has fetched every command, whatever its last SQHD said.
        if idle {
            flow.head = flow.tail;
        }
        idle
    }

    /// The command in `slot` is being posted. With `held` its SEND reads memory that must stay as it is until the device
    /// is done with it. With `keyed` the controller gets a key for just its data, by a request before the SEND.
    pub fn post(&mut self, slot: u16, held: bool, keyed: bool) -> Signal {
        let entries = self.entries;
        if let Some(entry) = self.slots.get_mut(usize::from(slot)) {
            entry.state = State::Sent;
            entry.sending = held;
            entry.keyed = keyed;
        }
        self.in_flight += 1;
        if let Some(flow) = &mut self.flow {
            flow.tail = (flow.tail + 1) % entries;
        }
        self.unreaped += 1 + u32::from(keyed);
        self.unsignalled += 1 + u32::from(keyed);
        // Often enough that the send queue never fills up with requests nobody hears of.
        if !held && self.unsignalled < (self.sends / 4).max(1) {
            return Signal::None;
        }
        self.signals.push_back(std::mem::take(&mut self.unsignalled));
        if held { Signal::Command } else { Signal::Account }
    }

    /// A SEND completed, and all before it. For one of [`Signal::Command`] name its slot. Returns the response if the command is
    /// over now.
    ///
    /// # Errors
    /// When there was no such SEND.
    pub fn sent(&mut self, slot: Option<u16>) -> Result<Option<Cqe>, Violation> {
        let covered = self.signals.pop_front().ok_or(Violation::NotPosted)?;
        self.unreaped = self.unreaped.saturating_sub(covered);
        let Some(slot) = slot else { return Ok(None) };
        let entry = self.slots.get_mut(usize::from(slot)).filter(|entry| entry.sending);
        let entry = entry.ok_or(Violation::NotPosted)?;
        entry.sending = false;
        Ok(entry.take_if_over())
    }

    /// The key of a command's data is ended by a request that is being posted, with a completion.
    pub fn post_end_of_key(&mut self) {
        self.unreaped += 1;
        self.signals.push_back(std::mem::take(&mut self.unsignalled) + 1);
    }

    /// The key for the data of the command in `slot` is ended, by a request that completed. Returns the response if the command is
    /// over now.
    ///
    /// # Errors
    /// When there was no such request.
    pub fn key_ended(&mut self, slot: u16) -> Result<Option<Cqe>, Violation> {
        let covered = self.signals.pop_front().ok_or(Violation::NotPosted)?;
        self.unreaped = self.unreaped.saturating_sub(covered);
        let entry = self.slots.get_mut(usize::from(slot));
        let entry = entry.filter(|entry| entry.state == State::Answered && entry.keyed);
        let entry = entry.ok_or(Violation::NotPosted)?;
        entry.keyed = false;
        Ok(entry.take_if_over())
    }

    // --- receiving -----------------------------------------------------------------------------------------------------

    /// `count` receives are posted, or about to be, before the next SEND.
    pub fn receives_posted(&mut self, count: u32) {
        self.receives += count;
    }

    /// A message arrived.
    ///
    /// # Errors
    /// When no receive was posted for it.
    pub fn received(&mut self) -> Result<(), Violation> {
        self.receives = self.receives.checked_sub(1).ok_or(Violation::NoReceive)?;
        Ok(())
    }

    /// The response to the command in `slot`, which with `ended` has ended the key for its data.
    ///
    /// # Errors
    /// When the slot's command is not outstanding.
    pub fn answered(&mut self, slot: u16, cqe: Cqe, ended: bool) -> Result<Answered, Violation> {
        let entry = self.slots.get_mut(usize::from(slot)).filter(|entry| entry.state == State::Sent);
        let entry = entry.ok_or(Violation::NotOutstanding)?;
        self.in_flight -= 1;
        entry.keyed &= !ended;
        let answered = if !entry.sending && !entry.keyed {
            entry.state = State::Free;
            Answered::Over(cqe)
        } else {
            entry.state = State::Answered;
            entry.response = Some(cqe);
            if entry.keyed { Answered::EndKey } else { Answered::Wait }
        };
        self.advance(cqe.sqhd.get());
        Ok(answered)
    }

    /// Whether the controller has a key for the data of the command in `slot`.
    #[must_use]
    pub fn is_keyed(&self, slot: u16) -> bool {
        self.slots.get(usize::from(slot)).is_some_and(|slot| slot.keyed)
    }

    /// Moves the head to `sqhd` if that lies between head and tail. Responses may overtake each other inside of a controller:
    /// an older head says nothing new.
    fn advance(&mut self, sqhd: u16) {
        let (entries, sqhd) = (self.entries, u32::from(sqhd));
        let Some(flow) = &mut self.flow else { return };
        let distance = |to: u32| (to + entries - flow.head) % entries;
        if sqhd < entries && distance(sqhd) <= distance(flow.tail) {
            flow.head = sqhd;
        }
    }

    /// Fabrics Connect was answered with this SQHD. SQ flow control starts here, unless the controller goes without: then
    /// only its receives count.
    pub fn connected(&mut self, sqhd: u16) {
        let head = u32::from(sqhd);
        self.flow = (sqhd != NO_FLOW_CONTROL && head < self.entries).then_some(Flow { head, tail: head });
    }
}

#[cfg(test)]
mod tests;
