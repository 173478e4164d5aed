# Data survive: block sizes from 512 B to 1 MiB at queue depths 1, 32 and 128, on 512 B and 4 KiB blocks, polled and sleeping on interrupts.
# deadline: 600
. /suite/env
user_has "$A"; user_has "$B"
runs=0
check() {
    address=$1 nsid=$2 length=$3 block=$4 depth=$5; shift 5
    runs=$((runs + 1))
    nvmf verify "$(trid "$address")" --nsid "$nsid" --offset 1MiB --length "$length" --block-size "$block" \
        --queue-depth "$depth" --seed $runs --yes --quiet "$@" ||
        fail "$address namespace $nsid, $length in blocks of $block, depth $depth, options: $*"
}
for depth in 1 32 128; do
    check "$A" 1 128KiB 512 $depth
    check "$A" 2 1MiB 4KiB $depth
    check "$A" 5 2MiB 16KiB $depth
    check "$B" 1 4MiB 128KiB $depth
    check "$B" 1 8MiB 1MiB $depth
    check "$A" 1 8MiB 1MiB $depth
done
# The last blocks of a device; one past them is refused before anything is written.
nvmf verify "$(trid "$A")" --offset 63MiB --length 1MiB --yes --quiet
expect_failure 60 nvmf verify "$(trid "$A")" --offset 63MiB --length 2MiB --yes --quiet
# perf polls; with --interrupt it sleeps on the vectors.
for option in "" --interrupt; do
    nvmf perf "$(trid "$A")" -q 16 -o 4096 -w randread -t 1 --json $option >/tmp/perf.json
    tr -d ' \n' </tmp/perf.json | grep -q '"errors":0' || { cat /tmp/perf.json; fail "perf $option: errors"; }
    iops=$(tr -d ' \n' </tmp/perf.json | grep -o '"iops":[0-9]*' | cut -d: -f2)
    [ "$iops" -gt 0 ] || fail "perf $option: nothing was read"
    note "perf $option: $iops IOPS (emulated: no measure of anything)"
done
note "$((runs + 1)) verifications"
