//! `nvmf list` without a target: the NVMe controllers on this machine's PCI bus.

use nvmf_transport_pcie::{PciFunction, PcieTransport};
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
}

impl Function {
    fn new(function: &PciFunction) -> Self {
        Self {
            traddr: function.address.to_string(),
            vendor: format!("{:04x}", function.vendor),
            device: format!("{:04x}", function.device),
            driver: function.driver.clone(),
            iommu_group: function.iommu_group,
            numa_node: function.numa_node,
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
        let mut table = Table::new(&["Address", "Device", "Driver", "IOMMU group", "NUMA node"], &[3, 4]);
        for f in &self.controllers {
            table.line([
                f.traddr.clone(),
                format!("{}:{}", f.vendor, f.device),
                f.driver.clone().unwrap_or_else(dash),
                number(f.iommu_group),
                number(f.numa_node),
            ]);
        }
        table.print()
    }
}

/// Lists the local controllers.
pub(super) fn list(transport: &PcieTransport, format: Format) -> Result<(), Failure> {
    let functions = transport.functions().map_err(|error| Failure::failed(error.to_string()))?;
    let local = Local { controllers: functions.iter().map(Function::new).collect() };
    match format {
        Format::Json => print_json(&local),
        Format::Normal => print(local.text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_local_controllers() {
        let function = |traddr: &str, driver: Option<&str>, iommu_group| Function {
            traddr: traddr.into(),
            vendor: "8086".into(),
            device: "0a54".into(),
            driver: driver.map(str::to_owned),
            iommu_group,
            numa_node: None,
        };
        let local = Local {
            controllers: vec![
                function("0000:04:00.0", Some("nvme"), Some(17)),
                function("0001:05:00.0", None, None),
            ],
        };
        let expected = "\
Address       Device     Driver  IOMMU group  NUMA node
0000:04:00.0  8086:0a54  nvme             17          -
0001:05:00.0  8086:0a54  -                 -          -
";
        assert_eq!(local.text(), expected);
        assert!(Local { controllers: vec![] }.text().starts_with("No NVMe controller"));
    }
}
