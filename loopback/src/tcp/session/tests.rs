use nvmf_core::spec::NvmOpcode;
use nvmf_core::spec::fabrics::CATTR_DISABLE_SQ_FLOW_CONTROL;
use nvmf_core::spec::features::AsyncEventConfig;
use nvmf_core::spec::tcp::{FLAG_LAST, FLAG_SUCCESS};
use zerocopy::little_endian::U16;

use super::*;
use crate::config::{Config, TcpOptions};
use crate::fault::Rule;
use crate::namespace::Namespace;
use crate::subsystem::SubsystemBuilder;
use crate::target::Front;
use crate::tcp::wire::{Pdu, Wire};

const NQN: &str = "nqn.2024-01.org.example:one";

fn target(tcp: TcpOptions) -> Arc<Target> {
    target_of(tcp, Namespace::memory(4 << 20))
}

fn target_of(tcp: TcpOptions, namespace: Namespace) -> Arc<Target> {
    let target = Arc::new(Target::new("test".to_owned(), Config { tcp, ..Config::default() }));
    target.add_subsystem(SubsystemBuilder::new(NQN).namespace(namespace)).unwrap();
    target
}

/// A host and its session, back to back.
struct Host {
    session: Session,
    wire: Wire,
    received: Vec<u8>,
    /// Bytes handed over at a time.
    step: usize,
    /// Bytes that the session did not want to see.
    dropped: usize,
}

impl Host {
    fn raw(target: &Arc<Target>) -> Self {
        let front = Front::Tcp("127.0.0.1:4420".parse().unwrap());
        let queue = Queue::new(Arc::clone(target), front, Arc::new(|| {}));
        let session = Session::new(Arc::clone(target), queue, Instant::now());
        Self { session, wire: Wire::default(), received: Vec::new(), step: usize::MAX, dropped: 0 }
    }

    fn initialized(target: &Arc<Target>, digest: u8, hpda: u8, maxr2t_z: u32) -> Self {
        let mut host = Self::raw(target);
        host.send(&Wire::ic_req(digest, hpda, maxr2t_z));
        let Some(Pdu::IcResp(resp)) = host.pdu() else { panic!("no ICResp") };
        host.wire = Wire {
            header_digest: resp.digest & DIGEST_HEADER != 0,
            data_digest: resp.digest & DIGEST_DATA != 0,
            cpda: resp.cpda,
        };
        host
    }

    /// An enabled admin queue and an I/O queue, with the same parameters.
    fn pair(target: &Arc<Target>, digest: u8, hpda: u8, maxr2t_z: u32) -> (Self, Self) {
        Self::pair_with(target, digest, hpda, maxr2t_z, CATTR_DISABLE_SQ_FLOW_CONTROL)
    }

    fn pair_with(target: &Arc<Target>, digest: u8, hpda: u8, maxr2t_z: u32, cattr: u8) -> (Self, Self) {
        let mut admin = Self::initialized(target, digest, hpda, maxr2t_z);
        admin.send(&admin.wire.connect_asking(cattr, 0, NQN, 0, 0xffff, 32));
        let cntlid = admin.response(0).dw0.get() as u16;
        admin.send(&admin.wire.enable(1));
        admin.response(1);
        let mut io = Self::initialized(target, digest, hpda, maxr2t_z);
        io.send(&io.wire.connect_asking(cattr, 0, NQN, 1, cntlid, 64));
        io.response(0);
        (admin, io)
    }

    fn send(&mut self, mut bytes: &[u8]) {
        let now = Instant::now();
        while !bytes.is_empty() && !self.session.is_closing() {
            let mut sent = 0;
            match self.session.space() {
                Space::Drop(room) => {
                    sent = room.len().min(bytes.len()).min(self.step);
                    self.dropped += sent;
                }
                Space::Fill(mut spaces) => {
                    for space in &mut spaces {
                        let n = space.len().min(bytes.len() - sent).min(self.step - sent);
                        space[..n].copy_from_slice(&bytes[sent..sent + n]);
                        sent += n;
                    }
                }
            }
            assert!(sent > 0, "a session that does not read");
            bytes = &bytes[sent..];
            self.session.filled(sent);
            self.session.process(now);
            self.collect();
        }
    }

    fn collect(&mut self) {
        self.session.tick(Instant::now());
        loop {
            let mut slices = [IoSlice::new(&[]); 8];
            let count = self.session.output_slices(&mut slices);
            slices[..count].iter().for_each(|slice| self.received.extend_from_slice(slice));
            let n = slices[..count].iter().map(|slice| slice.len()).sum();
            self.session.consume_output(n);
            if !self.session.process(Instant::now()) && !self.session.has_output() {
                return;
            }
        }
    }

    fn pdu(&mut self) -> Option<Pdu> {
        self.collect();
        self.wire.parse(&mut self.received)
    }

    fn cqe(&mut self, cid: u16) -> nvmf_core::spec::Cqe {
        match self.pdu() {
            Some(Pdu::Resp(cqe)) if cqe.cid.get() == cid => cqe,
            other => panic!("a response to {cid} was expected, not {other:?}"),
        }
    }

    fn response(&mut self, cid: u16) -> nvmf_core::spec::Cqe {
        let cqe = self.cqe(cid);
        assert!(cqe.status().is_success(), "{}", cqe.status());
        cqe
    }

    fn term(&mut self) -> Fatal {
        let Some(Pdu::Term(req, _)) = self.pdu() else { panic!("no C2HTermReq") };
        assert!(self.session.is_closing() && self.session.is_terminated());
        Fatal::new(FatalErrorStatus(req.fes.get()), req.fei.get())
    }

    fn r2t(&mut self, cid: u16) -> (u16, u32, u32) {
        match self.pdu() {
            Some(Pdu::R2t(r2t)) if r2t.cccid.get() == cid => (r2t.ttag.get(), r2t.r2to.get(), r2t.r2tl.get()),
            other => panic!("an R2T for {cid} was expected, not {other:?}"),
        }
    }

    /// Writes with R2T, serving them as they come; data in PDUs of at most `piece` bytes. Returns the number of R2Ts.
    fn write(&mut self, cid: u16, slba: u64, data: &[u8], piece: usize) -> usize {
        let len = data.len() as u32;
        self.send(&self.wire.command(cid, rw(NvmOpcode::WRITE, slba, data.len()), &[], len));
        let mut r2ts = 0;
        loop {
            match self.pdu() {
                Some(Pdu::R2t(r2t)) => {
                    r2ts += 1;
                    let (start, len) = (r2t.r2to.get() as usize, r2t.r2tl.get() as usize);
                    let end = start + len;
                    for at in (start..end).step_by(piece) {
                        let to = (at + piece).min(end);
                        let pdu =
                            self.wire.h2c_data(cid, r2t.ttag.get(), at as u32, &data[at..to], to == end);
                        self.send(&pdu);
                    }
                }
                Some(Pdu::Resp(cqe)) => {
                    assert!(cqe.status().is_success(), "{}", cqe.status());
                    return r2ts;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads; checks order and flags of the C2HData PDUs. Returns the data and the number of PDUs.
    fn read(&mut self, cid: u16, slba: u64, len: usize) -> (Vec<u8>, usize) {
        self.send(&self.wire.command(cid, rw(NvmOpcode::READ, slba, len), &[], len as u32));
        let (mut all, mut pdus) = (Vec::new(), 0);
        loop {
            let pdu = self.pdu();
            let Some(Pdu::Data { header, data, digests_ok }) = pdu else { panic!("{pdu:?}") };
            assert!(digests_ok);
            assert_eq!((header.cccid.get(), header.datao.get() as usize), (cid, all.len()));
            all.extend(data);
            pdus += 1;
            assert_eq!(header.ch.flags & FLAG_LAST != 0, all.len() == len);
            if all.len() == len {
                if header.ch.flags & FLAG_SUCCESS == 0 {
                    self.response(cid);
                }
                return (all, pdus);
            }
        }
    }
}

fn rw(opcode: NvmOpcode, slba: u64, len: usize) -> Sqe {
    Sqe::nvm(opcode, 1).with_slba(slba).with_cdw12((len / 512 - 1) as u32)
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(31).wrapping_add(seed) >> 3) as u8).collect()
}

#[test]
fn data_arrives_whole_with_every_combination_of_parameters() {
    for digest in 0..4 {
        for (hpda, cpda, max_r2t_length, max_c2h_data, success) in
            [(0, 0, !3, !3, true), (31, 31, 4096, 4096, false), (3, 7, 1000, 1536, true)]
        {
            let options =
                TcpOptions::new().cpda(cpda).max_r2t_length(max_r2t_length).max_c2h_data(max_c2h_data);
            let target = target(options.max_h2c_data(8192).c2h_success(success));
            let (_admin, mut io) = Host::pair(&target, digest, hpda, 3);
            let data = pattern(65_536, u32::from(digest));
            for (step, piece) in [(usize::MAX, 8192), (1, 8192), (777, 512), (usize::MAX, 100)] {
                io.step = step;
                let r2ts = io.write(5, 8, &data, piece);
                assert_eq!(r2ts, data.len().div_ceil(max_r2t_length as usize).max(1));
                let (found, pdus) = io.read(6, 8, data.len());
                assert_eq!(found, data);
                assert_eq!(pdus, data.len().div_ceil(max_c2h_data as usize).max(1));
            }
            let small = pattern(4096, 99);
            io.send(&io.wire.command(7, rw(NvmOpcode::WRITE, 0, 4096), &small, 0));
            io.response(7);
            assert_eq!(io.read(8, 0, 4096).0, small);
        }
    }
}

#[test]
fn a_response_is_left_out_only_without_flow_control() {
    for (cattr, piece) in
        [(0, 4096), (0, 1024), (CATTR_DISABLE_SQ_FLOW_CONTROL, 4096), (CATTR_DISABLE_SQ_FLOW_CONTROL, 1024)]
    {
        let target = target(TcpOptions::new().max_c2h_data(piece));
        let (_admin, mut io) = Host::pair_with(&target, 0, 0, 0, cattr);
        // Connect was the first command of the queue.
        for sqhd in 2..5 {
            io.send(&io.wire.command(7, rw(NvmOpcode::READ, 0, 4096), &[], 4096));
            let mut flags = 0;
            for _ in 0..4096 / piece {
                let Some(Pdu::Data { header, .. }) = io.pdu() else { panic!("no data") };
                flags = header.ch.flags;
            }
            assert_eq!(flags & FLAG_LAST, FLAG_LAST);
            if cattr == 0 {
                assert_eq!(flags & FLAG_SUCCESS, 0, "the host would not hear of SQHD");
                assert_eq!(io.response(7).sqhd.get(), sqhd);
            } else {
                assert_eq!(flags & FLAG_SUCCESS, FLAG_SUCCESS);
                assert!(io.pdu().is_none());
            }
        }
    }
}

#[test]
fn data_that_nobody_stores_is_dropped_unless_there_is_a_digest() {
    const LEN: usize = 300_000 / 512 * 512;
    for digest in 0..4 {
        let target = target_of(TcpOptions::new().max_r2t_length(200_000), Namespace::null(4 << 20));
        let (_admin, mut io) = Host::pair(&target, digest, 0, 3);
        let data = pattern(LEN, u32::from(digest));
        for (step, piece) in [(usize::MAX, 131_072), (777, 131_072), (5000, 40_000), (usize::MAX, 100)] {
            (io.step, io.dropped) = (step, 0);
            io.write(5, 8, &data, piece);
            // A host that does not wait for the answer in between.
            io.send(&io.wire.command(6, rw(NvmOpcode::WRITE, 0, LEN), &[], LEN as u32));
            let mut bytes = Vec::new();
            for _ in 0..2 {
                let (ttag, at, len) = io.r2t(6);
                let (at, len) = (at as usize, len as usize);
                bytes.extend(io.wire.h2c_data(
                    6,
                    ttag,
                    at as u32,
                    &data[at..][..len.min(130_000)],
                    len <= 130_000,
                ));
                if len > 130_000 {
                    let rest = &data[at + 130_000..at + len];
                    bytes.extend(io.wire.h2c_data(6, ttag, at as u32 + 130_000, rest, true));
                }
            }
            let small = pattern(4096, 99);
            bytes.extend(io.wire.command(7, rw(NvmOpcode::WRITE, 0, 4096), &small, 0));
            bytes.extend(io.wire.command(8, rw(NvmOpcode::FLUSH, 0, 512), &[], 0));
            io.send(&bytes);
            for cid in 6..=8 {
                io.response(cid);
            }
            assert_eq!(io.read(9, 0, 8192).0, [0; 8192]);
            let (least, most) = match (digest & DIGEST_DATA != 0, piece < WINDOW) {
                (true, _) => (0, 0),
                (_, true) => (1, 2 * LEN),
                (_, false) => (LEN / 2, 2 * LEN),
            };
            assert!((least..=most).contains(&io.dropped), "{digest} {step} {piece}: {}", io.dropped);
        }
        if digest & DIGEST_DATA != 0 {
            io.send(&io.wire.command(5, rw(NvmOpcode::WRITE, 0, 65_536), &[], 65_536));
            let (ttag, ..) = io.r2t(5);
            let mut pdu = io.wire.h2c_data(5, ttag, 0, &data[..65_536], true);
            pdu[1000] ^= 1;
            io.send(&pdu);
            assert_eq!(io.cqe(5).status(), Status::TRANSIENT_TRANSPORT_ERROR);
        }
    }
}

#[test]
fn dropped_data_is_not_written_to_the_namespace_that_took_the_place() {
    let target = target_of(TcpOptions::new(), Namespace::null(4 << 20));
    let (_admin, mut io) = Host::pair(&target, 0, 0, 0);
    let data = pattern(65_536, 1);
    for cid in [1, 2] {
        io.send(&io.wire.command(cid, rw(NvmOpcode::WRITE, 0, data.len()), &[], 65_536));
    }
    let ((first, ..), (second, ..)) = (io.r2t(1), io.r2t(2));
    target.subsystem(NQN).unwrap().remove_namespace(1).unwrap();
    io.send(&io.wire.h2c_data(1, first, 0, &data, true));
    assert_eq!(io.cqe(1).status(), Status::DATA_TRANSFER_ERROR);
    target.add_namespace(NQN, Namespace::memory(4 << 20).nsid(1)).unwrap();
    io.send(&io.wire.h2c_data(2, second, 0, &data, true));
    assert_eq!(io.cqe(2).status(), Status::DATA_TRANSFER_ERROR);
    assert_eq!(io.read(3, 0, data.len()).0, vec![0; data.len()]);
    // What comes now is stored.
    io.write(4, 0, &data, 16_384);
    assert_eq!(io.read(5, 0, data.len()).0, data);
}

#[test]
fn digests_are_agreed_on_as_allowed() {
    let target = target(TcpOptions::new().digests(false, true).cpda(3).max_h2c_data(4096));
    let mut host = Host::raw(&target);
    host.send(&Wire::ic_req(3, 0, 0));
    let Some(Pdu::IcResp(resp)) = host.pdu() else { panic!("no ICResp") };
    assert_eq!((resp.digest, resp.cpda, resp.maxh2cdata.get()), (DIGEST_DATA, 3, 4096));
}

#[test]
fn no_more_r2ts_than_the_host_takes() {
    let target = target(TcpOptions::new().max_r2t_length(4096));
    let (_admin, mut io) = Host::pair(&target, 0, 0, 1);
    let data = pattern(16_384, 1);
    io.send(&io.wire.command(9, rw(NvmOpcode::WRITE, 0, data.len()), &[], 16_384));
    let first = io.r2t(9);
    let second = io.r2t(9);
    assert_eq!((first.1, second.1), (0, 4096));
    assert!(io.pdu().is_none());
    // Served in the other order.
    io.send(&io.wire.h2c_data(9, second.0, 4096, &data[4096..8192], true));
    let third = io.r2t(9);
    io.send(&io.wire.h2c_data(9, third.0, 8192, &data[8192..12_288], true));
    let fourth = io.r2t(9);
    io.send(&io.wire.h2c_data(9, fourth.0, 12_288, &data[12_288..], true));
    assert!(io.pdu().is_none());
    io.send(&io.wire.h2c_data(9, first.0, 0, &data[..4096], true));
    io.response(9);
    assert_eq!(io.read(10, 0, data.len()).0, data);
}

#[test]
fn many_commands_in_one_stretch_are_all_answered() {
    let target = target(TcpOptions::new());
    let (_admin, mut io) = Host::pair(&target, 3, 0, 0);
    let mut bytes = Vec::new();
    for cid in 0..60u16 {
        bytes.extend(io.wire.command(cid, rw(NvmOpcode::READ, u64::from(cid), 4096), &[], 4096));
    }
    io.send(&bytes);
    for cid in 0..60u16 {
        let Some(Pdu::Data { header, .. }) = io.pdu() else { panic!("no data") };
        assert_eq!(header.cccid.get(), cid);
    }
    assert!(io.pdu().is_none());
}

#[test]
fn a_wrong_data_digest_fails_the_command_only() {
    let target = target(TcpOptions::new());
    let (_admin, mut io) = Host::pair(&target, DIGEST_DATA, 0, 0);
    let data = pattern(4096, 5);
    let mut capsule = io.wire.command(1, rw(NvmOpcode::WRITE, 0, 4096), &data, 0);
    let end = capsule.len() - 1;
    capsule[end] ^= 1;
    io.send(&capsule);
    assert!(io.cqe(1).status().is(Status::TRANSIENT_TRANSPORT_ERROR));
    io.send(&io.wire.command(2, rw(NvmOpcode::WRITE, 0, 65_536), &[], 65_536));
    let (ttag, ..) = io.r2t(2);
    let mut pdu = io.wire.h2c_data(2, ttag, 0, &pattern(65_536, 6), true);
    pdu[30_000] ^= 0x10;
    io.send(&pdu);
    assert!(io.cqe(2).status().is(Status::TRANSIENT_TRANSPORT_ERROR));
    assert_eq!(io.read(3, 0, 4096).0, [0; 4096]);
}

#[test]
fn sgls_are_checked() {
    let target = target(TcpOptions::new());
    let (_admin, mut io) = Host::pair(&target, 0, 0, 0);
    use nvmf_core::spec::data_ptr::SglDescriptor as Sgl;
    let data = [1; 512];
    let cases = [
        (Sgl::in_capsule(0, 513), &data[..], Status::INVALID_SGL_OFFSET),
        (Sgl::in_capsule(512, 512), &data[..], Status::INVALID_SGL_OFFSET),
        (Sgl::in_capsule(u64::MAX, 512), &data[..], Status::INVALID_SGL_OFFSET),
        (Sgl::in_capsule(0, 512), &[][..], Status::INVALID_SGL_OFFSET),
        (Sgl::transport(512), &data[..], Status::INVALID_SGL_DESCRIPTOR_TYPE),
        (Sgl::data_block(0, 512), &data[..], Status::INVALID_SGL_DESCRIPTOR_TYPE),
        (Sgl::transport(u32::MAX), &[][..], Status::INVALID_FIELD),
        (Sgl::in_capsule(0, 256), &data[..], Status::INVALID_DATA_SGL_LENGTH),
        (Sgl::transport(0), &[][..], Status::INVALID_DATA_SGL_LENGTH),
    ];
    for (cid, (sgl, data, status)) in (10..).zip(cases) {
        let mut sqe = rw(NvmOpcode::WRITE, 0, 512);
        sqe.cid = U16::new(cid);
        sqe.set_sgl(sgl);
        io.send(&io.wire.raw_command(sqe, data));
        let found = io.cqe(cid).status();
        assert!(found.is(status), "{sgl:?}: {found}");
    }
    let mut prp = rw(NvmOpcode::WRITE, 0, 512);
    prp.dptr = nvmf_core::spec::DataPointer::prp(4096, 512);
    io.send(&io.wire.raw_command(prp, &[]));
    assert!(io.cqe(0).status().is(Status::INVALID_FIELD));
    let inner = Sgl::in_capsule(100, 512);
    let mut sqe = rw(NvmOpcode::WRITE, 0, 512);
    sqe.set_sgl(inner);
    io.send(&io.wire.raw_command(sqe, &pattern(700, 3)));
    io.response(0);
    assert_eq!(io.read(1, 0, 512).0, pattern(700, 3)[100..612]);
}

#[test]
fn hosts_that_break_the_protocol_are_told_where() {
    use FatalErrorStatus as F;
    let target = target(TcpOptions::new().max_h2c_data(4096));
    let fails = |digest: u8, expected: Fatal, send: &dyn Fn(&mut Host)| {
        let (_admin, mut io) = Host::pair(&target, digest, 0, 0);
        send(&mut io);
        assert_eq!(io.term(), expected);
    };
    let h2c = |cid: u16, tag: u16, offset: u32, len: usize, last: bool| {
        move |io: &mut Host| {
            io.send(&io.wire.command(1, rw(NvmOpcode::WRITE, 0, 8192), &[], 8192));
            let (ttag, ..) = io.r2t(1);
            io.send(&io.wire.h2c_data(cid, ttag.wrapping_add(tag), offset, &pattern(len, 0), last));
        }
    };
    fails(0, Fatal::field(at::DATA_TTAG), &h2c(1, 1, 0, 4096, false));
    fails(0, Fatal::field(at::DATA_CCCID), &h2c(2, 0, 0, 4096, false));
    fails(0, Fatal::new(F::DATA_OUT_OF_RANGE, 0), &h2c(1, 0, 4, 4096, false));
    fails(0, Fatal::field(at::FLAGS), &h2c(1, 0, 0, 4096, true));
    fails(0, Fatal::new(F::R2T_LIMIT_EXCEEDED, at::PLEN), &h2c(1, 0, 0, 4100, false));
    fails(0, Fatal::sequence(), &|io| io.send(&Wire::ic_req(0, 0, 0)));
    fails(0, Fatal::field(at::TYPE), &|io| io.send(&[0x42; 200]));
    let mut digest = 0;
    let (_admin, mut io) = Host::pair(&target, DIGEST_HEADER, 0, 0);
    let mut capsule = io.wire.command(1, rw(NvmOpcode::READ, 0, 512), &[], 512);
    capsule[40] ^= 1;
    digest = digest_at(&capsule, 72).max(digest);
    io.send(&capsule);
    assert_eq!(io.term(), Fatal::new(F::HEADER_DIGEST_ERROR, digest));
    // More commands than the queue has entries.
    let (_admin, mut io) = Host::pair(&target, 0, 0, 0);
    for cid in 0..64 {
        io.send(&io.wire.command(cid, rw(NvmOpcode::WRITE, 0, 512), &[], 512));
        io.r2t(cid);
    }
    io.send(&io.wire.command(64, rw(NvmOpcode::WRITE, 0, 512), &[], 512));
    assert_eq!(io.term(), Fatal::sequence());
    // Before ICReq there is nothing, and it has to be right.
    let mut early = Host::raw(&target);
    early.send(&Wire::default().enable(0));
    assert_eq!(early.term(), Fatal::sequence());
    let mut version = Host::raw(&target);
    let mut req = Wire::ic_req(0, 0, 0);
    req[8] = 1;
    version.send(&req);
    assert_eq!(version.term(), Fatal::new(F::UNSUPPORTED_PARAMETER, 8));
    let mut aligned = Host::raw(&target);
    aligned.send(&Wire::ic_req(0, 32, 0));
    assert_eq!(aligned.term(), Fatal::field(at::IC_HPDA));
}

#[test]
fn a_host_may_terminate() {
    let target = target(TcpOptions::new());
    let (_admin, mut io) = Host::pair(&target, 0, 0, 0);
    let req = TermReq {
        ch: send::header(PduType::H2C_TERM_REQ, 0, 24, 0, 24),
        fes: U16::new(2),
        ..TermReq::default()
    };
    io.send(req.as_bytes());
    assert!(io.session.is_closing() && !io.session.is_terminated());
    assert!(io.pdu().is_none());
}

#[test]
fn in_capsule_data_is_limited_by_queue() {
    let target = Arc::new(Target::new("test".to_owned(), Config { in_capsule: 4096, ..Config::default() }));
    target.add_subsystem(SubsystemBuilder::new(NQN).namespace(Namespace::memory(1 << 20))).unwrap();
    let (_admin, mut io) = Host::pair(&target, 0, 0, 0);
    io.send(&io.wire.command(1, rw(NvmOpcode::WRITE, 0, 4096), &[1; 4096], 0));
    io.response(1);
    io.send(&io.wire.command(1, rw(NvmOpcode::WRITE, 0, 4608), &[1; 4608], 0));
    assert_eq!(io.term(), Fatal::field(at::PLEN));
}

#[test]
fn events_reach_the_host() {
    let target = target(TcpOptions::new());
    let (mut admin, _io) = Host::pair(&target, 3, 0, 0);
    let aec = Sqe::admin(AdminOpcode::SET_FEATURES, 0).with_cdw10(0x0b);
    let aec = aec.with_cdw11(AsyncEventConfig::NAMESPACE_ATTRIBUTE.0);
    admin.send(&admin.wire.command(1, aec, &[], 0));
    admin.response(1);
    admin.send(&admin.wire.command(2, Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0), &[], 0));
    assert!(admin.pdu().is_none());
    target.add_namespace(NQN, Namespace::memory(4096)).unwrap();
    assert_eq!(admin.response(2).dw0.get(), 0x0004_0002);
    target.stop();
    admin.collect();
    assert!(admin.session.is_closing());
}

#[test]
fn scripted_faults_do_what_they_say() {
    let target = target(TcpOptions::new());
    let (_admin, mut io) = Host::pair(&target, 3, 0, 0);
    let read = |io: &mut Host, fault: Fault| {
        target.faults.push(Rule::new(fault).io());
        io.send(&io.wire.command(1, rw(NvmOpcode::READ, 0, 8192), &[], 8192));
        io.pdu()
    };
    match read(&mut io, Fault::ShortData(512)) {
        Some(Pdu::Data { header, data, digests_ok: true }) => {
            assert_eq!(data.len(), 512);
            assert_eq!(header.ch.flags & (FLAG_LAST | FLAG_SUCCESS), FLAG_LAST | FLAG_SUCCESS);
        }
        other => panic!("{other:?}"),
    }
    for fault in [Fault::BadDataDigest, Fault::BadHeaderDigest] {
        assert!(matches!(read(&mut io, fault), Some(Pdu::Data { digests_ok: false, .. })));
    }
    let Some(Pdu::Data { header, .. }) = read(&mut io, Fault::WrongDatao) else { panic!("no data") };
    assert_eq!(header.datao.get(), 4096);
    let Some(Pdu::Data { data, digests_ok, .. }) = read(&mut io, Fault::CorruptData) else {
        panic!("no data")
    };
    assert!(digests_ok && data.iter().filter(|&&byte| byte != 0).count() == 1);
    assert!(matches!(read(&mut io, Fault::DuplicateCompletion), Some(Pdu::Data { .. })));
    io.response(1);
    assert!(matches!(read(&mut io, Fault::WrongCid), Some(Pdu::Data { header, .. })
        if header.ch.flags & FLAG_SUCCESS == 0));
    assert_eq!(io.response(0xffff).cid.get(), 0xffff);
    assert!(matches!(read(&mut io, Fault::R2tOnRead), Some(Pdu::R2t(r2t)) if r2t.r2tl.get() == 4096));
    assert!(read(&mut io, Fault::Drop).is_none());
    assert!(read(&mut io, Fault::Raw(b"nonsense".to_vec())).is_none());
    assert_eq!(io.received, b"nonsense");
    io.received.clear();
    target.faults.push(Rule::new(Fault::C2hOnWrite).io());
    io.send(&io.wire.command(2, rw(NvmOpcode::WRITE, 0, 512), &[0; 512], 0));
    assert!(matches!(io.pdu(), Some(Pdu::Data { header, .. }) if header.cccid.get() == 2));
    io.response(2);
    target.faults.push(Rule::new(Fault::WrongDatao).io());
    io.send(&io.wire.command(3, rw(NvmOpcode::WRITE, 0, 65_536), &[], 65_536));
    assert_eq!(io.r2t(3).1, 4096);
    assert_eq!(target.faults.fired(), 12);
    target.faults.push(Fault::Terminate(FatalErrorStatus::PDU_SEQUENCE_ERROR, 7));
    io.send(&io.wire.command(4, rw(NvmOpcode::READ, 0, 512), &[], 512));
    assert_eq!(io.term(), Fatal::new(FatalErrorStatus::PDU_SEQUENCE_ERROR, 7));
    let (_admin, mut io) = Host::pair(&target, 0, 0, 0);
    assert!(read(&mut io, Fault::Disconnect).is_none());
    assert!(io.session.is_closing() && !io.session.is_terminated());
}

#[test]
fn held_writes_go_on_with_their_data() {
    let target = target(TcpOptions::new());
    let (_admin, mut io) = Host::pair(&target, 0, 0, 0);
    let data = pattern(4096, 8);
    target.faults.push(Rule::new(Fault::Delay(Duration::from_millis(10))).io().times(2));
    io.send(&io.wire.command(1, rw(NvmOpcode::WRITE, 0, 4096), &data, 0));
    io.send(&io.wire.command(2, rw(NvmOpcode::WRITE, 8, 16_384), &[], 16_384));
    assert!(io.pdu().is_none());
    std::thread::sleep(Duration::from_millis(15));
    io.response(1);
    let (ttag, ..) = io.r2t(2);
    io.send(&io.wire.h2c_data(2, ttag, 0, &pattern(16_384, 9), true));
    io.response(2);
    assert_eq!(io.read(3, 0, 4096).0, data);
    assert_eq!(io.read(3, 8, 16_384).0, pattern(16_384, 9));
}

/// Numbers that look random and are the same every time (xorshift).
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

#[test]
fn no_bytes_from_a_host_do_harm() {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let target = target(TcpOptions::new());
    for round in 0..400 {
        let digest = (round % 4) as u8;
        let (mut admin, mut io) = Host::pair(&target, digest, (round % 32) as u8, 2);
        for host in [&mut admin, &mut io] {
            // Something that makes sense, then altered in a few places, then cut or followed by noise.
            let data = pattern(4096, round);
            let mut bytes = match noise.next(4) {
                0 => host.wire.command(3, rw(NvmOpcode::WRITE, noise.next(9000), 4096), &data, 0),
                1 => host.wire.command(4, rw(NvmOpcode::READ, noise.next(9000), 8192), &[], 8192),
                2 => host.wire.h2c_data(3, noise.next(3) as u16, 0, &data, true),
                _ => {
                    host.send(&host.wire.command(3, rw(NvmOpcode::WRITE, 0, 4096), &[], 4096));
                    host.wire.h2c_data(3, 0, 0, &data, true)
                }
            };
            for _ in 0..noise.next(4) {
                let at = noise.next(100.min(bytes.len() as u64)) as usize;
                bytes[at] = noise.next(256) as u8;
            }
            if noise.next(2) == 0 {
                bytes.truncate(noise.next(bytes.len() as u64) as usize);
            }
            bytes.extend((0..noise.next(300)).map(|_| noise.next(256) as u8));
            host.step = 1 + noise.next(500) as usize;
            host.send(&bytes);
            host.collect();
            assert!(host.received.len() < 1 << 20);
        }
    }
    // Connections whose hosts go away leave nothing behind.
    assert!(target.subsystem(NQN).unwrap().controllers().is_empty());
}
