# A controller of the kernel's target is reset under a verifying load; the target goes away under one and comes back: first the
# subsystem, then the whole port; and at last it stays away.
# deadline: 500
. /suite/env
W=4490
to_gamma="$(trid "$GAMMA" $V4 $W)"
appear() { port 9 rdma $V4 $W "$GAMMA"; }
appear

nvmf reset "$to_gamma" $IDENTITY --count 10 | tail -n 1
nvmf verify "$to_gamma" $IDENTITY --nsid 7 --length 8MiB --block-size 4KiB --queue-depth 16 --yes --quiet --reset-every 0.2 \
    >/tmp/verified || fail "verify while it is reset"
cat /tmp/verified
resets=$(grep '^resets' /tmp/verified | tr -dc 0-9)
[ "$resets" -gt 0 ] || fail "it was not reset"

# verifying SECONDS: whether the load still runs after that time.
verifying() { sleep "$1"; [ ! -s /run/verified ]; }
# comes_back WHAT GO RETURN: the load, with what takes the target away and what brings it back. It must have run when the target went
# away, at least once, and every byte must be there at its end.
comes_back() {
    rm -f /run/verified
    before=$(completed)
    (code=0; nvmf verify "$to_gamma" $IDENTITY --nsid 7 --length 48MiB --block-size 4KiB --queue-depth 4 --yes --quiet \
        --reconnect-delay 0.2 --ctrl-loss-tmo 90 --timeout 5 >/tmp/verified 2>&1 || code=$?
        echo $code >/run/verified) &
    wait_for 60 more_than "$((before + 100))" || { cat /tmp/verified; fail "$1: verify does no I/O"; }
    times=0
    while [ $times -lt 3 ] && verifying 0.5; do
        $2
        times=$((times + 1))
        sleep 1
        $3
    done
    [ $times -gt 0 ] || fail "$1: verify ended before anything happened"
    wait_for 200 test -s /run/verified || fail "$1: verify still runs"
    cat /tmp/verified
    [ "$(cat /run/verified)" -eq 0 ] || fail "$1: exit status $(cat /run/verified)"
    note "$1: $times times"
}
link="$NVMET/ports/9/subsystems/$GAMMA"
unlink() { rm "$link"; }
relink() { ln -s "$NVMET/subsystems/$GAMMA" "$link"; }
comes_back "the subsystem is taken off the port" unlink relink
disappear() { port_down 9; }
comes_back "the port is removed" disappear appear

# One that stays away is given up when the time is over, and not before.
LOAD="-t 200 --timeout 5 --reconnect-delay 0.2 --ctrl-loss-tmo 4" under_load $W
port_down 9
sleep 2
[ ! -s /run/load ] || fail "it is given up too early: $(cat /tmp/error)"
load_lost "the target stays away" 60
appear
nvmf verify "$to_gamma" $IDENTITY --nsid 7 --length 1MiB --yes --quiet || fail "verify at the end"
port_down 9
