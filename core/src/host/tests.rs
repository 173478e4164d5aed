use super::derive::{BOOT_ID, DMI_ENTRIES, HOST_NAME, MACHINE_ID, PARTITION_UUID, PRODUCT_UUID};
use super::*;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

const ONE: &str = "11111111-2222-3333-4444-555555555555";
const TWO: &str = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";

/// A root directory of our own, removed at the end of the test.
struct Root(PathBuf);

impl Root {
    fn new(files: &[(&str, &[u8])]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nvmf-host-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&root.0).expect("a directory");
        for (path, content) in files {
            let path = root.0.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, content).expect("a file");
        }
        root
    }

    fn load(&self) -> Result<HostIdentity, HostIdentityError> {
        HostIdentity::load_from(&self.0)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // A leftover under the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn uuid_nqn(uuid: &str) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}")
}

const NQN: &str = "etc/nvme/hostnqn";
const ID: &str = "etc/nvme/hostid";

#[test]
fn both_files_win_over_everything() {
    let root = Root::new(&[(NQN, b"  my-host\r\n"), (ID, ONE.as_bytes()), (PRODUCT_UUID, TWO.as_bytes())]);
    let identity = root.load().expect("an identity");
    assert_eq!(identity.nqn.as_str(), "my-host");
    assert_eq!(identity.id.to_string(), ONE);
}

#[test]
fn files_that_disagree_are_taken_as_they_are() {
    let root = Root::new(&[(NQN, uuid_nqn(TWO).as_bytes()), (ID, ONE.as_bytes())]);
    let identity = root.load().expect("an identity");
    assert_eq!((identity.nqn.as_str(), identity.id.to_string().as_str()), (uuid_nqn(TWO).as_str(), ONE));
}

#[test]
fn a_missing_half_comes_from_the_uuid() {
    for (path, content) in [(NQN, uuid_nqn(TWO)), (ID, TWO.to_owned())] {
        let root = Root::new(&[(path, content.as_bytes()), (PRODUCT_UUID, ONE.as_bytes())]);
        let identity = root.load().expect("an identity");
        assert_eq!(identity, HostIdentity::from_uuid(TWO.parse().expect("a UUID")), "only {path}");
    }
}

#[test]
fn a_name_without_uuid_needs_the_identifier_file() {
    let root = Root::new(&[(NQN, b"my-host")]);
    let error = root.load().expect_err("no identifier");
    assert!(matches!(&error, HostIdentityError::NoId { nqn, .. } if nqn.as_str() == "my-host"));
    assert!(error.to_string().contains("etc/nvme/hostid"), "{error}");
}

#[test]
fn firmware_is_next() {
    let root = Root::new(&[(PRODUCT_UUID, TWO.to_uppercase().as_bytes())]);
    assert_eq!(root.load().expect("an identity"), HostIdentity::from_uuid(TWO.parse().expect("a UUID")));
}

/// System Information with this UUID, as SMBIOS lays it out.
fn system_information(uuid: [u8; 16]) -> Vec<u8> {
    let mut structure = vec![1, 27, 1, 0, 1, 2, 3, 4];
    structure.extend(uuid);
    structure.extend([6, 5, 0]);
    structure
}

#[test]
fn firmware_tables_in_their_byte_order() {
    // f81d4fae-7dec-11d0-a765-00a0c91e6bf6
    let uuid =
        [0xae, 0x4f, 0x1d, 0xf8, 0xec, 0x7d, 0xd0, 0x11, 0xa7, 0x65, 0x00, 0xa0, 0xc9, 0x1e, 0x6b, 0xf6];
    let (zeroes, raw) = (system_information([0; 16]), system_information(uuid));
    let entry = |name: &str| format!("{DMI_ENTRIES}/{name}/raw");
    let other = system_information([7; 16]);
    let root = Root::new(&[
        (&entry("1-0"), &zeroes),
        (&entry("1-1"), &raw),
        (&entry("11-0"), &other),
        (&entry("4-0"), &other),
        (PRODUCT_UUID, b"00000000-0000-0000-0000-000000000000\n"),
    ]);
    let (identity, source) = HostIdentity::find(&root.0).expect("an identity");
    assert_eq!(identity, HostIdentity::from_uuid(TWO.parse().expect("a UUID")));
    assert_eq!(source, HostSource::Firmware(root.0.join(entry("1-1"))));
    assert_eq!(HostIdentity::generate_from(&root.0).expect("an identity"), identity);
    let cut = Root::new(&[(&entry("1-0"), &raw[..23]), (MACHINE_ID, MACHINE)]);
    assert!(matches!(HostIdentity::find(&cut.0), Ok((_, HostSource::MachineId(_)))));
}

#[test]
fn device_trees() {
    let root = Root::new(&[(PARTITION_UUID, format!("{TWO}\0").as_bytes())]);
    assert_eq!(root.load().expect("an identity"), HostIdentity::from_uuid(TWO.parse().expect("a UUID")));
}

const MACHINE: &[u8] = b"8f14e45fceea467a9575a2a1c3b7d9e0\n";
const DERIVED: &str = "64669772-76cb-4b24-bacf-5fbe1c9cc508";
const BOOT: &[u8] = b"0b4e7f5c-8a3f-4f7e-9d7a-4a3c2b1d0e9f\n";

#[test]
fn the_machine_then_the_boot() {
    for placeholder in
        ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "none"]
    {
        let root =
            Root::new(&[(PRODUCT_UUID, placeholder.as_bytes()), (MACHINE_ID, MACHINE), (BOOT_ID, BOOT)]);
        let (identity, source) = HostIdentity::find(&root.0).expect("an identity");
        assert_eq!(source, HostSource::MachineId(root.0.join(MACHINE_ID)), "{placeholder}");
        assert_eq!(identity.nqn.uuid().map(HostId::from), Some(identity.id));
        // What `systemd-id128 machine-id -u --app-specific=d62b7390-ca2d-4ec3-9034-070a784d837b` prints there.
        assert_eq!(identity.id.to_string(), DERIVED);
        assert_eq!(root.load().expect("an identity"), identity);
    }
    let boot = |name: &[u8]| {
        let root = Root::new(&[(MACHINE_ID, b"uninitialized\n"), (BOOT_ID, BOOT), (HOST_NAME, name)]);
        let (identity, source) = HostIdentity::find(&root.0).expect("an identity");
        assert!(matches!(source, HostSource::BootId(_)) && !source.is_permanent());
        identity
    };
    assert_eq!(boot(b"one\n"), boot(b"one\n"));
    assert_ne!(boot(b"one\n"), boot(b"two\n"), "containers of one machine");
}

#[test]
fn nothing_to_go_by_is_an_error_and_random_is_asked_for() {
    let root = Root::new(&[]);
    let error = root.load().expect_err("no identity");
    assert!(matches!(error, HostIdentityError::None { .. }), "{error}");
    assert!(error.to_string().contains("nvmf gen-hostnqn"), "{error}");
    let generated = HostIdentity::generate_from(&root.0).expect("urandom");
    assert_ne!(generated, HostIdentity::generate_from(&root.0).expect("urandom"));
    assert_eq!(generated.nqn.uuid().map(HostId::from), Some(generated.id));
}

#[test]
fn wrong_files_are_errors_that_name_the_file() {
    let long = [b'a'; MAX_FILE_SIZE + 1];
    let cases: &[(&str, &[u8], &str)] = &[
        (NQN, b"", "empty"),
        (NQN, b"\nname\n", "empty"),
        (NQN, b"\xff\xfe", "UTF-8"),
        (NQN, &long, "too much"),
        (NQN, b"two words", "host NQN"),
        (ID, b"1234", "UUID"),
        (ID, b"00000000-0000-0000-0000-000000000000", "all-zero"),
    ];
    for &(path, content, expected) in cases {
        let message = Root::new(&[(path, content)]).load().expect_err("a wrong file").to_string();
        assert!(message.contains(path) && message.contains(expected), "{message}");
    }
    let root = Root::new(&[("etc/nvme/hostnqn/x", b"")]);
    assert!(matches!(root.load(), Err(HostIdentityError::NotOneLine { .. })));
}

#[test]
fn halves_are_completed() {
    let machine = || Ok::<_, HostIdentityError>(HostIdentity::from_uuid(ONE.parse().expect("a UUID")));
    let nobody = || -> Result<HostIdentity, &str> { panic!("the machine is not asked") };
    let (nqn, id): (Nqn, HostId) = (uuid_nqn(TWO).parse().expect("an NQN"), TWO.parse().expect("a UUID"));
    let of_name = HostIdentity::complete(Some(nqn.clone()), None, nobody).expect("an identity");
    assert_eq!(of_name, HostIdentity { nqn, id });
    let plain: Nqn = "nqn.2024-01.org.example:host".parse().expect("an NQN");
    let completed = HostIdentity::complete(Some(plain.clone()), None, machine).expect("an identity");
    assert_eq!((completed.nqn, completed.id.to_string()), (plain, ONE.to_owned()));
    let completed = HostIdentity::complete(None, Some(id), machine).expect("an identity");
    assert_eq!((completed.nqn.to_string(), completed.id), (uuid_nqn(ONE), id));
}
