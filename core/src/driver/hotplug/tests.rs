use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::controller::Controller;
use crate::driver::Callbacks;
use crate::options::ControllerOptions;
use crate::testing::{self, Target, trid};
use crate::transport::TransportController;
use crate::transport_id::{TransportId, TransportType};

/// A local bus with controllers of a [`Target`] on it.
#[derive(Clone)]
struct Bus(Arc<Shared>);

struct Shared {
    target: Target,
    present: Mutex<Vec<TransportId>>,
    events: Mutex<Vec<HotplugEvent>>,
    bell: (UnixStream, UnixStream),
    /// Monitors have a descriptor.
    notified: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus {
    fn new(notified: bool) -> Self {
        let bell = UnixStream::pair().unwrap();
        bell.1.set_nonblocking(true).unwrap();
        let (present, events) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { target: Target::new(), present, events, bell, notified }))
    }

    fn driver(&self) -> Driver {
        Driver::builder().transport(self.clone()).host(testing::host(1)).build()
    }

    fn tell(&self, event: HotplugEvent) {
        lock(&self.0.events).push(event);
        (&self.0.bell.0).write_all(&[1]).unwrap();
    }

    fn insert(&self, name: &str) {
        lock(&self.0.present).push(trid(name));
        self.tell(HotplugEvent::Inserted(trid(name)));
    }

    fn remove(&self, name: &str) {
        lock(&self.0.present).retain(|present| *present != trid(name));
        self.tell(HotplugEvent::Removed(trid(name)));
    }
}

impl Transport for Bus {
    fn trtype(&self) -> TransportType {
        TransportType::Loop
    }

    fn is_local(&self) -> bool {
        true
    }

    fn scan(&self, filter: Option<&TransportId>, found: &mut dyn FnMut(TransportId)) -> Result<()> {
        lock(&self.0.present)
            .iter()
            .filter(|present| filter.is_none_or(|f| f == *present))
            .cloned()
            .for_each(found);
        Ok(())
    }

    fn is_present(&self, trid: &TransportId) -> Option<bool> {
        Some(lock(&self.0.present).contains(trid))
    }

    fn hotplug(&self) -> Result<Option<Box<dyn HotplugMonitor>>> {
        Ok(Some(Box::new(self.clone())))
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        self.0.target.ctrlr_construct(trid, options)
    }
}

impl HotplugMonitor for Bus {
    fn event_fd(&self) -> Option<RawFd> {
        self.0.notified.then(|| self.0.bell.1.as_raw_fd())
    }

    fn poll(&mut self, each: &mut dyn FnMut(HotplugEvent)) -> Result<()> {
        let _ = (&self.0.bell.1).read(&mut [0; 64]);
        lock(&self.0.events).drain(..).for_each(each);
        Ok(())
    }
}

/// What a scan offers, what it attaches, and how often a removal is told.
#[derive(Default)]
struct App {
    offered: Vec<TransportId>,
    attached: Vec<Controller>,
    failed: usize,
    removed: Arc<AtomicUsize>,
}

impl App {
    fn probe(&mut self, driver: &Driver, at: Option<&TransportId>) -> usize {
        let (before, removed) = (self.offered.len(), Arc::clone(&self.removed));
        let callbacks = Callbacks::new()
            .options(testing::options())
            .probe(|trid, _| {
                self.offered.push(trid.clone());
                true
            })
            .attach(|controller| self.attached.push(controller))
            .attach_fail(|_, _| self.failed += 1)
            .remove(move |_| {
                removed.fetch_add(1, Ordering::SeqCst);
            });
        driver.probe(at, callbacks).unwrap();
        self.offered.len() - before
    }

    fn removed(&self) -> usize {
        self.removed.load(Ordering::SeqCst)
    }
}

#[test]
fn probing_again_offers_what_is_new_and_reports_what_is_gone() {
    let bus = Bus::new(true);
    let (driver, mut app) = (bus.driver(), App::default());
    bus.insert("a");
    assert_eq!(app.probe(&driver, None), 1);
    bus.insert("b");
    assert_eq!(app.probe(&driver, None), 1, "the one that is attached is not offered again");
    assert_eq!(app.offered, [trid("a"), trid("b")]);
    assert_eq!(app.probe(&driver, Some(&trid("b"))), 0);
    bus.remove("a");
    assert_eq!((app.probe(&driver, None), app.removed()), (0, 1));
    assert!(app.attached[0].is_failed() && !app.attached[1].is_failed());
    assert!(app.attached[0].failure().unwrap().to_string().contains("removed from its bus"));
    assert_eq!((app.probe(&driver, None), app.removed()), (0, 1), "once");
    // It comes back: offered although somebody still has a handle of its predecessor.
    bus.insert("a");
    assert_eq!(app.probe(&driver, None), 1);
    assert_eq!((app.attached.len(), app.failed, app.removed()), (3, 0, 1));
    assert!(!app.attached[2].is_failed());
    assert_eq!(driver.controllers().iter().filter(|c| !c.is_failed()).count(), 2);
}

#[test]
fn one_that_is_lost_and_still_there_is_offered_once_it_is_let_go_of() {
    let bus = Bus::new(true);
    let (driver, mut app) = (bus.driver(), App::default());
    bus.insert("a");
    app.probe(&driver, None);
    app.attached[0].fail();
    assert_eq!((app.probe(&driver, None), app.removed()), (0, 1));
    app.attached.clear();
    assert_eq!((app.probe(&driver, None), app.removed()), (1, 1));
    // As is one that was detached.
    app.attached.remove(0).detach().unwrap();
    assert_eq!((app.probe(&driver, None), app.removed()), (1, 1));
}

#[test]
fn removal_is_told_once_however_it_is_noticed() {
    let bus = Bus::new(true);
    let driver = bus.driver();
    // By the descriptor, by a probe, by the controller itself: in any order.
    let by_event = |app: &mut App, hotplug: &mut Hotplug| {
        while hotplug.poll().unwrap().is_some() {}
        app.removed()
    };
    let by_probe = |app: &mut App, _: &mut Hotplug| {
        app.probe(&driver, None);
        app.removed()
    };
    let by_itself = |app: &mut App, _: &mut Hotplug| {
        bus.0.target.knobs().cut = true;
        let _ = app.attached[0].process_admin_completions();
        bus.0.target.knobs().cut = false;
        app.removed()
    };
    type Way<'a> = &'a dyn Fn(&mut App, &mut Hotplug) -> usize;
    for ways in [
        [&by_event as Way<'_>, &by_probe, &by_itself],
        [&by_probe, &by_itself, &by_event],
        [&by_itself, &by_event, &by_probe],
    ] {
        let mut app = App::default();
        bus.insert("a");
        app.probe(&driver, None);
        let mut hotplug = driver.hotplug().unwrap();
        bus.remove("a");
        for way in ways {
            assert_eq!(way(&mut app, &mut hotplug), 1);
        }
        while hotplug.poll().unwrap().is_some() {}
    }
}

fn readable(fd: RawFd) -> bool {
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
    let mut events = Events::with_capacity(1);
    poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    !events.is_empty()
}

#[test]
fn events_come_with_a_descriptor() {
    let bus = Bus::new(true);
    let mut hotplug = bus.driver().hotplug().unwrap();
    assert!(hotplug.is_notified());
    for _ in 0..3 {
        assert!(!readable(hotplug.event_fd()));
        assert_eq!(hotplug.poll().unwrap(), None);
        bus.insert("a");
        assert!(readable(hotplug.event_fd()));
        bus.remove("a");
        assert_eq!(hotplug.poll().unwrap(), Some(HotplugEvent::Inserted(trid("a"))));
        assert_eq!(hotplug.poll().unwrap(), Some(HotplugEvent::Removed(trid("a"))));
        assert_eq!(hotplug.poll().unwrap(), None);
    }
    let sleeper = std::thread::spawn(move || hotplug.wait(Duration::from_secs(60)).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    let start = std::time::Instant::now();
    bus.insert("b");
    assert_eq!(sleeper.join().unwrap(), Some(HotplugEvent::Inserted(trid("b"))));
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn without_a_descriptor_somebody_has_to_look() {
    let bus = Bus::new(false);
    let mut hotplug = bus.driver().hotplug().unwrap();
    assert!(!hotplug.is_notified());
    assert_eq!(hotplug.wait(Duration::from_millis(10)).unwrap(), None);
    let sleeper = std::thread::spawn(move || hotplug.wait(Duration::from_secs(60)).unwrap());
    bus.insert("a");
    assert_eq!(sleeper.join().unwrap(), Some(HotplugEvent::Inserted(trid("a"))));
    // Transports that are not local tell nothing.
    let mut hotplug = Target::new().driver().hotplug().unwrap();
    assert_eq!((hotplug.is_notified(), hotplug.poll().unwrap()), (true, None));
}
