# Several queue pairs of one controller, two controllers at once, and queues that are smaller than what is asked of them.
# deadline: 180
. /suite/env
# number KEY FILE: of a JSON report, its integer part
number() { tr -d ' \n' <"$2" | grep -o "\"$1\":[0-9]*" | cut -d: -f2; }
# good FILE LABEL: I/O was done and none failed.
good() {
    [ "$(head -c 1 "$1")" = "{" ] || { cat "$1"; fail "$2: no JSON object"; }
    [ "$(number iops "$1")" -gt 0 ] || { cat "$1"; fail "$2: no I/O"; }
    [ "$(number errors "$1")" -eq 0 ] || { cat "$1"; fail "$2: I/O errors"; }
    note "$2: $(number iops "$1") IOPS, mean $(number mean "$1") us (emulated: no measure of anything)"
}
# measure LABEL OPTION...
measure() {
    label=$1; shift
    nvmf perf "$(trid "$ALPHA")" --hostnqn "$HOSTNQN" -t 1 --json "$@" >/tmp/perf.json
    good /tmp/perf.json "$label"
}
measure "4 KiB random reads, depth 32" -q 32
measure "the same, sleeping" -q 32 --interrupt

# Four queue pairs of one thread share one receive queue and one completion queue.
shared() { rdma resource show srq 2>/dev/null | grep -c "comm nvmf" || true; }
some_shared() { [ "$(shared)" -gt 0 ] && [ "$(rdma resource show qp | grep -c "comm nvmf")" -eq 5 ]; }
nvmf perf "$(trid "$ALPHA")" --hostnqn "$HOSTNQN" -t 3 --json -q 8 -w randrw -P 4 --yes >/tmp/perf.json &
four=$!
wait_for 20 some_shared || fail "four queue pairs of one thread share no receive queue"
srqs=$(shared) qps=$(rdma resource show qp | grep -c "comm nvmf")
wait $four || fail "perf with four queue pairs"
good /tmp/perf.json "random mix on four queue pairs, $qps of them and $srqs shared receive queue(s)"
[ "$srqs" -eq 1 ] && [ "$qps" -eq 5 ] || fail "$srqs shared receive queues and $qps queue pairs instead of 1 and 5"
measure "two threads with two queue pairs each, sleeping" -q 8 -P 2 --threads 2 --interrupt

# Two controllers at once, each written with its own pattern.
nvmf verify "$(trid "$ALPHA")" $IDENTITY --length 2MiB --seed 11 --yes --quiet >/tmp/first 2>&1 &
first=$!
nvmf verify "$(trid "$GAMMA")" $IDENTITY --nsid 7 --length 2MiB --seed 12 --yes --quiet --poll
wait $first || { cat /tmp/first; fail "the first of two at once"; }
# The same subsystem through two associations of two hosts, in ranges of their own.
nvmf verify "$(trid "$ALPHA")" $IDENTITY --length 2MiB --seed 13 --yes --quiet >/tmp/first 2>&1 &
first=$!
nvmf verify "$(trid "$ALPHA" $V6)" -q "$OTHERHOST" --offset 32MiB --length 2MiB --seed 14 --yes --quiet
wait $first || { cat /tmp/first; fail "the first of two hosts at once"; }

# A port whose queues have 16 entries: depth 64 is served, within them.
mkdir "$NVMET/ports/8"
if [ -e "$NVMET/ports/8/param_max_queue_size" ]; then
    rmdir "$NVMET/ports/8"
    PORT_ATTRIBUTES=param_max_queue_size=16 port 8 rdma $V4 4480 "$ALPHA"
    nvmf verify "$(trid "$ALPHA" $V4 4480)" $IDENTITY --length 1MiB --queue-depth 64 --yes --quiet
    nvmf perf "$(trid "$ALPHA" $V4 4480)" --hostnqn "$HOSTNQN" -t 1 -q 64 --json >/tmp/perf.json
    good /tmp/perf.json "queues of 16 entries, depth 64"
    port_down 8
else
    rmdir "$NVMET/ports/8"
    note "this kernel's target has no setting for the queue size"
fi

# Ports that take more or less data in a capsule.
for inline in 0 16384; do
    PORT_ATTRIBUTES=param_inline_data_size=$inline port 8 rdma $V4 4480 "$ALPHA"
    for block in 512 4096 16384 20480; do
        nvmf verify "$(trid "$ALPHA" $V4 4480)" $IDENTITY --length $((block * 32)) --block-size $block --queue-depth 8 --yes --quiet ||
            fail "in-capsule data of $inline bytes, blocks of $block"
    done
    port_down 8
done
