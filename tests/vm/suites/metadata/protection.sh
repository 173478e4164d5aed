# QEMU and our own target insert the same protection information, each takes what the other made, and both find the same errors.
# deadline: 300
. /suite/env
user_has
nvmf target --namespace 60MiB,ms=8,pi=1 --namespace 60MiB,ms=8,pi=1,extended --namespace 60MiB,lba=4096,ms=64,pi=2,pi-first \
    --namespace 60MiB,lba=4096,ms=16,pi=1,guard=64,extended >/tmp/target 2>&1 &
wait_for 20 grep -q listening /tmp/target || { cat /tmp/target; fail "our target does not listen"; }
# exchange NSID BLOCK METADATA PROTECTION OFFSET_KIB KIB: sizes in bytes per block
exchange() {
    nsid=$1 block=$2 metadata=$3 size=$4 offset=$5 length=$6
    blocks=$((length * 1024 / block))
    at="--nsid $nsid --offset ${offset}KiB --quiet --app-tag 0xbeef"
    random_file /tmp/data "$length"
    set --
    # Metadata beside the protection information is the caller's.
    if [ "$metadata" -gt "$size" ]; then
        random_file /tmp/own $((blocks * metadata / 1024))
        set -- --metadata /tmp/own
    fi
    for peer in P T; do
        eval "trid=\$$peer"
        nvmf write "$trid" $at --prinfo 8 --input /tmp/data "$@"
        nvmf read "$trid" $at --prinfo 15 --length "${length}KiB" --output /tmp/stripped
        expect_same "namespace $nsid of $peer, PRACT" /tmp/data /tmp/stripped
        nvmf read "$trid" $at --prinfo 7 --length "${length}KiB" --output /tmp/seen --metadata "/tmp/metadata-$peer"
        expect_same "namespace $nsid of $peer" /tmp/data /tmp/seen
    done
    expect_same "protection information of namespace $nsid" /tmp/metadata-P /tmp/metadata-T
    [ "$(wc -c </tmp/metadata-P)" -eq $((blocks * metadata)) ] || fail "namespace $nsid: $(wc -c </tmp/metadata-P) bytes of metadata"

    random_file /tmp/other "$length"
    nvmf write "$T" $at --prinfo 8 --input /tmp/other "$@"
    nvmf read "$T" $at --length "${length}KiB" --output /tmp/other --metadata /tmp/good
    nvmf write "$P" $at --prinfo 7 --input /tmp/other --metadata /tmp/good --metadata-size $((blocks * metadata))
    nvmf read "$P" $at --prinfo 7 --length "${length}KiB" --output /tmp/seen --metadata /tmp/metadata-P
    expect_same "data written with metadata, namespace $nsid" /tmp/other /tmp/seen
    expect_same "metadata, namespace $nsid" /tmp/good /tmp/metadata-P

    # The data of other blocks, another application tag, blocks in another place.
    for peer in P T; do
        eval "trid=\$$peer"
        expect_failure 30 nvmf write "$trid" --nsid "$nsid" --offset "${offset}KiB" --quiet --prinfo 4 --input /tmp/data \
            --metadata /tmp/good
        grep -q GUARD_CHECK_ERROR /tmp/error || fail "no guard error"
        at="--nsid $nsid --quiet --input /tmp/other --metadata /tmp/good"
        expect_failure 30 nvmf write "$trid" $at --offset "${offset}KiB" --prinfo 2 --app-tag 0xbee0
        grep -q APPLICATION_TAG_CHECK_ERROR /tmp/error || fail "no application tag error"
        expect_failure 30 nvmf write "$trid" $at --offset 4KiB --prinfo 1
        grep -q REFERENCE_TAG_CHECK_ERROR /tmp/error || fail "no reference tag error"
    done
}
exchange 1 512 8 8 20480 3072
exchange 2 512 8 8 20480 3072
exchange 3 4096 64 8 8 1024
exchange 4 4096 16 16 40960 2048
dmesg | grep -i 'DMAR.*fault' && fail "the IOMMU stopped an access"
true
