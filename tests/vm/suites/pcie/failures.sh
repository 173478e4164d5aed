# What does not work says why, with one line and in time: the kernel's controllers, no permission, a second user, wrong addresses,
# a process that is killed.
# deadline: 400
. /suite/env
expect_failure 30 nvmf identify "$(trid "$A")"
grep -q "held by the kernel's nvme driver; .*nvmf bind $A" /tmp/error || fail "the error does not say how to get the controller"
expect_failure 30 nvmf identify "$(trid 0000:7f:1f.7)"
expect_failure 30 nvmf bind 0000:7f:1f.7
expect_failure 30 nvmf unbind "$A"
grep -q "the nvme driver has it" /tmp/error || fail "the error does not say who has it"

user_has "$A"
# Another user: busybox su needs one.
grep -q ^nobody /etc/passwd || echo 'nobody:x:65534:65534:nobody:/tmp:/bin/sh' >>/etc/passwd
chmod 1777 /tmp
as_nobody() { su nobody -c "PATH=$PATH nvmf $*"; }
expect_failure 30 as_nobody "identify '$(trid "$A")'"
grep -q "no permission for /dev/vfio" /tmp/error || fail "the error does not name the file"
expect_failure 30 as_nobody "bind $B"
grep -q "root" /tmp/error || fail "the error does not say that root may"
[ "$(driver_of "$B")" = nvme ] || fail "$B was taken by nobody"

# While one process drives a controller, no other does, and it is not given back. When it is killed the controller is free again.
nvmf perf "$(trid "$A")" -q 8 -t 600 >/tmp/perf 2>&1 &
perf=$!
wait_for 120 is_measuring || { cat /tmp/perf; fail "perf did not begin"; }
expect_failure 30 nvmf identify "$(trid "$A")"
grep -q "another process" /tmp/error || fail "the error does not say that another process has it"
expect_failure 30 nvmf unbind "$A"
grep -q "process $perf (nvmf)" /tmp/error || fail "the error does not name the process"
kill -0 $perf && [ ! -s /tmp/perf ] || { cat /tmp/perf; fail "perf suffered"; }
kill -KILL $perf
wait $perf || true
wait_for 30 nvmf identify "$(trid "$A")" || { nvmf identify "$(trid "$A")"; fail "the controller is not free"; }
