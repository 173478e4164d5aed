# The controller is there, VFIO loaded, and our own target serves namespaces of the same formats.
# deadline: 90
. /suite/env
modules nvme vfio_iommu_type1 vfio-pci
[ -n "${A:-}" ] || fail "no NVMe controller"
nvmf target --namespace 60MiB,ms=8,pi=1 --namespace 60MiB,ms=8,pi=1,extended --namespace 60MiB,lba=4096,ms=64,pi=2,pi-first \
    --namespace 60MiB,lba=4096,ms=16,pi=1,guard=64,extended >/tmp/target 2>&1 &
wait_for 20 grep -q listening /tmp/target || { cat /tmp/target; fail "our target does not listen"; }
