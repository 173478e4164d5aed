//! `nvmf list` without a target: the NVMe controllers on this machine's PCI bus.

use std::time::Duration;

use nvmf_core::{Hotplug, HotplugEvent};
use nvmf_transport_pcie::{Obstacle, PciFunction, PcieTransport};
use serde::Serialize;

use super::{Format, print, print_json};
use crate::failure::Failure;
use crate::units::Table;

#[derive(Serialize)]
struct Local {
    controllers: Vec<Function>,
}

#[derive(Serialize)]
struct Function {
    traddr: String,
    vendor: String,
    device: String,
    driver: Option<String>,
    iommu_group: Option<u32>,
    numa_node: Option<u32>,
    /// Why this process cannot drive it; none when it can.
    obstacle: Option<String>,
    /// What to do about it.
    hint: Option<String>,
}

impl Function {
    fn new(function: &PciFunction, obstacle: Option<&Obstacle>) -> Self {
        Self {
            traddr: function.address.to_string(),
            vendor: format!("{:04x}", function.vendor),
            device: format!("{:04x}", function.device),
            driver: function.driver.clone(),
            iommu_group: function.iommu_group,
            numa_node: function.numa_node,
            obstacle: obstacle.map(ToString::to_string),
            hint: obstacle.map(|obstacle| obstacle.hint(function)),
        }
    }
}

impl Local {
    fn text(&self) -> String {
        if self.controllers.is_empty() {
            return "No NVMe controller is on the local PCI bus. To list a fabrics target: nvmf list -t tcp -a ADDR\n"
                .to_owned();
        }
        let dash = || "-".to_owned();
        let number = |n: Option<u32>| n.map_or_else(dash, |n| n.to_string());
        let mut table =
            Table::new(&["Address", "Device", "Driver", "IOMMU group", "NUMA node", "Usable"], &[3, 4]);
        for f in &self.controllers {
            table.line([
                f.traddr.clone(),
                format!("{}:{}", f.vendor, f.device),
                f.driver.clone().unwrap_or_else(dash),
                number(f.iommu_group),
                number(f.numa_node),
                f.obstacle.as_ref().map_or_else(|| "yes".to_owned(), |obstacle| format!("no: {obstacle}")),
            ]);
        }
        let mut text = table.print();
        // Each piece of advice once, however many controllers it is for.
        let mut hints: Vec<&str> = self.controllers.iter().filter_map(|f| f.hint.as_deref()).collect();
        hints.sort_unstable();
        hints.dedup();
        if !hints.is_empty() {
            text.push('\n');
            hints.iter().for_each(|hint| {
                text.push_str(hint);
                text.push('\n');
            });
        }
        text
    }
}

/// Lists the local controllers.
pub(super) fn list(transport: &PcieTransport, format: Format) -> Result<(), Failure> {
    let functions = transport.functions().map_err(|error| Failure::failed(error.to_string()))?;
    let local = Local {
        controllers: functions.iter().map(|f| Function::new(f, transport.obstacle(f).as_ref())).collect(),
    };
    match format {
        Format::Json => print_json(&local),
        Format::Normal => print(local.text()),
    }
}

/// Prints a line for each local controller that comes or goes, for ever.
pub(super) fn watch(mut hotplug: Hotplug) -> Result<(), Failure> {
    loop {
        let event = hotplug.wait(Duration::from_secs(60));
        match event.map_err(|error| Failure::failed(error.to_string()))? {
            Some(HotplugEvent::Inserted(trid)) => print(format!("inserted {}\n", trid.traddr()))?,
            Some(HotplugEvent::Removed(trid)) => print(format!("removed {}\n", trid.traddr()))?,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_local_controllers() {
        let function = |traddr: &str, driver: Option<&str>, iommu_group, obstacle: Option<&str>| Function {
            traddr: traddr.into(),
            vendor: "8086".into(),
            device: "0a54".into(),
            driver: driver.map(str::to_owned),
            iommu_group,
            numa_node: None,
            obstacle: obstacle.map(str::to_owned),
            hint: obstacle.map(|_| "hand it to user space".to_owned()),
        };
        let local = Local {
            controllers: vec![
                function("0000:04:00.0", Some("nvme"), Some(17), Some("held by the kernel's nvme driver")),
                function("0001:05:00.0", Some("vfio-pci"), Some(3), None),
                function("0001:06:00.0", None, None, Some("no IOMMU")),
            ],
        };
        let expected = "\
Address       Device     Driver    IOMMU group  NUMA node  Usable
0000:04:00.0  8086:0a54  nvme               17          -  no: held by the kernel's nvme driver
0001:05:00.0  8086:0a54  vfio-pci            3          -  yes
0001:06:00.0  8086:0a54  -                   -          -  no: no IOMMU

hand it to user space
";
        assert_eq!(local.text(), expected);
        assert!(Local { controllers: vec![] }.text().starts_with("No NVMe controller"));
    }
}
