//! The transport's side of one controller: registers, queue pairs, what it can do.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::Instant;

use nvmf_core::spec::identify::{IdentifyController, oacs};
use nvmf_core::spec::registers::{Cap, ControllerConfig, PropertyOffset};
use nvmf_core::spec::{Sqe, Status};
use nvmf_core::transport::{
    AdminQueueRegisters, Capabilities, Lender, Primary, QpairSetup, Registers, TransportController,
    TransportQpair,
};
use nvmf_core::{ControllerOptions, Error, Result};

use crate::data::max_transfer;
use crate::device::PciDevice;
use crate::lent::LentFunction;
use crate::qpair::PcieQpair;
use crate::quirks::Quirks;
use crate::shadow::{self, ShadowDoorbells};
use crate::shared::{MetadataSupport, SglSupport, Shared};

/// Offset of the command register in configuration space.
const PCI_COMMAND: u32 = 0x04;
/// Memory space enable, bus master enable, INTx disable (MSI-X is used, or nothing).
const COMMAND_BITS: u16 = 1 << 1 | 1 << 2 | 1 << 10;
/// Most interrupt vectors asked for; queues beyond them are polled.
const MAX_VECTORS: u16 = 256;

/// A controller behind a [`PciDevice`].
pub struct PcieController {
    registers: RegisterFile,
    admin: Option<AdminQueueRegisters>,
    /// I/O queues raise interrupts.
    interrupts: bool,
    /// I/O queues asked for.
    num_io_queues: u16,
    shadow_doorbells: bool,
    use_cmb_sqs: bool,
    /// Shadow doorbells the controller was told of, and has not answered yet.
    offered: Option<Arc<ShadowDoorbells>>,
}

impl PcieController {
    /// Takes a function over: enables its memory space, bus mastering and interrupts, and reads what its controller can do.
    ///
    /// # Errors
    /// When the function does not answer or has no sensible registers.
    pub fn new(mut device: Box<dyn PciDevice>, options: &ControllerOptions) -> Result<Self> {
        let identity = device.identity();
        let mut command = [0; 2];
        device.read_config(PCI_COMMAND, &mut command)?;
        let command = u16::from_le_bytes(command);
        if command == u16::MAX {
            return Err(Error::disconnected(format!("the PCI function {identity} does not answer")));
        }
        if command & COMMAND_BITS != COMMAND_BITS {
            device.write_config(PCI_COMMAND, &(command | COMMAND_BITS).to_le_bytes())?;
        }
        let bar = device.bar0()?;
        let cap = bar.read64(u64::from(PropertyOffset::CAP.0))?;
        if cap == u64::MAX {
            return Err(Error::disconnected(format!("the registers of {identity} do not answer (all ones)")));
        }
        let wanted = if options.enable_interrupts { options.num_io_queues.saturating_add(1) } else { 1 };
        let vectors = wanted.min(device.max_vectors()).min(MAX_VECTORS);
        let vectors = if vectors == 0 { Vec::new() } else { device.enable_interrupts(vectors)? };
        let quirks = Quirks::of(identity.vendor, identity.device);
        if quirks != Quirks::default() {
            tracing::info!(%identity, ?quirks, "a controller that is treated in its own way");
        }
        let shared =
            Shared::new(device, bar, Cap(cap), quirks, vectors).map_err(|error| error.peer(identity))?;
        Ok(Self {
            registers: RegisterFile(Arc::new(shared)),
            admin: None,
            interrupts: options.enable_interrupts,
            num_io_queues: options.num_io_queues,
            shadow_doorbells: options.shadow_doorbells,
            use_cmb_sqs: options.use_cmb_sqs,
            offered: None,
        })
    }

    /// The controller that the primary of an instance has taken over, in another process: I/O queues only.
    ///
    /// # Errors
    /// When the primary does not answer, or the doorbells cannot be mapped in this process.
    pub fn lent(primary: &Arc<Primary>, options: &ControllerOptions) -> Result<Self> {
        let (device, bar) = LentFunction::open(primary)?;
        let identity = device.identity();
        let quirks = Quirks::of(identity.vendor, identity.device);
        let vectors = if options.enable_interrupts { MAX_VECTORS } else { 0 };
        let shared = Shared::lent(Box::new(device), bar, quirks, vectors, primary);
        let shared = Arc::new(shared.map_err(|error| error.peer(identity))?);
        let watcher: Weak<Shared> = Arc::downgrade(&shared);
        primary.watch(watcher);
        Ok(Self {
            registers: RegisterFile(shared),
            admin: None,
            interrupts: options.enable_interrupts,
            num_io_queues: options.num_io_queues,
            shadow_doorbells: false,
            use_cmb_sqs: false,
            offered: None,
        })
    }

    /// As [`TransportController::create_qpair`], with the concrete type.
    ///
    /// # Errors
    /// When there is no memory, the controller is gone, or it has no doorbell for such a queue.
    pub fn pcie_qpair(&mut self, setup: &QpairSetup) -> Result<PcieQpair> {
        let shared = &self.registers.0;
        if let Some(failure) = shared.failure(shared.life()) {
            return Err(failure);
        }
        if setup.qid != 0 {
            shared.learn_shadow()?;
        }
        let wanted = setup.qid == 0 || self.interrupts;
        let vector = (wanted && shared.has_vector(setup.qid)).then_some(setup.qid);
        let qpair = PcieQpair::new(Arc::clone(shared), setup, vector)?;
        if setup.qid == 0 {
            let size_z = u32::from(qpair.entries() - 1);
            let (asq, acq) = qpair.ring_addresses();
            self.admin = Some(AdminQueueRegisters { aqa: size_z | size_z << 16, asq, acq });
        }
        Ok(qpair)
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.registers.0
    }
}

impl TransportController for PcieController {
    fn capabilities(&self) -> Capabilities {
        // Any number of buffers: what the controller cannot be told in place is copied.
        let shared = &self.registers.0;
        Capabilities::memory_based()
            .with_max_transfer(max_transfer(shared.page))
            .with_delays(shared.quirks.delays)
    }

    fn registers(&mut self) -> Option<&mut dyn Registers> {
        Some(&mut self.registers)
    }

    fn admin_queue(&self) -> Option<AdminQueueRegisters> {
        self.admin
    }

    fn create_qpair(&mut self, setup: &QpairSetup) -> Result<Box<dyn TransportQpair>> {
        Ok(Box::new(self.pcie_qpair(setup)?))
    }

    fn identified(&mut self, identify: &IdentifyController) -> Result<()> {
        self.registers.0.set_sgl(match identify.sgls.get() & 3 {
            _ if self.registers.0.quirks.no_sgl => SglSupport::No,
            1 => SglSupport::Yes,
            2 => SglSupport::Dwords,
            _ => SglSupport::No,
        });
        self.registers.0.set_metadata_support(MetadataSupport {
            any_byte: identify.takes_metadata_at_any_byte(),
            sgl: identify.supports_metadata_sgl(),
        });
        Ok(())
    }

    fn restart(&mut self) -> Result<bool> {
        self.registers.0.restart()?;
        (self.admin, self.offered) = (None, None);
        Ok(true)
    }

    fn set_up(&mut self, identify: &IdentifyController) -> Result<Option<Sqe>> {
        let shared = &self.registers.0;
        if self.use_cmb_sqs
            && let Err(error) = shared.enable_cmb()
        {
            tracing::warn!(%error, "the controller memory buffer is not used");
        }
        if !self.shadow_doorbells || !identify.supports_admin(oacs::DOORBELL_BUFFER) {
            return Ok(None);
        }
        match ShadowDoorbells::new(shared, self.num_io_queues) {
            Ok(buffers) => {
                let command = buffers.command();
                self.offered = Some(Arc::new(buffers));
                Ok(Some(command))
            }
            Err(error) => {
                shadow::unavailable(&error);
                Ok(None)
            }
        }
    }

    fn set_up_completed(&mut self, status: Status) {
        let Some(buffers) = self.offered.take() else { return };
        if status.is_success() {
            tracing::debug!("shadow doorbells are used");
            self.registers.0.set_shadow(Some(buffers));
        } else {
            tracing::debug!(%status, "the controller does not take shadow doorbells after all");
        }
    }

    fn lender(&mut self) -> Option<Arc<dyn Lender>> {
        Some(Arc::<Shared>::clone(&self.registers.0))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// The registers as the core sees them. All ones from a register that cannot have that value means that nobody is there.
struct RegisterFile(Arc<Shared>);

impl Registers for RegisterFile {
    fn read32(&mut self, offset: u32) -> Result<u32> {
        match self.0.bar.read32(u64::from(offset))? {
            u32::MAX => Err(self.0.mark_lost()),
            value => Ok(value),
        }
    }

    fn read64(&mut self, offset: u32) -> Result<u64> {
        match self.0.bar.read64(u64::from(offset))? {
            u64::MAX => Err(self.0.mark_lost()),
            value => Ok(value),
        }
    }

    fn write32(&mut self, offset: u32, value: u32) -> Result<()> {
        if offset == PropertyOffset::CC.0 && !ControllerConfig(value).en() {
            // A controller that is disabled forgets its shadow doorbells.
            self.0.set_shadow(None);
            self.0.leave_alone(Instant::now());
        }
        self.0.bar.write32(u64::from(offset), value)
    }

    fn write64(&mut self, offset: u32, value: u64) -> Result<()> {
        self.0.bar.write64(u64::from(offset), value)
    }
}
