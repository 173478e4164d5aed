# The kernel's messages about the bus: a controller that changes hands, vanishes and comes back is told at once, and to anybody.
# deadline: 60
. /suite/env
echo 'nobody:x:65534:65534::/:/bin/sh' >/etc/passwd
su nobody -s /bin/sh -c 'exec nvmf list --watch' >/tmp/watch 2>/tmp/watch-error &
watcher=$!
wait_for 10 grep -q "^$HOT" /tmp/watch || { cat /tmp/watch-error; fail "nothing is listed"; }
tells() { # LINE...: these and no others, within seconds
    : >/tmp/expected; for _line in "$@"; do echo "$_line" >>/tmp/expected; done
    sed -n '/^inserted\|^removed/p' /tmp/watch >/tmp/told
    cmp -s /tmp/expected /tmp/told
}
user_has "$HOT"
wait_for 5 tells "inserted $HOT" || { cat /tmp/watch; fail "it is not told that user space has it"; }
nvmf unbind "$HOT"
wait_for 5 tells "inserted $HOT" "removed $HOT" || { cat /tmp/watch; fail "it is not told that the kernel has it"; }
echo 1 >"/sys/bus/pci/devices/$HOT/remove"
wait_for 5 tells "inserted $HOT" "removed $HOT" "removed $HOT" || { cat /tmp/watch; fail "it is not told that it is gone"; }
# What somebody makes the kernel say does not count.
echo remove >"/sys/bus/pci/devices/$A/uevent"
echo 1 >/sys/bus/pci/rescan
wait_for 10 tells "inserted $HOT" "removed $HOT" "removed $HOT" "inserted $HOT" || { cat /tmp/watch; fail "it is not told that it is back"; }
kill "$watcher"
wait_for 20 test -e "/sys/bus/pci/devices/$HOT/nvme" || fail "the kernel does not drive it again"
