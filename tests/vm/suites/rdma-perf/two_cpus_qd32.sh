# nvmf reaches the kernel's IOPS when there are two processors: 4 KiB at depth 32.
# deadline: 900
. /suite/env
table randread:4k:32 randwrite:4k:32
