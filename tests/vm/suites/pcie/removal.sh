# A controller that is taken away under load (as by unplugging it): the program ends with an error, the kernel gets the function
# back at once, and after a rescan it is driven again. Polled, and sleeping on interrupts.
# deadline: 400
. /suite/env
# take_away OPTION...: of perf
take_away() {
    user_has "$A"
    under_load "$A" "$@"
    read -r began _ </proc/uptime
    echo 1 >"/sys/bus/pci/devices/$A/remove"
    read -r ended _ </proc/uptime
    took=$((${ended%.*} - ${began%.*}))
    load_lost "perf $*"
    [ "$took" -le 40 ] || fail "the kernel waited $took s for the function"
    [ ! -e "/sys/bus/pci/devices/$A" ] || fail "it is still there"
    expect_failure 30 nvmf identify "$(trid "$A")"
    note "perf $*: the kernel had the function back after $took s"

    echo 1 >/sys/bus/pci/rescan
    wait_for 60 test -e "/sys/bus/pci/devices/$A" || fail "it did not come back"
    kernel_has "$A" 1 2 5 16 17
    user_has "$A"
    nvmf verify "$(trid "$A")" --length 1MiB --block-size 4KiB --yes --quiet
}
take_away
take_away --interrupt
