//! Get and Set Features (Base 2.1 §5.1.11 and §5.1.25).

use std::collections::{BTreeMap, BTreeSet};

use nvmf_core::spec::features::{
    AsyncEventConfig, FeatureId, FeatureSelect, HOST_IDENTIFIER_EXTENDED, HostBehaviorSupport,
    NumberOfQueues, TemperatureThreshold,
};
use nvmf_core::spec::{Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

use super::{Controller, INVALID_FIELD};
use crate::config::Config;
use crate::data::Data;
use crate::target::Front;

/// Get Features with "supported capabilities": the feature can be changed.
const CHANGEABLE: u32 = 1 << 2;
/// Set Features CDW10 bit 31: keep the value over a reset.
const SAVE: u32 = 1 << 31;
/// Interrupt Vector Configuration CDW11 bit 16, CD.
const COALESCING_DISABLE: u32 = 1 << 16;
/// Composite temperature threshold, over, until one is set: kelvin.
const DEFAULT_THRESHOLD: u32 = 343;

/// The values features have.
pub(super) struct Features {
    /// Keep alive timeout, milliseconds, rounded up to the granularity; 0 is off.
    pub(super) kato_ms: u32,
    pub(super) async_events: AsyncEventConfig,
    /// Queues the host asked for and got.
    number_of_queues: Option<NumberOfQueues>,
    host_behavior: HostBehaviorSupport,
    /// What Set Features gave; on fabrics it is Connect that does, once for all.
    host_identifier: [u8; 16],
    temperature: BTreeMap<(u8, bool), u16>,
    /// Interrupt vectors without coalescing.
    uncoalesced: BTreeSet<u16>,
    /// Features that are no more than the value of CDW11.
    plain: BTreeMap<u8, u32>,
}

/// A feature that holds a dword and does nothing here, its first value, and the bits that may be set.
const fn plain(fid: FeatureId) -> Option<(u32, u32)> {
    match fid {
        FeatureId::ARBITRATION => Some((0, 0xffff_ff07)),
        FeatureId::POWER_MANAGEMENT => Some((0, 0x0000_00e0)),
        FeatureId::ERROR_RECOVERY => Some((0, 0x0000_ffff)),
        FeatureId::VOLATILE_WRITE_CACHE => Some((1, 1)),
        FeatureId::WRITE_ATOMICITY_NORMAL => Some((0, 1)),
        FeatureId::INTERRUPT_COALESCING => Some((0, 0x0000_ffff)),
        _ => None,
    }
}

impl Features {
    pub(super) fn new(config: &Config, kato_ms: u32) -> Self {
        Self {
            kato_ms: round_kato(config, kato_ms),
            async_events: AsyncEventConfig(0),
            number_of_queues: None,
            host_behavior: HostBehaviorSupport::default(),
            host_identifier: [0; 16],
            temperature: BTreeMap::new(),
            uncoalesced: BTreeSet::new(),
            plain: BTreeMap::new(),
        }
    }

    /// I/O queues the host may connect or create.
    pub(super) fn granted_queues(&self, config: &Config) -> NumberOfQueues {
        self.number_of_queues.unwrap_or(NumberOfQueues::pairs(config.max_io_queues.into()))
    }
}

/// The timer counts in units of KAS (Base 2.1 §3.9): the next multiple.
fn round_kato(config: &Config, ms: u32) -> u32 {
    let unit = u32::from(config.kas) * 100;
    ms.checked_next_multiple_of(unit).unwrap_or(u32::MAX / unit * unit)
}

/// Length of the Host Identifier data: 128 bits with EXHID, else 64.
fn host_identifier_len(sqe: &Sqe) -> usize {
    if sqe.cdw11.get() & HOST_IDENTIFIER_EXTENDED != 0 { 16 } else { 8 }
}

/// Bytes of data that Get or Set Features of this feature moves.
pub(super) fn data_len(sqe: &Sqe) -> usize {
    match FeatureId(sqe.cdw10.get() as u8) {
        FeatureId::HOST_BEHAVIOR_SUPPORT => size_of::<HostBehaviorSupport>(),
        FeatureId::HOST_IDENTIFIER => host_identifier_len(sqe),
        _ => 0,
    }
}

impl Controller {
    /// Events that can be asked for on an I/O controller and that happen here.
    pub(super) const OPTIONAL_EVENTS: AsyncEventConfig =
        AsyncEventConfig::NAMESPACE_ATTRIBUTE.union(AsyncEventConfig::ANA_CHANGE);

    fn supports(&self, fid: FeatureId) -> bool {
        if self.subsystem.is_discovery() {
            return matches!(fid, FeatureId::ASYNC_EVENT_CONFIG | FeatureId::KEEP_ALIVE_TIMER);
        }
        if matches!(fid, FeatureId::INTERRUPT_COALESCING | FeatureId::INTERRUPT_VECTOR_CONFIG) {
            return self.front == Front::Pci;
        }
        plain(fid).is_some()
            || matches!(
                fid,
                FeatureId::TEMPERATURE_THRESHOLD
                    | FeatureId::NUMBER_OF_QUEUES
                    | FeatureId::ASYNC_EVENT_CONFIG
                    | FeatureId::KEEP_ALIVE_TIMER
                    | FeatureId::HOST_BEHAVIOR_SUPPORT
                    | FeatureId::HOST_IDENTIFIER
            )
    }

    pub(super) fn get_features(&self, sqe: &Sqe, data: Data<'_>) -> Result<u32, Status> {
        let fid = FeatureId(sqe.cdw10.get() as u8);
        let select = FeatureSelect((sqe.cdw10.get() >> 8) as u8 & 7);
        if !self.supports(fid) {
            return Err(INVALID_FIELD);
        }
        let config = &self.target.config;
        let state = self.lock();
        let default = Features::new(config, 0);
        let features = match select {
            FeatureSelect::CURRENT => &state.features,
            // Nothing is saved over a reset, so that the saved values are the default ones.
            FeatureSelect::DEFAULT | FeatureSelect::SAVED => &default,
            FeatureSelect::SUPPORTED_CAPABILITIES => {
                data.none()?;
                let fixed = fid == FeatureId::HOST_IDENTIFIER && self.front != Front::Pci;
                return Ok(if fixed { 0 } else { CHANGEABLE });
            }
            _ => return Err(INVALID_FIELD),
        };
        if let Some((first, _)) = plain(fid) {
            data.none()?;
            return Ok(features.plain.get(&fid.0).copied().unwrap_or(first));
        }
        match fid {
            FeatureId::HOST_BEHAVIOR_SUPPORT => {
                data.room(size_of::<HostBehaviorSupport>())?
                    .copy_from_slice(features.host_behavior.as_bytes());
                Ok(0)
            }
            FeatureId::HOST_IDENTIFIER if self.front == Front::Pci => {
                let len = host_identifier_len(sqe);
                data.room(len)?.copy_from_slice(&features.host_identifier[..len]);
                Ok(0)
            }
            FeatureId::HOST_IDENTIFIER => {
                // Fabrics use 128-bit identifiers only (Base 2.1 §5.1.25.2.2).
                if sqe.cdw11.get() & HOST_IDENTIFIER_EXTENDED == 0 {
                    return Err(INVALID_FIELD);
                }
                data.room(16)?.copy_from_slice(self.hostid.as_bytes());
                Ok(0)
            }
            _ => {
                data.none()?;
                Ok(match fid {
                    FeatureId::NUMBER_OF_QUEUES => {
                        let most = NumberOfQueues::pairs(config.max_io_queues.into());
                        features.number_of_queues.unwrap_or(most).encode()
                    }
                    FeatureId::ASYNC_EVENT_CONFIG => features.async_events.0,
                    FeatureId::INTERRUPT_VECTOR_CONFIG => {
                        let vector = sqe.cdw11.get() as u16;
                        let coalesced = !features.uncoalesced.contains(&vector);
                        u32::from(vector) | if coalesced { 0 } else { COALESCING_DISABLE }
                    }
                    FeatureId::TEMPERATURE_THRESHOLD => {
                        let threshold = TemperatureThreshold(sqe.cdw11.get());
                        let first = if threshold.is_under() { 0 } else { DEFAULT_THRESHOLD as u16 };
                        let key = (threshold.sensor(), threshold.is_under());
                        features.temperature.get(&key).copied().unwrap_or(first).into()
                    }
                    _ => features.kato_ms,
                })
            }
        }
    }

    pub(super) fn set_features(&self, sqe: &Sqe, data: Data<'_>) -> Result<u32, Status> {
        let fid = FeatureId(sqe.cdw10.get() as u8);
        let value = sqe.cdw11.get();
        if !self.supports(fid) {
            return Err(INVALID_FIELD);
        }
        if sqe.cdw10.get() & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        if !matches!(sqe.nsid.get(), 0 | u32::MAX) && fid != FeatureId::ERROR_RECOVERY {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr());
        }
        let mut state = self.lock();
        if let Some((_, allowed)) = plain(fid) {
            data.none()?;
            if value & !allowed != 0 {
                return Err(INVALID_FIELD);
            }
            state.features.plain.insert(fid.0, value);
            return Ok(0);
        }
        if fid == FeatureId::HOST_BEHAVIOR_SUPPORT {
            let bytes = data.sent(size_of::<HostBehaviorSupport>())?;
            let behavior = HostBehaviorSupport::read_from_bytes(bytes).map_err(|_| INVALID_FIELD)?;
            state.features.host_behavior = behavior;
            return Ok(0);
        }
        if fid == FeatureId::HOST_IDENTIFIER && self.front == Front::Pci {
            let len = host_identifier_len(sqe);
            let bytes = data.sent(len)?;
            // A host that has a name keeps it until the controller is reset (Base 2.1 §5.1.25.2.2).
            if state.features.host_identifier != [0; 16] {
                return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
            }
            state.features.host_identifier[..len].copy_from_slice(bytes);
            return Ok(0);
        }
        if fid == FeatureId::HOST_IDENTIFIER {
            // It was set by Connect.
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        }
        data.none()?;
        match fid {
            FeatureId::NUMBER_OF_QUEUES => {
                // Once I/O queues exist their number is settled (Base 2.1 §5.1.25.1.5).
                if state.queues.len() > 1 {
                    return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
                }
                if value as u16 == u16::MAX || value >> 16 == 0xffff {
                    return Err(INVALID_FIELD);
                }
                let asked = NumberOfQueues::decode(value);
                let most = u32::from(self.target.config.max_io_queues);
                let granted = NumberOfQueues {
                    submission: asked.submission.min(most),
                    completion: asked.completion.min(most),
                };
                state.features.number_of_queues = Some(granted);
                Ok(granted.encode())
            }
            FeatureId::ASYNC_EVENT_CONFIG => {
                let supported = if self.subsystem.is_discovery() {
                    AsyncEventConfig::DISCOVERY_LOG
                } else {
                    Self::OPTIONAL_EVENTS.union(AsyncEventConfig::SMART_CRITICAL_WARNINGS)
                };
                if !supported.contains(AsyncEventConfig(value)) {
                    return Err(INVALID_FIELD);
                }
                state.features.async_events = AsyncEventConfig(value);
                Ok(0)
            }
            FeatureId::INTERRUPT_VECTOR_CONFIG => {
                // A hint: interrupts are never held back.
                match value & COALESCING_DISABLE {
                    0 => state.features.uncoalesced.remove(&(value as u16)),
                    _ => state.features.uncoalesced.insert(value as u16),
                };
                Ok(0)
            }
            FeatureId::TEMPERATURE_THRESHOLD => {
                let threshold = TemperatureThreshold(value);
                if !matches!(threshold.sensor(), 0 | 15) {
                    return Err(INVALID_FIELD);
                }
                state.features.temperature.insert((0, threshold.is_under()), threshold.kelvin());
                Ok(0)
            }
            _ => {
                state.features.kato_ms = round_kato(&self.target.config, value);
                self.restart_keep_alive(&state.features);
                Ok(0)
            }
        }
    }
}
