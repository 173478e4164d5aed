# Nothing reached for memory that was not mapped for it, and each test begins with both controllers at the kernel's driver.
. /suite/env
faults=0
if dma_faults; then echo "FAIL: the IOMMU stopped an access"; faults=1; fi
for address in $A $B; do [ "$(driver_of "$address")" = nvme ] || nvmf unbind "$address" || exit 1; done
wait_for 60 disk "$A" 17 && wait_for 60 disk "$B" 16
exit $faults
