# `nvmf list` discovers, attaches everything and lists every namespace with its size and block size, over IPv4 and IPv6.
# deadline: 120
. /suite/env
# size block-size of a namespace, as the kernel's initiator sees it
kernel_format() {
    disk=$(kernel_namespace "$1" "$2"); disk=${disk#/dev/}
    echo "$(($(cat /sys/block/$disk/size) * 512)) $(cat /sys/block/$disk/queue/logical_block_size)"
}
for address in $V4 $V6; do
    nvmf list -t rdma -a $address -s 4420 $IDENTITY
    nvmf list -t rdma -a $address -s 4420 $IDENTITY -o json >/tmp/list.json
    tr -d ' \n' </tmp/list.json >/tmp/list.flat
    for nqn in "$ALPHA" "$BETA" "$GAMMA"; do
        grep -q "\"subnqn\":\"$nqn\"" /tmp/list.flat || fail "$nqn is not listed"
    done
    ! grep -q "$PRIVATE" /tmp/list.flat || fail "the private subsystem is listed"
    grep -q '"failed":\[\]' /tmp/list.flat || fail "something could not be attached"
    [ "$(grep -o '"nsid":' /tmp/list.flat | wc -l)" -eq 5 ] || fail "not five namespaces"
done

for nqn in "$ALPHA" "$BETA" "$GAMMA"; do kernel_connect "$nqn"; done
for pair in "$ALPHA 1" "$ALPHA 2" "$ALPHA 5" "$BETA 1" "$GAMMA 7"; do
    nqn=${pair% *}; nsid=${pair#* }
    format=$(kernel_format "$nqn" "$nsid")
    size=${format% *}; block=${format#* }
    expected="\"nsid\":$nsid,\"size\":$size,\"blocks\":$((size / block)),\"block_size\":$block,"
    # The listing of one subsystem: exactly this namespace in exactly this subsystem.
    nvmf list "$(trid "$nqn")" $IDENTITY -o json | tr -d ' \n' >/tmp/one
    grep -q "\"subnqn\":\"$nqn\"" /tmp/one || fail "$nqn alone is not listed"
    grep -qF "$expected" /tmp/one || { cat /tmp/one; fail "$nqn alone: no $expected"; }
    grep -qF "$expected" /tmp/list.flat || { cat /tmp/list.flat; fail "$nqn among all: no $expected"; }
    note "$nqn namespace $nsid: $size bytes in blocks of $block, as the kernel sees it"
done

nvmf identify "nvme+rdma://[$V6]:4420/$ALPHA" $IDENTITY >/tmp/identify
grep -q ALPHA0001 /tmp/identify || fail "no serial number"
grep -q 'Model  *Alpha' /tmp/identify || { cat /tmp/identify; fail "no model"; }
