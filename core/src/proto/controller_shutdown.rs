//! Orderly shutdown of a controller: CC.SHN, then CSTS.SHST. NVMe Base 2.1 §3.6.

use std::time::{Duration, Instant};

use super::controller_init::{Action, Next, Outcome};
use crate::error::{Error, Result};
use crate::spec::fabrics::PropertySize::Dword;
use crate::spec::registers::{ControllerConfig, ControllerStatus, PropertyOffset, Shn, Shst};

/// Shortest time allowed for a shutdown; controllers that report no RTD3 entry latency get this.
const MIN_TIME: Duration = Duration::from_secs(10);
/// Longest, whatever the controller reports.
const MAX_TIME: Duration = Duration::from_secs(120);
const POLL: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(20));

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    ReadCc,
    SetShn,
    WaitShst,
    Done,
}

/// The machine; used as [`super::controller_init::ControllerInit`] is.
#[derive(Debug)]
pub struct ControllerShutdown {
    state: State,
    busy: bool,
    cc: ControllerConfig,
    limit: Duration,
    deadline: Instant,
    not_before: Option<Instant>,
    pause: Duration,
}

impl ControllerShutdown {
    /// A machine for a controller whose RTD3 entry latency is `rtd3e_us` (0: not reported). It is given that time, up to two minutes: a
    /// controller that is given up before may lose what it was saving. One that needs less is given ten seconds, but no longer
    /// than `limit`.
    #[must_use]
    pub fn new(rtd3e_us: u32, limit: Duration, now: Instant) -> Self {
        let limit = Duration::from_micros(u64::from(rtd3e_us)).min(MAX_TIME).max(MIN_TIME.min(limit));
        Self {
            state: State::ReadCc,
            busy: false,
            cc: ControllerConfig(0),
            limit,
            deadline: now + limit,
            not_before: None,
            pause: POLL.0,
        }
    }

    /// What to do next.
    ///
    /// # Errors
    /// When the deadline has passed.
    pub fn next(&mut self, now: Instant) -> Result<Next> {
        if self.state == State::Done {
            return Ok(Next::Ready);
        }
        if now >= self.deadline {
            return Err(Error::timed_out("waiting for the controller's shutdown (CSTS.SHST)", self.limit));
        }
        if self.busy {
            return Ok(Next::Wait(self.deadline));
        }
        if let Some(time) = self.not_before
            && now < time
        {
            return Ok(Next::Wait(time.min(self.deadline)));
        }
        self.not_before = None;
        self.busy = true;
        Ok(Next::Do(match self.state {
            State::ReadCc => Action::PropertyGet(PropertyOffset::CC, Dword),
            State::SetShn => {
                Action::PropertySet(PropertyOffset::CC, Dword, u64::from(self.cc.with_shn(Shn::NORMAL).0))
            }
            State::WaitShst | State::Done => Action::PropertyGet(PropertyOffset::CSTS, Dword),
        }))
    }

    /// Reports what came of the action handed out last.
    ///
    /// # Errors
    /// When the outcome does not fit.
    pub fn complete(&mut self, outcome: &Outcome<'_>, now: Instant) -> Result<()> {
        self.busy = false;
        self.state = match (self.state, outcome) {
            (State::ReadCc, Outcome::Property(value)) => {
                self.cc = ControllerConfig(*value as u32);
                State::SetShn
            }
            (State::SetShn, Outcome::Done) => State::WaitShst,
            (State::WaitShst, Outcome::Property(value)) => {
                let csts = ControllerStatus(*value as u32);
                if csts.shst() == Shst::COMPLETE || csts.cfs() {
                    State::Done
                } else {
                    self.not_before = Some(now + self.pause);
                    self.pause = (self.pause * 2).min(POLL.1);
                    State::WaitShst
                }
            }
            _ => {
                return Err(Error::api_misuse(
                    "an outcome was reported that does not fit the shutdown's state",
                ));
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifies_and_waits_for_completion() {
        let mut now = Instant::now();
        let mut machine = ControllerShutdown::new(0, Duration::from_secs(60), now);
        assert!(matches!(machine.next(now), Ok(Next::Do(Action::PropertyGet(PropertyOffset::CC, _)))));
        machine.complete(&Outcome::Property(0x0046_0001), now).unwrap();
        let Ok(Next::Do(Action::PropertySet(PropertyOffset::CC, _, value))) = machine.next(now) else {
            panic!()
        };
        assert_eq!(value, 0x0046_4001);
        machine.complete(&Outcome::Done, now).unwrap();
        for shst in [0u64, 1, 2] {
            while let Next::Wait(time) = machine.next(now).unwrap() {
                now = time;
            }
            machine.complete(&Outcome::Property(1 | shst << 2), now).unwrap();
        }
        assert!(matches!(machine.next(now), Ok(Next::Ready)));
    }

    #[test]
    fn the_time_is_the_controllers_within_reason() {
        let now = Instant::now();
        let time = |rtd3e_us: u32, limit: u64| {
            ControllerShutdown::new(rtd3e_us, Duration::from_secs(limit), now).deadline - now
        };
        assert_eq!(time(0, 30), MIN_TIME);
        assert_eq!(time(0, 2), Duration::from_secs(2), "it promises nothing");
        assert_eq!(time(60_000_000, 30), Duration::from_secs(60), "it says that it takes a minute");
        assert_eq!(time(60_000_000, 2), Duration::from_secs(60));
        assert_eq!(time(u32::MAX, 30), MAX_TIME);
    }

    #[test]
    fn a_controller_that_never_finishes_is_given_up_at_the_deadline() {
        let mut now = Instant::now();
        let start = now;
        let mut machine = ControllerShutdown::new(0, Duration::from_secs(60), now);
        let error = loop {
            match machine.next(now) {
                Ok(Next::Do(Action::PropertySet(..))) => machine.complete(&Outcome::Done, now).unwrap(),
                Ok(Next::Do(_)) => machine.complete(&Outcome::Property(1), now).unwrap(),
                Ok(Next::Wait(time)) => now = time,
                Ok(Next::Ready) => panic!("not ready"),
                Err(error) => break error,
            }
        };
        assert!(error.is_timeout());
        assert_eq!(now - start, MIN_TIME);
    }
}
