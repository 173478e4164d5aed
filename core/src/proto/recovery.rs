//! When a lost controller is connected again, how often, and when it is given up. No I/O, no clock.
//!
//! ```text
//!              lost                     pause over
//!   Connected ──────▶ Waiting ─────────────────────▶ Attempting ──▶ Connected
//!       │               ▲  │                          │   │
//!       │ disconnect    └──┼──────────────────────────┘   │
//!       ▼                  │ ctrl_loss_timeout       failed for good
//!   Disconnected           ▼                              ▼
//!       └──────────────▶ Lost ◀───────────────────────────┘
//! ```
//!
//! A program may attempt at any time ([`Recovery::begin`]); without a policy nothing else does.

use std::time::{Duration, Instant};

/// When to connect again without being told to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RecoveryPolicy {
    /// Pause between two attempts; `None` or zero: no attempt is made.
    pub reconnect_delay: Option<Duration>,
    /// How long after the loss attempts are made; `None`: without end. Zero: none.
    pub ctrl_loss_timeout: Option<Duration>,
    /// How long after the loss I/O is held; `None`: as long as attempts are made.
    pub fast_io_fail_timeout: Option<Duration>,
}

impl RecoveryPolicy {
    /// Whether attempts are made at all; the pause between them.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        let allowed = self.ctrl_loss_timeout.is_none_or(|limit| !limit.is_zero());
        self.reconnect_delay.filter(|delay| allowed && !delay.is_zero())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Connected,
    /// Disconnected by the program, which has to connect again.
    Disconnected,
    /// The next attempt is due at this time.
    Waiting(Instant),
    /// An attempt is being made, by the program's wish or by policy.
    Attempting {
        wished: bool,
    },
    Lost,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecoveryStep {
    /// Nothing, unless something happens.
    Idle,
    /// Nothing before this time.
    Wait(Instant),
    /// Start an attempt; [`Recovery::begin`] says that it was started.
    Attempt,
    /// An attempt is being made; it may go on until this time.
    Attempting(Option<Instant>),
    /// Time is up: the controller is lost for good. Said once.
    GiveUp,
}

/// The machine.
#[derive(Debug)]
pub struct Recovery {
    policy: RecoveryPolicy,
    state: State,
    /// When this outage began.
    since: Option<Instant>,
    connected_at: Option<Instant>,
}

impl Recovery {
    /// A machine for a controller that is being attached.
    #[must_use]
    pub fn new(policy: RecoveryPolicy) -> Self {
        Self { policy, state: State::Attempting { wished: true }, since: None, connected_at: None }
    }

    /// Whether the controller is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.state == State::Connected
    }

    /// Whether an attempt is being made.
    #[must_use]
    pub fn is_attempting(&self) -> bool {
        matches!(self.state, State::Attempting { .. })
    }

    /// Whether it is given up for good (until the program attempts again).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Whether the program disconnected it and nothing happens on its own.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        self.state == State::Disconnected
    }

    /// An attempt succeeded.
    pub fn connected(&mut self, now: Instant) {
        self.state = State::Connected;
        self.connected_at = Some(now);
    }

    /// The connection is lost, or an attempt failed. Returns whether there will be an attempt.
    ///
    /// The first attempt is made at once; but a connection that did not even last for the pause between attempts counts as one
    /// more failed attempt, so that a controller that connects and fails again and again is given up in the end.
    pub fn lost(&mut self, now: Instant) -> bool {
        let Some(delay) = self.policy.delay() else {
            self.state = State::Lost;
            return false;
        };
        match self.state {
            State::Lost => return false,
            State::Waiting(_) => return true,
            // The program is in charge.
            State::Disconnected => return false,
            State::Connected | State::Attempting { .. } => {}
        }
        let flapping = self.connected_at.is_some_and(|at| now.duration_since(at) < delay);
        let connected = self.state == State::Connected;
        let (since, next) = match self.since {
            Some(since) if !connected || flapping => (since, now + delay),
            _ => (now, now),
        };
        self.since = Some(since);
        self.state = State::Waiting(next);
        if self.expired(now) {
            self.state = State::Lost;
            return false;
        }
        true
    }

    /// An attempt failed in a way that no other attempt will mend, or the program gives the controller up.
    pub fn give_up(&mut self) {
        self.state = State::Lost;
    }

    /// The program disconnects it.
    pub fn disconnect(&mut self, now: Instant) {
        if self.state == State::Connected || self.since.is_none() {
            self.since = Some(now);
        }
        self.state = State::Disconnected;
    }

    /// An attempt begins; `wished` by the program rather than by policy.
    pub fn begin(&mut self, wished: bool) {
        self.state = State::Attempting { wished };
    }

    /// What to do at `now`.
    pub fn poll(&mut self, now: Instant) -> RecoveryStep {
        let step = self.next(now);
        if step == RecoveryStep::GiveUp {
            self.state = State::Lost;
        }
        step
    }

    /// What [`Recovery::poll`] would say.
    #[must_use]
    pub fn next(&self, now: Instant) -> RecoveryStep {
        match self.state {
            State::Connected | State::Disconnected | State::Lost => RecoveryStep::Idle,
            State::Attempting { wished: true } => RecoveryStep::Attempting(None),
            _ if self.expired(now) => RecoveryStep::GiveUp,
            State::Attempting { wished: false } => RecoveryStep::Attempting(self.expires()),
            State::Waiting(next) if now >= next => RecoveryStep::Attempt,
            State::Waiting(next) => {
                let wake = [self.expires(), self.fast_fail_at(), Some(next)];
                let wake = wake.into_iter().flatten().filter(|&time| time > now).min();
                RecoveryStep::Wait(wake.unwrap_or(next))
            }
        }
    }

    /// Whether I/O is failed rather than held.
    #[must_use]
    pub fn fails_fast(&self, now: Instant) -> bool {
        match self.state {
            State::Connected => false,
            State::Lost => true,
            _ => self.fast_fail_at().is_some_and(|time| now >= time),
        }
    }

    fn fast_fail_at(&self) -> Option<Instant> {
        Some(self.since? + self.policy.fast_io_fail_timeout?)
    }

    fn expires(&self) -> Option<Instant> {
        Some(self.since? + self.policy.ctrl_loss_timeout?)
    }

    fn expired(&self, now: Instant) -> bool {
        self.expires().is_some_and(|time| now >= time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn policy(delay: u32, loss: Option<u32>, fast: Option<u32>) -> RecoveryPolicy {
        RecoveryPolicy {
            reconnect_delay: Some(S * delay),
            ctrl_loss_timeout: loss.map(|n| S * n),
            fast_io_fail_timeout: fast.map(|n| S * n),
        }
    }

    fn connected(policy: RecoveryPolicy, now: Instant) -> Recovery {
        let mut r = Recovery::new(policy);
        r.connected(now);
        r
    }

    #[test]
    fn without_a_policy_a_loss_is_final_until_the_program_attempts() {
        let t = Instant::now();
        for policy in [RecoveryPolicy::default(), policy(0, None, None), policy(1, Some(0), None)] {
            let mut r = connected(policy, t);
            assert!(!r.lost(t + S));
            assert!(r.is_lost() && r.fails_fast(t + S));
            assert_eq!(r.poll(t + 2 * S), RecoveryStep::Idle);
            r.begin(true);
            assert_eq!(r.poll(t + 1000 * S), RecoveryStep::Attempting(None), "it takes as long as it takes");
            r.connected(t + 1000 * S);
            assert!(r.is_connected() && !r.fails_fast(t + 1000 * S));
        }
    }

    #[test]
    fn the_first_attempt_is_made_at_once_and_the_others_after_a_pause() {
        let t = Instant::now();
        let mut r = connected(policy(10, Some(60), None), t);
        let lost = t + 100 * S;
        assert!(r.lost(lost));
        assert_eq!(r.poll(lost), RecoveryStep::Attempt);
        r.begin(false);
        assert_eq!(r.poll(lost + S), RecoveryStep::Attempting(Some(lost + 60 * S)));
        assert!(r.lost(lost + 2 * S));
        assert_eq!(r.poll(lost + 2 * S), RecoveryStep::Wait(lost + 12 * S));
        assert_eq!(r.poll(lost + 12 * S), RecoveryStep::Attempt);
        r.begin(false);
        r.connected(lost + 13 * S);
        assert_eq!(r.poll(lost + 200 * S), RecoveryStep::Idle);
        assert!(r.lost(lost + 200 * S), "another outage has all the time again");
        assert_eq!(r.poll(lost + 200 * S), RecoveryStep::Attempt);
    }

    #[test]
    fn it_is_given_up_once_while_waiting_and_while_attempting() {
        let t = Instant::now();
        for attempting in [false, true] {
            let mut r = connected(policy(10, Some(25), None), t - 100 * S);
            assert!(r.lost(t));
            r.begin(false);
            if !attempting {
                assert!(r.lost(t + 20 * S));
                assert_eq!(r.poll(t + 20 * S), RecoveryStep::Wait(t + 25 * S));
            }
            assert_eq!(r.poll(t + 25 * S), RecoveryStep::GiveUp);
            assert_eq!(r.poll(t + 25 * S), RecoveryStep::Idle);
            assert!(r.is_lost());
            assert!(!r.lost(t + 26 * S));
        }
    }

    #[test]
    fn an_attempt_that_fails_after_the_time_is_the_last() {
        let t = Instant::now();
        let mut r = connected(policy(10, Some(25), None), t - 100 * S);
        assert!(r.lost(t));
        r.begin(false);
        assert!(!r.lost(t + 30 * S));
        assert!(r.is_lost());
    }

    #[test]
    fn forever_is_forever() {
        let t = Instant::now();
        let mut r = connected(policy(10, None, None), t - 100 * S);
        assert!(r.lost(t));
        for n in 0..10_000u32 {
            let now = t + S * (n * 10);
            assert_eq!(r.poll(now), RecoveryStep::Attempt);
            r.begin(false);
            assert!(r.lost(now));
            assert!(!r.fails_fast(now));
        }
    }

    #[test]
    fn a_controller_that_connects_and_fails_again_and_again_is_given_up() {
        let t = Instant::now();
        let mut r = connected(policy(10, Some(35), None), t - 100 * S);
        let mut now = t;
        let mut attempts = 0;
        while r.lost(now) {
            while r.poll(now) != RecoveryStep::Attempt {
                now += S;
                if r.is_lost() {
                    break;
                }
            }
            if r.is_lost() {
                break;
            }
            r.begin(false);
            r.connected(now);
            attempts += 1;
            assert!(attempts < 10);
        }
        assert!((3..=4).contains(&attempts), "{attempts} attempts in 35 s, 10 s apart");
    }

    #[test]
    fn io_is_held_until_fast_io_fail() {
        let t = Instant::now();
        let mut r = connected(policy(10, Some(60), Some(15)), t - 100 * S);
        assert!(r.lost(t));
        r.begin(false);
        r.lost(t);
        assert_eq!(r.poll(t + 11 * S), RecoveryStep::Attempt);
        assert_eq!(r.poll(t + 5 * S), RecoveryStep::Wait(t + 10 * S));
        r.begin(false);
        assert!(!r.fails_fast(t + 14 * S));
        assert!(r.fails_fast(t + 15 * S));
        r.lost(t + 14 * S);
        assert_eq!(r.poll(t + 14 * S), RecoveryStep::Wait(t + 15 * S), "woken when I/O is to be failed");
        r.begin(false);
        r.connected(t + 30 * S);
        assert!(!r.fails_fast(t + 31 * S));
    }

    #[test]
    fn a_disconnected_controller_waits_for_the_program() {
        let t = Instant::now();
        let mut r = connected(policy(1, Some(5), Some(3)), t);
        r.disconnect(t + S);
        assert!(r.is_disconnected());
        assert_eq!(r.poll(t + 100 * S), RecoveryStep::Idle, "ctrl_loss_timeout is for losses");
        assert!(!r.fails_fast(t + 3 * S) && r.fails_fast(t + 4 * S));
        r.begin(true);
        assert_eq!(r.poll(t + 100 * S), RecoveryStep::Attempting(None));
        assert!(!r.lost(t + 100 * S), "and its time is up when the attempt fails");
    }
}
