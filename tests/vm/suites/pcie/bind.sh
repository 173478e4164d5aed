# `nvmf bind`, `nvmf list` and `nvmf unbind`: who holds a controller changes and is told; the other controller is left alone.
# deadline: 180
. /suite/env
line() { nvmf list | grep "^$1 "; }
line "$A" | grep -q " nvme .* no: held by the kernel's nvme driver" || { nvmf list; fail "$A is not shown as the kernel's"; }
nvmf list | grep -q "nvmf bind $A" || fail "no advice for $A"

nvmf bind "$A" | grep -qx "$A is bound to vfio-pci" || fail "bind said something else"
[ "$(driver_of "$A")" = vfio-pci ] || fail "$A is bound to $(driver_of "$A")"
[ "$(driver_of "$B")" = nvme ] || fail "$B is bound to $(driver_of "$B")"
[ ! -e "/sys/bus/pci/devices/$A/nvme" ] || fail "the kernel still drives $A"
line "$A" | grep -q " vfio-pci .* yes$" || { nvmf list; fail "$A is not shown as usable"; }
line "$B" | grep -q " no: " || fail "$B is shown as usable"
nvmf bind "$A" | grep -q already || fail "a second bind does not say so"
nvmf list -o json | tr -d ' \n' | grep -q "\"traddr\":\"$A\".*\"driver\":\"vfio-pci\".*\"obstacle\":null" || fail "JSON"

nvmf unbind "$A" | grep -qx "$A is bound to nvme" || fail "unbind said something else"
wait_for 60 disk "$A" 2 || fail "the disks did not come back"
for round in 1 2 3; do user_has "$B"; kernel_has "$B" 1; done
nvmf bind "$A" "$B"
[ "$(driver_of "$A") $(driver_of "$B")" = "vfio-pci vfio-pci" ] || fail "not both are bound"
