# Data survive: every block size from 512 B to 1 MiB at queue depths 1 to 128, on 512 B and 4 KiB blocks, sleeping and polling.
# deadline: 420
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
# Every size sleeping at two depths and polling at the other two.
this= that=--poll
for depth in 1 8 32 128; do
    check 1 64KiB 512 $depth $this
    check 2 512KiB 4KiB $depth $that
    check 1 1MiB 16KiB $depth $this
    check 2 2MiB 128KiB $depth $that
    check 1 4MiB 1MiB $depth $this
    next=$this this=$that that=$next
done
# Sizes around what fits into a capsule (4 KiB), and the other backing devices.
for block in 3584 4608 8192; do check 1 $((block * 32)) $block 16; done
check 5 1MiB 64KiB 8
# The last blocks of a device; one past them is refused before anything is written.
nvmf verify "$(trid "$ALPHA")" $IDENTITY --offset 63MiB --length 1MiB --yes --quiet
expect_failure 20 nvmf verify "$(trid "$ALPHA")" $IDENTITY --offset 63MiB --length 2MiB --yes --quiet
nvmf verify "nvme+rdma://[$V6]:4420/$BETA" $IDENTITY --length 1MiB --block-size 4KiB --yes --quiet
nvmf verify "nvme+rdma://$V4:4430/$GAMMA" $IDENTITY --nsid 7 --length 1MiB --block-size 4KiB --yes --quiet
note "$((runs + 3)) verifications"
