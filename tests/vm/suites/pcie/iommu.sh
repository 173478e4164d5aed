# The lab itself: an access to memory that is not mapped for a controller is stopped by the IOMMU, and the check after each script
# sees it. A controller without a driver is made to fetch a command from nowhere.
# deadline: 180
. /suite/env
user_has "$A"
echo >"/sys/bus/pci/devices/$A/driver_override"
echo "$A" >/sys/bus/pci/drivers/vfio-pci/unbind
trap 'echo "$A" >/sys/bus/pci/drivers/nvme/bind' EXIT
[ "$(driver_of "$A")" = none ] || fail "$A has a driver"
! dma_faults || fail "there was a fault before"

echo 1 >"/sys/bus/pci/devices/$A/enable"
read -r bar _ <"/sys/bus/pci/devices/$A/resource"
register() { devmem $((bar + $1)) 32 "$2"; }
ready_is() { [ $(($(devmem $((bar + 0x1c)) 32) & 1)) -eq "$1" ]; }
# What its last driver told it is forgotten with CC.EN.
register 0x14 0
wait_for 60 ready_is 0 || fail "the controller does not stop"
# Memory space and bus mastering in the command register
printf '\006\000' | dd of="/sys/bus/pci/devices/$A/config" bs=1 seek=4 conv=notrunc 2>/dev/null
# Admin queues of 32 entries at addresses that nobody mapped, CC.EN, and the doorbell of the admin submission queue
register 0x24 0x001f001f
register 0x28 0xdead0000; register 0x2c 0
register 0x30 0xbeef0000; register 0x34 0
register 0x14 0x00460001
wait_for 60 ready_is 1 || fail "the controller does not become ready"
! dma_faults || fail "there was a fault before"
register 0x1000 1
wait_for 60 dma_faults || { dmesg | tail; fail "nobody noticed"; }
dma_faults | grep "${A#0000:}.*fault addr 0xdead0000" || { dma_faults; fail "another fault"; }
register 0x14 0
wait_for 60 ready_is 0 || fail "the controller does not stop"
echo 0 >"/sys/bus/pci/devices/$A/enable"
# It was meant to be: the check after this script is not to see it.
dmesg -c >/dev/null
! dma_faults || fail "the fault is still there"
