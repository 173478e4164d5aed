# The controller is there, and VFIO loaded.
# deadline: 90
. /suite/env
modules nvme vfio_iommu_type1 vfio-pci
[ -n "${A:-}" ] || fail "no NVMe controller"
