# A controller of the kernel's target is reset under a verifying load; the target goes away under one and comes back, and at last stays
# away.
# deadline: 300
. /suite/env
nvmf reset "$(trid "$ALPHA")" $IDENTITY --count 20 | tail -n 1
nvmf verify "$(trid "$ALPHA")" $IDENTITY --length 16MiB --block-size 4KiB --queue-depth 32 --yes --quiet --reset-every 0.05 >/tmp/verified ||
    fail "verify while it is reset"
cat /tmp/verified
resets=$(grep '^resets' /tmp/verified | tr -dc 0-9)
[ "$resets" -gt 0 ] || fail "it was not reset"

# Whether I/O has begun: its queue is the second connection that the port has accepted.
connected() { [ "$(grep -c ':1144 .* 01 ' /proc/net/tcp)" -ge 2 ]; }
# The subsystem is taken off the port, which ends its connections, and put back.
link="$NVMET/ports/1/subsystems/$ALPHA"
nvmf verify "$(trid "$ALPHA")" $IDENTITY --length 48MiB --block-size 4KiB --queue-depth 8 --yes --quiet --reconnect-delay 0.2 \
    --ctrl-loss-tmo 60 >/tmp/verified 2>&1 &
wait_for 60 connected || { cat /tmp/verified /proc/net/tcp /proc/net/tcp6; fail "verify does not connect"; }
for _ in 1 2 3; do
    sleep 1
    rm "$link"
    sleep 1
    ln -s "$NVMET/subsystems/$ALPHA" "$link"
done
wait $! || { cat /tmp/verified; fail "verify while the target comes and goes"; }
cat /tmp/verified

# One that stays away is given up when the time is over, and not before. (-q is perf's queue depth.)
(code=0; nvmf perf "$(trid "$ALPHA")" --hostnqn "$HOSTNQN" --hostid "$HOSTID" -q 8 -t 200 --reconnect-delay 0.2 --ctrl-loss-tmo 4 \
    >/tmp/perf 2>/tmp/error || code=$?
    echo $code >/run/perf) &
wait_for 60 connected || { cat /tmp/error; fail "perf does not connect"; }
sleep 1
rm "$link"
sleep 2
[ ! -s /run/perf ] || fail "it is given up too early: $(cat /tmp/error)"
wait_for 60 test -s /run/perf || fail "perf is not given up"
note "the target stays away: exit status $(cat /run/perf): $(cat /tmp/error)"
[ "$(cat /run/perf)" -eq 3 ] || fail "exit status $(cat /run/perf)"
[ "$(wc -l </tmp/error)" -eq 1 ] || fail "not one line of error"
ln -s "$NVMET/subsystems/$ALPHA" "$link"
nvmf verify "$(trid "$ALPHA")" $IDENTITY --length 1MiB --yes --quiet || fail "verify at the end"
