# What nvmf writes the kernel's initiator reads, and the other way round: at the start, at an offset, on every kind of namespace.
# deadline: 400
. /suite/env
# exchange NQN NSID OFFSET_KIB KIB [OPTION...]
exchange() {
    nqn=$1 nsid=$2 offset=$3 length=$4; shift 4
    disk=$(kernel_namespace "$nqn" "$nsid")
    what="$nqn namespace $nsid offset $offset KiB, $length KiB $*"

    random_file /tmp/ours "$length"
    nvmf write "$(trid "$nqn")" $IDENTITY --nsid "$nsid" --offset "${offset}KiB" --input /tmp/ours --quiet "$@"
    dd if="$disk" of=/tmp/seen bs=4k skip=$((offset / 4)) count=$((length / 4)) iflag=direct 2>/dev/null
    [ "$(sha /tmp/ours)" = "$(sha /tmp/seen)" ] || fail "nvmf to kernel: $what"

    random_file /tmp/theirs "$length"
    dd if=/tmp/theirs of="$disk" bs=4k seek=$((offset / 4)) oflag=direct conv=fsync 2>/dev/null
    nvmf read "$(trid "$nqn")" $IDENTITY --nsid "$nsid" --offset "${offset}KiB" --length "${length}KiB" \
        --output /tmp/seen --quiet "$@"
    [ "$(sha /tmp/theirs)" = "$(sha /tmp/seen)" ] || fail "kernel to nvmf: $what"
    note "$what"
}
for nqn in "$ALPHA" "$BETA"; do kernel_connect "$nqn"; done
exchange "$ALPHA" 1 0 4
exchange "$ALPHA" 1 0 3072
exchange "$ALPHA" 1 20480 1024 --hdr-digest --data-digest
exchange "$ALPHA" 2 0 1028
exchange "$ALPHA" 2 4100 2048 --data-digest
exchange "$ALPHA" 5 8 1024
exchange "$BETA" 1 0 1024

# Through pipes, and as a URI.
random_file /tmp/ours 64
nvmf write "nvme+tcp://127.0.0.1:4420/$ALPHA" $IDENTITY --quiet </tmp/ours
nvmf read "nvme+tcp://127.0.0.1:4420/$ALPHA" $IDENTITY --length 64KiB --quiet >/tmp/seen
expect_same "through pipes" /tmp/ours /tmp/seen
