//! The controller role, driven command by command.

use std::sync::atomic::{AtomicUsize, Ordering};

use nvmf_core::spec::discovery::{DiscoveryLogEntry, DiscoveryLogHeader, SubsystemType, TransportTypeCode};
use nvmf_core::spec::fabrics::{self, PropertySize};
use nvmf_core::spec::features::{
    AsyncEventConfig, FeatureId, FeatureSelect, NumberOfQueues, get_features_cdw10, set_features_cdw10,
};
use nvmf_core::spec::identify::{
    Cns, ControllerType, IdentifyController, IdentifyNamespace, NamespaceDescriptor, NamespaceDescriptors,
    NamespaceList,
};
use nvmf_core::spec::log_page::{
    AnaLog, AsyncEvent, ChangedNamespaces, CommandEffectsLog, ErrorLogEntry, GetLogPage, LogPageId,
    NoticeEvent, SmartLog,
};
use nvmf_core::spec::registers::{
    Cap, ControllerConfig, ControllerStatus, PropertyOffset, Shn, Shst, Version,
};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use super::*;
use crate::config::Config;
use crate::fault::Rule;
use crate::namespace::Namespace;
use crate::subsystem::SubsystemBuilder;

const NQN: &str = "nqn.2024-01.org.example:one";
const HOST: &str = "nqn.2024-01.org.example:host";

fn target() -> Arc<Target> {
    target_with(Config::default())
}

fn target_with(config: Config) -> Arc<Target> {
    let target = Arc::new(Target::new("test".to_owned(), config));
    let namespace = Namespace::memory(1 << 20).eui64([1; 8]).uuid([7; 16]);
    target.add_subsystem(SubsystemBuilder::new(NQN).serial("S1").namespace(namespace)).unwrap();
    target
}

/// A queue and a count of its wake-ups.
struct Host {
    queue: Queue,
    woken: Arc<AtomicUsize>,
    cid: u16,
}

fn connect_data(subnqn: &str, cntlid: u16) -> ConnectData {
    ConnectData {
        hostid: [9; 16],
        cntlid: U16::new(cntlid),
        reserved18: [0; 238],
        subnqn: Nqn::new(subnqn).unwrap().to_wire(),
        hostnqn: Nqn::new(HOST).unwrap().to_wire(),
        reserved768: [0; 256],
    }
}

impl Host {
    fn new(target: &Arc<Target>) -> Self {
        Self::at(target, Front::Loop)
    }

    fn at(target: &Arc<Target>, front: Front) -> Self {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let notify = Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        Self { queue: Queue::new(Arc::clone(target), front, notify), woken, cid: 100 }
    }

    fn run(&mut self, mut sqe: Sqe, data: Data<'_>) -> Option<Cqe> {
        self.cid += 1;
        sqe.cid = U16::new(self.cid);
        match self.queue.begin(&sqe) {
            Admit::Execute(_) => match self.queue.execute(&sqe, data) {
                Outcome::Answer(cqe) | Outcome::AnswerAndClose(cqe) => Some(cqe),
                Outcome::Pending => None,
            },
            Admit::Answer(cqe) => Some(cqe),
            Admit::Hold(delay) => {
                self.queue.hold(sqe, Vec::new(), delay, Instant::now());
                None
            }
            Admit::Close => None,
        }
    }

    /// A command that has to be answered at once.
    fn answer(&mut self, sqe: Sqe, data: Data<'_>) -> Cqe {
        let cqe = self.run(sqe, data).expect("an answer");
        assert_eq!(cqe.cid.get(), self.cid);
        cqe
    }

    fn status(&mut self, sqe: Sqe) -> Status {
        self.answer(sqe, Data::None).status()
    }

    fn connect_with(&mut self, sqe: Sqe, data: &ConnectData) -> Cqe {
        self.answer(sqe, Data::Out(data.as_bytes()))
    }

    fn connect(&mut self, subnqn: &str, qid: u16, cntlid: u16, kato_ms: u32) -> Cqe {
        self.connect_with(fabrics::connect(qid, 31, 0, kato_ms), &connect_data(subnqn, cntlid))
    }

    /// A connected and enabled admin queue.
    fn admin(target: &Arc<Target>, subnqn: &str) -> (Self, u16) {
        let mut host = Self::new(target);
        let cqe = host.connect(subnqn, 0, 0xffff, 0);
        assert!(cqe.status().is_success(), "{}", cqe.status());
        host.enable();
        (host, cqe.dw0.get() as u16)
    }

    fn enable(&mut self) {
        let cc = ControllerConfig(0).with_en(true).with_iosqes(6).with_iocqes(4);
        assert!(self.set_cc(cc).is_success());
        assert!(self.csts().rdy());
    }

    fn set_cc(&mut self, cc: ControllerConfig) -> Status {
        self.status(fabrics::property_set(PropertyOffset::CC.0, PropertySize::Dword, cc.0.into()))
    }

    fn csts(&mut self) -> ControllerStatus {
        ControllerStatus(self.property(PropertyOffset::CSTS, PropertySize::Dword).unwrap() as u32)
    }

    fn property(&mut self, offset: PropertyOffset, size: PropertySize) -> Result<u64, Status> {
        let cqe = self.answer(fabrics::property_get(offset.0, size), Data::None);
        if cqe.status().is_success() { Ok(cqe.result64()) } else { Err(cqe.status()) }
    }

    fn identify(&mut self, cns: Cns, nsid: u32) -> Result<Vec<u8>, Status> {
        let mut data = vec![0xee; 4096];
        let sqe = Sqe::admin(AdminOpcode::IDENTIFY, nsid).with_cdw10(cns.0.into());
        let status = self.answer(sqe, Data::In(&mut data)).status();
        if status.is_success() { Ok(data) } else { Err(status) }
    }

    fn log_page(&mut self, fields: GetLogPage) -> Result<Vec<u8>, Status> {
        let mut data = vec![0xee; fields.length() as usize];
        let [cdw10, cdw11, cdw12, cdw13] = fields.to_cdw10_13();
        let sqe = Sqe::admin(AdminOpcode::GET_LOG_PAGE, 0).with_cdw10(cdw10).with_cdw11(cdw11);
        let sqe = sqe.with_cdw12(cdw12).with_cdw13(cdw13);
        let status = self.answer(sqe, Data::In(&mut data)).status();
        if status.is_success() { Ok(data) } else { Err(status) }
    }

    fn log(&mut self, lid: LogPageId, offset: u64, len: u64) -> Result<Vec<u8>, Status> {
        self.log_page(GetLogPage::new(lid, offset, len).unwrap())
    }

    fn set_feature(&mut self, fid: FeatureId, value: u32) -> Cqe {
        let sqe = Sqe::admin(AdminOpcode::SET_FEATURES, 0).with_cdw10(set_features_cdw10(fid, false));
        self.answer(sqe.with_cdw11(value), Data::None)
    }

    fn get_feature(&mut self, fid: FeatureId, select: FeatureSelect) -> Cqe {
        let sqe = Sqe::admin(AdminOpcode::GET_FEATURES, 0).with_cdw10(get_features_cdw10(fid, select));
        self.answer(sqe, Data::None)
    }

    fn event_request(&mut self) -> Option<Cqe> {
        self.run(Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0), Data::None)
    }

    fn events(&mut self) -> Vec<AsyncEvent> {
        let completions = self.queue.take_completions();
        completions.iter().map(|cqe| AsyncEvent::from_dw0(cqe.dw0.get())).collect()
    }
}

fn invalid_parameter_of(cqe: Cqe) -> (bool, u16) {
    assert!(cqe.status().is(Status::CONNECT_INVALID_PARAMETERS), "{}", cqe.status());
    let parameter = InvalidParameter::from_dw0(cqe.dw0.get());
    (parameter.in_data, parameter.offset)
}

#[test]
fn connect_refuses_what_is_wrong_and_says_where() {
    let target = target();
    let good = connect_data(NQN, 0xffff);
    let admin = fabrics::connect(0, 31, 0, 0);
    let fails = |sqe: Sqe, data: &ConnectData| Host::new(&target).connect_with(sqe, data);
    assert_eq!(invalid_parameter_of(fails(admin, &connect_data("nqn.2024-01.org:no", 0xffff))), (true, 256));
    assert_eq!(invalid_parameter_of(fails(admin, &connect_data(NQN, 1))), (true, 16));
    assert_eq!(invalid_parameter_of(fails(admin, &ConnectData { hostid: [0; 16], ..good })), (true, 0));
    assert_eq!(invalid_parameter_of(fails(admin, &ConnectData { subnqn: [b'x'; 256], ..good })), (true, 256));
    assert_eq!(invalid_parameter_of(fails(admin, &ConnectData { hostnqn: [0; 256], ..good })), (true, 512));
    assert_eq!(invalid_parameter_of(fails(fabrics::connect(0, 0, 0, 0), &good)), (false, 44));
    assert_eq!(invalid_parameter_of(fails(fabrics::connect(0, 4096, 0, 0), &good)), (false, 44));
    let format = fails(admin.with_cdw10(1), &good);
    assert!(format.status().is(Status::CONNECT_INCOMPATIBLE_FORMAT));
    let short = Host::new(&target).answer(admin, Data::Out(&[0; 1023]));
    assert!(short.status().is(Status::INVALID_DATA_SGL_LENGTH));
    // Nothing of this left a controller behind.
    assert!(target.subsystem(NQN).unwrap().controllers().is_empty());
    assert_eq!(invalid_parameter_of(fails(fabrics::connect(1, 31, 0, 0), &connect_data(NQN, 1))), (true, 16));
    assert_eq!(
        invalid_parameter_of(fails(fabrics::connect(1, 31, 0, 0), &connect_data(Nqn::DISCOVERY, 1))),
        (false, 42)
    );
}

#[test]
fn hosts_not_on_the_list_are_refused_and_thrown_out() {
    let target = target();
    let subsystem = target.subsystem(NQN).unwrap();
    let (host, _) = Host::admin(&target, NQN);
    subsystem.deny_host("nqn.2024-01.org.example:nobody");
    assert!(host.queue.is_closed(Instant::now()), "the list is empty now");
    assert!(host.woken.load(Ordering::SeqCst) > 0);
    let refused = Host::new(&target).connect(NQN, 0, 0xffff, 0);
    assert!(refused.status().is(Status::CONNECT_INVALID_HOST));
    assert_eq!(InvalidParameter::from_dw0(refused.dw0.get()).offset, 512);
    subsystem.allow_host(HOST);
    Host::admin(&target, NQN);
}

#[test]
fn queues_need_an_enabled_controller_and_a_number_of_their_own() {
    let target = target_with(Config { max_io_queues: 2, max_queue_entries: 64, ..Config::default() });
    let mut admin = Host::new(&target);
    assert!(admin.status(Sqe::admin(AdminOpcode::KEEP_ALIVE, 0)).is(Status::COMMAND_SEQUENCE_ERROR));
    let cntlid = admin.connect(NQN, 0, 0xffff, 0).dw0.get() as u16;
    assert!(admin.status(Sqe::admin(AdminOpcode::KEEP_ALIVE, 0)).is(Status::COMMAND_SEQUENCE_ERROR));
    let again = admin.connect(NQN, 0, 0xffff, 0);
    assert!(again.status().is(Status::COMMAND_SEQUENCE_ERROR));
    let early = Host::new(&target).connect(NQN, 1, cntlid, 0);
    assert!(early.status().is(Status::COMMAND_SEQUENCE_ERROR), "{}", early.status());
    admin.enable();
    let mut one = Host::new(&target);
    assert!(one.connect(NQN, 1, cntlid, 0).status().is_success());
    let twice = Host::new(&target).connect(NQN, 1, cntlid, 0);
    assert!(twice.status().is(Status::COMMAND_SEQUENCE_ERROR));
    assert_eq!(invalid_parameter_of(Host::new(&target).connect(NQN, 3, cntlid, 0)), (false, 42));
    let long = Host::new(&target).connect_with(fabrics::connect(2, 64, 0, 0), &connect_data(NQN, cntlid));
    assert_eq!(invalid_parameter_of(long), (false, 44));
    let other_id = ConnectData { hostid: [8; 16], ..connect_data(NQN, cntlid) };
    let stranger = Host::new(&target).connect_with(fabrics::connect(2, 31, 0, 0), &other_id);
    assert_eq!(invalid_parameter_of(stranger), (true, 0));
    let other_nqn = Nqn::new("nqn.2024-01.org.example:other").unwrap().to_wire();
    let other = ConnectData { hostnqn: other_nqn, ..connect_data(NQN, cntlid) };
    let stranger = Host::new(&target).connect_with(fabrics::connect(2, 31, 0, 0), &other);
    assert_eq!(invalid_parameter_of(stranger), (true, 512));
    // A queue that was closed can be connected again.
    drop(one);
    let mut one = Host::new(&target);
    assert!(one.connect(NQN, 1, cntlid, 0).status().is_success());
    // Without its admin queue there is no controller.
    drop(admin);
    assert!(one.queue.is_closed(Instant::now()));
    assert!(target.subsystem(NQN).unwrap().controllers().is_empty());
}

#[test]
fn sqhd_counts_unless_flow_control_is_off() {
    let target = target();
    let mut host = Host::new(&target);
    let sqe = fabrics::connect(0, 2, 0, 0);
    assert_eq!(host.connect_with(sqe, &connect_data(NQN, 0xffff)).sqhd.get(), 1);
    let heads: Vec<u16> = (0..4)
        .map(|_| host.answer(fabrics::property_get(0, PropertySize::Qword), Data::None).sqhd.get())
        .collect();
    assert_eq!(heads, [2, 0, 1, 2]);
    let mut host = Host::new(&target);
    let sqe = fabrics::connect(0, 2, CATTR_DISABLE_SQ_FLOW_CONTROL, 0);
    assert_eq!(host.connect_with(sqe, &connect_data(NQN, 0xffff)).sqhd.get(), 0xffff);
    assert_eq!(host.answer(fabrics::property_get(0, PropertySize::Qword), Data::None).sqhd.get(), 0);
}

#[test]
fn properties_and_the_life_of_cc() {
    let target = target();
    let mut host = Host::new(&target);
    host.connect(NQN, 0, 0xffff, 0);
    let cap = Cap(host.property(PropertyOffset::CAP, PropertySize::Qword).unwrap());
    assert_eq!(cap.max_queue_entries(), 1024);
    assert!(cap.cqr() && cap.css().nvm() && cap.css().io_command_sets() && cap.to() > 0);
    let vs = host.property(PropertyOffset::VS, PropertySize::Dword).unwrap();
    assert_eq!(Version(vs as u32), Version::V2_1);
    for (offset, size) in [
        (PropertyOffset::CAP, PropertySize::Dword),
        (PropertyOffset::CC, PropertySize::Qword),
        (PropertyOffset::NSSR, PropertySize::Dword),
        (PropertyOffset(0x1000), PropertySize::Dword),
    ] {
        assert!(host.property(offset, size).unwrap_err().is(Status::INVALID_FIELD), "{offset}");
    }
    for offset in [PropertyOffset::CSTS, PropertyOffset::CAP, PropertyOffset::NSSR] {
        let set = fabrics::property_set(offset.0, PropertySize::Dword, 1);
        assert!(host.status(set).is(Status::INVALID_FIELD), "{offset}");
    }
    assert!(!host.csts().rdy());
    host.set_cc(ControllerConfig(0).with_en(true).with_iosqes(6).with_iocqes(5));
    assert!(host.csts().cfs(), "an entry size that is not supported");
    host.set_cc(ControllerConfig(0));
    assert!(!host.csts().cfs());
    host.enable();
    host.set_cc(ControllerConfig(0).with_en(true).with_iosqes(6).with_iocqes(4).with_shn(Shn::NORMAL));
    assert_eq!(host.csts().shst(), Shst::COMPLETE);
    host.set_cc(ControllerConfig(0));
    assert!(!host.csts().rdy());
    assert_eq!(host.csts().shst(), Shst::NORMAL);
}

#[test]
fn a_reset_deletes_io_queues_and_answers_event_requests() {
    let target = target();
    let (mut admin, cntlid) = Host::admin(&target, NQN);
    let mut io = Host::new(&target);
    io.connect(NQN, 1, cntlid, 0);
    assert!(admin.event_request().is_none());
    let request = admin.cid;
    admin.set_cc(ControllerConfig(0));
    assert!(io.queue.is_closed(Instant::now()) && io.woken.load(Ordering::SeqCst) > 0);
    assert!(!admin.queue.is_closed(Instant::now()));
    let aborted = admin.queue.take_completions();
    assert_eq!(aborted.len(), 1);
    assert_eq!(aborted[0].cid.get(), request);
    assert!(aborted[0].status().is(Status::ABORTED_SQ_DELETION));
    admin.enable();
    let mut again = Host::new(&target);
    assert!(again.connect(NQN, 1, cntlid, 0).status().is_success());
    drop(io);
    assert!(!again.queue.is_closed(Instant::now()), "the old queue's end is not the new one's");
    let twice = Host::new(&target).connect(NQN, 1, cntlid, 0);
    assert!(twice.status().is(Status::COMMAND_SEQUENCE_ERROR));
}

#[test]
fn identify_describes_controller_and_namespaces() {
    let target = target();
    target.add_namespace(NQN, Namespace::memory(1 << 20).block_size(4096).nsid(7)).unwrap();
    let (mut host, cntlid) = Host::admin(&target, NQN);
    let ctrl = IdentifyController::read_from_bytes(&host.identify(Cns::CONTROLLER, 0).unwrap()).unwrap();
    assert_eq!((ctrl.serial_number().as_str(), ctrl.cntlid.get()), ("S1", cntlid));
    assert_eq!(ctrl.subsystem_nqn(), NQN);
    assert_eq!(ctrl.cntrltype, ControllerType::IO);
    assert_eq!((ctrl.max_transfer_size(4096), ctrl.in_capsule_data_size()), (Some(1 << 20), 8192));
    assert_eq!(ctrl.total_capacity(), 2 << 20);
    let ns = IdentifyNamespace::read_from_bytes(&host.identify(Cns::NAMESPACE, 7).unwrap()).unwrap();
    assert_eq!((ns.nsze.get(), ns.block_size()), (256, Some(4096)));
    assert_eq!(host.identify(Cns::NAMESPACE, 5).unwrap(), vec![0; 4096], "inactive");
    for nsid in [0, 1025, 0xffff_ffff] {
        assert!(host.identify(Cns::NAMESPACE, nsid).unwrap_err().is(Status::INVALID_NAMESPACE_OR_FORMAT));
    }
    let list = |host: &mut Host, after| {
        let data = host.identify(Cns::ACTIVE_NAMESPACE_LIST, after).unwrap();
        NamespaceList::new(&data, after).collect::<Result<Vec<u32>, _>>().unwrap()
    };
    assert_eq!(list(&mut host, 0), [1, 7]);
    assert_eq!(list(&mut host, 1), [7]);
    assert_eq!(list(&mut host, 7), [0u32; 0]);
    let data = host.identify(Cns::NAMESPACE_DESCRIPTORS, 1).unwrap();
    let descriptors: Vec<_> = NamespaceDescriptors::new(&data).map(Result::unwrap).collect();
    assert!(descriptors.contains(&NamespaceDescriptor::Uuid([7; 16])), "{descriptors:?}");
    assert!(descriptors.contains(&NamespaceDescriptor::Eui64([1; 8])));
    assert_eq!(host.identify(Cns::CONTROLLER_LIST, 0).unwrap()[..4], [1, 0, cntlid as u8, 0]);
    assert_eq!(host.identify(Cns::IO_COMMAND_SETS, 0).unwrap()[..8], 1u64.to_le_bytes());
    for cns in [Cns::NVM_SET_LIST, Cns::ALLOCATED_NAMESPACE_LIST, Cns(0xff)] {
        assert!(host.identify(cns, 0).unwrap_err().is(Status::INVALID_FIELD), "{cns}");
    }
    let mut short = [0; 4092];
    let sqe = Sqe::admin(AdminOpcode::IDENTIFY, 0).with_cdw10(1);
    assert!(host.answer(sqe, Data::In(&mut short)).status().is(Status::INVALID_DATA_SGL_LENGTH));
}

#[test]
fn io_reads_what_was_written_and_is_counted() {
    let target = target();
    let (mut admin, cntlid) = Host::admin(&target, NQN);
    let mut io = Host::new(&target);
    io.connect(NQN, 1, cntlid, 0);
    let data: Vec<u8> = (0..4096).map(|i| (i % 253) as u8).collect();
    let write = Sqe::nvm(NvmOpcode::WRITE, 1).with_slba(8).with_cdw12(7);
    assert!(io.answer(write, Data::Out(&data)).status().is_success());
    let mut found = vec![0; 4096];
    let read = Sqe::nvm(NvmOpcode::READ, 1).with_slba(8).with_cdw12(7);
    assert!(io.answer(read, Data::In(&mut found)).status().is_success());
    assert_eq!(found, data);
    assert!(io.status(Sqe::nvm(NvmOpcode::FLUSH, u32::MAX)).is_success());
    assert!(io.status(Sqe::nvm(NvmOpcode::FLUSH, 2)).is(Status::INVALID_NAMESPACE_OR_FORMAT));
    assert!(io.status(Sqe::nvm(NvmOpcode::COPY, 1)).is(Status::INVALID_OPCODE));
    assert!(io.status(fabrics::property_get(0, PropertySize::Qword)).is(Status::INVALID_OPCODE));
    // The queue must not go on with a namespace that is gone.
    target.subsystem(NQN).unwrap().remove_namespace(1).unwrap();
    let gone = io.answer(read, Data::In(&mut found));
    assert!(gone.status().is(Status::INVALID_NAMESPACE_OR_FORMAT));
    let smart = SmartLog::read_from_bytes(&admin.log(LogPageId::SMART, 0, 512).unwrap()).unwrap();
    assert_eq!(u128::from_le_bytes(smart.host_read_commands), 1);
    assert_eq!(u128::from_le_bytes(smart.data_units_written), 1);
    let errors = admin.log(LogPageId::ERROR_INFORMATION, 0, 64).unwrap();
    let newest = ErrorLogEntry::read_from_bytes(&errors).unwrap();
    // Failures on I/O queues are in the log of the controller they belong to.
    assert_eq!((newest.error_count.get(), newest.sqid.get(), newest.cid.get()), (4, 1, io.cid));
    assert!(newest.status().is(Status::INVALID_NAMESPACE_OR_FORMAT));
    assert_eq!((newest.lba.get(), newest.nsid.get()), (8, 1));
}

#[test]
fn disconnect_ends_an_io_queue_only() {
    let target = target();
    let (mut admin, cntlid) = Host::admin(&target, NQN);
    assert!(admin.status(fabrics::disconnect()).is(Status::DISCONNECT_INVALID_QUEUE_TYPE));
    let mut io = Host::new(&target);
    io.connect(NQN, 1, cntlid, 0);
    let mut sqe = fabrics::disconnect();
    sqe.cid = U16::new(5);
    io.queue.begin(&sqe);
    assert!(
        matches!(io.queue.execute(&sqe, Data::None), Outcome::AnswerAndClose(cqe) if cqe.status().is_success())
    );
}

#[test]
fn log_pages_have_ends() {
    let target = target();
    let (mut host, _) = Host::admin(&target, NQN);
    let supported = host.log(LogPageId::SUPPORTED_LOG_PAGES, 0, 1024).unwrap();
    let lids: Vec<usize> = (0..256).filter(|lid| supported[lid * 4] == 1).collect();
    assert_eq!(lids, [0, 1, 2, 3, 4, 5, 0x0c]);
    assert!(host.log(LogPageId::DISCOVERY, 0, 1024).unwrap_err().is(Status::INVALID_LOG_PAGE));
    assert_eq!(host.log(LogPageId::SMART, 512, 4).unwrap(), [0; 4]);
    assert!(host.log(LogPageId::SMART, 516, 4).unwrap_err().is(Status::INVALID_FIELD));
    assert!(host.log(LogPageId::SMART, u64::MAX - 3, 4).unwrap_err().is(Status::INVALID_FIELD));
    let mut odd = GetLogPage::new(LogPageId::SMART, 0, 4).unwrap();
    odd.offset = 2;
    assert!(host.log_page(odd).unwrap_err().is(Status::INVALID_FIELD));
    let too_long = Sqe::admin(AdminOpcode::GET_LOG_PAGE, 0).with_cdw10(0xffff_0002).with_cdw11(0xffff);
    assert!(host.status(too_long).is(Status::INVALID_FIELD));
    let effects = host.log(LogPageId::COMMAND_EFFECTS, 0, 4096).unwrap();
    let effects = CommandEffectsLog::read_from_bytes(&effects).unwrap();
    assert!(effects.io(NvmOpcode::WRITE.0).changes_content() && effects.io(NvmOpcode::READ.0).is_supported());
    assert!(!effects.io(NvmOpcode::COPY.0).is_supported());
    // In two parts it is the same.
    let whole = host.log(LogPageId::ANA, 0, 64).unwrap();
    let parts =
        [host.log(LogPageId::ANA, 0, 20).unwrap(), host.log(LogPageId::ANA, 20, 44).unwrap()].concat();
    assert_eq!(whole, parts);
    let ana = AnaLog::new(&whole).unwrap();
    let group = ana.groups().next().unwrap().unwrap();
    assert_eq!((group.id(), group.state()), (1, AnaState::OPTIMIZED));
    assert_eq!(group.nsids().collect::<Vec<_>>(), [1]);
}

#[test]
fn failures_are_logged_newest_first() {
    let target = target();
    let (mut host, _) = Host::admin(&target, NQN);
    for _ in 0..70 {
        assert!(host.status(Sqe::admin(AdminOpcode::SANITIZE, 0)).is(Status::INVALID_OPCODE));
    }
    let log = host.log(LogPageId::ERROR_INFORMATION, 0, 64 * 64).unwrap();
    let entries: Vec<u64> =
        log.chunks(64).map(|e| ErrorLogEntry::read_from_bytes(e).unwrap().error_count.get()).collect();
    assert_eq!(entries, (7..=70).rev().collect::<Vec<u64>>());
}

#[test]
fn features_are_granted_and_remembered() {
    let target = target_with(Config { max_io_queues: 8, ..Config::default() });
    let (mut host, cntlid) = Host::admin(&target, NQN);
    let granted = host.set_feature(FeatureId::NUMBER_OF_QUEUES, NumberOfQueues::pairs(100).encode());
    assert_eq!(NumberOfQueues::decode(granted.dw0.get()).usable_pairs(), 8);
    host.set_feature(FeatureId::NUMBER_OF_QUEUES, NumberOfQueues::pairs(3).encode());
    let now = host.get_feature(FeatureId::NUMBER_OF_QUEUES, FeatureSelect::CURRENT);
    assert_eq!(NumberOfQueues::decode(now.dw0.get()).usable_pairs(), 3);
    assert!(host.set_feature(FeatureId::NUMBER_OF_QUEUES, 0xffff_ffff).status().is(Status::INVALID_FIELD));
    let mut io = Host::new(&target);
    assert_eq!(invalid_parameter_of(io.connect(NQN, 4, cntlid, 0)), (false, 42));
    assert!(io.connect(NQN, 3, cntlid, 0).status().is_success());
    let late = host.set_feature(FeatureId::NUMBER_OF_QUEUES, 0);
    assert!(late.status().is(Status::COMMAND_SEQUENCE_ERROR));
    assert_eq!(host.get_feature(FeatureId::VOLATILE_WRITE_CACHE, FeatureSelect::CURRENT).dw0.get(), 1);
    host.set_feature(FeatureId::VOLATILE_WRITE_CACHE, 0);
    assert_eq!(host.get_feature(FeatureId::VOLATILE_WRITE_CACHE, FeatureSelect::CURRENT).dw0.get(), 0);
    assert_eq!(host.get_feature(FeatureId::VOLATILE_WRITE_CACHE, FeatureSelect::DEFAULT).dw0.get(), 1);
    assert_eq!(host.get_feature(FeatureId::ARBITRATION, FeatureSelect::SUPPORTED_CAPABILITIES).dw0.get(), 4);
    let kato = host.set_feature(FeatureId::KEEP_ALIVE_TIMER, 1234);
    assert!(kato.status().is_success());
    assert_eq!(host.get_feature(FeatureId::KEEP_ALIVE_TIMER, FeatureSelect::CURRENT).dw0.get(), 1300);
    for fid in [FeatureId::LBA_RANGE_TYPE, FeatureId::INTERRUPT_COALESCING, FeatureId(0xee)] {
        assert!(host.set_feature(fid, 0).status().is(Status::INVALID_FIELD), "{fid}");
        assert!(host.get_feature(fid, FeatureSelect::CURRENT).status().is(Status::INVALID_FIELD), "{fid}");
    }
    let save = Sqe::admin(AdminOpcode::SET_FEATURES, 0);
    let save = save.with_cdw10(set_features_cdw10(FeatureId::ARBITRATION, true));
    assert!(host.status(save).is(Status::FEATURE_NOT_SAVEABLE));
    let mut id = [0; 16];
    let sqe = Sqe::admin(AdminOpcode::GET_FEATURES, 0).with_cdw10(FeatureId::HOST_IDENTIFIER.0.into());
    assert!(host.answer(sqe.with_cdw11(1), Data::In(&mut id)).status().is_success());
    assert_eq!(id, [9; 16]);
}

#[test]
fn events_wait_for_requests_and_are_masked_until_the_log_is_read() {
    let target = target();
    let (mut host, _) = Host::admin(&target, NQN);
    let subsystem = target.subsystem(NQN).unwrap();
    subsystem.resize_namespace(1, 2 << 20).unwrap();
    assert!(host.event_request().is_none());
    assert!(host.events().is_empty(), "not asked for");
    let wanted = AsyncEventConfig::NAMESPACE_ATTRIBUTE.union(AsyncEventConfig::ANA_CHANGE);
    assert!(host.set_feature(FeatureId::ASYNC_EVENT_CONFIG, wanted.0).status().is_success());
    assert!(host.set_feature(FeatureId::ASYNC_EVENT_CONFIG, 1 << 31).status().is(Status::INVALID_FIELD));
    let woken = host.woken.load(Ordering::SeqCst);
    let added = subsystem.add_namespace(Namespace::memory(1 << 20)).unwrap();
    assert!(host.woken.load(Ordering::SeqCst) > woken);
    let event = AsyncEvent::notice(NoticeEvent::NAMESPACE_ATTRIBUTE_CHANGED, LogPageId::CHANGED_NAMESPACES);
    assert_eq!(host.events(), [event]);
    // Notices are masked now, and the same event is not reported twice.
    for _ in 0..3 {
        host.event_request();
    }
    subsystem.set_ana_state(AnaState::NON_OPTIMIZED);
    subsystem.remove_namespace(added).unwrap();
    assert!(host.events().is_empty());
    let read = GetLogPage::new(LogPageId::CHANGED_NAMESPACES, 0, 4096).unwrap();
    host.log_page(read.retaining_event()).unwrap();
    assert!(host.events().is_empty(), "the event was retained");
    let page = host.log_page(read).unwrap();
    let ChangedNamespaces::List(list) = ChangedNamespaces::new(&page) else { panic!("too many") };
    assert_eq!(list.map(Result::unwrap).collect::<Vec<_>>(), [1, 2]);
    let ana = AsyncEvent::notice(NoticeEvent::ANA_CHANGE, LogPageId::ANA);
    assert_eq!(host.events(), [ana]);
    host.log(LogPageId::ANA, 0, 48).unwrap();
    assert_eq!(host.events(), [event], "namespaces changed once more meanwhile");
    assert_eq!(host.log_page(read).unwrap()[..4], [0; 4]);
    for _ in 0..3 {
        assert!(host.event_request().is_none());
    }
    let fifth = host.event_request().unwrap();
    assert!(fifth.status().is(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED), "{}", fifth.status());
}

#[test]
fn ana_states_stop_io() {
    let target = target();
    let (_admin, cntlid) = Host::admin(&target, NQN);
    let mut io = Host::new(&target);
    io.connect(NQN, 1, cntlid, 0);
    for (state, status) in [
        (AnaState::INACCESSIBLE, Status::ANA_INACCESSIBLE),
        (AnaState::PERSISTENT_LOSS, Status::ANA_PERSISTENT_LOSS),
        (AnaState::CHANGE, Status::ANA_TRANSITION),
        (AnaState::NON_OPTIMIZED, Status::SUCCESS),
    ] {
        target.subsystem(NQN).unwrap().set_ana_state(state);
        assert!(io.status(Sqe::nvm(NvmOpcode::FLUSH, 1)).is(status), "{state}");
    }
}

#[test]
fn the_keep_alive_timer_ends_the_controller() {
    let target = target();
    let mut host = Host::new(&target);
    let cntlid = host.connect(NQN, 0, 0xffff, 200).dw0.get() as u16;
    host.enable();
    let mut io = Host::new(&target);
    io.connect(NQN, 1, cntlid, 0);
    let deadline = host.queue.deadline().unwrap();
    assert!(deadline <= Instant::now() + Duration::from_millis(200));
    std::thread::sleep(Duration::from_millis(20));
    assert!(host.status(Sqe::admin(AdminOpcode::KEEP_ALIVE, 0)).is_success());
    let later = host.queue.deadline().unwrap();
    assert!(later > deadline);
    assert!(!host.queue.is_closed(later - Duration::from_millis(10)));
    assert!(io.queue.is_closed(later) && host.queue.is_closed(later));
    assert!(io.run(Sqe::nvm(NvmOpcode::FLUSH, 1), Data::None).is_none(), "closed rather than answered");
}

#[test]
fn abort_reaches_event_requests_and_held_commands() {
    let target = target();
    let (mut host, cntlid) = Host::admin(&target, NQN);
    let mut io = Host::new(&target);
    io.connect(NQN, 1, cntlid, 0);
    let abort = |sqid: u16, cid: u16| {
        Sqe::admin(AdminOpcode::ABORT, 0).with_cdw10(u32::from(sqid) | u32::from(cid) << 16)
    };
    assert_eq!(host.answer(abort(0, 999), Data::None).dw0.get() & 1, 1, "no such command");
    host.event_request();
    let request = host.cid;
    assert_eq!(host.answer(abort(0, request), Data::None).dw0.get() & 1, 0);
    let aborted = host.queue.take_completions();
    assert!(aborted[0].status().is(Status::ABORT_REQUESTED) && aborted[0].cid.get() == request);
    target.faults.push(Rule::new(Fault::Drop).io());
    assert!(io.run(Sqe::nvm(NvmOpcode::FLUSH, 1), Data::None).is_none());
    let dropped = io.cid;
    assert!(io.queue.due(Instant::now() + Duration::from_secs(3600)).is_none(), "dropped for good");
    let woken = io.woken.load(Ordering::SeqCst);
    assert_eq!(host.answer(abort(1, dropped), Data::None).dw0.get() & 1, 0);
    assert!(io.woken.load(Ordering::SeqCst) > woken);
    assert!(
        matches!(io.queue.due(Instant::now()), Some(Due::Answer(cqe)) if cqe.status().is(Status::ABORT_REQUESTED))
    );
    target.faults.push(Rule::new(Fault::Delay(Duration::from_secs(5))).io());
    assert!(io.run(Sqe::nvm(NvmOpcode::FLUSH, 1), Data::None).is_none());
    assert!(io.queue.due(Instant::now()).is_none());
    let due = io.queue.deadline().unwrap();
    assert!(matches!(io.queue.due(due), Some(Due::Execute(sqe, _)) if sqe.cid.get() == io.cid));
    target.faults.push(Rule::new(Fault::CompleteWith(Status::INTERNAL_ERROR)).io());
    assert!(io.status(Sqe::nvm(NvmOpcode::FLUSH, 1)).is(Status::INTERNAL_ERROR));
}

#[test]
fn the_discovery_log_is_what_the_host_may_see() {
    let target = target();
    let addresses = ["192.0.2.1:4420".parse().unwrap(), "[::]:8009".parse().unwrap()];
    target.set_listeners(addresses.to_vec());
    let (mut host, _) = Host::admin(&target, Nqn::DISCOVERY);
    let ctrl = IdentifyController::read_from_bytes(&host.identify(Cns::CONTROLLER, 0).unwrap()).unwrap();
    assert_eq!(ctrl.cntrltype, ControllerType::DISCOVERY);
    assert_eq!(ctrl.subsystem_nqn(), Nqn::DISCOVERY);
    assert!(host.identify(Cns::ACTIVE_NAMESPACE_LIST, 0).unwrap_err().is(Status::INVALID_FIELD));
    let entries = |host: &mut Host| {
        let header = host.log(LogPageId::DISCOVERY, 0, 1024).unwrap();
        let header = DiscoveryLogHeader::read_from_bytes(&header).unwrap();
        let len = header.numrec.get() * 1024;
        let bytes = if len == 0 { Vec::new() } else { host.log(LogPageId::DISCOVERY, 1024, len).unwrap() };
        (header.genctr.get(), DiscoveryLogEntry::slice_from(&bytes).to_vec())
    };
    let (genctr, in_process) = entries(&mut host);
    assert_eq!(in_process.len(), 1);
    assert_eq!(in_process[0].trtype, TransportTypeCode::LOOP);
    assert_eq!((in_process[0].traddr(), in_process[0].subnqn()), ("test".to_owned(), NQN.to_owned()));
    let mut remote = Host::at(&target, Front::Tcp("198.51.100.7:8009".parse().unwrap()));
    remote.connect(Nqn::DISCOVERY, 0, 0xffff, 0);
    remote.enable();
    let (_, over_tcp) = entries(&mut remote);
    let places: Vec<_> = over_tcp.iter().map(|e| (e.traddr(), e.trsvcid())).collect();
    assert_eq!(places[0], ("192.0.2.1".to_owned(), "4420".to_owned()));
    assert_eq!(places[1], ("198.51.100.7".to_owned(), "8009".to_owned()), "the address the host found us at");
    assert!(over_tcp.iter().all(|e| e.subtype == SubsystemType::NVM && e.cntlid.get() == 0xffff));
    // Changes are announced once until the log is read.
    let event = AsyncEvent::notice(NoticeEvent::DISCOVERY_LOG_CHANGE, LogPageId::DISCOVERY);
    assert!(host.set_feature(FeatureId::ASYNC_EVENT_CONFIG, 1 << 31).status().is_success());
    host.event_request();
    host.event_request();
    target.add_subsystem(SubsystemBuilder::new("nqn.2024-01.org.example:hidden").deny_other_hosts()).unwrap();
    target.add_subsystem(SubsystemBuilder::new("nqn.2024-01.org.example:mine").allow_host(HOST)).unwrap();
    assert_eq!(host.events(), [event]);
    let (later, seen) = entries(&mut host);
    assert!(later > genctr);
    assert_eq!(seen.len(), 2, "the hidden one is not shown");
    assert_eq!(host.events(), [event]);
    target.remove_subsystem(NQN).unwrap();
    target.subsystem("nqn.2024-01.org.example:mine").unwrap().deny_host(HOST);
    assert!(entries(&mut host).1.is_empty());
}

#[test]
fn controllers_are_limited_and_numbered_anew() {
    let target = target_with(Config { max_controllers: 2, ..Config::default() });
    let (first, one) = Host::admin(&target, NQN);
    let (_second, two) = Host::admin(&target, NQN);
    assert_ne!(one, two);
    let busy = Host::new(&target).connect(NQN, 0, 0xffff, 0);
    assert!(busy.status().is(Status::CONNECT_CONTROLLER_BUSY) && !busy.status().dnr());
    drop(first);
    let (_third, three) = Host::admin(&target, NQN);
    assert!(three != one && three != two);
}
