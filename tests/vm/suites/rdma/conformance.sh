# The conformance suite over RDMA, twice at the same time: polling, with 512 B and 4 KiB blocks, and sleeping, on another subsystem.
# deadline: 600
. /suite/env
conformance "$(trid "$ALPHA")" --nsid 1 --nsid 2 >/tmp/polling 2>&1 &
polling=$!
code=0; conformance "$(trid "$GAMMA")" --interrupt >/tmp/sleeping 2>&1 || code=$?
cat /tmp/sleeping
[ "$code" -eq 0 ] || fail "sleeping: exit status $code"
wait $polling || { code=$?; cat /tmp/polling; fail "polling: exit status $code"; }
note "sleeping: $(tail -n 1 /tmp/sleeping)"
note "polling: $(tail -n 1 /tmp/polling)"
