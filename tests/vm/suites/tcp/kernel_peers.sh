# The lab itself: nvme-cli and the kernel's initiator find the target and move data; what later tests compare against works.
# deadline: 180
. /suite/env
nvme discover -t tcp -a 127.0.0.1 -s 4420 $IDENTITY | tee /tmp/log
grep -q "subnqn:  $ALPHA" /tmp/log || fail "no alpha in the discovery log"
grep -q "$PRIVATE" /tmp/log && fail "a host that is not allowed sees the private subsystem"
kernel_connect "$ALPHA"
random_file /tmp/src 1024
for nsid in 1 2 5; do
    disk=$(kernel_namespace "$ALPHA" $nsid)
    dd if=/tmp/src of="$disk" bs=64k oflag=direct 2>/dev/null
    dd if="$disk" of=/tmp/dst bs=64k count=16 iflag=direct 2>/dev/null
    expect_same "namespace $nsid through the kernel" /tmp/src /tmp/dst
done
kernel_disconnect "$ALPHA"
