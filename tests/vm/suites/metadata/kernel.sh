# The kernel generates and checks protection information of its own: what it writes we find protected, and the other way round.
# deadline: 120
. /suite/env
for nsid in 1 2; do
    kernel_has $nsid
    d=$(disk $nsid)
    # It may do without a namespace whose checksum it has no module for. Where it has no protection of its own it uses PRACT.
    if [ "$(cat "/sys/block/${d#/dev/}/size")" -eq 0 ]; then
        note "the kernel does not use namespace $nsid"
        continue
    fi
    note "namespace $nsid: $(cat "/sys/block/${d#/dev/}/integrity/format" 2>/dev/null)"
    random_file /tmp/theirs 1024
    dd if=/tmp/theirs of="$d" bs=64k seek=16 oflag=direct conv=fsync 2>/dev/null
    user_has
    nvmf read "$P" --nsid $nsid --offset 1MiB --length 1MiB --prinfo 5 --output /tmp/seen --quiet
    expect_same "kernel to nvmf, namespace $nsid" /tmp/theirs /tmp/seen
    random_file /tmp/ours 1024
    nvmf write "$P" --nsid $nsid --offset 1MiB --input /tmp/ours --prinfo 8 --quiet
    kernel_has $nsid
    dd if="$(disk $nsid)" of=/tmp/seen bs=64k skip=16 count=16 iflag=direct 2>/dev/null || fail "the kernel does not take our protection"
    expect_same "nvmf to kernel, namespace $nsid" /tmp/ours /tmp/seen
done
