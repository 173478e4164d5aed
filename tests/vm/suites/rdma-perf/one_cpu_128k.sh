# nvmf reaches the kernel's IOPS when both sides share one processor: 128 KiB sequential reads at depth 8.
# deadline: 900
. /suite/env
echo 0 >/sys/devices/system/cpu/cpu1/online
table read:128k:8
