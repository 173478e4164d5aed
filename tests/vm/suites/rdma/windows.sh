# Memory windows: the controller has a key for the data of each command alone. The kernel's target ends it with the response.
# deadline: 400
. /suite/env
some() {
    how=$1; shift
    conformance "$(trid "$GAMMA")" --memory-windows "$@" >/tmp/parts 2>&1 || { cat /tmp/parts; fail "conformance, $how"; }
    note "conformance, $how: $(tail -n 1 /tmp/parts)"
}
some polling --part large_and_vectored --part poll_group --part drop_in_flight --part abort
some sleeping --interrupt --part verified_io --part drop_in_flight

RUST_LOG=nvmf_transport_rdma=debug nvmf verify "$(trid "$GAMMA")" $IDENTITY --nsid 7 --length 16MiB --block-size 64KiB --queue-depth 32 \
    --yes --quiet --memory-windows >/tmp/verified 2>/tmp/log || { cat /tmp/verified /tmp/log; fail "verify"; }
grep -o 'keys for single commands.*' /tmp/log >/tmp/keys || fail "no key was given: $(cat /tmp/log)"
cat /tmp/keys
# Of the queue of the I/O.
eval "$(grep 'qid=1 ' /tmp/keys | grep -o 'given=[0-9]* ended=[0-9]*')"
[ "$given" -ge 512 ] || fail "less than a key for each of 512 commands"
[ "$ended" -eq "$given" ] || fail "the kernel's target ended not all of them"

# The same with a process that shares the controller, each for its own queues. The primary tells of its admin queue when that is destroyed, and
# sometimes ends before it comes to that.
export RUST_LOG=nvmf_transport_rdma=debug
rm -f /tmp/share.error
runs=0
until grep 'keys for single commands.*qid=0 \|qid=0 .*keys for single commands' /tmp/share.error 2>/dev/null; do
    runs=$((runs + 1))
    [ $runs -le 5 ] || { cat /tmp/share.error; fail "the primary gave no key"; }
    share --memory-windows "$(trid "$GAMMA")"
    nvmf verify "$(trid "$GAMMA")" $IDENTITY --instance vm --nsid 7 --length 4MiB --block-size 64KiB --queue-depth 8 --yes --quiet \
        --memory-windows >/tmp/verified 2>/tmp/log || { cat /tmp/verified /tmp/log; fail "verify in a secondary"; }
    kill $PRIMARY
    wait $PRIMARY || fail "the primary: exit status $?"
    grep -q 'keys for single commands.*given=\|given=.*keys for single commands' /tmp/log || { cat /tmp/log; fail "the secondary gave no key"; }
done
