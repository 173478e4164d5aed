//! Controller initialisation against any register values and completions, in virtual time.

use std::time::{Duration, Instant};

use nvmf_core::proto::controller_init::{Action, ControllerInit, InitConfig, Next, Outcome};
use nvmf_core::spec::registers::PropertyOffset;
use nvmf_core::spec::{Cqe, Status};
use nvmf_core::transport::InitDelays;

use super::Bytes;

/// The machine ends, in success or in an error, within its deadlines and with a bounded number of actions.
pub(super) fn machine(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let choice = bytes.byte();
    let config = InitConfig {
        fabrics: choice & 1 != 0,
        discovery: choice & 2 != 0,
        admin_timeout: Duration::from_secs(7),
        connect_timeout: Duration::from_secs(5),
        num_io_queues: u16::from(choice),
        keep_alive_timeout: Duration::from_secs(u64::from(choice & 4)),
        read_ana_log: choice & 8 != 0,
        host_id: [7; 16],
        max_transfer: 1 << (12 + (choice >> 5)),
        delays: InitDelays {
            before_init: Duration::from_millis(u64::from(choice & 16) * 100),
            after_disable: Duration::from_millis(u64::from(choice & 32) * 100),
        },
    };
    let start = Instant::now();
    let mut now = start;
    let mut machine = ControllerInit::new(config, start);
    let mut enabled = 0;
    for step in 0.. {
        assert!(step < 200_000, "it goes on for ever, in state {}", machine.state());
        assert!(now - start < Duration::from_secs(3600), "it takes an hour, in state {}", machine.state());
        let action = match machine.next(now) {
            Err(error) => {
                assert!(!error.to_string().is_empty(), "an error says something");
                return;
            }
            Ok(Next::Ready) => break,
            Ok(Next::Wait(time)) => {
                assert!(time > now, "a wait that is over, in state {}", machine.state());
                now = time;
                continue;
            }
            Ok(Next::Do(action)) => action,
        };
        // Now and then no answer; the rest takes its time.
        let mood = bytes.byte();
        if mood == 0xff {
            now = machine.deadline();
            continue;
        }
        now += Duration::from_millis(u64::from(mood & 3));
        let outcome = match action {
            Action::ConnectAdminQueue => {
                machine.complete(Outcome::Connected { cntlid: Some(bytes.byte().into()) }, now)
            }
            Action::PropertyGet(offset, _) => {
                let value = match (mood & 0xc0, offset) {
                    (0, _) => bytes.u64(),
                    (_, PropertyOffset::CAP) => 127 | 4 << 24 | 1 << 37 | u64::from(bytes.byte()) << 43,
                    (_, PropertyOffset::VS) => 0x0002_0000,
                    (_, PropertyOffset::CC) => enabled,
                    _ => enabled & 1,
                };
                machine.complete(Outcome::Property(value), now)
            }
            Action::PropertySet(_, _, value) => {
                enabled = value;
                machine.complete(Outcome::Done, now)
            }
            Action::SetAdminQueue | Action::SetUpTransport(_) => machine.complete(Outcome::Done, now),
            Action::Admin(command) => {
                let status =
                    if mood & 0xe0 == 0x20 { Status(u16::from(bytes.byte()) << 1) } else { Status::SUCCESS };
                // Short data, too: a controller need not return what was asked for.
                let len = if mood & 0x1c == 0x1c {
                    bytes.below(command.data_in as usize + 1)
                } else {
                    command.data_in as usize
                };
                let data = bytes.fill(len);
                let cqe = Cqe::new(0, 0, status).with_dw0(bytes.u64() as u32);
                machine.complete(Outcome::Admin(&cqe, &data), now)
            }
        };
        if outcome.is_err() {
            return;
        }
    }
    let result = machine.result();
    assert!(result.namespaces.iter().all(|ns| ns.nsid != 0), "namespace 0");
}
