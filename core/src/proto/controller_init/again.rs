//! Identifying again what may have changed of a controller that is ready.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{ControllerConfig, ControllerInit, InitConfig, InitResult, NamespaceInfo};
use crate::proto::controller_init::State;

/// What a changed namespace list says (Base 2.1 §5.1.12.1.5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangedNamespaces {
    /// These; the list says nothing of others.
    These(BTreeSet<u32>),
    /// More than the list has room for, or nobody knows: any.
    Any,
}

impl ChangedNamespaces {
    /// Reads a Changed Attached Namespace List log page: up to 1,024 identifiers, ended by a zero; FFFFFFFFh in the first place
    /// stands for more than 1,024.
    #[must_use]
    pub fn parse(page: &[u8]) -> Self {
        let mut these = BTreeSet::new();
        for entry in page.chunks_exact(4).filter_map(|entry| entry.first_chunk()).take(1024) {
            match u32::from_le_bytes(*entry) {
                0 => break,
                u32::MAX => return Self::Any,
                nsid => drop(these.insert(nsid)),
            }
        }
        Self::These(these)
    }
}

impl ControllerInit {
    /// A machine that only reads the namespaces again, for a controller that is ready already.
    #[must_use]
    pub fn rescan(config: InitConfig, known: InitResult, now: Instant) -> Self {
        Self::rescan_changed(config, known, ChangedNamespaces::Any, now)
    }

    /// As [`ControllerInit::rescan`]; of namespaces that were known and are not among `changed` only the list is read.
    #[must_use]
    pub fn rescan_changed(
        config: InitConfig,
        known: InitResult,
        changed: ChangedNamespaces,
        now: Instant,
    ) -> Self {
        let mut machine = Self::again(config, now);
        machine.cc = ControllerConfig(0).with_css(known.cap.css().to_select());
        if let ChangedNamespaces::These(changed) = changed {
            let unchanged = known.namespaces.iter().filter(|ns| !changed.contains(&ns.nsid));
            machine.unchanged = unchanged.map(|ns| (ns.nsid, ns.clone())).collect();
        }
        machine.result = InitResult { namespaces: Vec::new(), ana_groups: Vec::new(), ..known };
        machine.state = State::ActiveNamespaces;
        machine
    }

    /// A machine that only reads the ANA log page again, for a controller that is ready already.
    #[must_use]
    pub fn reread_ana(config: InitConfig, known: InitResult, now: Instant) -> Self {
        let mut machine = Self::again(config, now);
        machine.result = known;
        machine.after_namespaces(now);
        machine
    }

    fn again(config: InitConfig, now: Instant) -> Self {
        let mut machine = Self::new(config, now);
        machine.not_before = None;
        machine.rescan = true;
        machine
    }

    /// A namespace that is listed: as it was known, or empty and to be identified.
    pub(super) fn listed(&mut self, nsid: u32) -> NamespaceInfo {
        match self.unchanged.remove(&nsid) {
            Some(known) => known,
            None => {
                self.unidentified.insert(nsid);
                NamespaceInfo::empty(nsid)
            }
        }
    }

    /// Goes past namespaces that are known already.
    pub(super) fn skip_identified(&mut self) {
        while let Some(ns) = self.result.namespaces.get(self.cursor)
            && !self.unidentified.contains(&ns.nsid)
        {
            self.cursor += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lists_are_read_to_their_end() {
        let page = |ids: &[u32]| -> Vec<u8> {
            let mut page: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            page.resize(4096, 0);
            page
        };
        let these = |ids: &[u32]| ChangedNamespaces::These(ids.iter().copied().collect());
        assert_eq!(ChangedNamespaces::parse(&page(&[3, 1, 3])), these(&[1, 3]));
        assert_eq!(ChangedNamespaces::parse(&page(&[])), these(&[]));
        assert_eq!(ChangedNamespaces::parse(&page(&[2, 0, 5])), these(&[2]));
        assert_eq!(ChangedNamespaces::parse(&page(&[u32::MAX])), ChangedNamespaces::Any);
        assert_eq!(ChangedNamespaces::parse(&[1, 0, 0, 0, 2, 0]), these(&[1]), "cut short");
        let full: Vec<u32> = (1..=1024).collect();
        assert_eq!(ChangedNamespaces::parse(&page(&full)), these(&full));
    }
}
