# A Linux target with one disk in memory, on soft-RoCE.
# deadline: 120
. /suite/env
configfs
soft_roce rxe0 dummy0 $ADDRESS/24
modules nvmet nvmet-rdma nvme-rdma
modprobe null_blk nr_devices=0
mkdir -p /etc/nvme
echo "$HOSTNQN" >/etc/nvme/hostnqn
echo "$HOSTID" >/etc/nvme/hostid
null_disk nullb0 512 256
subsystem "$NQN"
namespace "$NQN" 1 /dev/nullb0
port 1 rdma $ADDRESS 4420 "$NQN"
