use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn id(text: &str) -> TransportId {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn message(text: &str) -> String {
    match text.parse::<TransportId>() {
        Ok(id) => panic!("{text:?} was read as {id}"),
        Err(error) => error.to_string(),
    }
}

fn nqn(text: &str) -> Nqn {
    text.parse().expect("an NQN")
}

/// Checks that both texts of an identifier read back as an equal one.
fn round_trip(id: &TransportId) {
    for text in [id.to_string(), id.to_uri()] {
        let again: TransportId = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(&again, id, "{text}");
        assert_eq!((again.trsvcid(), again.subnqn()), (id.trsvcid(), id.subnqn()), "{text}");
    }
}

#[test]
fn words_with_every_key() {
    let text = "trtype:tcp adrfam=ipv6 TRADDR:[fe80::1%eth0] trsvcid:4421 subnqn:nqn.2016-06.io.spdk:cnode1\n\
                priority:6 hostaddr=fe80::2 hostsvcid:0 hostiface:eth0 hostnqn=nqn.2024-01.lab:host=1 ns:7";
    let id = id(text);
    assert_eq!(id.trtype(), TransportType::Tcp);
    assert_eq!(id.adrfam(), Some(AddressFamily::Ipv6));
    assert_eq!((id.traddr(), id.scope()), ("fe80::1%eth0", Some("eth0")));
    assert_eq!(id.ip_addr(), "fe80::1".parse().ok());
    assert_eq!((id.trsvcid(), id.port()), ("4421", Some(4421)));
    assert_eq!(id.subnqn(), Some(&nqn("nqn.2016-06.io.spdk:cnode1")));
    assert_eq!(id.priority(), Some(6));
    assert_eq!(
        (id.host_traddr(), id.host_trsvcid(), id.host_iface()),
        (Some("fe80::2"), Some("0"), Some("eth0"))
    );
    assert_eq!(id.hostnqn(), Some(&nqn("nqn.2024-01.lab:host=1")));
    assert_eq!(id.nsid(), Some(7));
    assert_eq!(
        id.to_string(),
        "trtype:TCP adrfam:IPv6 traddr:fe80::1%eth0 trsvcid:4421 subnqn:nqn.2016-06.io.spdk:cnode1 priority:6 \
         hostaddr:fe80::2 hostsvcid:0 hostiface:eth0 hostnqn:nqn.2024-01.lab:host=1 ns:7"
    );
    assert_eq!(
        id.to_uri(),
        "nvme+tcp://[fe80::1%25eth0]:4421/nqn.2016-06.io.spdk:cnode1?priority=6&hostaddr=fe80::2&hostsvcid=0\
         &hostiface=eth0&hostnqn=nqn.2024-01.lab:host%3D1&ns=7"
    );
    round_trip(&id);
}

#[test]
fn uris() {
    let pairs = [
        ("nvme+tcp://10.0.0.1:4420/testnqn", "trtype:tcp traddr:10.0.0.1 trsvcid:4420 subnqn:testnqn"),
        ("NVMe+RDMA://[::1]/a:b", "trtype:rdma traddr:::1 subnqn:a:b"),
        ("nvme+tcp://storage.example:8009", "trtype:tcp traddr:Storage.Example"),
        ("nvme+tcp://storage.example/", "trtype:tcp traddr:storage.example trsvcid:8009"),
        (" nvme+tcp://[fe80::1%eth0]/x ", "trtype:tcp traddr:fe80::1%eth0 subnqn:x"),
        ("nvme+tcp://[fe80::1%25eth0]/x", "trtype:tcp traddr:fe80::1%eth0 subnqn:x"),
        (
            "nvme+tcp://[fe80::1%3]/x?ns=2&priority=-1",
            "trtype:tcp traddr:fe80::1%3 subnqn:x ns:2 priority:-1",
        ),
        ("nvme+tcp://h/a%2Fb%23c/d", "trtype:tcp traddr:h subnqn:a/b#c/d"),
        ("nvme+pcie://0000:04:00.0", "trtype:pcie traddr:04:00.0"),
        ("nvme+pcie://", "trtype:pcie"),
        ("nvme+loop://target/testnqn", "trtype:loop traddr:target subnqn:testnqn"),
        ("nvme+loop:///testnqn", "trtype:loop subnqn:testnqn"),
        ("nvme+vfiouser:///var/run/t%20x?subnqn=q", ""),
        ("nvme+vfiouser:///var/run/t?subnqn=q", "trtype:vfiouser traddr:/var/run/t subnqn:q"),
        ("nvme+fc://nn-0x1:pn-0xA/q", "trtype:fc traddr:nn-0x1:pn-0xa subnqn:q adrfam:fc"),
        ("nvme+mine://a/b", "trtype:Mine traddr:a subnqn:b"),
    ];
    for (uri, words) in pairs {
        if words.is_empty() {
            assert!(message(uri).contains("white space"), "{uri}");
            continue;
        }
        assert_eq!(id(uri), id(words));
        round_trip(&id(uri));
    }
    assert_eq!(id("trtype:tcp traddr:h adrfam:ipv6").to_uri(), "nvme+tcp://h:8009?adrfam=IPv6");
    assert_eq!(id("trtype:tcp traddr:1.2.3.4 adrfam:ipv4").to_uri(), "nvme+tcp://1.2.3.4:8009");
}

#[test]
fn equal_is_what_means_the_same() {
    let same = [
        ("trtype:PCIe traddr:0:4:0.0", "trtype:pcie traddr:0000:04:00.0"),
        ("trtype:PCIe traddr:04:00.0", "trtype:pcie traddr:0000.04.00.0"),
        ("trtype:tcp traddr:::1", "trtype:TCP traddr:0:0::1 trsvcid:08009 adrfam:IPv6"),
        ("trtype:tcp traddr:Storage", "trtype:tcp traddr:sTORAGE"),
        ("trtype:tcp traddr:1.2.3.4 subnqn:x", "subnqn=x adrfam:ipv4 trsvcid:4420 traddr:1.2.3.4 trtype:tcp"),
        ("trtype:rdma traddr:1.2.3.4 hostaddr:::1", ""),
        ("trtype:rdma traddr:fe80::1 hostaddr:fe80:0::2", "trtype:rdma traddr:fe80::1 hostaddr:fe80::2"),
        ("trtype:custom-1 traddr:x", "trtype:CUSTOM-1 traddr:x"),
    ];
    for (one, two) in same {
        if two.is_empty() {
            assert!(message(one).contains("contradicts the target's address, which is IPv4"));
            continue;
        }
        assert_eq!(id(one), id(two));
        assert!(HashSet::from([id(one)]).contains(&id(two)), "{one}: equal identifiers have equal hashes");
    }
    let different = [
        ("trtype:tcp traddr:::ffff:1.2.3.4", "trtype:tcp traddr:1.2.3.4"),
        ("trtype:tcp traddr:1.2.3.4", "trtype:rdma traddr:1.2.3.4"),
        ("trtype:tcp traddr:1.2.3.4", "trtype:tcp traddr:1.2.3.4 trsvcid:4420"),
        ("trtype:tcp traddr:1.2.3.4 subnqn:a", "trtype:tcp traddr:1.2.3.4 subnqn:A"),
        ("trtype:tcp traddr:fe80::1%a", "trtype:tcp traddr:fe80::1%b"),
        ("trtype:tcp traddr:h", "trtype:tcp traddr:h adrfam:ipv4"),
        ("trtype:loop traddr:a", "trtype:loop traddr:A"),
        ("trtype:pcie traddr:4:0.0", "trtype:pcie traddr:4:0.1"),
        ("trtype:pcie traddr:4:0.0", "trtype:pcie traddr:1:4:0.0"),
        ("trtype:pcie traddr:4:0.0", "trtype:pcie traddr:4:0.0 ns:1"),
    ];
    for (one, two) in different {
        assert_ne!(id(one), id(two));
    }
}

#[test]
fn default_services_follow_the_subsystem() {
    let discovery = Nqn::DISCOVERY;
    let cases = [
        ("trtype:tcp traddr:h", DEFAULT_DISCOVERY_PORT),
        (&format!("trtype:tcp traddr:h subnqn:{discovery}"), DEFAULT_DISCOVERY_PORT),
        ("trtype:tcp traddr:h subnqn:x", DEFAULT_PORT),
        ("trtype:rdma traddr:h", DEFAULT_PORT),
        ("trtype:rdma traddr:h subnqn:x", DEFAULT_PORT),
    ];
    for (text, port) in cases {
        assert_eq!(id(text).port(), Some(port), "{text}");
    }
    assert_eq!((id("trtype:pcie").trsvcid(), id("trtype:pcie").port()), ("", None));
    assert!(id("trtype:tcp traddr:h").is_discovery());
    assert!(!id("trtype:pcie").is_discovery());
    let subsystem = id("trtype:tcp traddr:h").with_subnqn(nqn("x"));
    assert_eq!(subsystem.port(), Some(4420));
}

#[test]
fn address_families_are_inferred() {
    let cases = [
        ("trtype:tcp traddr:1.2.3.4", Some(AddressFamily::Ipv4)),
        ("trtype:tcp traddr:fe80::1%eth0", Some(AddressFamily::Ipv6)),
        ("trtype:tcp traddr:host", None),
        ("trtype:tcp traddr:host adrfam:ipv6", Some(AddressFamily::Ipv6)),
        ("trtype:rdma traddr:fe80::1 adrfam:ib", Some(AddressFamily::Ib)),
        ("trtype:rdma traddr:0x12:ff adrfam:ib trsvcid:0x1:2", Some(AddressFamily::Ib)),
        ("trtype:fc traddr:nn-0x1:pn-0x2", Some(AddressFamily::Fc)),
        ("trtype:loop", Some(AddressFamily::IntraHost)),
        ("trtype:pcie", None),
    ];
    for (text, family) in cases {
        assert_eq!(id(text).adrfam(), family, "{text}");
        round_trip(&id(text));
    }
}

#[test]
fn errors_say_what_and_where() {
    let cases = [
        (
            "trtype:tcp tradr:1.2.3.4",
            "unknown key \"tradr\" at byte 11 of \"trtype:tcp tradr:1.2.3.4\" (did you mean \"traddr\"?)",
        ),
        ("trtype:tcp traddr:h host-iface=x", "did you mean \"hostiface\"?"),
        ("trtype:tcp traddr:h nsid=1", "did you mean \"ns\"?"),
        ("alt_traddr:1.2.3.4", "unknown key \"alt_traddr\" at byte 0"),
        ("trtype:tcp bogus:1", "(known: trtype adrfam"),
        (
            "trtype:tcp traddr:a  traddr:b",
            "\"traddr\" at byte 21 of \"trtype:tcp traddr:a  traddr:b\" was given before, at byte 11",
        ),
        (
            "trtype:tcp traddr",
            "\"traddr\" at byte 11 of \"trtype:tcp traddr\" is neither key:value nor key=value",
        ),
        ("", "\"trtype\" is missing"),
        ("traddr:1.2.3.4", "\"trtype\" is missing"),
        ("trtype:tcp", "\"traddr\" is missing"),
        ("trtype:tcp traddr:", "\"traddr\" is missing"),
        ("trtype:t/p", "trtype can not be \"t/p\" at byte 7"),
        ("trtype:tcp adrfam:ipx traddr:h", "adrfam can not be \"ipx\" at byte 18"),
        (
            "trtype:tcp adrfam:ipv4 traddr:::1",
            "traddr \"::1\" at byte 30 of \"trtype:tcp adrfam:ipv4 traddr:::1\" contradicts adrfam IPv4",
        ),
        ("traddr:1.2.3.4 trtype:tcp adrfam:ipv6", "contradicts adrfam IPv6"),
        ("trtype:tcp adrfam:fc traddr:h", "adrfam \"FC\" at byte 18"),
        ("trtype:pcie adrfam:ipv4", "contradicts trtype PCIe"),
        ("trtype:tcp traddr:1.2.3.4:4420", "without port (the port is the value of trsvcid)"),
        ("trtype:tcp traddr:1.2.3.256", "four decimal numbers"),
        ("trtype:tcp traddr:1.2.3.04", "four decimal numbers"),
        ("trtype:tcp traddr:a..b", "a host name"),
        ("trtype:tcp traddr:größe", "a host name"),
        ("trtype:tcp traddr:fe80::1%", "an IPv6 address"),
        ("trtype:tcp traddr:h trsvcid:0", "a port number, 1 to 65535"),
        ("trtype:tcp traddr:h trsvcid:+80", "a port number"),
        ("trtype:tcp traddr:h trsvcid:65536", "a port number"),
        (
            "trtype:tcp traddr:h subnqn:",
            "subnqn at byte 27 of \"trtype:tcp traddr:h subnqn:\": an NQN must not be empty",
        ),
        ("trtype:tcp traddr:h ns:0", "a namespace ID"),
        ("trtype:tcp traddr:h ns:4294967295", "a namespace ID"),
        ("trtype:tcp traddr:h priority:x", "a number of 32 bits"),
        ("trtype:tcp traddr:h hostaddr:name", "an IPv4 or IPv6 address of this host"),
        (
            "trtype:tcp traddr:h hostiface:much-too-long-name",
            "hostiface has 18 bytes, at most 15 are allowed",
        ),
        ("trtype:pcie traddr:4:20.0", "a PCI address"),
        ("trtype:loop traddr:a\u{1b}[2J", "without white space and control characters"),
        ("nvme://1.2.3.4", "the scheme names the transport"),
        ("nvmex+tcp://1.2.3.4", "the scheme is nvme+"),
        ("nvme+tcp://fe80::1", "stands in brackets"),
        ("nvme+tcp://[fe80::1", "not closed"),
        ("nvme+tcp://[fe80::1]x", "after the bracket"),
        ("nvme+tcp://h:/x", "a port number"),
        ("nvme+tcp://h:99999/x", "trsvcid can not be \"99999\" at byte 13"),
        ("nvme+tcp://h/x#y", "no fragments"),
        ("nvme+tcp://h/x%2", "two hexadecimal digits"),
        ("nvme+tcp://h/x%ff", "not UTF-8"),
        ("nvme+tcp://h/x?ns", "key=value&key=value"),
        ("nvme+tcp://h/x?traddr=y", "was given before"),
        ("nvme+tcp:///x", "\"traddr\" is missing"),
        ("nvme+vfiouser://var/run", "three slashes"),
    ];
    for (text, expected) in cases {
        let message = message(text);
        assert!(message.contains(expected), "{text:?}: {message}");
        assert!(!message.contains(char::is_control), "{message:?} must be fit for a terminal");
    }
}

#[test]
fn lengths_are_bounded() {
    let name = "n".repeat(257);
    assert!(message(&format!("trtype:loop traddr:{name}")).contains("traddr has 257 bytes, at most 256"));
    assert!(TransportId::loopback(&name[..256]).is_ok());
    assert!(message(&format!("trtype:loop trsvcid:{}", &name[..33])).contains("at most 32"));
    assert!(message(&format!("trtype:{}", &name[..33])).contains("1 to 32 letters"));
    let huge = "é".repeat(100_000);
    assert!(message(&huge).contains("at most 4096"));
    // An error about a long text repeats only the stretch around the place.
    let text = format!("trtype:loop traddr:{0} bogus:{0}", &name[..200]);
    let message = message(&text);
    assert!(message.contains("bogus:nnn") && message.len() < 500, "{message}");
}

#[test]
fn builders_check_what_they_are_given() {
    let full = TransportId::tcp("192.168.1.20", 4420)
        .and_then(|id| id.with_subnqn(nqn("x")).with_adrfam(AddressFamily::Ipv4))
        .and_then(|id| id.with_host_traddr("192.168.1.1"))
        .and_then(|id| id.with_host_trsvcid("1000"))
        .and_then(|id| id.with_host_iface("eth0"))
        .and_then(|id| id.with_priority(3).with_hostnqn(nqn("h")).with_nsid(9))
        .expect("a valid identifier");
    assert_eq!(full.to_string().parse(), Ok(full.clone()));
    round_trip(&full);
    assert!(TransportId::tcp("h", 0).is_err());
    assert!(TransportId::tcp("", 1).is_err());
    assert!(TransportId::tcp("a b", 1).is_err());
    assert!(TransportId::vfio_user("").is_err());
    assert!(full.clone().with_adrfam(AddressFamily::Ipv6).is_err());
    assert!(full.clone().with_host_traddr("::1").is_err());
    assert!(full.with_nsid(0).is_err());
    let named = TransportId::tcp("h", 1).and_then(|id| id.with_host_traddr("::1")).expect("valid");
    assert!(named.with_adrfam(AddressFamily::Ipv4).is_err(), "the host address is IPv6");

    let socket = "[fe80::1%3]:4420".parse().expect("a socket address");
    let linked = TransportId::tcp_socket(socket).expect("valid");
    assert_eq!((linked.traddr(), linked.scope()), ("fe80::1%3", Some("3")));
    let function = PciAddress::new(0x10000, 0xe1, 0, 0).expect("in range");
    let device = TransportId::pcie(function);
    assert_eq!(
        (device.to_string().as_str(), device.pci_address()),
        ("trtype:PCIe traddr:10000:e1:00.0", Some(function))
    );
    assert_eq!(PciAddress::new(0, 0, 32, 0), None);
    assert_eq!(PciAddress::new(0, 0, 0, 8), None);
}

#[test]
fn transport_types_and_families_have_their_numbers() {
    let numbers =
        [("rdma", 1), ("FC", 2), ("Tcp", 3), ("Loop", 254), ("pcie", 256), ("VfioUser", 1024), ("x", 4096)];
    for (name, number) in numbers {
        let kind: TransportType = name.parse().expect("a transport type");
        assert_eq!(kind.number(), number, "{name}");
        assert_eq!(kind.to_wire().map(u32::from), Some(number).filter(|&n| n < 255), "{name}");
        assert_eq!(kind.to_wire().and_then(TransportType::from_wire), kind.to_wire().map(|_| kind), "{name}");
        assert_eq!(kind.is_fabrics(), number < 255, "{name}");
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert_eq!(TransportType::from_wire(0), None);
    assert!(CustomName::new("tcp").is_err());
    for wire in 0..=255 {
        if let Some(family) = AddressFamily::from_wire(wire) {
            assert_eq!(family.to_wire(), wire);
            assert_eq!(family.to_string().parse(), Ok(family));
        }
    }
    assert_eq!(AddressFamily::from_wire(0xfe), Some(AddressFamily::IntraHost));
}

fn optional(key: &'static str, values: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    proptest::option::of(values)
        .prop_map(move |value| value.map_or(String::new(), |value| format!(" {key}:{value}")))
}

fn valid_text() -> impl Strategy<Value = String> {
    let v4 = any::<[u8; 4]>().prop_map(|octets| std::net::Ipv4Addr::from(octets).to_string());
    let v6 = (any::<[u8; 16]>(), "(%[0-9a-z]{1,15})?")
        .prop_map(|(octets, scope)| format!("{}{scope}", std::net::Ipv6Addr::from(octets)));
    let host = "[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\\.[a-z][a-z0-9]{0,5}){0,3}";
    let ip_kind = prop_oneof![Just("tcp"), Just("RDMA")];
    let ip =
        (ip_kind, prop_oneof![v4, v6, host], optional("trsvcid", (1..=65535u16).prop_map(|p| p.to_string())))
            .prop_map(|(kind, addr, svc)| format!("trtype:{kind} traddr:{addr}{svc}"));
    let pci = (any::<u32>(), any::<u8>(), 0..32u8, 0..8u8).prop_map(|(domain, bus, device, function)| {
        format!("trtype:PCIe traddr:{domain:x}:{bus:x}:{device:x}.{function}")
    });
    let printable = "[!-~¡-ÿ]{1,80}";
    let named = (
        prop_oneof![Just("loop"), Just("vfiouser"), Just("fc"), Just("my.own")],
        printable,
        optional("trsvcid", "[!-~]{1,32}".boxed()),
    )
        .prop_map(|(kind, addr, svc)| format!("trtype:{kind} traddr:{addr}{svc}"));
    let ib = (printable, optional("trsvcid", "[!-~]{1,32}".boxed()), optional("hostaddr", printable.boxed()))
        .prop_map(|(addr, svc, host)| format!("trtype:rdma adrfam:ib traddr:{addr}{svc}{host}"));
    let tail = (
        optional("subnqn", "[!-~¡-ÿ]{1,100}".boxed()),
        optional("hostnqn", "[!-~]{1,223}".boxed()),
        optional("priority", any::<i32>().prop_map(|p| p.to_string())),
        optional("hostiface", "[!-.0-~]{1,15}".boxed()),
        optional("ns", (1..u32::MAX).prop_map(|n| n.to_string())),
    );
    (prop_oneof![ip, pci, named, ib], tail)
        .prop_map(|(head, (a, b, c, d, e))| format!("{head}{a}{b}{c}{d}{e}"))
}

proptest! {
    #[test]
    fn valid_identifiers_round_trip(text in valid_text()) {
        round_trip(&id(&text));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", bytes in ".{0,60}") {
        let _ = text.parse::<TransportId>();
        for prefix in ["trtype:tcp traddr:", "trtype:rdma adrfam:ib traddr:", "nvme+tcp://", "nvme+tcp://[", "nvme+vfiouser://", "nvme+", "trtype:pcie traddr:"] {
            if let Ok(id) = format!("{prefix}{bytes}").parse::<TransportId>() {
                round_trip(&id);
            }
        }
    }

    #[test]
    fn near_misses_are_judged(text in "(nvme\\+(tcp|pcie|loop|fc)://)?[\\[\\]a-f0-9:%./?&=+ ]{0,40}", word in "(trtype[:=](tcp|rdma|loop) ?|ns:[0-9]|traddr:[\\[\\]:.0-9a-f%]{0,12} ?|[ :=\t]){0,6}") {
        for text in [text, word] {
            if let Ok(id) = text.parse::<TransportId>() {
                round_trip(&id);
            }
        }
    }

    #[test]
    fn pci_addresses_round_trip(domain in any::<u32>(), bus in any::<u8>(), device in 0..32u8, function in 0..8u8, text in "[0-9a-f:.]{0,14}") {
        let address = PciAddress::new(domain, bus, device, function).expect("in range");
        prop_assert_eq!(address.to_string().parse(), Ok(address));
        prop_assert_eq!(address.to_string().replace(':', ".").parse(), Ok(address));
        if let Ok(address) = text.parse::<PciAddress>() {
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
}
