# `nvmf discover` prints what `nvme discover` prints, byte for byte: text and JSON, 1 to 200 entries, TCP and RDMA, IPv4 and IPv6.
# deadline: 240
. /suite/env
note "$(nvme version | head -n 1)"
# compare ENTRIES TRTYPE ADDRESS SERVICE [HOSTNQN]
compare() {
    for format in normal json; do
        at="-t $2 -a $3 -s $4 -q ${5:-$HOSTNQN} -o $format"
        nvme discover $at >/tmp/nvme.$format
        # nvme-cli before 2.9 printed the partition key in a longer form.
        sed -i 's/^rdma_pkey: 0x0000$/rdma_pkey: 0000/' /tmp/nvme.$format
        nvmf discover $at >/tmp/nvmf.$format
        expect_same "$format of $3 port $4" /tmp/nvme.$format /tmp/nvmf.$format
    done
    [ "$(grep -c 'example:s' /tmp/nvmf.normal)" -eq "$1" ] || fail "$3 port $4: not $1 subsystems"
    note "$2 $3 port $4: $1 subsystems, $(grep '^Discovery Log Number' /tmp/nvmf.normal)"
}
# The third subsystem is not for this host.
compare 1 tcp 127.0.0.1 4401
compare 3 tcp 127.0.0.1 4404
compare 4 tcp 127.0.0.1 4404 "$OTHERHOST"
compare 4 tcp 127.0.0.1 4405
compare 69 tcp ::1 4470
compare 199 tcp 127.0.0.1 4500
compare 200 tcp 127.0.0.1 4500 "$OTHERHOST"
compare 4 rdma $V4 4420
compare 3 rdma $V6 4420
compare 1 tcp 127.0.0.1 4408
grep -q 'subtype: discovery subsystem referral' /tmp/nvmf.normal || fail "no referral in the log of port 4408"
