# A controller whose disk is mounted, used for swap, or open is not taken from the kernel.
# deadline: 180
. /suite/env
modules ext4
first=$(disk "$A" 1); second=$(disk "$A" 2)
refused() {
    expect_failure 30 nvmf bind "$A"
    grep -q "in use: .*$1" /tmp/error || fail "the error does not say: $1"
    [ "$(driver_of "$A")" = nvme ] || fail "it was taken all the same"
}
mke2fs -F "$first" >/dev/null
mkdir -p /mnt/disk
mount -t ext4 "$first" /mnt/disk
echo data >/mnt/disk/file
refused "$first is mounted on /mnt/disk"
[ "$(cat /mnt/disk/file)" = data ] || fail "the file system suffered"
umount /mnt/disk

mkswap "$second" >/dev/null
swapon "$second"
refused "$second is used for swap"
swapoff "$second"

sleep 600 <"$first" &
refused "process $! (sleep) has $first open"
kill $!; wait || true

nvmf bind "$A"
