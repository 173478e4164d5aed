use super::*;

/// Command specific status 81h: not Discover Restart.
const BUSY: Status = Status(0x181);

/// A log page as it would be in the controller: `genctr`, and records that carry their index and `genctr`.
fn log_page(genctr: u64, numrec: u64) -> Vec<u8> {
    let mut page = vec![0; RECORD];
    page[..8].copy_from_slice(&genctr.to_le_bytes());
    page[8..16].copy_from_slice(&numrec.to_le_bytes());
    page[100] = 0xa5;
    for index in 0..numrec {
        page.extend_from_slice(&record(genctr, index));
    }
    page
}

fn record(genctr: u64, index: u64) -> [u8; RECORD] {
    let mut record = [b'x'; RECORD];
    record[..8].copy_from_slice(&index.to_le_bytes());
    record[1016..].copy_from_slice(&genctr.to_le_bytes());
    record
}

/// What the controller does with one read.
enum Answer {
    /// Serves it from this page.
    Page(Vec<u8>),
    Fail(Status),
}

/// Runs the reader against `answers`, one for each expected read, which must be exactly what is asked for.
fn run(
    limits: DiscoveryLogLimits,
    script: Vec<((u64, u32), Answer)>,
) -> Result<DiscoveryLog, DiscoveryLogError> {
    let mut reader = DiscoveryLogReader::new(limits);
    let count = script.len();
    for (nth, (expected, answer)) in script.into_iter().enumerate() {
        let Step::Read { offset, len } = reader.next() else { panic!("done after {nth} of {count} reads") };
        assert_eq!((offset, len), expected, "read {nth}");
        let result = match answer {
            Answer::Page(page) => {
                let start = usize::try_from(offset).expect("a small page");
                reader.complete(&page[start..start + len as usize])
            }
            Answer::Fail(status) => reader.failed(status),
        };
        if let Err(error) = result {
            assert_eq!(nth + 1, count, "failed early: {error}");
            assert_eq!(reader.next(), Step::Done, "a failed reader wants nothing");
            assert!(reader.finish().is_err(), "a failed reader has no log");
            return Err(error);
        }
    }
    assert_eq!(reader.next(), Step::Done, "all {count} reads are answered");
    reader.finish()
}

/// A controller with a log that does as `pages` says: a new page after so many reads.
fn read_all(limits: DiscoveryLogLimits, page: &[u8]) -> (DiscoveryLog, Vec<(u64, u32)>) {
    let mut reader = DiscoveryLogReader::new(limits);
    let mut reads = Vec::new();
    while let Step::Read { offset, len } = reader.next() {
        let start = usize::try_from(offset).expect("a small page");
        reader.complete(&page[start..start + len as usize]).expect("a good answer");
        reads.push((offset, len));
    }
    (reader.finish().expect("a log"), reads)
}

fn expect_log(log: &DiscoveryLog, genctr: u64, numrec: u64) {
    assert_eq!((log.genctr, log.records.len() as u64), (genctr, numrec));
    assert_eq!(log.to_bytes(), log_page(genctr, numrec), "all of one generation, in order");
}

const HEADER: (u64, u32) = (0, 1024);

fn page(genctr: u64, numrec: u64) -> Answer {
    Answer::Page(log_page(genctr, numrec))
}

#[test]
fn no_entries() {
    let log = run(DiscoveryLogLimits::default(), vec![(HEADER, page(1, 0))]).expect("an empty log");
    expect_log(&log, 1, 0);
}

#[test]
fn four_entries() {
    let script = vec![(HEADER, page(1, 4)), ((1024, 4096), page(1, 4)), (HEADER, page(1, 4))];
    let log = run(DiscoveryLogLimits::default(), script).expect("a log");
    expect_log(&log, 1, 4);
    assert_eq!(log.header()[100], 0xa5, "reserved bytes are kept");
}

#[test]
fn five_entries() {
    let script = vec![
        (HEADER, page(1, 5)),
        ((1024, 4096), page(1, 5)),
        ((5120, 1024), page(1, 5)),
        (HEADER, page(1, 5)),
    ];
    expect_log(&run(DiscoveryLogLimits::default(), script).expect("a log"), 1, 5);
}

#[test]
fn genctr_change() {
    // The second header is also the first of the next try.
    let script = vec![
        (HEADER, page(1, 1)),
        ((1024, 1024), page(1, 1)),
        (HEADER, page(2, 3)),
        ((1024, 3072), page(2, 3)),
        (HEADER, page(2, 3)),
    ];
    let log = run(DiscoveryLogLimits::default(), script).expect("a log");
    expect_log(&log, 2, 3);
    assert_eq!(log.retries, 1);
}

#[test]
fn genctr_change_to_an_empty_log() {
    let script = vec![(HEADER, page(1, 1)), ((1024, 1024), page(1, 1)), (HEADER, page(2, 0))];
    expect_log(&run(DiscoveryLogLimits::default(), script).expect("a log"), 2, 0);
}

#[test]
fn max_retries() {
    for max_retries in [0, 1, 10] {
        let mut script = vec![(HEADER, page(0, 1))];
        for genctr in 0..=u64::from(max_retries) {
            script.push(((1024, 1024), page(genctr, 1)));
            script.push((HEADER, page(genctr + 1, 1)));
        }
        let limits = DiscoveryLogLimits { max_retries, ..DiscoveryLogLimits::default() };
        let error = run(limits, script).expect_err("it never stops changing");
        assert_eq!(error, DiscoveryLogError::GenerationChanged { retries: max_retries });
    }
    assert_eq!(DiscoveryLogLimits::default().max_retries, 10);
}

#[test]
fn header_error() {
    let error = run(DiscoveryLogLimits::default(), vec![(HEADER, Answer::Fail(BUSY))]);
    assert_eq!(
        error.expect_err("the header fails"),
        DiscoveryLogError::Command { part: Part::Header, offset: 0, status: BUSY }
    );
}

#[test]
fn entries_error() {
    let script = vec![(HEADER, page(1, 5)), ((1024, 4096), page(1, 5)), ((5120, 1024), Answer::Fail(BUSY))];
    assert_eq!(
        run(DiscoveryLogLimits::default(), script).expect_err("the entries fail"),
        DiscoveryLogError::Command { part: Part::Entries, offset: 5120, status: BUSY }
    );
}

#[test]
fn genctr_error() {
    let script = vec![(HEADER, page(1, 1)), ((1024, 1024), page(1, 1)), (HEADER, Answer::Fail(BUSY))];
    assert_eq!(
        run(DiscoveryLogLimits::default(), script).expect_err("the second header fails"),
        DiscoveryLogError::Command { part: Part::HeaderAgain, offset: 0, status: BUSY }
    );
}

#[test]
fn discover_restart_starts_over_and_counts() {
    // Once with Do Not Retry, which does not change what the status means.
    for restart in [Status(0x190), Status(0x4190)] {
        let script = vec![
            (HEADER, page(1, 5)),
            ((1024, 4096), page(1, 5)),
            ((5120, 1024), Answer::Fail(restart)),
            (HEADER, page(2, 1)),
            ((1024, 1024), page(2, 1)),
            (HEADER, page(2, 1)),
        ];
        let log = run(DiscoveryLogLimits::default(), script).expect("a log");
        expect_log(&log, 2, 1);
        assert_eq!(log.retries, 1);
    }
    let limits = DiscoveryLogLimits { max_retries: 1, ..DiscoveryLogLimits::default() };
    let restart = || (HEADER, Answer::Fail(Status(0x190)));
    assert_eq!(
        run(limits, vec![restart(), restart()]).expect_err("too many restarts"),
        DiscoveryLogError::GenerationChanged { retries: 1 }
    );
}

#[test]
fn a_count_that_changes_within_a_generation_is_an_error() {
    let script = vec![(HEADER, page(7, 1)), ((1024, 1024), page(7, 1)), (HEADER, page(7, 2))];
    assert_eq!(
        run(DiscoveryLogLimits::default(), script).expect_err("the count changes"),
        DiscoveryLogError::RecordCountChanged { genctr: 7, before: 1, after: 2 }
    );
}

#[test]
fn hostile_headers_are_refused() {
    let header = |numrec: u64, recfmt: u16| {
        let mut page = log_page(1, 0);
        page[8..16].copy_from_slice(&numrec.to_le_bytes());
        page[16..18].copy_from_slice(&recfmt.to_le_bytes());
        Answer::Page(page)
    };
    let limits = DiscoveryLogLimits::default();
    for numrec in [16385, u64::MAX / 1024, u64::MAX] {
        assert_eq!(
            run(limits, vec![(HEADER, header(numrec, 0))]).expect_err("too many"),
            DiscoveryLogError::TooManyRecords { numrec, max: 16384 }
        );
    }
    assert_eq!(
        run(limits, vec![(HEADER, header(1, 0x100))]).expect_err("an unknown format"),
        DiscoveryLogError::UnknownFormat { recfmt: 0x100 }
    );
    // The second header is no less hostile than the first.
    let script = vec![(HEADER, page(1, 1)), ((1024, 1024), page(1, 1)), (HEADER, header(u64::MAX, 0))];
    assert!(matches!(run(limits, script), Err(DiscoveryLogError::TooManyRecords { .. })));
    // Without a limit of the caller's, offsets still do not overflow.
    let unlimited = DiscoveryLogLimits { max_records: u64::MAX, ..limits };
    assert!(matches!(
        run(unlimited, vec![(HEADER, header(u64::MAX, 0))]),
        Err(DiscoveryLogError::TooManyRecords { .. })
    ));
    let mut reader = DiscoveryLogReader::new(unlimited);
    let mut page = log_page(1, 0);
    page[8..16].copy_from_slice(&(u64::MAX / 4096 - 1).to_le_bytes());
    reader.complete(&page).expect("the greatest log there can be");
    assert_eq!(reader.next(), Step::Read { offset: 1024, len: 4096 });
}

#[test]
fn wrong_lengths_are_errors() {
    for actual in [0, 20, 1023, 1025, 4096] {
        let mut reader = DiscoveryLogReader::new(DiscoveryLogLimits::default());
        assert_eq!(
            reader.complete(&vec![0; actual]),
            Err(DiscoveryLogError::WrongLength { part: Part::Header, expected: 1024, actual })
        );
        assert_eq!(reader.next(), Step::Done);
    }
    let mut reader = DiscoveryLogReader::new(DiscoveryLogLimits::default());
    reader.complete(&log_page(1, 2)[..1024]).expect("a header");
    assert_eq!(
        reader.complete(&[0; 1024]),
        Err(DiscoveryLogError::WrongLength { part: Part::Entries, expected: 2048, actual: 1024 })
    );
}

#[test]
fn misuse_is_an_error() {
    let reader = DiscoveryLogReader::new(DiscoveryLogLimits::default());
    assert!(matches!(reader.finish(), Err(DiscoveryLogError::Misuse(_))));
    let done = || {
        let mut reader = DiscoveryLogReader::new(DiscoveryLogLimits::default());
        reader.complete(&log_page(1, 0)).expect("an empty log");
        reader
    };
    assert!(matches!(done().complete(&[]), Err(DiscoveryLogError::Misuse(_))));
    assert!(matches!(done().failed(BUSY), Err(DiscoveryLogError::Misuse(_))));
    assert!(matches!(done().restart_required(), Err(DiscoveryLogError::Misuse(_))));
    assert!(done().finish().is_ok());
}

#[test]
fn any_transfer_size_gives_the_same_log() {
    let page = log_page(3, 7);
    for max_transfer in
        [0, 3, 4, 7, 20, 512, 1000, 1023, 1024, 1500, 2047, 2048, 4096, 5000, 131_072, u32::MAX]
    {
        let limits = DiscoveryLogLimits::new(max_transfer);
        let (log, reads) = read_all(limits, &page);
        expect_log(&log, 3, 7);
        for (offset, len) in reads {
            assert!(len <= max_transfer.max(4), "{max_transfer}: {len} bytes");
            assert!(len > 0 && len % 4 == 0 && offset % 4 == 0, "{max_transfer}: whole dwords");
            assert!(
                max_transfer < 1024 || (len % 1024 == 0 && offset % 1024 == 0),
                "{max_transfer}: whole records"
            );
        }
    }
    let (_, reads) = read_all(DiscoveryLogLimits::new(u32::MAX), &page);
    assert_eq!(reads, [HEADER, (1024, 7168), HEADER]);
}

#[test]
fn messages_name_the_part_and_the_number() {
    let error = DiscoveryLogError::TooManyRecords { numrec: 99_999, max: 16384 };
    assert_eq!(
        error.to_string(),
        "the discovery controller claims 99999 records, at most 16384 are accepted"
    );
    let error = DiscoveryLogError::Command { part: Part::Entries, offset: 1024, status: BUSY };
    assert!(
        error.to_string().starts_with("reading the entries of the discovery log at offset 1024 failed: ")
    );
}
