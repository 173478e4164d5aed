//! Events on their way to a program that may be slower than what happens.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvmf_core::TransportId;

use super::MonitorEvent;

/// Keeps events for whoever fetches them, and does not grow with those that are not fetched.
///
/// Up to a limit every event is kept. Then those that wait are merged, and so is what comes until they are fetched: what remains is
/// the difference between what was fetched before and what is true now, in the order of the last events, behind
/// a [`MonitorEvent::Merged`] that says how many are missing. A path that came and went meanwhile is not told of at all; one that went
/// and came again has changed. So whoever follows the events to their end has the truth.
#[derive(Debug)]
pub struct EventQueue {
    limit: usize,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting {
    events: VecDeque<MonitorEvent>,
    /// With so many events they are merged.
    merge_at: usize,
    closed: bool,
}

impl EventQueue {
    /// Holds `limit` events, or half as many as the difference needs if that is more, beyond the difference itself: one event for each path
    /// and up to three for each discovery controller that changed.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let waiting = Waiting { events: VecDeque::new(), merge_at: limit, closed: false };
        Self { limit, waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, unless the queue is closed.
    pub fn push(&self, event: MonitorEvent) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        waiting.events.push_back(event);
        if waiting.events.len() > waiting.merge_at {
            waiting.events = merged(std::mem::take(&mut waiting.events));
            // Merging looks at all of them: not more often than there is something new in proportion.
            let left = waiting.events.len();
            waiting.merge_at = left + self.limit.max(left / 2);
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// The next event; `None` when there was none for so long, or there will be none any more.
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<MonitorEvent> {
        let nothing = |waiting: &mut Waiting| waiting.events.is_empty() && !waiting.closed;
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, nothing);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let event = waiting.events.pop_front();
        if waiting.events.is_empty() {
            waiting.merge_at = self.limit;
        }
        event
    }

    /// Takes no more events. Those that are there can still be fetched.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Whether it was closed, and everything has been fetched.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let waiting = self.lock();
        waiting.closed && waiting.events.is_empty()
    }
}

/// The first and the last event about something, by their numbers.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    last: usize,
}

/// What is to become of an event.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Dropped,
    Kept,
    /// The path of this event is new.
    Added,
    /// The path of this event was there before.
    Changed,
}

/// The difference that these events make, behind how many of them are missing.
fn merged(events: VecDeque<MonitorEvent>) -> VecDeque<MonitorEvent> {
    let mut fates = vec![Fate::Dropped; events.len()];
    let (mut paths, mut watches, mut connections, mut complaints) =
        (HashMap::new(), HashMap::new(), HashMap::new(), HashMap::new());
    let mut missing = 0;
    for (index, event) in events.iter().enumerate() {
        let (spans, trid): (&mut HashMap<&TransportId, Span>, _) = match event {
            MonitorEvent::Added(path) | MonitorEvent::Removed(path) | MonitorEvent::Changed(path) => {
                (&mut paths, &path.trid)
            }
            MonitorEvent::Watching(trid) | MonitorEvent::Forgotten(trid) => (&mut watches, trid),
            MonitorEvent::Connected { trid, .. } | MonitorEvent::Disconnected { trid, .. } => {
                (&mut connections, trid)
            }
            MonitorEvent::Unusable { trid, .. } => (&mut complaints, trid),
            MonitorEvent::Merged { events } => {
                missing += events;
                continue;
            }
        };
        spans.entry(trid).or_insert(Span { first: index, last: index }).last = index;
    }
    for span in paths.values() {
        fates[span.last] = path_fate(&events[span.first], &events[span.last]);
    }
    for span in watches.values() {
        let new = matches!(events[span.first], MonitorEvent::Watching(_));
        let gone = matches!(events[span.last], MonitorEvent::Forgotten(_));
        fates[span.last] = if new && gone { Fate::Dropped } else { Fate::Kept };
    }
    for (trid, span) in connections.iter().chain(&complaints) {
        // What is forgotten is not connected, and what is watched anew does not know of connections before.
        if watches.get(trid).is_none_or(|watch| {
            watch.last < span.last && matches!(events[watch.last], MonitorEvent::Watching(_))
        }) {
            fates[span.last] = Fate::Kept;
        }
    }
    let before = events.len();
    let counts = events.iter().filter(|event| matches!(event, MonitorEvent::Merged { .. })).count();
    let mut kept: VecDeque<MonitorEvent> =
        events.into_iter().zip(fates).filter_map(|(event, fate)| fated(event, fate)).collect();
    missing += (before - counts - kept.len()) as u64;
    if missing > 0 {
        kept.push_front(MonitorEvent::Merged { events: missing });
    }
    kept
}

/// What becomes of the last event about a path, given the first.
fn path_fate(first: &MonitorEvent, last: &MonitorEvent) -> Fate {
    match (first, last) {
        (MonitorEvent::Added(_), MonitorEvent::Removed(_)) => Fate::Dropped,
        (MonitorEvent::Added(_), _) => Fate::Added,
        (_, MonitorEvent::Removed(_)) => Fate::Kept,
        // That it is now as it was when it went does not mean that the program knows it so: it may have changed before.
        _ => Fate::Changed,
    }
}

fn fated(event: MonitorEvent, fate: Fate) -> Option<MonitorEvent> {
    match (event, fate) {
        (_, Fate::Dropped) => None,
        (MonitorEvent::Added(path) | MonitorEvent::Changed(path), Fate::Added) => {
            Some(MonitorEvent::Added(path))
        }
        (MonitorEvent::Added(path) | MonitorEvent::Changed(path), Fate::Changed) => {
            Some(MonitorEvent::Changed(path))
        }
        (event, _) => Some(event),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use nvmf_core::spec::discovery::DiscoveryLogEntry;
    use nvmf_core::{Error, Nqn};
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::super::Path;
    use super::*;

    fn path(number: u8, version: u16) -> Path {
        let mut entry = DiscoveryLogEntry::new_zeroed();
        entry.portid = version.into();
        Path { trid: trid(number), entry: Arc::new(entry) }
    }

    fn trid(number: u8) -> TransportId {
        let name: Nqn = format!("nqn.2024-01.com.example:{number}").parse().unwrap();
        TransportId::tcp("192.0.2.1", 4420).unwrap().with_subnqn(name)
    }

    fn drain(queue: &EventQueue) -> Vec<MonitorEvent> {
        std::iter::from_fn(|| queue.next(Duration::ZERO)).collect()
    }

    /// `+1.0` and the like: the path and the version of its entry.
    fn short(event: &MonitorEvent) -> String {
        let path = |sign, path: &Path| {
            let number = path.trid.subnqn().unwrap().to_string();
            format!("{sign}{}.{}", number.rsplit(':').next().unwrap(), path.entry.portid)
        };
        match event {
            MonitorEvent::Added(added) => path('+', added),
            MonitorEvent::Removed(removed) => path('-', removed),
            MonitorEvent::Changed(changed) => path('~', changed),
            MonitorEvent::Watching(_) => "watch".to_owned(),
            MonitorEvent::Forgotten(_) => "forget".to_owned(),
            MonitorEvent::Connected { genctr, .. } => format!("up{genctr}"),
            MonitorEvent::Disconnected { .. } => "down".to_owned(),
            MonitorEvent::Unusable { .. } => "bad".to_owned(),
            MonitorEvent::Merged { events } => format!("merged{events}"),
        }
    }

    fn after(limit: usize, events: Vec<MonitorEvent>) -> String {
        let queue = EventQueue::new(limit);
        events.into_iter().for_each(|event| queue.push(event));
        drain(&queue).iter().map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn nothing_is_merged_up_to_the_limit() {
        use MonitorEvent::{Added, Removed};
        let events = || vec![Added(path(1, 0)), Removed(path(1, 0)), Added(path(1, 0)), Added(path(2, 0))];
        assert_eq!(after(4, events()), "+1.0 -1.0 +1.0 +2.0");
        assert_eq!(after(3, events()), "merged2 +1.0 +2.0");
    }

    #[test]
    fn what_is_left_is_the_difference() {
        use MonitorEvent::{Added, Changed, Removed};
        for (events, left) in [
            (vec![Added(path(1, 0)), Removed(path(1, 0))], "merged2"),
            (vec![Removed(path(1, 0)), Added(path(1, 0))], "merged1 ~1.0"),
            (vec![Removed(path(1, 0)), Added(path(1, 1))], "merged1 ~1.1"),
            (vec![Removed(path(1, 0)), Added(path(1, 1)), Removed(path(1, 1))], "merged2 -1.1"),
            (vec![Added(path(1, 0)), Changed(path(1, 1))], "merged1 +1.1"),
            (vec![Changed(path(1, 1)), Removed(path(1, 1)), Added(path(1, 1))], "merged2 ~1.1"),
            (vec![Changed(path(1, 1)), Removed(path(1, 1))], "merged1 -1.1"),
        ] {
            assert_eq!(after(events.len() - 1, events), left);
        }
    }

    #[test]
    fn discovery_controllers_are_told_of_as_they_are() {
        use MonitorEvent::{Connected, Disconnected, Forgotten, Unusable, Watching};
        let up = |genctr| Connected { trid: trid(0), subnqn: String::new(), genctr };
        let error = || Error::unsupported("it");
        let down = || Disconnected { trid: trid(0), error: error(), retry_in: Duration::ZERO };
        let bad = || Unusable { trid: trid(0), error: error() };
        let (watch, forget) = (|| Watching(trid(0)), || Forgotten(trid(0)));
        for (events, left) in [
            (vec![up(1), down(), up(2), down(), up(3)], "merged4 up3"),
            (vec![up(1), bad(), down(), bad(), up(3)], "merged3 bad up3"),
            (vec![watch(), up(1), bad(), forget()], "merged4"),
            (vec![down(), up(1), bad(), forget()], "merged3 forget"),
            (vec![watch(), down(), forget(), watch(), up(2)], "merged3 watch up2"),
            (vec![up(1), forget(), watch()], "merged2 watch"),
        ] {
            assert_eq!(after(events.len() - 1, events), left);
        }
    }

    #[test]
    fn a_closed_queue_ends() {
        let queue = EventQueue::new(8);
        queue.push(MonitorEvent::Watching(trid(0)));
        queue.close();
        queue.push(MonitorEvent::Watching(trid(1)));
        assert!(!queue.is_over());
        assert_eq!(drain(&queue).len(), 1);
        assert!(queue.is_over());
        // And not only after so long.
        assert!(queue.next(Duration::from_secs(1000)).is_none());
    }

    proptest! {
        /// Whoever follows the events ends with the truth, however late they are fetched, and there are never many.
        #[test]
        fn the_end_is_the_truth(steps in prop::collection::vec((0..12u8, 0..4u8), 0..400), limit in 1..20usize) {
            let queue = EventQueue::new(limit);
            let mut truth: HashMap<TransportId, Path> = HashMap::new();
            let mut followed: HashMap<TransportId, Path> = HashMap::new();
            let mut follow = |event: MonitorEvent| match event {
                // What it says of before has to be so.
                MonitorEvent::Added(path) => assert!(followed.insert(path.trid.clone(), path).is_none()),
                MonitorEvent::Changed(path) => assert!(followed.insert(path.trid.clone(), path).is_some()),
                MonitorEvent::Removed(path) => assert!(followed.remove(&path.trid).is_some()),
                MonitorEvent::Merged { events } => assert!(events > 0),
                other => panic!("{other:?}"),
            };
            for (version, (number, what)) in steps.into_iter().enumerate() {
                let known = truth.get(&trid(number)).cloned();
                let path = path(number, version as u16 % 3);
                match (known, what) {
                    // The program fetches one.
                    (_, 0) => if let Some(event) = queue.next(Duration::ZERO) { follow(event) },
                    (None, _) => {
                        truth.insert(path.trid.clone(), path.clone());
                        queue.push(MonitorEvent::Added(path));
                    }
                    (Some(known), 1 | 2) => {
                        truth.remove(&known.trid);
                        queue.push(MonitorEvent::Removed(known));
                    }
                    (Some(known), _) if known != path => {
                        truth.insert(path.trid.clone(), path.clone());
                        queue.push(MonitorEvent::Changed(path));
                    }
                    _ => {}
                }
                // One for each path, how many are missing, and what came since.
                prop_assert!(queue.lock().events.len() <= 13 + limit.max(13 / 2));
            }
            drain(&queue).into_iter().for_each(&mut follow);
            prop_assert_eq!(followed, truth);
        }
    }
}
