# What does not work fails with one line, a non-zero status and in time: wrong names, closed ports, hosts not allowed, silent and
# vanishing targets.
# deadline: 600
. /suite/env
read_from() { echo nvmf read $IDENTITY --length 4KiB --output /tmp/never --timeout "$1"; }

# No such subsystem; nobody listens; not for this host.
expect_failure 25 $(read_from 5) $(trid nqn.2024-01.org.example:nobody)
grep -q nqn.2024-01.org.example:nobody /tmp/error || fail "the error does not name the subsystem"
expect_failure 25 $(read_from 5) $(trid "$ALPHA" 127.0.0.1 4999)
grep -qi refused /tmp/error || fail "the error does not say that the connection was refused"
expect_failure 25 nvmf discover -t tcp -a 127.0.0.1 -s 4999 --timeout 5
expect_failure 25 nvmf list -t tcp -a ::1 -s 4999 --timeout 5
expect_failure 25 $(read_from 5) $(trid "$PRIVATE")
grep -q "$PRIVATE" /tmp/error || fail "the error does not name the subsystem"

# No such namespace; lengths that are no multiple of the block size; a range beyond the end.
expect_failure 25 $(read_from 5) --nsid 9 $(trid "$ALPHA")
expect_failure 25 nvmf read $IDENTITY --nsid 2 --length 512 --output /tmp/never $(trid "$ALPHA")
expect_failure 25 nvmf read $IDENTITY --offset 64MiB --length 4KiB --output /tmp/never $(trid "$ALPHA")
# Writing needs a yes.
expect_failure 25 nvmf verify $IDENTITY --length 4KiB $(trid "$ALPHA")

# A peer whose connections open and that never says a word: a listener that is stopped.
nc -l -p 4998 >/dev/null 2>&1 &
silent=$!
wait_for 30 grep -q ':1386 ' /proc/net/tcp /proc/net/tcp6 || fail "nothing listens on port 4998"
kill -STOP $silent
expect_failure 25 nvmf discover -t tcp -a 127.0.0.1 -s 4998 --timeout 3
kill -KILL $silent

# A peer that speaks something else.
nc -l -p 4997 </dev/urandom >/dev/null 2>&1 &
wait_for 30 grep -q ':1385 ' /proc/net/tcp /proc/net/tcp6 || fail "nothing listens on port 4997"
expect_failure 25 nvmf discover -t tcp -a 127.0.0.1 -s 4997 --timeout 5
kill -KILL $! 2>/dev/null || true

# A target that goes away under load: the program ends, and says so.
port 4 tcp 127.0.0.1 4440 "$GAMMA"
# Both connections of perf (port 4440 is 1158h, state 1 is established), and a moment for some I/O
connected() { [ "$(grep -c ':1158 [0-9A-F]*:[0-9A-F]* 01 ' /proc/net/tcp)" -ge 2 ]; }
(wait_for 120 connected; sleep 1; cut -d. -f1 /proc/uptime >/tmp/went; port_down 4) &
rc=0; nvmf perf "$(trid "$GAMMA" 127.0.0.1 4440)" --hostnqn "$HOSTNQN" --nsid 7 -q 8 -t 300 --timeout 5 \
    >/tmp/stdout 2>/tmp/error || rc=$?
read -r ended _ </proc/uptime
wait
[ -s /tmp/went ] || { cat /tmp/error; fail "it failed before the target went away"; }
took=$((${ended%.*} - $(cat /tmp/went)))
echo "perf: exit status $rc after $took s: $(cat /tmp/error)"
[ "$rc" -ne 0 ] && [ "$rc" -lt 126 ] || fail "exit status $rc though the target went away"
[ "$(wc -l </tmp/error)" -eq 1 ] || fail "not one line of error"
[ "$took" -ge 0 ] || fail "it failed before the target went away"
[ "$took" -le 60 ] || fail "it took $took s"
note "target gone under load: noticed within $took s"
