# Data survive: every block size from 512 B to 1 MiB at queue depths 1 to 128, on 512 B and 4 KiB blocks, with and without digests.
# deadline: 600
. /suite/env
runs=0
# check NSID LENGTH BLOCK DEPTH [OPTION...]
check() {
    nsid=$1 length=$2 block=$3 depth=$4; shift 4
    runs=$((runs + 1))
    nvmf verify "$(trid "$ALPHA")" $IDENTITY --nsid "$nsid" --offset 1MiB --length "$length" --block-size "$block" \
        --queue-depth "$depth" --seed $runs --yes --quiet "$@" ||
        fail "namespace $nsid, $length in blocks of $block, depth $depth, options: $*"
}
for depth in 1 8 32 128; do
    for digests in "" "--hdr-digest --data-digest"; do
        check 1 128KiB 512 $depth $digests
        check 2 1MiB 4KiB $depth $digests
        check 1 2MiB 16KiB $depth $digests
        check 2 4MiB 128KiB $depth $digests
        check 1 8MiB 1MiB $depth $digests
    done
done
# One digest without the other, and the other backing devices.
check 1 256KiB 4KiB 8 --hdr-digest
check 1 256KiB 4KiB 8 --data-digest
check 5 1MiB 64KiB 8
# The last blocks of a device; one past them is refused before anything is written.
nvmf verify "$(trid "$ALPHA")" $IDENTITY --offset 63MiB --length 1MiB --yes --quiet
expect_failure 60 nvmf verify "$(trid "$ALPHA")" $IDENTITY --offset 63MiB --length 2MiB --yes --quiet
nvmf verify "nvme+tcp://[::1]:4420/$BETA" $IDENTITY --length 1MiB --block-size 4KiB --yes --quiet
nvmf verify "nvme+tcp://127.0.0.1:4430/$GAMMA" $IDENTITY --nsid 7 --length 1MiB --block-size 4KiB --yes --quiet
note "$((runs + 3)) verifications"
