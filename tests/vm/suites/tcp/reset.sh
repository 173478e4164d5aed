# A controller of the kernel's target is reset under a verifying load; the target goes away under one and comes back.
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
