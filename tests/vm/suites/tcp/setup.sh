# A Linux target with four subsystems on 127.0.0.1, ::1, and a third port that also refers to the first.
# deadline: 180
. /suite/env
configfs
modules nvmet nvmet-tcp nvme-tcp
modprobe null_blk nr_devices=0
modprobe brd rd_nr=3 rd_size=65536
mkdir -p /etc/nvme
echo "$HOSTNQN" >/etc/nvme/hostnqn
echo "$HOSTID" >/etc/nvme/hostid

null_disk nullb0 512 64
null_disk nullb1 4096 64
truncate -s 64M /file.img

subsystem "$ALPHA" attr_serial=ALPHA0001 attr_model=Alpha
namespace "$ALPHA" 1 /dev/nullb0
namespace "$ALPHA" 2 /dev/nullb1
namespace "$ALPHA" 5 /dev/ram0
subsystem "$BETA" attr_serial=BETA0001
namespace "$BETA" 1 /file.img buffered_io=1
subsystem "$GAMMA" attr_serial=GAMMA0001
namespace "$GAMMA" 7 /dev/ram1
subsystem "$PRIVATE" attr_serial=PRIVATE01 attr_allow_any_host=0
namespace "$PRIVATE" 1 /dev/ram2
mkdir "$NVMET/hosts/$OTHERHOST"
ln -s "$NVMET/hosts/$OTHERHOST" "$NVMET/subsystems/$PRIVATE/allowed_hosts/$OTHERHOST"

port 1 tcp 127.0.0.1 4420 "$ALPHA" "$BETA" "$GAMMA" "$PRIVATE"
port 2 tcp ::1 4420 "$ALPHA" "$BETA" "$GAMMA"
port 3 tcp 127.0.0.1 4430 "$GAMMA"
referral 3 first tcp 127.0.0.1 4420
