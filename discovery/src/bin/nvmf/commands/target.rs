//! `nvmf target`: serves memory or files over NVMe/TCP or vfio-user until told to stop.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nvmf_loopback::{
    Guard, Loopback, LoopbackError, MetadataPlace, Namespace, ProtectionType, SubsystemBuilder, TcpOptions,
    VfioUserServer, VfioUserServerOptions,
};
use signal_hook::consts::signal::{SIGINT, SIGTERM};

use super::print;
use crate::failure::Failure;
use crate::size::{parse_length32, parse_size, parse_u16};

/// Where to listen unless told otherwise.
const DEFAULT_LISTEN: &str = "127.0.0.1:4420";
/// The subsystem unless another is named.
const DEFAULT_NQN: &str = "nqn.2024-01.com.example:nvmf";

/// Serve memory or files over NVMe/TCP or vfio-user, for tests and development
///
/// Prints one line, `listening on ADDRESS:PORT`, once connections are accepted, and runs until SIGINT or SIGTERM. Any
/// host may connect and nothing is encrypted: keep to addresses you trust. The same port answers discovery.
///
/// With --vfio-user there is a PCIe controller behind each socket, for one client at a time, and a line with its path.
/// TCP is listened to only if --listen is there as well.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf target --namespace 64MiB
  nvmf target --listen 0.0.0.0:4420 --namespace disk.img --namespace 1GiB --block-size 4KiB
  nvmf target --listen [::1]:0 --namespace new.img:256MiB --nqn nqn.2024-01.com.example:disk
  nvmf target --vfio-user /tmp/nvme.sock --namespace 64MiB
  nvmf target --vfio-user /tmp/nvme.sock --namespace 64MiB,lba=4096,ms=8,pi=1
  nvmf target --namespace null:1GiB                     to measure initiators

FILE:SIZE makes the file, or makes it longer, as needed. A file whose name looks like a size is
written ./64MiB. null:SIZE stores nothing: what is written is dropped, what is read is zeroes (vfio-user:
whatever was in the buffer). Options follow after commas, so that no file name may have one:
  lba=SIZE       bytes per logical block, instead of --block-size
  ms=BYTES       bytes of metadata per block
  extended       the metadata is part of the blocks, also for vfio-user; over TCP it always is
  pi=1|2|3       protection information of this type, in the last bytes of the metadata
  pi-first       ... in the first bytes
  guard=16|32|64 ... with a guard of this many bits (16)
In a file the metadata follows the data of each block.")]
pub(crate) struct Args {
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:4420]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,

    /// A PCIe controller for vfio-user clients: path of its socket, or of a directory for a socket `cntrl`. May be repeated
    #[arg(long, value_name = "PATH")]
    vfio_user: Vec<PathBuf>,

    /// Take memory of vfio-user clients that they could cut short afterwards, as hugepages of SPDK can be: a client that does
    /// ends this process
    #[arg(long, requires = "vfio_user")]
    map_unsealed: bool,

    /// A namespace: SIZE in memory, or FILE, or FILE:SIZE, or null:SIZE, and options (see below). May be repeated
    #[arg(long, value_name = "SIZE|FILE[:SIZE]", required = true, value_parser = parse_namespace)]
    namespace: Vec<Wanted>,

    /// NQN of the subsystem
    #[arg(long, value_name = "NQN", default_value = DEFAULT_NQN)]
    nqn: String,

    /// Bytes per logical block: a power of two, 512 to 64KiB
    #[arg(long, value_name = "SIZE", value_parser = parse_length32, default_value = "512")]
    block_size: u32,

    /// Go on looking for more TCP traffic for 10 ms after the last, instead of sleeping until something comes: answers are faster,
    /// and a CPU is taken. Implied by null namespaces
    #[arg(long)]
    poll: bool,
}

/// How long a target that polls goes on after the last traffic.
const BUSY_POLL: Duration = Duration::from_millis(10);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Backing {
    Memory(u64),
    /// A length of 0 is that of the file.
    File(PathBuf, u64),
    /// Stores nothing.
    Null(u64),
}

/// A namespace as the command line has it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Wanted {
    backing: Backing,
    format: BlockFormat,
}

/// What its blocks are to be; zero and `None` as usual.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct BlockFormat {
    block_size: Option<u32>,
    metadata: u16,
    extended: bool,
    protection: Option<ProtectionType>,
    first: bool,
    guard: Option<Guard>,
}

const OPTIONS: &str = "options are lba=SIZE, ms=BYTES, extended, pi=1|2|3, pi-first, guard=16|32|64";

fn parse_namespace(text: &str) -> Result<Wanted, String> {
    let mut parts = text.split(',');
    let backing = parse_backing(parts.next().unwrap_or_default())?;
    let mut format = BlockFormat::default();
    for option in parts {
        let (key, value) = option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value)));
        let wrong = |why: &str| format!("{option}: {why}; {OPTIONS}");
        match (key, value) {
            ("lba", Some(size)) => format.block_size = Some(parse_length32(size).map_err(|why| wrong(&why))?),
            ("ms", Some(bytes)) => format.metadata = parse_u16(bytes).map_err(|why| wrong(&why))?,
            ("pi", Some("0")) => format.protection = None,
            ("pi", Some(kind)) => {
                let kind = kind.parse().ok().and_then(ProtectionType::new);
                format.protection = Some(kind.ok_or_else(|| wrong("there is no such type"))?);
            }
            ("guard", Some(bits)) => {
                format.guard = Some(match bits {
                    "16" => Guard::Crc16,
                    "32" => Guard::Crc32c,
                    "64" => Guard::Crc64,
                    _ => return Err(wrong("there is no such guard")),
                });
            }
            ("extended", None) => format.extended = true,
            ("pi-first", None) => format.first = true,
            _ => return Err(wrong("there is no such option")),
        }
    }
    if format.protection.is_none() && (format.first || format.guard.is_some()) {
        return Err(format!(
            "pi-first and guard say something about protection information, but there is none; {OPTIONS}"
        ));
    }
    if format.extended && format.metadata == 0 {
        return Err(format!("extended says something about metadata, but there is none; {OPTIONS}"));
    }
    Ok(Wanted { backing, format })
}

impl BlockFormat {
    fn of(self, namespace: Namespace, block_size: u32) -> Namespace {
        let place = if self.extended { MetadataPlace::Extended } else { MetadataPlace::Separate };
        let mut namespace =
            namespace.block_size(self.block_size.unwrap_or(block_size)).metadata(self.metadata, place);
        if let Some(kind) = self.protection {
            namespace = namespace.protection(kind);
        }
        if let Some(guard) = self.guard {
            namespace = namespace.guard(guard);
        }
        if self.first { namespace.protection_first() } else { namespace }
    }
}

fn parse_backing(text: &str) -> Result<Backing, String> {
    if text.is_empty() {
        return Err("neither a size nor a file".to_owned());
    }
    // `64MB` is a mistake, not a file.
    if text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(['/', '.', ':']) {
        let size =
            parse_size(text).map_err(|error| format!("{error}; for a file of that name write ./{text}"))?;
        return if size > 0 {
            Ok(Backing::Memory(size))
        } else {
            Err("must be at least one block".to_owned())
        };
    }
    if let Some(size) = text.strip_prefix("null:") {
        return match parse_size(size) {
            Ok(0) => Err("must be at least one block".to_owned()),
            Ok(size) => Ok(Backing::Null(size)),
            Err(error) => Err(format!("{error}; for a file of that name write ./{text}")),
        };
    }
    Ok(match text.rsplit_once(':').map(|(path, size)| (path, parse_size(size))) {
        Some((path, Ok(size))) if size > 0 && !path.is_empty() => Backing::File(path.into(), size),
        _ => Backing::File(text.into(), 0),
    })
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // Both signals are caught from here on, so that none is lost between the line and the wait.
    let (mut told, tell) =
        UnixStream::pair().map_err(|error| Failure::failed(format!("catching signals: {error}")))?;
    for signal in [SIGINT, SIGTERM] {
        let tell = tell.try_clone().map_err(|error| Failure::failed(format!("catching signals: {error}")))?;
        signal_hook::low_level::pipe::register(signal, tell)
            .map_err(|error| Failure::failed(format!("catching signals: {error}")))?;
    }
    let mut subsystem = SubsystemBuilder::new(&args.nqn);
    for Wanted { backing, format } in &args.namespace {
        let namespace = match backing {
            Backing::Memory(size) => Namespace::memory(*size),
            Backing::Null(size) => Namespace::null(*size),
            Backing::File(path, size) => {
                if *size == 0 && !path.exists() {
                    return Err(Failure::failed(format!(
                        "--namespace {0}: no such file; {0}:SIZE makes one",
                        path.display()
                    )));
                }
                Namespace::file(path, *size)
            }
        };
        subsystem = subsystem.namespace(format.of(namespace, args.block_size));
    }
    let mut target = Loopback::builder().subsystem(subsystem);
    if args.poll || args.namespace.iter().all(|wanted| matches!(wanted.backing, Backing::Null(_))) {
        target = target.tcp(TcpOptions::new().busy_poll(BUSY_POLL));
    }
    let tcp = args.listen.as_deref().or(args.vfio_user.is_empty().then_some(DEFAULT_LISTEN));
    if let Some(address) = tcp {
        target = target.listen_tcp(address);
    }
    let target = target.build().map_err(|error| failure(&error))?;
    let options = VfioUserServerOptions { map_unsealed: args.map_unsealed };
    let serve = |path| VfioUserServer::listen_with(&target.pci_function(&args.nqn)?, path, options);
    let servers: Result<Vec<VfioUserServer>, _> = args.vfio_user.iter().map(serve).collect();
    let servers = servers.map_err(|error| failure(&error))?;
    for address in target.tcp_addrs() {
        print(format!("listening on {address}\n"))?;
    }
    for server in &servers {
        print(format!("listening on {}\n", server.path().display()))?;
    }
    for (nsid, backing) in (1..).zip(&args.namespace) {
        if matches!(backing.backing, Backing::Null(_)) {
            print(format!("namespace {nsid} stores nothing\n"))?;
        }
    }
    // Blocks until a signal writes a byte.
    let _ = told.read(&mut [0]);
    drop(servers);
    drop(target);
    Ok(())
}

fn failure(error: &LoopbackError) -> Failure {
    use LoopbackError::{BlockSize, DiscoveryNqn, ListenAddress, Metadata, Nqn, TooSmall};
    let line = format!("starting the target: {error}");
    match error {
        BlockSize(_) | DiscoveryNqn | ListenAddress { .. } | Metadata(_) | Nqn { .. } | TooSmall { .. } => {
            Failure::usage(line)
        }
        _ => Failure::failed(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces() {
        let plain = |backing| Ok(Wanted { backing, format: BlockFormat::default() });
        let file = |path: &str, size| plain(Backing::File(path.into(), size));
        assert_eq!(parse_namespace("64MiB"), plain(Backing::Memory(64 << 20)));
        assert_eq!(parse_namespace("./64MiB"), file("./64MiB", 0));
        assert_eq!(parse_namespace("disk.img"), file("disk.img", 0));
        assert_eq!(parse_namespace("disk.img:1G"), file("disk.img", 1 << 30));
        assert_eq!(parse_namespace("/a:b"), file("/a:b", 0));
        assert_eq!(parse_namespace("2024.img:64MiB"), file("2024.img", 64 << 20));
        assert_eq!(parse_namespace("null:1GiB"), plain(Backing::Null(1 << 30)));
        assert_eq!(parse_namespace("./null:1GiB"), file("./null", 1 << 30));
        assert_eq!(parse_namespace("null"), file("null", 0));
        for wrong in ["", "0", "64MB", "64Q", "null:", "null:0", "null:x"] {
            assert!(parse_namespace(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn formats_of_blocks() {
        let format = |text| parse_namespace(text).map(|wanted| wanted.format);
        let pi = BlockFormat {
            block_size: Some(4096),
            metadata: 8,
            protection: Some(ProtectionType::Type1),
            ..BlockFormat::default()
        };
        assert_eq!(format("64MiB,lba=4096,ms=8,pi=1"), Ok(pi));
        assert_eq!(format("a.img:1G,lba=4KiB,ms=8,pi=1,extended"), Ok(BlockFormat { extended: true, ..pi }));
        let long = BlockFormat { metadata: 16, guard: Some(Guard::Crc64), first: true, ..pi };
        assert_eq!(format("1G,guard=64,pi-first,ms=16,lba=4096,pi=1"), Ok(long));
        assert_eq!(format("1G,pi=0"), Ok(BlockFormat::default()));
        for (wrong, why) in [
            ("1G,", "there is no such option"),
            ("1G,m=8", "there is no such option"),
            ("1G,ms", "there is no such option"),
            ("1G,extended=1", "there is no such option"),
            ("1G,ms=8K", "not a number"),
            ("1G,ms=70000", "more than 16 bits"),
            ("1G,lba=0", "at least 1"),
            ("1G,ms=8,pi=4", "there is no such type"),
            ("1G,ms=8,pi=1,guard=8", "there is no such guard"),
            ("1G,ms=8,pi-first", "there is none"),
            ("1G,extended", "there is none"),
        ] {
            let error = format(wrong).unwrap_err();
            assert!(error.contains(why) && error.contains("options are lba=SIZE"), "{wrong}: {error}");
        }
    }
}
