# `nvmf discover` prints what `nvme discover` prints, byte for byte: text and JSON, IPv4, IPv6, and a log with a referral.
# deadline: 120
. /suite/env
compare() {
    for format in normal json; do
        at="-t rdma -a $1 -s $2 $IDENTITY -o $format"
        nvme discover $at >/tmp/nvme.$format
        # nvme-cli before 2.9 printed the partition key in a longer form.
        sed -i 's/^rdma_pkey: 0x0000$/rdma_pkey: 0000/' /tmp/nvme.$format
        nvmf discover $at >/tmp/nvmf.$format
        [ "$(wc -l </tmp/nvme.$format)" -ge 10 ] || { cat /tmp/nvme.$format; fail "nvme-cli printed no log to compare with"; }
        expect_same "$format of $1 port $2" /tmp/nvme.$format /tmp/nvmf.$format
    done
    grep -q '^rdma_cms:    rdma-cm$' /tmp/nvmf.normal || { cat /tmp/nvmf.normal; fail "no RDMA fields in the log"; }
    note "$1 port $2: $(grep -c '^subnqn:' /tmp/nvmf.normal) entries, $(grep '^Discovery' /tmp/nvmf.normal)"
}
compare $V4 4420
compare $V6 4420
compare $V4 4430
grep -q 'subtype: discovery subsystem referral' /tmp/nvmf.normal || fail "no referral in the log of port 4430"

# A host that may use the private subsystem sees it; others do not.
nvmf discover -t rdma -a $V4 -s 4420 -q "$OTHERHOST" >/tmp/other
nvmf discover -t rdma -a $V4 -s 4420 $IDENTITY >/tmp/mine
grep -q "$PRIVATE" /tmp/other || fail "the host that is allowed does not see the private subsystem"
! grep -q "$PRIVATE" /tmp/mine || fail "a host that is not allowed sees the private subsystem"
