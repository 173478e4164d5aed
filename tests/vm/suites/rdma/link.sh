# A link that goes down under load ends the program with one line, and so does a device that is taken away; with the device made anew
# all is well again.
# deadline: 400
. /suite/env
W4=10.9.0.1
to_gamma="$(trid "$GAMMA" $W4)"
verify() { nvmf verify "$to_gamma" $IDENTITY --nsid 7 --length 256KiB --yes --quiet || fail "$1"; }
# unreachable: a new connection is refused by the facts, in time.
unreachable() { expect_failure 12 nvmf read $IDENTITY --nsid 7 --length 4KiB --output /tmp/never --timeout 5 "$to_gamma"; }
appear() { soft_roce rxe9 dummy9 $W4/24; port 9 rdma $W4 4420 "$GAMMA"; }
disappear() { port_down 9; rdma link delete rxe9 2>/dev/null || true; ip link delete dummy9; }

appear
verify "before anything happened"

# Soft-RoCE's own management queue pair does not survive that anything is sent meanwhile, whoever sends it, so the
# device is made anew.
for how in "" --interrupt; do
    ADDRESS=$W4 under_load 4420 $how
    ip link set dummy9 down
    load_lost "link down $how" 60
    grep -q "port 1 of the RDMA device rxe9 is not up" /tmp/error || fail "the cause is not told: $(cat /tmp/error)"
    unreachable
    disappear
    appear
    verify "after the link came up again"
done

ADDRESS=$W4 under_load 4420
rdma link delete rxe9
load_lost "device removed" 60
unreachable
disappear
appear
verify "after the device came again"
disappear
