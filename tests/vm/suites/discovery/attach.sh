# An application that attaches and detaches by the events of a monitor (example auto_attach) ends with exactly the controllers that
# the target offers, whatever happened in between.
# deadline: 150
. /suite/env
port 12 tcp 127.0.0.1 4430; link_first 12 2
mkfifo /tmp/input
auto_attach nvme+tcp://127.0.0.1:4430 </tmp/input >/tmp/attached 2>&1 &
application=$!
exec 3>/tmp/input
# offered: the subsystems of the port. attached: what the application has, by what it says.
offered() { ls "$NVMET/ports/12/subsystems" | sort; }
attached() {
    awk '$1 == "attached" { has[$2] = 1 } $1 == "detached" { delete has[$2] } END { for (name in has) print name }' /tmp/attached | sort
}
settled() { [ "$(attached)" = "$(offered)" ]; }
wait_for 20 settled || { cat /tmp/attached; fail "it has not attached what there is"; }
# Forty subsystems come and go, several at a time, the same ones again and again.
step=0 seed=7
while [ "$step" -lt 120 ]; do
    seed=$(((seed * 1103515245 + 12345) % 2147483648))
    n=$((20 + seed / 65536 % 40))
    if [ -L "$NVMET/ports/12/subsystems/$(nqn $n)" ]; then unlink 12 $n; else link 12 $n; fi
    step=$((step + 1))
    [ $((step % 30)) -ne 0 ] || wait_for 30 settled || { tail -n 20 /tmp/attached; fail "step $step: it has $(attached), there are $(offered)"; }
done
# The target is gone for a while, and is another one when it comes back.
port_down 12
sleep 3
port 12 tcp 127.0.0.1 4430
for n in 2 21 70 71; do link 12 $n; done
wait_for 40 settled || { tail -n 20 /tmp/attached; fail "after the restart it has $(attached), there are $(offered)"; }
exec 3>&-
code=0; wait $application || code=$?
[ "$code" -eq 0 ] || { tail -n 5 /tmp/attached; fail "it ends with $code"; }
last=$(tail -n 1 /tmp/attached)
[ "$last" = "at the end: $(offered | tr '\n' ' ' | sed 's/ $//')" ] || fail "$last"
note "120 changes and a restart; $(grep -c '^attached' /tmp/attached) times attached; $last"
port_down 12
