# What nvmf writes through VFIO stands in the files behind the disks: the host looks there when QEMU has ended.
# deadline: 180
. /suite/env
# put DISK ADDRESS NSID OFFSET BYTES [OPTION...]
put() {
    disk=$1 address=$2 nsid=$3 offset=$4 length=$5; shift 5
    head -c "$length" /dev/urandom >/tmp/data
    nvmf write "$(trid "$address")" --nsid "$nsid" --offset "$offset" --input /tmp/data --quiet "$@"
    disk_holds "$disk" "$offset" /tmp/data
}
user_has "$A"; user_has "$B"
# The first block, an odd number of blocks, more than one command transfers, the last block.
put a512 "$A" 16 0 512
put a512 "$A" 16 1536 3584
put a512 "$A" 16 1049088 2097152
put a512 "$A" 16 16776704 512
put a4096 "$A" 17 0 4096
put a4096 "$A" 17 12288 28672
put a4096 "$A" 17 1052672 2097152
put a4096 "$A" 17 16773120 4096
put b4096 "$B" 16 4096 1048576
# Nothing went beside these places.
head -c 1024 /dev/zero >/tmp/data
disk_holds a512 512 /tmp/data
head -c 8192 /dev/zero >/tmp/data
disk_holds a4096 4096 /tmp/data
