# `nvmf identify` and `nvmf list` through VFIO say what the kernel's driver saw: names, namespaces, sizes, block sizes.
# deadline: 240
. /suite/env
compare() {
    address=$1; shift
    kernel_has "$address" "$@"
    controller=/sys/bus/pci/devices/$address/nvme/nvme*
    serial=$(cat $controller/serial | tr -d ' '); model=$(cat $controller/model | sed 's/ *$//'); nqn=$(cat $controller/subsysnqn)
    for nsid in "$@"; do
        d=$(disk "$address" "$nsid"); d=${d#/dev/}
        echo "\"nsid\":$nsid,\"size\":$(($(cat /sys/block/$d/size) * 512)),\"blocks\":$(($(cat /sys/block/$d/size) * 512 / $(cat /sys/block/$d/queue/logical_block_size))),\"block_size\":$(cat /sys/block/$d/queue/logical_block_size),"
    done >/tmp/expected
    user_has "$address"
    nvmf identify "$(trid "$address")" | tee /tmp/identify
    for text in "$serial" "$model" "$nqn"; do grep -qF "$text" /tmp/identify || fail "no $text"; done
    nvmf list "$(trid "$address")" -o json | tr -d ' \n' >/tmp/list
    while read -r line; do grep -qF "$line" /tmp/list || { cat /tmp/list; fail "no $line"; }; done </tmp/expected
    [ "$(grep -o '"nsid":' /tmp/list | wc -l)" -eq $# ] || fail "not $# namespaces"
    note "$address: $serial, $# namespaces"
}
compare "$A" 1 2 5 16 17 18
compare "$B" 1 16
