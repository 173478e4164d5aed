# 1,000 entries of 20 discovery services, which one refers to: walked side by side, against `nvme discover` of one after the other.
# deadline: 120
. /suite/env
n=1
while [ "$n" -le 20 ]; do
    port $((20 + n)) tcp 127.0.0.1 $((4600 + n)); link_first $((20 + n)) 50
    n=$((n + 1))
done
port 20 tcp 127.0.0.1 4600; link 20 1
n=1
while [ "$n" -le 20 ]; do referral 20 "r$n" tcp 127.0.0.1 $((4600 + n)); n=$((n + 1)); done
hundredths() { read -r _up _ </proc/uptime; echo "${_up%.*}${_up#*.}"; }
began=$(hundredths)
n=1
while [ "$n" -le 20 ]; do nvme discover -t tcp -a 127.0.0.1 -s $((4600 + n)) $IDENTITY; n=$((n + 1)); done >/tmp/nvme.all
theirs=$(($(hundredths) - began))
began=$(hundredths)
nvmf discover -t tcp -a 127.0.0.1 -s 4600 $IDENTITY --referrals >/tmp/nvmf.all
ours=$(($(hundredths) - began))
[ "$(grep -c 'subtype: nvme subsystem' /tmp/nvme.all)" -ge 980 ] || fail "nvme-cli finds less than there is"
[ "$(grep -c 'subtype: nvme subsystem' /tmp/nvmf.all)" -eq $(($(grep -c 'subtype: nvme subsystem' /tmp/nvme.all) + 1)) ] ||
    fail "not as many entries: $(grep -c 'subtype: nvme subsystem' /tmp/nvmf.all)"
note "20 services, $(grep -c 'subtype: nvme subsystem' /tmp/nvme.all) entries: nvme discover, one after the other, $theirs hundredths of a second; nvmf, side by side, $ours"
n=20; while [ "$n" -le 40 ]; do port_down "$n"; n=$((n + 1)); done
