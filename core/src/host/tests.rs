use super::*;
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

#[test]
fn otherwise_random_but_stable_in_this_process() {
    for placeholder in
        ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "none"]
    {
        let root = Root::new(&[(PRODUCT_UUID, placeholder.as_bytes())]);
        let identity = root.load().expect("an identity");
        assert_eq!(identity, Root::new(&[]).load().expect("an identity"), "{placeholder}");
        assert_eq!(identity.nqn.uuid().map(HostId::from), Some(identity.id));
    }
    assert_ne!(HostIdentity::random().expect("urandom"), HostIdentity::random().expect("urandom"));
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
