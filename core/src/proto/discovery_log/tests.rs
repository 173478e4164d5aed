use proptest::prelude::*;

use super::*;
use crate::spec::discovery::extended::{ExtendedAttribute, ExtendedAttributeType, extended_entry};

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
            assert!(len <= max_transfer.max(64), "{max_transfer}: {len} bytes");
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

#[test]
fn impossible_lengths_of_extended_entries_are_errors_unless_the_log_has_changed() {
    let entry = extended_entry(&DiscoveryLogEntry::default(), &[]);
    let mut good = log_page(1, 0);
    good[8] = 1;
    good.extend(&entry);
    let mut bad = good.clone();
    // TEL
    let tel =
        entry.windows(4).position(|bytes| bytes == (entry.len() as u32).to_le_bytes()).expect("TEL") + RECORD;
    bad[tel..tel + 4].copy_from_slice(&1021u32.to_le_bytes());
    let read = |pages: &mut dyn FnMut(u64) -> Vec<u8>| {
        let mut reader = DiscoveryLogReader::extended(DiscoveryLogLimits::new(u32::MAX));
        let mut nth = 0;
        while let Step::Read { offset, len } = reader.next() {
            reader.complete(&pages(nth)[offset as usize..][..len as usize])?;
            nth += 1;
        }
        reader.finish()
    };
    let error = read(&mut |_| bad.clone()).expect_err("a length that is none");
    assert_eq!(error, DiscoveryLogError::EntryLength { index: 0, length: 1021 });
    // The same bytes in the middle of a change: header, entry, and from then on another log.
    let mut other = good.clone();
    other[0] = 2;
    let log = read(&mut |nth| if nth < 2 { bad.clone() } else { other.clone() }).expect("a log");
    assert_eq!((log.genctr, log.retries, log.records.len()), (2, 1, 1));
}

/// A log of one generation; with extended entries of lengths of their own, if asked for.
fn generation(genctr: u64, numrec: u64, extended: bool) -> Vec<u8> {
    if !extended {
        return log_page(genctr, numrec);
    }
    let mut page = log_page(genctr, 0);
    page[8..16].copy_from_slice(&numrec.to_le_bytes());
    for index in 0..numrec {
        let entry = DiscoveryLogEntry::read_from_bytes(&record(genctr, index)).expect("1024 bytes");
        let name = vec![b'n'; ((genctr * 7 + index * 3) % 40) as usize];
        let attribute = ExtendedAttribute { kind: ExtendedAttributeType::SYMBOLIC_NAME, value: &name };
        page.extend(extended_entry(&entry, &[attribute]));
    }
    page
}

proptest! {
    /// However the log changes between two reads, and however long reads are: what comes out is one generation of it.
    #[test]
    fn a_changing_log_comes_out_as_one_of_its_states(
        max_transfer in prop_oneof![0u32..64, 500u32..1100, 1024u32..9000],
        extended in any::<bool>(),
        counts in prop::collection::vec(0u64..6, 1..10),
        changes in prop::collection::vec(any::<bool>(), 0..60),
        restarts in prop::collection::vec(any::<bool>(), 0..8),
    ) {
        let limits = DiscoveryLogLimits { max_retries: 20, ..DiscoveryLogLimits::new(max_transfer) };
        let mut reader = match extended {
            true => DiscoveryLogReader::extended(limits),
            false => DiscoveryLogReader::new(limits),
        };
        let (mut at, mut changes, mut restarts) = (0, changes.into_iter(), restarts.into_iter());
        let pages: Vec<Vec<u8>> = counts.iter().enumerate()
            .map(|(nth, count)| generation(nth as u64 + 1, *count, extended))
            .collect();
        while let Step::Read { offset, len } = reader.next() {
            if changes.next() == Some(true) && at + 1 < pages.len() {
                at += 1;
                if restarts.next() == Some(true) {
                    reader.failed(Status::DISCOVERY_RESTART).unwrap();
                    continue;
                }
            }
            // Behind its end a log reads as zeroes.
            let mut data = vec![0; len as usize];
            let there = pages[at].get(offset as usize..).unwrap_or_default();
            let there = &there[..there.len().min(data.len())];
            data[..there.len()].copy_from_slice(there);
            reader.complete(&data).unwrap();
        }
        let log = reader.finish().unwrap();
        let page = &pages[usize::try_from(log.genctr - 1).unwrap()];
        prop_assert_eq!(log.records.len() as u64, counts[usize::try_from(log.genctr - 1).unwrap()]);
        prop_assert_eq!(&log.to_bytes(), page);
        prop_assert!(log.retries as usize <= at);
    }

    /// Whatever a controller answers: there is an end, and no panic.
    #[test]
    fn any_answers_come_to_an_end(
        max_transfer in any::<u32>(),
        extended in any::<bool>(),
        numrec in 0u64..40,
        answers in prop::collection::vec((any::<u64>(), any::<u16>()), 1..40),
    ) {
        let mut limits = DiscoveryLogLimits::new(max_transfer % 70_000);
        (limits.max_records, limits.max_retries) = (32, 4);
        let mut reader = match extended {
            true => DiscoveryLogReader::extended(limits),
            false => DiscoveryLogReader::new(limits),
        };
        let mut reads = 0u64;
        while let Step::Read { offset, len } = reader.next() {
            let (seed, choice) = answers[reads as usize % answers.len()];
            reads += 1;
            prop_assert!(reads < 200_000 && len > 0 && len % 4 == 0 && offset % 4 == 0);
            let result = match choice % 64 {
                0 => reader.failed(Status(choice)),
                1 => reader.complete(&vec![0; seed as usize % 5000]),
                _ => {
                    let mut data: Vec<u8> = (0..u64::from(len)).map(|at| ((seed >> (at % 57)) ^ at) as u8).collect();
                    if offset == 0 && len >= 24 {
                        data[..8].copy_from_slice(&(seed % 3).to_le_bytes());
                        data[8..16].copy_from_slice(&numrec.to_le_bytes());
                        data[16..24].fill(0);
                    }
                    reader.complete(&data)
                }
            };
            if result.is_err() {
                prop_assert_eq!(reader.next(), Step::Done);
            }
        }
        let _ = reader.finish();
    }
}
