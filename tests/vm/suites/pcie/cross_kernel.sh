# What nvmf writes through VFIO the kernel's driver reads after unbind, and the other way round: on every kind of namespace.
# deadline: 400
. /suite/env
# exchange ADDRESS NSID OFFSET_KIB KIB
exchange() {
    address=$1 nsid=$2 offset=$3 length=$4
    what="$address namespace $nsid offset $offset KiB, $length KiB"
    random_file /tmp/ours "$length"
    user_has "$address"
    nvmf write "$(trid "$address")" --nsid "$nsid" --offset "${offset}KiB" --input /tmp/ours --quiet
    kernel_has "$address" "$nsid"
    d=$(disk "$address" "$nsid")
    dd if="$d" of=/tmp/seen bs=4k skip=$((offset / 4)) count=$((length / 4)) iflag=direct 2>/dev/null
    [ "$(sha /tmp/ours)" = "$(sha /tmp/seen)" ] || fail "nvmf to kernel: $what"

    random_file /tmp/theirs "$length"
    dd if=/tmp/theirs of="$d" bs=4k seek=$((offset / 4)) oflag=direct conv=fsync 2>/dev/null
    user_has "$address"
    nvmf read "$(trid "$address")" --nsid "$nsid" --offset "${offset}KiB" --length "${length}KiB" --output /tmp/seen --quiet
    [ "$(sha /tmp/theirs)" = "$(sha /tmp/seen)" ] || fail "kernel to nvmf: $what"
    note "$what"
}
exchange "$A" 1 0 4
exchange "$A" 1 20480 3072
exchange "$A" 2 4100 2048
exchange "$A" 5 8 1024
exchange "$B" 1 0 4096
