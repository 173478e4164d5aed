# nvmf reaches the kernel's IOPS when both sides share one processor.
# deadline: 1800
. /suite/env
echo 0 >/sys/devices/system/cpu/cpu1/online
table
