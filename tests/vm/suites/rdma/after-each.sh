# Nothing of one test reaches the next, however it ended: the kernel's initiator lets go of everything, the port that some tests
# bring goes, and so does the device that one of them makes.
. /lib.sh
nvme disconnect-all
[ ! -e "$NVMET/ports/9" ] || port_down 9
rdma link delete rxe9 2>/dev/null || true
ip link delete dummy9 2>/dev/null || true
