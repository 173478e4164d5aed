# nvmf reaches the kernel's IOPS with two processors.
# deadline: 1800
. /suite/env
table
