# A controller that is unplugged under load and plugged in again: the program ends with an error, the slot is free at once, and the
# controller that comes back is driven again. Polled, and sleeping on interrupts.
# deadline: 180
. /suite/env
stty raw -echo -F /dev/ttyS2
cat /dev/ttyS2 >/tmp/monitor &
# What is sent before anybody listens is lost.
answers() { monitor info name; sleep 0.3; grep -aq 'info name' /tmp/monitor; }
wait_for 5 answers || fail "QEMU's monitor does not answer"
slot_is() { if [ "$1" = empty ]; then [ ! -e "/sys/bus/pci/devices/$HOT" ]; else [ -e "/sys/bus/pci/devices/$HOT/nvme" ]; fi; }
for option in "" --interrupt; do
    user_has "$HOT"
    under_load "$HOT" $option
    monitor device_del hot
    wait_for 10 test -s /run/load || cat /tmp/monitor
    load_lost "perf $option"
    wait_for 20 slot_is empty || { cat /tmp/monitor; fail "it is still there"; }
    expect_failure 10 nvmf identify "$(trid "$HOT")"
    wait_for 20 sh -c "! ls /dev/vfio | grep -qx $_group" || fail "the IOMMU group is still there"
    # QEMU may take a moment to forget the name.
    sleep 2
    monitor device_add nvme,id=hot,bus=rp0,serial=PCIEHOT,drive=d4
    wait_for 20 slot_is full || { cat /tmp/monitor; fail "it did not come back"; }
    user_has "$HOT"
    nvmf identify "$(trid "$HOT")" | grep -q PCIEHOT || fail "it does not answer"
    nvmf perf "$(trid "$HOT")" -q 4 -o 4096 -w randread -t 1 $option >/dev/null
done
nvmf unbind "$HOT"
