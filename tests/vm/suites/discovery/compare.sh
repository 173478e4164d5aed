# `nvmf discover` prints what `nvme discover` prints, byte for byte: text and JSON, 1 to 200 entries, TCP and RDMA, IPv4 and IPv6.
# deadline: 240
. /suite/env
# as_later_versions FILE: what nvme-cli prints differently before 2.9 and libnvme before 1.4 (docs/testing.md), made what later ones
# print; the differences must be there.
version() { nvme version | sed -n "s/^$1 version \([0-9]*\)\.\([0-9]*\).*/\1 \2/p"; }
before() { [ "$1" -lt "$3" ] || { [ "$1" -eq "$3" ] && [ "$2" -lt "$4" ]; }; }
as_later_versions() {
    case $1 in *.normal)
        if before $(version nvme) 2 9; then
            ! grep -q '^rdma_pkey: 0000$' "$1" || fail "nvme-cli $(version nvme) prints partition keys as later ones do"
            sed -i 's/^rdma_pkey: 0x0000$/rdma_pkey: 0000/' "$1"
        fi ;;
    esac
    if before $(version libnvme) 1 4 && [ -n "$2" ]; then
        grep -q unrecognized "$1" || fail "libnvme $(version libnvme) has a word for the requirements of $1"
        sed -i "/treq/s/unrecognized/$2, sq flow control disable supported/" "$1"
    fi
}
note "$(nvme version | tr '\n' ' ')"
# compare SUBSYSTEMS TRTYPE ADDRESS SERVICE [HOSTNQN [REQUIREMENT]]
compare() {
    for format in normal json; do
        at="-t $2 -a $3 -s $4 -q ${5:-$HOSTNQN} -o $format"
        nvme discover $at >/tmp/nvme.$format
        as_later_versions /tmp/nvme.$format "${6:-}"
        nvmf discover $at >/tmp/nvmf.$format
        expect_same "$format of $3 port $4" /tmp/nvme.$format /tmp/nvmf.$format
    done
    [ "$(grep -c 'example:s' /tmp/nvmf.normal)" -eq "$1" ] || fail "$3 port $4: not $1 subsystems"
    note "$2 $3 port $4: $1 subsystems, $(grep '^Discovery Log Number' /tmp/nvmf.normal)"
}
compare 1 tcp 127.0.0.1 4401
# The third subsystem is not for this host, but for the other one.
compare 3 tcp 127.0.0.1 4404
compare 4 tcp 127.0.0.1 4404 "$OTHERHOST"
compare 5 tcp 127.0.0.1 4405 "$OTHERHOST"
compare 70 tcp ::1 4470 "$OTHERHOST"
compare 200 tcp 127.0.0.1 4500 "$OTHERHOST"
compare 5 rdma $V4 4420 "$OTHERHOST"
compare 4 rdma $V6 4420 "$OTHERHOST"
compare 1 tcp 127.0.0.1 4411 "$HOSTNQN" required
compare 1 tcp 127.0.0.1 4412 "$HOSTNQN" 'not required'
# Two services that refer to each other.
for service in 4408 4409; do
    compare 1 tcp 127.0.0.1 $service
    grep -q 'subtype: discovery subsystem referral' /tmp/nvmf.normal || fail "no referral in the log of port $service"
done
# The log page as it is, on standard output and in a file.
at="-t tcp -a ::1 -s 4470"
nvme discover $at -o binary >/tmp/nvme.binary
nvmf discover $at -o binary >/tmp/nvmf.binary
expect_same "binary" /tmp/nvme.binary /tmp/nvmf.binary
nvme discover $at -r /tmp/nvme.raw >/dev/null
nvmf discover $at -r /tmp/nvmf.raw
expect_same "raw" /tmp/nvme.raw /tmp/nvmf.raw
[ "$(stat -c %s /tmp/nvmf.raw)" -eq $((71 * 1024)) ] || fail "not the header and 70 entries"
