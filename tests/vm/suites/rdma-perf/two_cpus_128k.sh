# nvmf reaches the kernel's IOPS when there are two processors: 128 KiB sequential reads at depth 8.
# deadline: 900
. /suite/env
table read:128k:8
