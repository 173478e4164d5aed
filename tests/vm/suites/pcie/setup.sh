# All controllers at the kernel's driver, VFIO loaded.
# deadline: 240
. /suite/env
modules nvme vfio_iommu_type1 vfio-pci
for address in $(addresses); do
    wait_for 60 test -e "/sys/bus/pci/devices/$address/nvme" || fail "the kernel does not drive $address"
    serial=$(cat "/sys/bus/pci/devices/$address"/nvme/nvme*/serial)
    case $serial in
        PCIEA*) echo "A=$address" ;;
        PCIEB*) echo "B=$address" ;;
        PCIEHOT*) echo "HOT=$address" ;;
        *) fail "an unknown controller: $serial" ;;
    esac
done >/run/controllers || { cat /run/controllers; exit 1; }
cat /run/controllers
. /run/controllers
[ -n "$A" ] && [ -n "$B" ] && [ -n "$HOT" ] || fail "not three controllers"
wait_for 60 disk "$A" 17 || fail "no namespace 17"
wait_for 60 disk "$B" 16 || fail "no namespace 16"
