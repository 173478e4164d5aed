use super::*;

/// A server that sends back what it gets, until the end.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(100) {
            std::thread::spawn(move || {
                let mut copy = stream.try_clone().expect("a clone");
                let _ = io::copy(&mut &stream, &mut copy);
                let _ = copy.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn through(plan: Plan) -> (FaultProxy, TcpStream) {
    let proxy = FaultProxy::start(echo()).expect("a proxy");
    proxy.set_plans([plan]);
    let stream = TcpStream::connect(proxy.address()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a deadline");
    (proxy, stream)
}

/// What comes back of 0, 1, 2, … when `count` bytes are sent.
fn exchange(plan: Plan, count: u8) -> (Vec<u8>, io::Result<usize>) {
    let (_proxy, mut stream) = through(plan);
    let _ = stream.write_all(&(0..count).collect::<Vec<_>>());
    let _ = stream.shutdown(Shutdown::Write);
    let mut got = Vec::new();
    let end = stream.read_to_end(&mut got);
    (got, end)
}

#[test]
fn relays_what_it_gets() {
    let (got, end) = exchange(Plan::faithful(), 100);
    assert_eq!(got, (0..100).collect::<Vec<_>>());
    assert_eq!(end.expect("an end"), 100);
    let (got, _) = exchange(Plan::faithful().segments(1), 100);
    assert_eq!(got.len(), 100);
}

#[test]
fn cuts_at_the_byte() {
    for direction in [Direction::ToTarget, Direction::ToHost] {
        let (got, _) = exchange(Plan::faithful().at(direction, 37, Harm::Cut), 100);
        assert!(
            got.len() <= 37 && got.iter().enumerate().all(|(i, b)| i == usize::from(*b)),
            "{direction:?}: {got:?}"
        );
    }
    let (got, _) = exchange(Plan::faithful().at(Direction::ToHost, 37, Harm::Cut), 100);
    assert_eq!(got.len(), 37);
    let (got, _) = exchange(Plan::faithful().at(Direction::ToTarget, 0, Harm::Cut), 100);
    assert_eq!(got.len(), 0);
}

#[test]
fn damages_and_loses_bytes() {
    let (got, _) = exchange(Plan::faithful().at(Direction::ToTarget, 5, Harm::Flip(0x80)), 8);
    assert_eq!(got, [0, 1, 2, 3, 4, 0x85, 6, 7]);
    let (got, _) = exchange(Plan::faithful().at(Direction::ToHost, 2, Harm::Swallow(3)), 8);
    assert_eq!(got, [0, 1, 5, 6, 7]);
}

#[test]
fn half_closes_one_direction() {
    let (got, end) = exchange(Plan::faithful().at(Direction::ToTarget, 10, Harm::HalfClose), 100);
    assert_eq!(got.len(), 10, "the target sees the end after ten bytes, and its answer arrives");
    end.expect("an end in good order");
}

#[test]
fn resets_when_told() {
    let (proxy, mut stream) = through(Plan::faithful());
    stream.write_all(b"x").expect("sent");
    stream.read_exact(&mut [0]).expect("back");
    assert!(proxy.strike(3, Direction::ToHost, Harm::Reset), "there is a connection");
    let error = stream.read(&mut [0]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(!proxy.strike(0, Direction::ToHost, Harm::Cut), "nothing is left to be harmed");
}

#[test]
fn stalls_and_delays() {
    let (_proxy, mut stream) = through(Plan::faithful().at(Direction::ToHost, 1, Harm::Stall));
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a deadline");
    stream.write_all(b"xyz").expect("sent");
    stream.read_exact(&mut [0]).expect("the first byte");
    assert!(matches!(stream.read(&mut [0]).expect_err("silence").kind(), ErrorKind::WouldBlock));

    let pause = Duration::from_millis(150);
    // The relay pauses from when it has the connection, before there is anything to be relayed.
    let began = Instant::now();
    let (_proxy, mut stream) = through(Plan::faithful().at(Direction::ToTarget, 0, Harm::Delay(pause)));
    stream.write_all(b"x").expect("sent");
    stream.read_exact(&mut [0]).expect("back");
    assert!(began.elapsed() >= pause);
}

#[test]
fn refuses_and_moves() {
    let (proxy, _stream) = through(Plan::faithful());
    proxy.refuse(true);
    let mut refused = TcpStream::connect(proxy.address()).expect("the handshake is the kernel's");
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)), "nobody is there");
    proxy.refuse(false);
    proxy.set_target(echo());
    let mut stream = TcpStream::connect(proxy.address()).expect("a connection");
    stream.write_all(b"x").expect("sent");
    stream.read_exact(&mut [0]).expect("back from the other target");
    assert_eq!(proxy.accepted(), 3);
}
