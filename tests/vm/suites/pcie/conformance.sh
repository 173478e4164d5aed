# The conformance suite through VFIO: on two controllers at the same time, with 512 B and 4 KiB blocks, polled and sleeping on
# interrupts, and both controllers in one program.
# deadline: 600
. /suite/env
user_has "$A"; user_has "$B"
for option in "" --interrupt; do
    code=0; conformance "$(trid "$A")" "$(trid "$B")" --nsid 1 --nsid 2 --nsid 5 $option >/tmp/conformance 2>&1 || code=$?
    cat /tmp/conformance
    [ "$code" -eq 0 ] || fail "conformance $option: exit status $code"
    note "conformance $option: $(tail -n 1 /tmp/conformance)"
done
