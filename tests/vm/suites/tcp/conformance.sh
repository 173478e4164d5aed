# The conformance suite against the kernel's target: 512 B and 4 KiB blocks, several queue pairs, discovery.
# deadline: 600
. /suite/env
code=0; conformance "$(trid "$ALPHA")" --discovery "trtype:tcp traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.2014-08.org.nvmexpress.discovery" \
    --nsid 1 --nsid 2 >/tmp/conformance 2>&1 || code=$?
cat /tmp/conformance
[ "$code" -eq 0 ] || fail "exit status $code"
note "$(tail -n 1 /tmp/conformance)"
