//! What an NVMe function and a vfio-user server may say.

use nvmf_core::IoBuf;
use nvmf_core::proto::Tracker;
use nvmf_core::spec::Cqe;
use nvmf_core::spec::command::DataDirection;
use nvmf_transport_pcie::vfio_user::capabilities::{Capabilities, MAX_FDS};
use nvmf_transport_pcie::vfio_user::message::{self, Area, Header, RegionInfo};
use nvmf_transport_pcie::vfio_user::stream::Receiver;
use std::io::Write;
use std::os::unix::net::UnixStream;
use zerocopy::{FromBytes, IntoBytes};

use super::Bytes;

/// Completions with any command identifier: none names a slot that is not in flight, none ends a command twice.
pub(super) fn completions(input: &[u8]) {
    const SLOTS: u16 = 8;
    let mut bytes = Bytes::new(input);
    let pool = super::pool();
    let mut tracker = Tracker::new(SLOTS, u32::from(SLOTS), bytes.byte() & 1 != 0);
    let mut open = [None; SLOTS as usize];
    while !bytes.is_empty() {
        let op = bytes.byte() % SLOTS as u8;
        if open[usize::from(op)].is_none() && bytes.byte() & 1 == 0 {
            tracker.put_buf(op.into(), IoBuf::from(pool.alloc(512).expect("memory")));
            let (_, cid) = tracker.begin(op.into(), 0, 512, DataDirection::ControllerToHost).expect("a slot");
            open[usize::from(op)] = Some(cid);
            continue;
        }
        let cqe = Cqe::read_from_bytes(&bytes.fill(16)).expect("sixteen bytes");
        let cid = if bytes.byte() & 1 == 0 { cqe.cid.get() } else { open[usize::from(op)].unwrap_or(0) };
        let Some(slot) = tracker.lookup(cid) else {
            assert!(!open.contains(&Some(cid)), "a command in flight is not found");
            continue;
        };
        tracker.complete(slot, cqe);
        let (done, ..) = tracker.take_completed(0).expect("a completion");
        tracker.clear_completed();
        let expected = open[done as usize].take().expect("a command in flight");
        assert_eq!(expected, cid, "another command was completed");
        assert_eq!(tracker.take_buf(done).len(), 512, "its buffer is there");
    }
    assert_eq!(tracker.in_flight(), open.iter().flatten().count(), "commands in flight");
}

/// Messages of a vfio-user peer.
pub(super) fn messages(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let choice = bytes.byte();
    let body = bytes.rest();
    match choice % 4 {
        0 => {
            if let Ok(capabilities) = Capabilities::decode(body) {
                let again =
                    Capabilities::decode(&capabilities.encode()).expect("what was accepted can be said");
                assert_eq!(again, capabilities);
            }
        }
        1 => {
            let size = RegionInfo::read_from_prefix(body).map_or(0, |(info, _)| info.size.get());
            let areas = message::mappable_areas(body);
            assert!(areas.len() <= 1 + body.len() / size_of::<Area>(), "areas out of nothing");
            for area in areas {
                let end = area.offset.get().checked_add(area.size.get());
                assert!(end.is_some_and(|end| end <= size), "an area beyond its region");
            }
        }
        2 => {
            if let Ok((header, _)) = Header::read_from_prefix(body) {
                let _ = (header.is_reply(), header.has(1), header.command.name());
                let _ = header.reply(body.len()).as_bytes().len() + header.refusal(22).as_bytes().len();
            }
        }
        _ => {
            let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
            theirs.set_nonblocking(true).expect("a non-blocking socket");
            // The rest of what does not fit at once is of no interest.
            ours.set_nonblocking(true).expect("a non-blocking socket");
            let _ = ours.write(body);
            drop(ours);
            let mut receiver = Receiver::new(64 << 10);
            let mut messages = 0;
            while let Ok(Some(message)) = receiver.receive_now(&theirs) {
                messages += 1;
                assert!(message.fds.len() <= MAX_FDS, "descriptors");
                assert!(messages <= body.len() / size_of::<Header>(), "a message out of nothing");
            }
        }
    }
}
