//! What is told of a controller that changes.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nvmf_core::spec::log_page::AnaState;
use nvmf_core::{Controller, ControllerOptions, ControllerState, Event, NamespaceChange};
use nvmf_loopback::{Namespace, SubsystemBuilder};
use nvmf_tests::rig::eventually;

use crate::{NQN, Rig, each, options, persistent};

/// Attaches and collects what happens.
fn attach_listening(rig: &Rig, options: &ControllerOptions) -> Result<(Controller, mpsc::Receiver<Event>)> {
    let controller = rig.attach(options)?;
    let (told, events) = mpsc::channel();
    controller.on_event(move |_, event| {
        let _ = told.send(*event);
    });
    Ok((controller, events))
}

/// Waits until these happened, in any order, and nothing else.
fn expect(controller: &Controller, events: &mpsc::Receiver<Event>, wanted: &[Event]) -> Result<()> {
    let mut seen = Vec::new();
    eventually(&format!("{wanted:?}"), || {
        if !controller.options().background_admin {
            controller.process_admin_completions()?;
        }
        seen.extend(events.try_iter());
        Ok(wanted.iter().all(|event| seen.contains(event)))
    })?;
    ensure!(seen.len() == wanted.len(), "{seen:?} instead of {wanted:?}");
    Ok(())
}

#[test]
fn namespaces_come_go_and_change_size() -> Result<()> {
    each(Rig::all(), |rig| {
        for background in [true, false] {
            let mut options = options();
            options.background_admin = background;
            let (controller, events) = attach_listening(rig, &options)?;
            let change = |nsid, change| Event::Namespace { nsid, change };
            rig.target.add_namespace(NQN, Namespace::memory(1 << 20).nsid(5))?;
            expect(&controller, &events, &[change(5, NamespaceChange::Added)])?;
            ensure!(controller.namespace(5).context("namespace 5")?.size() == 1 << 20);
            rig.target.resize_namespace(NQN, 5, 2 << 20)?;
            expect(&controller, &events, &[change(5, NamespaceChange::Resized)])?;
            ensure!(controller.namespace(5).context("namespace 5")?.size() == 2 << 20);
            rig.target.remove_namespace(NQN, 5)?;
            rig.target.add_namespace(NQN, Namespace::memory(1 << 20).nsid(6))?;
            let wanted = [change(5, NamespaceChange::Removed), change(6, NamespaceChange::Added)];
            // Two changes are told together or one after the other.
            expect(&controller, &events, &wanted)?;
            ensure!(controller.namespace(5).is_none() && controller.namespaces().len() == 2);
            rig.target.remove_namespace(NQN, 6)?;
            expect(&controller, &events, &[change(6, NamespaceChange::Removed)])?;
            ensure!(!controller.take_events().is_empty(), "the events as they came are kept as well");
            controller.detach()?;
        }
        Ok(())
    })
}

#[test]
fn paths_become_inaccessible_and_come_back() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let (controller, events) = attach_listening(rig, &options())?;
        let state = |controller: &Controller| controller.namespace(1).and_then(|ns| ns.ana_state());
        ensure!(state(&controller) == Some(AnaState::OPTIMIZED));
        for ana in [AnaState::INACCESSIBLE, AnaState::NON_OPTIMIZED] {
            rig.target.set_ana_state(NQN, ana)?;
            expect(&controller, &events, &[Event::Ana { nsid: 1, state: ana }])?;
            ensure!(state(&controller) == Some(ana));
        }
        Ok(())
    })
}

#[test]
fn what_changed_while_it_was_away_is_told_when_it_is_back() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let (controller, events) = attach_listening(rig, &persistent())?;
        rig.target.refuse_connections(true);
        rig.target.disconnect_all();
        expect(&controller, &events, &[Event::State(ControllerState::Reconnecting)])?;
        rig.target.resize_namespace(NQN, 1, 8 << 20)?;
        rig.target.add_namespace(NQN, Namespace::memory(1 << 20).nsid(2))?;
        rig.target.refuse_connections(false);
        let wanted = [
            Event::State(ControllerState::Ready),
            Event::Namespace { nsid: 1, change: NamespaceChange::Resized },
            Event::Namespace { nsid: 2, change: NamespaceChange::Added },
        ];
        expect(&controller, &events, &wanted)?;
        Ok(())
    })
}

#[test]
fn events_are_left_to_the_program_if_it_wants_to() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let mut options = options();
        options.handle_events = false;
        let (controller, events) = attach_listening(rig, &options)?;
        rig.target.add_namespace(NQN, Namespace::memory(1 << 20).nsid(5))?;
        let mut taken = Vec::new();
        eventually("an event", || {
            taken.extend(controller.take_events());
            Ok(!taken.is_empty())
        })?;
        ensure!(taken.iter().all(|event| event.is_namespace_change()));
        std::thread::sleep(Duration::from_millis(300));
        ensure!(controller.namespace(5).is_none() && events.try_recv().is_err());
        controller.rescan_namespaces()?;
        ensure!(controller.namespace(5).is_some());
        expect(&controller, &events, &[Event::Namespace { nsid: 5, change: NamespaceChange::Added }])
    })
}

#[test]
fn a_discovery_controller_tells_of_changes_and_comes_back() -> Result<()> {
    let rig = Rig::tcp()?;
    let discovery = rig.target.tcp_trid(nvmf_core::Nqn::DISCOVERY)?.context("no listener")?;
    let controller = rig.driver.connect(&discovery, &persistent())?;
    let (told, events) = mpsc::channel();
    controller.on_event(move |_, event| {
        let _ = told.send(*event);
    });
    // Let the event requests reach it.
    std::thread::sleep(Duration::from_millis(100));
    rig.target.add_subsystem(SubsystemBuilder::new("nqn.2024-01.com.example:more"))?;
    expect(&controller, &events, &[Event::DiscoveryLog])?;
    ensure!(controller.discovery_log()?.records.len() == 2);
    rig.target.disconnect_all();
    let wanted = [Event::State(ControllerState::Reconnecting), Event::State(ControllerState::Ready)];
    expect(&controller, &events, &wanted)?;
    ensure!(controller.discovery_log()?.records.len() == 2);
    Ok(())
}
