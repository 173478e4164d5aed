# The conformance suite over RDMA: on two subsystems at the same time, with 512 B and 4 KiB blocks, polling and sleeping, and both
# controllers in one program.
# deadline: 600
. /suite/env
for option in "" --interrupt; do
    code=0; conformance "$(trid "$ALPHA")" "$(trid "$GAMMA")" --nsid 1 --nsid 2 --nsid 7 $option >/tmp/conformance 2>&1 || code=$?
    cat /tmp/conformance
    [ "$code" -eq 0 ] || fail "conformance $option: exit status $code"
    note "conformance $option: $(tail -n 1 /tmp/conformance)"
done
