use proptest::prelude::*;

use super::*;

#[test]
fn cap_of_a_linux_fabrics_target() {
    // nvmet: MQES 127, CQR, TO 15 s, CSS bits 0 and 6.
    let cap = Cap(127 | 1 << 16 | 30 << 24 | 0b0100_0001 << 37);
    assert_eq!(cap.mqes_z(), 127);
    assert_eq!(cap.max_queue_entries(), 128);
    assert!(cap.cqr());
    assert_eq!(cap.ready_timeout(), Duration::from_secs(15));
    assert_eq!(cap.dstrd(), 0);
    assert_eq!(cap.min_page_size(), 4096);
    assert_eq!(cap.css().to_select(), Css::ALL_SUPPORTED);
    assert!(!cap.nssrs() && !cap.bps() && !cap.pmrs() && !cap.cmbs() && !cap.nsss());
}

#[test]
fn cap_fields_do_not_overlap() {
    let fields: [fn(Cap) -> u64; 18] = [
        |c| c.mqes_z().into(),
        |c| c.cqr().into(),
        |c| c.ams().into(),
        |c| c.to().into(),
        |c| c.dstrd().into(),
        |c| c.nssrs().into(),
        |c| c.css().0.into(),
        |c| c.bps().into(),
        |c| c.cps().into(),
        |c| c.mpsmin().into(),
        |c| c.mpsmax().into(),
        |c| c.pmrs().into(),
        |c| c.cmbs().into(),
        |c| c.nsss().into(),
        |c| c.crms().into(),
        |c| c.nsses().into(),
        |c| c.0 >> 19 & 0x1f, // reserved
        |c| c.0 >> 62,        // reserved
    ];
    for bit in 0..64 {
        let hits = fields.iter().filter(|f| f(Cap(1 << bit)) != 0).count();
        assert_eq!(hits, 1, "bit {bit}");
    }
}

#[test]
fn css_falls_back_to_what_there_is() {
    assert_eq!(CapCss(0x01).to_select(), Css::NVM);
    assert_eq!(CapCss(0x80).to_select(), Css::ADMIN_ONLY);
    assert_eq!(CapCss(0xc1).to_select(), Css::ALL_SUPPORTED);
    // Old controllers that set nothing implement the NVM command set.
    assert_eq!(CapCss(0).to_select(), Css::NVM);
}

#[test]
fn doorbells_follow_the_stride() {
    assert_eq!(Cap(0).sq_tail_doorbell(0), 0x1000);
    assert_eq!(Cap(0).cq_head_doorbell(0), 0x1004);
    assert_eq!(Cap(0).sq_tail_doorbell(3), 0x1018);
    let wide = Cap(15 << 32);
    assert_eq!(wide.cq_head_doorbell(0), 0x1000 + (4 << 15));
    assert_eq!(wide.cq_head_doorbell(u16::MAX), 0x1000 + (0x1_ffff << 17));
}

#[test]
fn version_prints_and_orders() {
    assert_eq!(Version(0x0001_0400).to_string(), "1.4");
    assert_eq!(Version(0x0001_0201).to_string(), "1.2.1");
    assert_eq!(Version(0x0002_0100).to_string(), "2.1");
    assert_eq!(Version(0x0002_0100), Version::V2_1);
    assert!(Version::V1_2 < Version::V1_2_1 && Version::V1_4 < Version::V2_0);
    assert_eq!(Version(0xffff_ffff).to_string(), "65535.255.255");
}

#[test]
fn controller_config_as_the_base_specification_lays_it_out() {
    let cc = ControllerConfig::default().with_en(true).with_iosqes(6).with_iocqes(4);
    assert_eq!(cc.0, 0x0046_0001);
    assert_eq!(cc.with_shn(Shn::NORMAL).0, 0x0046_4001);
    assert_eq!(cc.with_css(Css::ALL_SUPPORTED).0, 0x0046_0061);
    assert_eq!(cc.with_crime(true).0, 0x0146_0001);
    assert_eq!(cc.with_en(false).0, 0x0046_0000);
    assert_eq!(cc.with_mps(0xff).mps(), 15);
    assert_eq!(cc.with_mps(0xff).with_mps(0), cc);
}

#[test]
fn controller_status_bits() {
    let csts = ControllerStatus(0b110_1001);
    assert!(csts.rdy() && !csts.cfs() && !csts.nssro() && csts.pp() && csts.st());
    assert_eq!(csts.shst(), Shst::COMPLETE);
    assert_eq!(ControllerStatus::default().with_rdy(true).with_shst(Shst::OCCURRING).0, 0b101);
    assert!(ControllerStatus::ALL_ONES.cfs());
}

#[test]
fn admin_queue_attributes_and_ready_timeouts() {
    let aqa = AdminQueueAttributes::new(31, 4095);
    assert_eq!(aqa.0, 0x0fff_001f);
    assert_eq!((aqa.asqs_z(), aqa.acqs_z()), (31, 4095));
    let crto = Crto(0x0002_0014);
    assert_eq!(crto.ready_with_media(), Duration::from_secs(10));
    assert_eq!(crto.ready_independent_of_media(), Duration::from_secs(1));
}

#[test]
fn offsets_are_aligned_to_their_width_and_do_not_overlap() {
    let mut end = 0;
    for &offset in PropertyOffset::ALL {
        let width = if offset.is_64_bit() { 8 } else { 4 };
        assert_eq!(offset.0 % width, 0, "{offset}");
        assert!(offset.0 >= end, "{offset}");
        end = offset.0 + width;
    }
}

proptest! {
    #[test]
    fn nothing_a_register_holds_panics(raw: u64, qid: u16) {
        let cap = Cap(raw);
        let _ = (format!("{cap:?}"), cap.min_page_size(), cap.sq_tail_doorbell(qid), cap.css().to_select());
        let low = raw as u32;
        let _ = format!("{:?} {:?} {:?}", ControllerConfig(low), ControllerStatus(low), Version(low));
        prop_assert_eq!(ControllerConfig(low).with_css(ControllerConfig(low).css()).0, low);
    }
}
