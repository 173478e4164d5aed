# `nvmf discover` prints what `nvme discover` prints, byte for byte: text and JSON, IPv4, IPv6, and a log with a referral.
# deadline: 180
. /suite/env
compare() {
    for format in normal json; do
        at="-t tcp -a $1 -s $2 $IDENTITY -o $format"
        nvme discover $at >/tmp/nvme.$format
        nvmf discover $at >/tmp/nvmf.$format
        [ "$(wc -l </tmp/nvme.$format)" -ge 10 ] || { cat /tmp/nvme.$format; fail "nvme-cli printed no log to compare with"; }
        expect_same "$format of $1 port $2" /tmp/nvme.$format /tmp/nvmf.$format
    done
    note "$1 port $2: $(grep -c '^subnqn:' /tmp/nvmf.normal) entries, $(grep '^Discovery' /tmp/nvmf.normal)"
}
compare 127.0.0.1 4420
compare ::1 4420
compare 127.0.0.1 4430
grep -q 'subtype: discovery subsystem referral' /tmp/nvmf.normal || fail "no referral in the log of port 4430"

# The log follows what the target offers: a subsystem taken away is gone, and the generation counter has moved.
nvmf discover -t tcp -a 127.0.0.1 -s 4420 $IDENTITY >/tmp/before
rm "$NVMET/ports/1/subsystems/$BETA"
nvmf discover -t tcp -a 127.0.0.1 -s 4420 $IDENTITY >/tmp/without
ln -s "$NVMET/subsystems/$BETA" "$NVMET/ports/1/subsystems/$BETA"
grep -q "$BETA" /tmp/before || fail "no beta before"
! grep -q "$BETA" /tmp/without || fail "beta is listed though it is gone"
[ "$(grep Generation /tmp/before)" != "$(grep Generation /tmp/without)" ] || fail "the generation counter stands still"

# A host that may use the private subsystem sees it; others do not.
nvmf discover -t tcp -a 127.0.0.1 -s 4420 -q "$OTHERHOST" >/tmp/other
grep -q "$PRIVATE" /tmp/other || fail "the host that is allowed does not see the private subsystem"
! grep -q "$PRIVATE" /tmp/before || fail "a host that is not allowed sees the private subsystem"
