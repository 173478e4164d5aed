//! Announcements over multicast DNS, from the `mdns-sd` responder and from Avahi, in a network namespace of this test's own. Needs root
//! (or a kernel that lets users make namespaces), and for the second part avahi-daemon; what is missing is said, and skipped.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mdns_sd::{ServiceDaemon, ServiceInfo};
use nvmf_core::{Driver, Nqn};
use nvmf_discovery::{DiscoveryMonitor, MDNS_SERVICE, MdnsOptions, MonitorEvent, MonitorOptions};
use nvmf_loopback::{Loopback, SubsystemBuilder};
use nvmf_transport_tcp::TcpTransport;

mod common;

use common::nothing_is_left;

const HANG: Duration = Duration::from_secs(60);
/// Set in the process inside the namespace.
const INSIDE: &str = "NVMF_TEST_MDNS_INSIDE";
/// The address of the namespace's only interface besides lo.
const ADDRESS: &str = "192.0.2.53";

/// Runs this test program's `name` again inside a network namespace with an interface that takes multicast.
fn in_namespace(name: &str) {
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "ip link set lo up && ip link add nvmf0 type veth peer name nvmf1 && ip addr add {ADDRESS}/24 dev nvmf0 && \
         ip link set nvmf1 up && ip link set nvmf0 multicast on up && ip route add default dev nvmf0 && exec \"$0\" --exact {name} --nocapture"
    );
    let probe = Command::new("unshare")
        .args(["-n", "-m", "sh", "-c", "ip link add nvmf0 type veth peer name nvmf1"])
        .output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            println!("skipped: no network namespace: {}", String::from_utf8_lossy(&output.stderr).trim());
            return;
        }
        Err(error) => {
            println!("skipped: no unshare: {error}");
            return;
        }
    }
    let status = Command::new("unshare")
        .args(["-n", "-m", "sh", "-c", &script])
        .arg(program)
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{name} in a namespace of its own: {status}");
}

fn target() -> Loopback {
    Loopback::builder()
        .subsystem(SubsystemBuilder::new("nqn.2024-01.com.example:announced"))
        .listen_tcp(format!("{ADDRESS}:0"))
        .build()
        .unwrap()
}

fn monitor() -> DiscoveryMonitor {
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    DiscoveryMonitor::new(driver, MonitorOptions::default())
}

#[track_caller]
fn wait_for(monitor: &DiscoveryMonitor, what: &str, wanted: impl Fn(&MonitorEvent) -> bool) -> Duration {
    let started = Instant::now();
    while started.elapsed() < HANG {
        if monitor.next(Duration::from_millis(100)).is_some_and(|event| wanted(&event)) {
            return started.elapsed();
        }
    }
    panic!("{what} does not come");
}

fn is_added(event: &MonitorEvent) -> bool {
    matches!(event, MonitorEvent::Added(path) if path.entry.subnqn() == "nqn.2024-01.com.example:announced")
}

#[test]
fn announced_by_mdns_sd() {
    if std::env::var_os(INSIDE).is_none() {
        return in_namespace("announced_by_mdns_sd");
    }
    let loopback = target();
    let port = loopback.tcp_addrs()[0].port();
    let responder = ServiceDaemon::new().unwrap();
    let properties = [("p", "tcp"), ("nqn", Nqn::DISCOVERY)];
    let service =
        ServiceInfo::new(MDNS_SERVICE, "shelf 1", "shelf-1.local.", ADDRESS, port, &properties[..]).unwrap();
    let name = service.get_fullname().to_owned();
    responder.register(service).unwrap();
    let monitor = monitor();
    let browser = monitor.browse(&MdnsOptions::default()).unwrap();
    let took = wait_for(&monitor, "the path of the announced target", is_added);
    println!("found after {took:?}");
    // The goodbye.
    responder.unregister(&name).unwrap().recv_timeout(HANG).unwrap();
    wait_for(&monitor, "the goodbye", |event| matches!(event, MonitorEvent::Forgotten(_)));
    assert!(monitor.paths().is_empty() && monitor.watched().is_empty());
    drop(browser);
    monitor.stop(HANG);
    nothing_is_left(&loopback);
}

/// Ends when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn announced_by_avahi() {
    if !Path::new("/usr/sbin/avahi-daemon").exists() {
        println!("skipped: no avahi-daemon");
        return;
    }
    if std::env::var_os(INSIDE).is_none() {
        return in_namespace("announced_by_avahi");
    }
    let loopback = target();
    let port = loopback.tcp_addrs()[0].port();
    // The mount namespace is ours too: Avahi has fixed places.
    for folder in ["/etc/avahi", "/run"] {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none", folder]).status().unwrap();
        assert!(mounted.success(), "mount over {folder}");
    }
    std::fs::create_dir("/etc/avahi/services").unwrap();
    std::fs::create_dir("/run/avahi-daemon").unwrap();
    let config = "[server]\nhost-name=shelf-2\nuse-ipv6=no\nallow-interfaces=nvmf0\nenable-dbus=no\n[publish]\npublish-workstation=no\n";
    std::fs::write("/etc/avahi/avahi-daemon.conf", config).unwrap();
    let service = format!(
        "<?xml version=\"1.0\" standalone='no'?><!DOCTYPE service-group SYSTEM \"avahi-service.dtd\">\n<service-group>\
         <name>shelf 2</name><service><type>_nvme-disc._tcp</type><port>{port}</port><txt-record>p=tcp</txt-record>\
         <txt-record>nqn={}</txt-record></service></service-group>\n",
        Nqn::DISCOVERY
    );
    std::fs::write("/etc/avahi/services/nvme.service", service).unwrap();
    let daemon = Command::new("/usr/sbin/avahi-daemon")
        .args(["--no-drop-root", "--no-chroot", "--no-rlimits", "-f", "/etc/avahi/avahi-daemon.conf"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Daemon(daemon);
    let monitor = monitor();
    let mut options = MdnsOptions::default();
    options.interfaces = vec!["nvmf0".to_owned()];
    let browser = monitor.browse(&options).unwrap();
    let took = wait_for(&monitor, "the path of the announced target", is_added);
    println!("found after {took:?}");
    // Told to end, it says goodbye.
    let pid = daemon.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    wait_for(&monitor, "the goodbye", |event| matches!(event, MonitorEvent::Forgotten(_)));
    drop(browser);
    monitor.stop(HANG);
    nothing_is_left(&loopback);
}
