//! What is measured: kinds of I/O, and who drives whom.

use std::fmt;

/// How the initiator reaches the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    Tcp,
    VfioUser,
}

/// One kind of I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cell {
    pub(super) transport: Transport,
    /// As `nvmf perf` and `spdk_nvme_perf` both call it.
    pub(super) workload: &'static str,
    /// Bytes of an I/O.
    pub(super) io_size: usize,
    pub(super) depth: usize,
    /// Header and data digests.
    pub(super) digests: bool,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::VfioUser => "vfio-user",
        };
        let digests = if self.digests { "-digests" } else { "" };
        write!(f, "{transport}-{}k-{}-q{}{digests}", self.io_size >> 10, self.workload, self.depth)
    }
}

impl Cell {
    fn writes(&self) -> bool {
        matches!(self.workload, "write" | "randwrite")
    }

    /// Bytes of a request and of its answer on a TCP connection, when a write's data is in its capsule: a command capsule has 72,
    /// a response 24, and the header of data from the controller 24 (NVMe/TCP 1.1 §3.6.2). `None` where there is no such exchange.
    pub(super) fn exchange(&self) -> Option<(usize, usize)> {
        match (self.transport, self.digests, self.writes()) {
            (Transport::VfioUser, ..) | (_, true, _) => None,
            (_, _, false) => Some((72, 24 + self.io_size)),
            (_, _, true) => Some((72 + self.io_size, 24)),
        }
    }

    /// Everything that is measured.
    pub(super) fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        let kinds = |transport, digests| {
            let small = ["randread", "randwrite"].into_iter().flat_map(move |workload| {
                [1, 32, 128].map(|depth| Self { transport, workload, io_size: 4 << 10, depth, digests })
            });
            let large = ["read", "write"].map(|workload| Self {
                transport,
                workload,
                io_size: 128 << 10,
                depth: 32,
                digests,
            });
            small.chain(large)
        };
        cells.extend(kinds(Transport::Tcp, false));
        cells.extend(kinds(Transport::Tcp, true));
        cells.extend(kinds(Transport::VfioUser, false));
        cells
    }
}

/// Who has the role.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Initiator {
    /// Nobody: bare loops exchange messages of the same sizes.
    Limit,
    Nvmf,
    /// Another build of it, to compare with.
    Other,
    Spdk,
}

/// Initiators that may drive one target at once.
pub(super) const INITIATORS: usize = 3;

impl Initiator {
    /// Which of a target's [`INITIATORS`] vfio-user endpoints it takes in a round: each serves one client. Where they lie in the target's
    /// memory makes a difference, so nobody has the same one in each round.
    pub(super) fn endpoint(self, round: usize) -> usize {
        let place = match self {
            Self::Limit | Self::Nvmf => 0,
            Self::Other => 1,
            Self::Spdk => 2,
        };
        (place + round) % INITIATORS
    }
}

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Side {
    /// `nvmf target` with a null namespace.
    Null,
    /// SPDK's target with a null bdev.
    SpdkNull,
    /// SPDK's target with a malloc bdev: it copies.
    SpdkMalloc,
}

impl Side {
    pub(super) const ALL: [Self; 3] = [Self::Null, Self::SpdkNull, Self::SpdkMalloc];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::SpdkNull => "spdk-null",
            Self::SpdkMalloc => "spdk-malloc",
        }
    }

    pub(super) fn is_spdk(self) -> bool {
        self != Self::Null
    }
}

/// An initiator and the target it drives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Pair {
    pub(super) initiator: Initiator,
    pub(super) side: Side,
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.initiator {
            Initiator::Limit => f.write_str("limit"),
            Initiator::Nvmf => write!(f, "nvmf>{}", self.side.name()),
            Initiator::Other => write!(f, "other>{}", self.side.name()),
            Initiator::Spdk => write!(f, "spdk>{}", self.side.name()),
        }
    }
}

impl Pair {
    /// Who is measured in a cell, in the order of the runs of a round: the initiators of a target one after the other.
    pub(super) fn of(cell: &Cell, sides: &[Side], spdk: bool, other: bool) -> Vec<Self> {
        let mut pairs = Vec::new();
        if cell.exchange().is_some() {
            pairs.push(Self { initiator: Initiator::Limit, side: Side::Null });
        }
        for &side in sides.iter().filter(|side| spdk || !side.is_spdk()) {
            let initiators = [(Initiator::Nvmf, true), (Initiator::Other, other), (Initiator::Spdk, spdk)];
            let present = initiators.into_iter().filter(|&(_, is_there)| is_there);
            pairs.extend(present.map(|(initiator, _)| Self { initiator, side }));
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_exchanges_right() {
        let cells = Cell::all();
        let mut names: Vec<String> = cells.iter().map(ToString::to_string).collect();
        assert!(names.contains(&"tcp-4k-randread-q1".to_owned()));
        assert!(names.contains(&"vfio-user-128k-write-q32".to_owned()));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cells.len());
        let exchange = |name: &str| cells.iter().find(|cell| cell.to_string() == name).unwrap().exchange();
        assert_eq!(exchange("tcp-4k-randread-q1"), Some((72, 4120)));
        assert_eq!(exchange("tcp-4k-randwrite-q32"), Some((4168, 24)));
        assert_eq!(exchange("tcp-128k-write-q32"), Some((131_144, 24)));
        assert_eq!(exchange("tcp-4k-randread-q1-digests"), None);
        assert_eq!(exchange("vfio-user-4k-randread-q1"), None);
    }

    #[test]
    fn initiators_have_endpoints_in_turn() {
        for round in 0..INITIATORS {
            let all = [Initiator::Nvmf, Initiator::Other, Initiator::Spdk];
            let taken: std::collections::BTreeSet<usize> =
                all.iter().map(|one| one.endpoint(round)).collect();
            assert_eq!(taken.len(), INITIATORS, "one each");
        }
        let over_time: Vec<usize> = (0..INITIATORS).map(|round| Initiator::Spdk.endpoint(round)).collect();
        assert_eq!(over_time, [2, 0, 1]);
    }

    #[test]
    fn pairs_of_a_cell() {
        let names = |index: usize, spdk, other| -> Vec<String> {
            let pairs = Pair::of(&Cell::all()[index], &Side::ALL, spdk, other);
            pairs.iter().map(ToString::to_string).collect()
        };
        assert_eq!(names(0, false, false), ["limit", "nvmf>null"]);
        assert_eq!(names(16, true, false)[..3], ["nvmf>null", "spdk>null", "nvmf>spdk-null"]);
        assert_eq!(names(16, true, true)[..4], ["nvmf>null", "other>null", "spdk>null", "nvmf>spdk-null"]);
    }
}
