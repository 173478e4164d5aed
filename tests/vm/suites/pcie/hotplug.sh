# A controller that is unplugged under load and plugged in again: the program ends with an error, the slot is free at once, and the
# controller that comes back is driven again. Polled, and sleeping on interrupts.
# deadline: 400
. /suite/env
qmp_open
for option in "" --interrupt; do
    user_has "$HOT"
    under_load "$HOT" $option
    request_unplug
    wait_for 60 test -s /run/load || cat /tmp/qmp
    load_lost "perf $option"
    unplugged
    expect_failure 30 nvmf identify "$(trid "$HOT")"
    wait_for 60 sh -c "! ls /dev/vfio | grep -qx $_group" || fail "the IOMMU group is still there"
    plug_in
    user_has "$HOT"
    nvmf identify "$(trid "$HOT")" | grep -q PCIEHOT || fail "it does not answer"
    nvmf perf "$(trid "$HOT")" -q 4 -o 4096 -w randread -t 1 $option >/dev/null
done
nvmf unbind "$HOT"
