# What does not work fails with one line, a non-zero status and in time: wrong names, closed ports, hosts not allowed, peers that
# speak no NVMe or nothing at all, targets that vanish.
# deadline: 300
. /suite/env
read_from() { echo nvmf read $IDENTITY --length 4KiB --output /tmp/never --timeout "$1"; }
# says TEXT: the error just seen does.
says() { grep -qi "$1" /tmp/error || fail "the error does not say \`$1\`"; }

# No such subsystem; nobody listens; not for this host; nobody has that address; no way to it.
expect_failure 8 $(read_from 5) $(trid nqn.2024-01.org.example:nobody)
says nqn.2024-01.org.example:nobody
expect_failure 8 $(read_from 5) $(trid "$ALPHA" $V4 4999)
says 'refused\|listen'
expect_failure 8 nvmf discover -t rdma -a $V4 -s 4999 --timeout 5
says 'refused\|listen'
expect_failure 8 nvmf list -t rdma -a $V6 -s 4999 --timeout 5
expect_failure 8 $(read_from 5) $(trid "$PRIVATE")
says "$PRIVATE"
expect_failure 8 $(read_from 3) $(trid "$ALPHA" 10.8.0.99)
says 10.8.0.99
expect_failure 8 $(read_from 3) $(trid "$ALPHA" 192.0.2.1)
says 192.0.2.1
# An address that is there, but on no RDMA device.
expect_failure 8 $(read_from 3) $(trid "$ALPHA" 127.0.0.1)

# No such namespace; lengths that are no multiple of the block size; a range beyond the end.
expect_failure 8 $(read_from 5) --nsid 9 $(trid "$ALPHA")
expect_failure 8 nvmf read $IDENTITY --nsid 2 --length 512 --output /tmp/never $(trid "$ALPHA")
expect_failure 8 nvmf read $IDENTITY --offset 64MiB --length 4KiB --output /tmp/never $(trid "$ALPHA")

# A peer that accepts connections, but whose protocol is another.
rping -s -a $V4 -p 4997 >/tmp/rping 2>&1 &
other=$!
wait_for 20 listening 4997 || fail "rping does not listen on port 4997: $(cat /tmp/rping)"
expect_failure 8 nvmf discover -t rdma -a $V4 -s 4997 --timeout 5
kill -KILL $other 2>/dev/null || true
wait $other 2>/dev/null || true

# A peer that never answers: a listener that is stopped.
rping -s -a $V4 -p 4998 >/tmp/rping 2>&1 &
silent=$!
wait_for 20 listening 4998 || fail "rping does not listen on port 4998: $(cat /tmp/rping)"
kill -STOP $silent
expect_failure 8 nvmf discover -t rdma -a $V4 -s 4998 --timeout 3
kill -KILL $silent

# A target that goes away under load: the program ends, and says so.
port 4 rdma $V4 4440 "$GAMMA"
under_load 4440 --interrupt
port_down 4
load_lost "port removed, sleeping" 30
port 4 rdma $V4 4440 "$GAMMA"
under_load 4440
port_down 4
load_lost "port removed, polling" 30

# After all that the target is as it was.
nvmf verify "$(trid "$ALPHA")" $IDENTITY --length 1MiB --yes --quiet
