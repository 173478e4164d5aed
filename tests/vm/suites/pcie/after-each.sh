# Each test begins with both controllers at the kernel's driver.
. /suite/env
for address in $A $B; do [ "$(driver_of "$address")" = nvme ] || nvmf unbind "$address" || exit 1; done
wait_for 20 disk "$A" 5 && wait_for 20 disk "$B" 1
