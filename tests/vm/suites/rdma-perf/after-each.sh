# Nothing of one test reaches the next.
echo 1 >/sys/devices/system/cpu/cpu1/online
nvme disconnect-all
