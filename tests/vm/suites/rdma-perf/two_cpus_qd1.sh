# nvmf reaches the kernel's IOPS when there are two processors: 4 KiB at depth 1.
# deadline: 900
. /suite/env
table randread:4k:1 randwrite:4k:1
