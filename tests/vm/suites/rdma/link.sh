# A link that goes down under load ends the program with one line; when it is up again, so is everything. The same when the device
# itself is taken away.
# deadline: 300
. /suite/env
W4=10.9.0.1
soft_roce rxe9 dummy9 $W4/24
port 9 rdma $W4 4420 "$GAMMA"
to_gamma="$(trid "$GAMMA" $W4)"
nvmf verify "$to_gamma" $IDENTITY --nsid 7 --length 1MiB --yes --quiet

for how in "" --interrupt; do
    ADDRESS=$W4 under_load 4420 $how
    ip link set dummy9 down
    load_lost "link down $how" 60
    expect_failure 12 nvmf read $IDENTITY --nsid 7 --length 4KiB --output /tmp/never --timeout 5 "$to_gamma"
    ip link set dummy9 up
    wait_for 30 rdma_active rxe9 || fail "rxe9 did not come up again: $(rdma link)"
    nvmf verify "$to_gamma" $IDENTITY --nsid 7 --length 1MiB --yes --quiet || fail "after the link came up again"
done

# A short interruption is the fabric's to repair: nothing is lost.
ADDRESS=$W4 LOAD="-t 4 --timeout 30" under_load 4420
ip link set dummy9 down
ip link set dummy9 up
wait_for 60 test -s /run/load || fail "perf still runs after a short interruption"
[ "$(cat /run/load)" -eq 0 ] || { cat /tmp/error; fail "a short interruption was not survived"; }

ADDRESS=$W4 under_load 4420
rdma link delete rxe9
load_lost "device removed" 60
expect_failure 12 nvmf read $IDENTITY --nsid 7 --length 4KiB --output /tmp/never --timeout 5 "$to_gamma"
port_down 9
ip link delete dummy9
