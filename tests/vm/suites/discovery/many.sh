# 1,000 entries of 20 discovery services, which one refers to: walked side by side, against `nvme discover` of one after the other;
# time and memory.
# deadline: 120
. /suite/env
n=1
while [ "$n" -le 20 ]; do
    port $((20 + n)) tcp 127.0.0.1 $((4600 + n)); link_first $((20 + n)) 51
    n=$((n + 1))
done
port 20 tcp 127.0.0.1 4600; link 20 1
n=1
while [ "$n" -le 20 ]; do referral 20 "r$n" tcp 127.0.0.1 $((4600 + n)); n=$((n + 1)); done
# peak FILE: the most memory that a process of those reported in FILE had, in KiB.
peak() { awk -F: '/Maximum resident set size/ && $2 > most { most = $2 } END { print most + 0 }' "$1"; }
measured() { /usr/bin/time -v "$@" 2>>/tmp/memory; }
: >/tmp/memory
began=$(hundredths)
n=1
while [ "$n" -le 20 ]; do
    measured nvme discover -t tcp -a 127.0.0.1 -s $((4600 + n)) $IDENTITY
    n=$((n + 1))
done >/tmp/nvme.all
theirs=$(($(hundredths) - began)) their_peak=$(peak /tmp/memory)
: >/tmp/memory
began=$(hundredths)
measured nvmf discover -t tcp -a 127.0.0.1 -s 4600 $IDENTITY --referrals >/tmp/nvmf.all
ours=$(($(hundredths) - began)) our_peak=$(peak /tmp/memory)
[ "$their_peak" -gt 0 ] && [ "$our_peak" -gt 0 ] || { cat /tmp/memory; fail "no memory is reported"; }
subsystems() { grep -c 'subtype: nvme subsystem' "$1"; }
# One of 51 is not for this host.
[ "$(subsystems /tmp/nvme.all)" -eq 1000 ] || fail "nvme-cli finds $(subsystems /tmp/nvme.all)"
[ "$(subsystems /tmp/nvmf.all)" -eq 1001 ] || fail "$(subsystems /tmp/nvmf.all) entries, not the first service's and 1,000"
# The program itself, most of which is debugging information in a dev build.
: >/tmp/memory; measured nvmf show-hostnqn >/dev/null; program=$(peak /tmp/memory)
[ $((our_peak - program)) -le 65536 ] || fail "it took $our_peak KiB, $program of them for the program itself"
note "20 services, 1000 entries: nvme discover, one after the other: $theirs hundredths of a second, $their_peak KiB at most"
note "nvmf, side by side, one more service: $ours hundredths of a second, $our_peak KiB at most ($program of them before it does anything)"
n=20; while [ "$n" -le 40 ]; do port_down "$n"; n=$((n + 1)); done
