//! A controller that is a few tables and a script, and the loop that runs the machine against it.

use std::collections::BTreeMap;

use super::*;
use crate::spec::fabrics::PropertySize;
use zerocopy::IntoBytes;

pub(super) const ADMIN_TIMEOUT: Duration = Duration::from_secs(7);
pub(super) const MS: Duration = Duration::from_millis(1);
/// CAP: MQES 127, CQR, TO 4 (2 s), CSS NVM.
pub(super) const CAP: u64 = 127 | 1 << 16 | 4 << 24 | 1 << 37;
pub(super) const CAP_TO: Duration = Duration::from_secs(2);
/// CAP.CSS.IOCSS.
pub(super) const CAP_IOCSS: u64 = 1 << 43;

/// A controller: properties that behave, Identify data by structure and namespace, features, a log page.
pub(super) struct Model {
    pub(super) fabrics: bool,
    pub(super) cap: u64,
    pub(super) crto: u32,
    pub(super) vs: Version,
    pub(super) cc: u32,
    pub(super) rdy: bool,
    pub(super) cfs: bool,
    /// CSTS.SHST says that shutdown is complete, until CC.EN is cleared.
    pub(super) shut_down: bool,
    /// How long RDY takes to follow EN; `None` is for ever.
    pub(super) ready_after: Option<Duration>,
    /// RDY follows EN at this time.
    pub(super) pending: Option<Instant>,
    /// CFS comes up when EN is set.
    pub(super) fatal_on_enable: bool,
    pub(super) identify: Vec<u8>,
    pub(super) nsids: Vec<u32>,
    /// Namespaces that are listed and yet not there.
    pub(super) vanished: Vec<u32>,
    pub(super) descriptors: BTreeMap<u32, Vec<u8>>,
    pub(super) ana: Vec<u8>,
    /// Answers by the name of the command, in place of the regular ones.
    pub(super) overrides: BTreeMap<&'static str, (Status, u32, Vec<u8>)>,
    /// The n-th action gets no answer.
    pub(super) mute: Option<usize>,
    pub(super) actions: Vec<String>,
}

impl Model {
    /// A version 1.4 controller with two namespaces of 1000 blocks and nothing optional.
    pub(super) fn plain(fabrics: bool) -> Self {
        let mut identify = vec![0; 4096];
        identify[78..80].copy_from_slice(&9u16.to_le_bytes()); // CNTLID
        identify[320..322].copy_from_slice(&1u16.to_le_bytes()); // KAS
        identify[516..520].copy_from_slice(&2u32.to_le_bytes()); // NN
        Self {
            fabrics,
            cap: CAP,
            crto: 0,
            vs: Version::V1_4,
            cc: 0,
            rdy: false,
            cfs: false,
            shut_down: false,
            ready_after: Some(20 * MS),
            pending: None,
            fatal_on_enable: false,
            identify,
            nsids: vec![1, 2],
            vanished: Vec::new(),
            descriptors: BTreeMap::new(),
            ana: Vec::new(),
            overrides: BTreeMap::new(),
            mute: None,
            actions: Vec::new(),
        }
    }

    /// One with everything the machine knows to ask about.
    pub(super) fn rich(fabrics: bool) -> Self {
        let mut model = Self::plain(fabrics);
        model.cap |= CAP_IOCSS;
        model.identify[76] = 1 << 3; // CMIC: reports ANA
        model.identify[92..96].copy_from_slice(&0x8000_0b00u32.to_le_bytes()); // OAES
        model.identify[96..100].copy_from_slice(&ctratt::EXTENDED_LBA_FORMATS.to_le_bytes());
        model.identify[348..352].copy_from_slice(&2u32.to_le_bytes()); // NANAGRPID
        model.ana = ana_log(&[(1, 1, &[1]), (2, 3, &[2])]);
        model
    }

    pub(super) fn config(&self) -> InitConfig {
        InitConfig {
            fabrics: self.fabrics,
            discovery: false,
            admin_timeout: ADMIN_TIMEOUT,
            connect_timeout: Duration::from_secs(5),
            num_io_queues: 8,
            keep_alive_timeout: Duration::from_secs(10),
            read_ana_log: true,
            host_id: [0x42; 16],
            max_transfer: 128 * 1024,
            delays: InitDelays::default(),
        }
    }

    pub(super) fn csts(&mut self, now: Instant) -> u64 {
        if self.pending.is_some_and(|time| now >= time) {
            self.pending = None;
            self.rdy = self.cc & 1 != 0;
        }
        u64::from(self.rdy) | u64::from(self.cfs) << 1 | u64::from(self.shut_down) << 3
    }

    pub(super) fn set_cc(&mut self, value: u32, now: Instant) {
        let toggled = (self.cc ^ value) & 1 != 0;
        self.cc = value;
        self.shut_down &= value & 1 != 0;
        if toggled {
            self.pending = self.ready_after.map(|delay| now + delay);
            self.cfs |= self.fatal_on_enable && value & 1 != 0;
        }
    }

    pub(super) fn admin(&self, command: &InitCommand) -> (Status, u32, Vec<u8>) {
        if let Some(answer) = self.overrides.get(command.name) {
            return answer.clone();
        }
        let sqe = &command.sqe;
        let nsid = sqe.nsid.get();
        let blank = vec![0; command.data_in as usize];
        let data = match AdminOpcode(sqe.opcode) {
            AdminOpcode::IDENTIFY => match Cns(sqe.cdw10.get() as u8) {
                Cns::CONTROLLER => self.identify.clone(),
                Cns::ACTIVE_NAMESPACE_LIST => {
                    let ids = self.nsids.iter().filter(|&&id| id > nsid).take(1024);
                    let mut list: Vec<u8> = ids.flat_map(|id| id.to_le_bytes()).collect();
                    list.resize(4096, 0);
                    list
                }
                Cns::NAMESPACE if self.vanished.contains(&nsid) => {
                    return (Status::INVALID_NAMESPACE_OR_FORMAT, 0, blank);
                }
                Cns::NAMESPACE => namespace_data(1000),
                Cns::NAMESPACE_DESCRIPTORS => self.descriptors.get(&nsid).cloned().unwrap_or(blank),
                _ => blank,
            },
            AdminOpcode::GET_LOG_PAGE => {
                let read = GetLogPage::from_cdw10_13([
                    sqe.cdw10.get(),
                    sqe.cdw11.get(),
                    sqe.cdw12.get(),
                    sqe.cdw13.get(),
                ]);
                assert_eq!(read.length(), u64::from(command.data_in));
                assert_eq!(read.lid, LogPageId::ANA);
                if read.offset >= self.ana.len() as u64 {
                    return (Status::INVALID_FIELD, 0, blank);
                }
                let mut page = self.ana[read.offset as usize..].to_vec();
                page.resize(command.data_in as usize, 0);
                page
            }
            AdminOpcode::GET_FEATURES => return (Status::SUCCESS, 15_000, blank),
            AdminOpcode::SET_FEATURES => {
                let dw0 = if sqe.cdw10.get() == 7 { 3 | 3 << 16 } else { 0 };
                return (Status::SUCCESS, dw0, blank);
            }
            other => panic!("{other:?} is no command of an initialisation"),
        };
        (Status::SUCCESS, 0, data)
    }
}

pub(super) fn namespace_data(blocks: u64) -> Vec<u8> {
    let mut data = vec![0; 4096];
    data[..8].copy_from_slice(&blocks.to_le_bytes());
    data[130] = 9; // LBAF 0: 512 bytes
    data
}

/// An ANA log page of groups: identifier, state, namespaces.
pub(super) fn ana_log(groups: &[(u32, u8, &[u32])]) -> Vec<u8> {
    let mut log = vec![0; 16];
    log[8..10].copy_from_slice(&(groups.len() as u16).to_le_bytes());
    for (id, state, nsids) in groups {
        log.extend(id.to_le_bytes());
        log.extend((nsids.len() as u32).to_le_bytes());
        log.extend([0; 8]);
        log.push(*state);
        log.extend([0; 15]);
        nsids.iter().for_each(|nsid| log.extend(nsid.to_le_bytes()));
    }
    log
}

pub(super) fn describe(action: &Action) -> String {
    let property = |offset: &PropertyOffset| match *offset {
        PropertyOffset::VS => "VS",
        PropertyOffset::CAP => "CAP",
        PropertyOffset::CRTO => "CRTO",
        PropertyOffset::CC => "CC",
        PropertyOffset::CSTS => "CSTS",
        _ => "another property",
    };
    match action {
        Action::ConnectAdminQueue => "connect".to_owned(),
        Action::PropertyGet(offset, size) => {
            assert_eq!(*size == PropertySize::Qword, offset.is_64_bit());
            format!("get {}", property(offset))
        }
        Action::PropertySet(offset, size, value) => {
            assert_eq!(*size == PropertySize::Qword, offset.is_64_bit());
            format!("set {} {value:#x}", property(offset))
        }
        Action::SetAdminQueue => "set AQA, ASQ, ACQ".to_owned(),
        Action::SetUpTransport(_) => "set up the transport".to_owned(),
        Action::Admin(command) => match command.sqe.nsid.get() {
            0 => command.name.to_owned(),
            nsid => format!("{} of {nsid}", command.name),
        },
    }
}

pub(super) struct Run {
    pub(super) result: Result<InitResult>,
    pub(super) elapsed: Duration,
    /// State the machine ended in.
    pub(super) state: &'static str,
    pub(super) actions: Vec<String>,
}

impl Run {
    /// The actions, with equal ones in a row counted once.
    pub(super) fn actions(&self) -> Vec<&str> {
        let mut actions: Vec<&str> = self.actions.iter().map(String::as_str).collect();
        actions.dedup();
        actions
    }

    pub(super) fn error(self) -> Error {
        self.result.expect_err("initialisation should have failed")
    }
}

pub(super) fn run(model: &mut Model) -> Run {
    run_with(model.config(), model)
}

pub(super) fn run_with(config: InitConfig, model: &mut Model) -> Run {
    let start = Instant::now();
    run_machine(ControllerInit::new(config, start), model, start)
}

pub(super) fn run_machine(mut machine: ControllerInit, model: &mut Model, start: Instant) -> Run {
    let mut now = start;
    let end = |machine: &ControllerInit, model: &Model, now: Instant, result| Run {
        result,
        elapsed: now - start,
        state: machine.state(),
        actions: model.actions.clone(),
    };
    for _ in 0..100_000 {
        let action = match machine.next(now) {
            Err(error) => return end(&machine, model, now, Err(error)),
            Ok(Next::Ready) => {
                let result = Ok(machine.result().clone());
                return end(&machine, model, now, result);
            }
            Ok(Next::Wait(time)) => {
                assert!(time > now, "a wait that is over");
                assert!(time <= machine.deadline(), "a wait past the deadline");
                now = time;
                continue;
            }
            Ok(Next::Do(action)) => action,
        };
        assert!(now <= machine.deadline());
        model.actions.push(describe(&action));
        if model.mute == Some(model.actions.len() - 1) {
            assert!(matches!(machine.next(now), Ok(Next::Wait(_))), "one action at a time");
            continue;
        }
        let done = match action {
            Action::ConnectAdminQueue => {
                machine.complete(Outcome::Connected { cntlid: model.fabrics.then_some(9) }, now)
            }
            Action::PropertyGet(offset, _) => {
                let value = match offset {
                    PropertyOffset::CAP => model.cap,
                    PropertyOffset::CRTO => u64::from(model.crto),
                    PropertyOffset::VS => u64::from(model.vs.0),
                    PropertyOffset::CC => u64::from(model.cc),
                    _ => model.csts(now),
                };
                machine.complete(Outcome::Property(value), now)
            }
            Action::PropertySet(_, _, value) => {
                model.set_cc(value as u32, now);
                machine.complete(Outcome::Done, now)
            }
            Action::SetAdminQueue => {
                assert!(
                    !model.fabrics && !model.rdy,
                    "the admin queue is set up while the controller is disabled"
                );
                machine.complete(Outcome::Done, now)
            }
            Action::SetUpTransport(identify) => {
                assert!(
                    model.rdy && !model.fabrics,
                    "the transport is set up once the controller is identified"
                );
                assert_eq!(identify.as_bytes(), &model.identify[..]);
                machine.complete(Outcome::Done, now)
            }
            Action::Admin(command) => {
                assert!(model.rdy, "a command before the controller is ready");
                let (status, dw0, data) = model.admin(&command);
                machine.complete(Outcome::Admin(&Cqe::new(0, 0, status).with_dw0(dw0), &data), now)
            }
        };
        if let Err(error) = done {
            return end(&machine, model, now, Err(error));
        }
    }
    panic!("initialisation takes for ever; last: {:?}", model.actions.last())
}
