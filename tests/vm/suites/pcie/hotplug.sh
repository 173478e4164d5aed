# A controller that is unplugged under load and plugged in again: every I/O ends once, the remove callback is called once, the slot is
# free at once; the same program drives the controller that comes back, and nothing that was written is lost. Polled, and asleep.
# deadline: 600
. /suite/env
qmp_open
# load_says WORD: the program has printed it; it fails when the program has ended instead.
says() { grep -q "^$1" /tmp/load || [ -s /run/load ]; }
load_says() { wait_for 180 says "$1" && grep -q "^$1" /tmp/load; }
# run_through OFFSET OPTION...: in a part of the disk that nobody has written to
run_through() {
    offset=$1; shift
    user_has "$HOT"
    _group=$(group_of "$HOT")
    rm -f /run/load /tmp/load
    (code=0; hotplug_load "$(trid "$HOT")" --offset "$offset" --length 8388608 --content /tmp/content "$@" >/tmp/load 2>&1 || code=$?
        echo $code >/run/load) &
    load_says running || { cat /tmp/load; fail "no load"; }
    request_unplug
    load_says gone || { cat /tmp/load /tmp/qmp; fail "the program does not notice"; }
    unplugged
    wait_for 60 group_is_gone || fail "the IOMMU group is still there"
    expect_failure 30 nvmf identify "$(trid "$HOT")"
    plug_in
    user_has "$HOT"
    wait_for 300 test -s /run/load || { cat /tmp/load; fail "the program does not end"; }
    cat /tmp/load
    [ "$(cat /run/load)" -eq 0 ] || fail "hotplug_load $*: exit status $(cat /run/load)"
    note "${*:-polled}: $(grep ^gone /tmp/load)"
    nvmf identify "$(trid "$HOT")" | grep -q PCIEHOT || fail "it does not answer"
    disk_holds hot "$offset" /tmp/content
}
run_through 0
run_through 8388608 --interrupt
nvmf unbind "$HOT"
