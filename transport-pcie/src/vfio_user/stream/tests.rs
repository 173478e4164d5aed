use std::fs::File;
use std::io::{Read, Seek, Write};

use proptest::prelude::*;

use super::super::message::Command;
use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn memfd(text: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(text).unwrap();
    file.rewind().unwrap();
    file.into()
}

#[test]
fn messages_and_their_descriptors_keep_apart() {
    let (a, b) = UnixStream::pair().unwrap();
    let (one, two) = (memfd(b"one"), memfd(b"two"));
    let first = Header::command(1, Command::DMA_MAP, 3, 0);
    let second = Header::command(2, Command::DEVICE_SET_IRQS, 0, 0);
    send(&a, &first, b"abc", &[one.as_fd()], soon()).unwrap();
    send(&a, &second, b"", &[two.as_fd(), one.as_fd()], soon()).unwrap();
    let mut receiver = Receiver::new(100);
    let message = receiver.receive(&b, soon()).unwrap();
    assert_eq!((message.header, &message.body[..], message.fds.len()), (first, &b"abc"[..], 1));
    let mut text = String::new();
    File::from(message.fds.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "one");
    let message = receiver.receive(&b, soon()).unwrap();
    assert_eq!((message.header, message.body.len(), message.fds.len()), (second, 0, 2));
    assert!(receiver.receive_now(&b).unwrap().is_none() && !receiver.is_partial());
}

#[test]
fn a_message_longer_than_the_socket_takes_at_once() {
    let (a, b) = UnixStream::pair().unwrap();
    let body: Vec<u8> = (0..2_000_000u32).map(|i| i as u8).collect();
    let expected = body.clone();
    let sender = std::thread::spawn(move || {
        let header = Header::command(7, Command::REGION_WRITE, body.len(), 0);
        send(&a, &header, &body, &[], soon())
    });
    let message = Receiver::new(3_000_000).receive(&b, soon()).unwrap();
    sender.join().unwrap().unwrap();
    assert!(message.body == expected);
}

#[test]
fn nobody_is_waited_for_longer_than_the_deadline() {
    let (a, mut b) = UnixStream::pair().unwrap();
    let brief = || Instant::now() + Duration::from_millis(20);
    assert!(matches!(Receiver::new(100).receive(&a, brief()), Err(StreamError::TimedOut)));
    b.write_all(&[0; 7]).unwrap();
    let mut receiver = Receiver::new(100);
    assert!(matches!(receiver.receive(&a, brief()), Err(StreamError::TimedOut)));
    assert!(receiver.is_partial());
    let header = Header::command(7, Command::REGION_WRITE, 1 << 20, 0);
    assert!(matches!(send(&a, &header, &vec![0; 1 << 20], &[], brief()), Err(StreamError::TimedOut)));
}

#[test]
fn impossible_sizes_ends_and_too_many_descriptors() {
    for (size, expected) in [(15u32, true), (0, true), (101, true), (u32::MAX, true), (100, false)] {
        let (a, b) = UnixStream::pair().unwrap();
        let header = Header { msg_size: size.into(), ..Header::command(1, Command::VERSION, 0, 0) };
        (&a).write_all(header.as_bytes()).unwrap();
        drop(a);
        match Receiver::new(100).receive(&b, soon()) {
            Err(StreamError::Size { size: said, most: 100 }) if expected => assert_eq!(said, size),
            Err(StreamError::Closed) if !expected => {}
            other => panic!("{size}: {other:?}"),
        }
    }
    let (a, b) = UnixStream::pair().unwrap();
    let file = memfd(b"");
    let half = vec![file.as_fd(); MAX_FDS];
    assert!(matches!(
        send(
            &a,
            &Header::command(1, Command::VERSION, 0, 0),
            &[],
            &[half.clone(), half.clone()].concat(),
            soon()
        ),
        Err(StreamError::Descriptors)
    ));
    // Both halves of the message bring as many as are taken.
    let header = Header::command(1, Command::VERSION, 16, 0);
    let part = Header::command(1, Command::VERSION, 0, 0);
    send(&a, &header, &[], &half, soon()).unwrap();
    send(&a, &part, &[], &half, soon()).unwrap();
    assert!(matches!(Receiver::new(100).receive(&b, soon()), Err(StreamError::Descriptors)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// However the bytes are cut, the same messages come out.
    #[test]
    fn any_cut_gives_the_same_messages(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5), cuts in prop::collection::vec(1usize..30, 1..40)) {
        let mut bytes = Vec::new();
        for (id, body) in bodies.iter().enumerate() {
            bytes.extend_from_slice(Header::command(id as u16, Command::REGION_READ, body.len(), 0).as_bytes());
            bytes.extend_from_slice(body);
        }
        let (a, b) = UnixStream::pair().unwrap();
        let mut receiver = Receiver::new(100);
        let mut got = Vec::new();
        let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            (&a).write_all(now).unwrap();
            rest = later;
            while let Some(message) = receiver.receive_now(&b).unwrap() {
                got.push(message.body);
            }
        }
        prop_assert_eq!(got, bodies);
    }

    #[test]
    fn any_bytes_are_taken_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), sizes in prop::collection::vec(0u8..60, 0..10)) {
        // Random sizes rarely fit: put small ones where headers would be.
        let mut bytes = bytes;
        let mut at = 0;
        for size in sizes {
            if let Some(field) = bytes.get_mut(at + 4..at + 8) {
                field.copy_from_slice(&[size, 0, 0, 0]);
            }
            at += usize::from(size.max(16));
        }
        let (a, b) = UnixStream::pair().unwrap();
        (&a).write_all(&bytes).unwrap();
        drop(a);
        let mut receiver = Receiver::new(64);
        loop {
            match receiver.receive(&b, soon()) {
                Ok(message) => prop_assert_eq!(message.body.len() + Header::SIZE, message.header.msg_size.get() as usize),
                Err(StreamError::Closed | StreamError::Size { .. }) => break,
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
