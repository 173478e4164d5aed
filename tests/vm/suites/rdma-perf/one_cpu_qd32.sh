# nvmf reaches the kernel's IOPS when both sides share one processor: 4 KiB at depth 32.
# deadline: 900
. /suite/env
echo 0 >/sys/devices/system/cpu/cpu1/online
table randread:4k:32 randwrite:4k:32
