//! The keep alive timer. NVMe Base 2.1 §3.9.

use std::time::{Duration, Instant};

/// Decides when to send Keep Alive and when a controller that does not answer is dead.
#[derive(Debug)]
pub struct KeepAlive {
    timeout: Duration,
    next: Instant,
    /// When the command now outstanding was sent.
    sent: Option<Instant>,
}

/// What the timer wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeepAliveStep {
    /// Nothing before this time.
    Idle(Instant),
    /// Send Keep Alive, then call [`KeepAlive::sent`].
    Send,
    /// No answer within the keep alive timeout: the controller is gone.
    Dead,
}

impl KeepAlive {
    /// A timer for a keep alive timeout; `None` when it is zero. `now` is when Connect was sent, or earlier: that started the
    /// controller's timer.
    #[must_use]
    pub fn new(timeout: Duration, now: Instant) -> Option<Self> {
        (!timeout.is_zero()).then_some(Self { timeout, next: now + timeout / 2, sent: None })
    }

    /// The keep alive timeout.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What to do at `now`.
    #[must_use]
    pub fn poll(&self, now: Instant) -> KeepAliveStep {
        match self.sent {
            Some(sent) if now.duration_since(sent) >= self.timeout => KeepAliveStep::Dead,
            Some(sent) => KeepAliveStep::Idle(sent + self.timeout),
            None if now >= self.next => KeepAliveStep::Send,
            None => KeepAliveStep::Idle(self.next),
        }
    }

    /// A Keep Alive command was sent. The next is due half the timeout later (§3.9: to be sent well before it expires).
    pub fn sent(&mut self, now: Instant) {
        self.sent = Some(now);
        self.next = now + self.timeout / 2;
    }

    /// It was answered.
    pub fn answered(&mut self) {
        self.sent = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KATO: Duration = Duration::from_secs(10);

    #[test]
    fn sends_every_half_timeout() {
        let t0 = Instant::now();
        let mut timer = KeepAlive::new(KATO, t0).unwrap();
        assert_eq!(timer.poll(t0), KeepAliveStep::Idle(t0 + KATO / 2));
        assert_eq!(timer.poll(t0 + KATO / 2), KeepAliveStep::Send);
        timer.sent(t0 + KATO / 2);
        timer.answered();
        assert_eq!(timer.poll(t0 + KATO / 2), KeepAliveStep::Idle(t0 + KATO));
        assert_eq!(timer.poll(t0 + KATO), KeepAliveStep::Send);
    }

    #[test]
    fn an_unanswered_command_means_death_after_the_timeout() {
        let t0 = Instant::now();
        let mut timer = KeepAlive::new(KATO, t0).unwrap();
        timer.sent(t0);
        assert_eq!(timer.poll(t0 + KATO - Duration::from_millis(1)), KeepAliveStep::Idle(t0 + KATO));
        assert_eq!(timer.poll(t0 + KATO), KeepAliveStep::Dead);
    }

    #[test]
    fn zero_is_off() {
        assert!(KeepAlive::new(Duration::ZERO, Instant::now()).is_none());
    }
}
