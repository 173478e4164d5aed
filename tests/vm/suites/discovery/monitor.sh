# `nvmf monitor` tells every change of the target once, in order and within 2 s: subsystems added and removed, moved to another
# port, referrals, a target that goes away and comes back with others.
# deadline: 150
. /suite/env
nvmf monitor -t tcp -a 127.0.0.1 -s 4401 --also 'trtype:tcp traddr:127.0.0.1 trsvcid:4404' -c 0.5 -o json \
    >/tmp/events 2>/tmp/monitor.error &
monitor=$!
# told N: so many paths have come or gone.
told() { [ "$(grep -c -E '"event":"(added|removed)"' /tmp/events)" -ge "$1" ]; }
happened() { [ "$(grep -c "\"event\":\"$1\"" /tmp/events)" -ge "$2" ]; }
count=4 worst=0
wait_for 30 told $count || { cat /tmp/events /tmp/monitor.error; fail "the first paths are not told"; }
: >/tmp/expected
held() { echo "$(ls /proc/$monitor/fd | wc -l) descriptors, $(ls /proc/$monitor/task | wc -l) threads"; }
still() { [ "$(held)" = "$held_before" ]; }
# change WHAT PORT N: links or unlinks, and waits until it is told.
change() {
    case $1 in
        added) link "$2" "$3" ;;
        removed) unlink "$2" "$3" ;;
    esac
    began=$(hundredths)
    echo "$1 $(nqn "$3")" >>/tmp/expected
    count=$((count + 1))
    wait_for 10 told $count || { tail -n 5 /tmp/events; fail "$1 $(nqn "$3") on port $2 is not told"; }
    took=$(($(hundredths) - began))
    [ "$took" -le "$worst" ] || worst=$took
}
n=20
while [ "$n" -lt 60 ]; do
    change added 1 "$n"
    # To the other port.
    change removed 1 "$n"
    change added 2 "$n"
    change removed 2 "$n"
    n=$((n + 1))
done
[ "$worst" -le 200 ] || fail "the slowest change was told after $worst hundredths of a second"
note "160 changes; the slowest was told after $worst hundredths of a second"
# Many at once: what comes out is right, in whatever pieces it is told.
n=60; while [ "$n" -lt 90 ]; do link 1 "$n"; echo "added $(nqn "$n")"; n=$((n + 1)); done >>/tmp/expected
count=$((count + 30)); wait_for 20 told $count || fail "30 at once are not told"
n=60; while [ "$n" -lt 90 ]; do unlink 1 "$n"; echo "removed $(nqn "$n")"; n=$((n + 1)); done >>/tmp/expected
count=$((count + 30)); wait_for 20 told $count || fail "30 at once are not told"
sed -n 's/.*"event":"\(added\|removed\)".*"subnqn":"\([^"]*\)".*/\1 \2/p' /tmp/events | tail -n +5 >/tmp/told
sort /tmp/expected >/tmp/expected.sorted; sort /tmp/told >/tmp/told.sorted
expect_same "changes told once" /tmp/expected.sorted /tmp/told.sorted
head -n 160 /tmp/expected >/tmp/expected.first; head -n 160 /tmp/told >/tmp/told.first
expect_same "changes told in order" /tmp/expected.first /tmp/told.first

# Memory for logs of this length is kept from here on.
held_before=$(held)
# A referral comes, and with it one that refers further, and goes again. Its own log, too, has one generation more.
lines=$(wc -l </tmp/events)
referral 1 eight tcp 127.0.0.1 4408
wait_for 2 grep -q "\"event\":\"added\".*$(nqn 9)\"" /tmp/events || { tail -n 5 /tmp/events; fail "what is referred to is not told"; }
rmdir "$NVMET/ports/1/referrals/eight"
wait_for 2 happened forgotten 2 || { tail -n 5 /tmp/events; fail "the end of the referral is not told"; }
told_of() {
    tail -n +$((lines + 1)) /tmp/events | sed -n "s/.*\"event\":\"\([a-z]*\)\".*\"subnqn\":\"[^\"]*:\(s[0-9]*\)\".*/\1 \2/p
        s/.*\"event\":\"\(watching\|forgotten\)\".*trsvcid:\([0-9]*\).*/\1 \2/p" | sort | tr '\n' ';'
}
expected='added s008;added s009;forgotten 4408;forgotten 4409;removed s008;removed s009;watching 4408;watching 4409;'
[ "$(told_of)" = "$expected" ] || fail "of the referral it is told: $(told_of)"
wait_for 20 still || { ls -l /proc/$monitor/fd; fail "it holds $(held), before it was $held_before"; }

# The target goes away, and comes back with another subsystem.
port_down 1
wait_for 20 happened disconnected 1 || { tail -n 5 /tmp/events; fail "the loss is not told"; }
sleep 2
port 1 tcp 127.0.0.1 4401; link 1 90
wait_for 20 happened connected 5 || { tail -n 5 /tmp/events; fail "it is not connected again"; }
wait_for 20 grep -q "\"event\":\"added\".*$(nqn 90)" /tmp/events || fail "what is new after the restart is not told"
wait_for 20 grep -q "\"event\":\"removed\".*4401.*$(nqn 1)\"" /tmp/events || fail "what is gone after the restart is not told"

wait_for 20 still || { ls -l /proc/$monitor/fd; fail "it holds $(held), before it was $held_before"; }
note "it holds what it held before: $held_before: $(ls -l /proc/$monitor/fd | sed -n "s/.*-> //p" | sed "s/:\[.*//" | sort | uniq -c | tr -s " \n" " ")"
kill -TERM $monitor
code=0; wait $monitor || code=$?
[ "$code" -eq 0 ] || { cat /tmp/monitor.error; fail "it ends with $code"; }
unlink 1 90; link 1 1
