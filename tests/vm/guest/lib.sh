# Helpers for the scripts that run in the guest; a script starts with `. /lib.sh`. Any command that fails ends it.
set -eu

fail() { echo "FAIL: $*"; exit 1; }
note() { echo "note: $*"; }

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    # Local: what is waited for may wait itself.
    local _left
    _left=$(($1 * 10)); shift
    until "$@" >/dev/null 2>&1; do
        _left=$((_left - 1))
        [ "$_left" -gt 0 ] || return 1
        sleep 0.1
    done
}

# expect_same WHAT A B: two files, byte for byte; shows where they part.
expect_same() {
    cmp -s "$2" "$3" && return 0
    echo "$1: $2 and $3 differ"
    diff -u "$2" "$3" | head -n 40 || true
    fail "$1"
}

# expect_failure SECONDS COMMAND...: the command must fail, with one line on standard error (left in /tmp/error), nothing on
# standard output, and within so many seconds.
expect_failure() {
    _limit=$1; shift
    read -r _began _ </proc/uptime
    _rc=0; "$@" >/tmp/stdout 2>/tmp/error </dev/null || _rc=$?
    read -r _ended _ </proc/uptime
    _took=$((${_ended%.*} - ${_began%.*}))
    echo "\$ $*"; echo "  exit status $_rc after $_took s: $(cat /tmp/error)"
    [ "$_rc" -ne 0 ] || fail "it succeeded: $*"
    [ "$_rc" -lt 126 ] || fail "it did not fail by itself (exit status $_rc): $*"
    [ "$(wc -l </tmp/error)" -eq 1 ] || { cat /tmp/error; fail "not one line of error: $*"; }
    [ ! -s /tmp/stdout ] || { head -n 5 /tmp/stdout; fail "output in spite of failure: $*"; }
    [ "$_took" -le "$_limit" ] || fail "it took $_took s, more than $_limit: $*"
}

# random_file FILE KIBIBYTES
random_file() { dd if=/dev/urandom of="$1" bs=1024 count="$2" 2>/dev/null; }

sha() { sha256sum "$1" | cut -d' ' -f1; }

# disk_holds DISK OFFSET FILE: a disk of suite.conf has what is in FILE at this byte when the guest has ended. xtask looks it up in
# the disk's own file, so nothing may be written there later on.
disk_holds() { printf '\n@@vm disk %s %s %s %s\n' "$1" "$2" "$(stat -c %s "$3")" "$(sha "$3")"; }

# ---- the kernel's target, through configfs
NVMET=/sys/kernel/config/nvmet

# modules NAME...: in this order.
modules() { for _m in "$@"; do modprobe "$_m" || fail "modprobe $_m"; done; }

configfs() { modules configfs; grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs none /sys/kernel/config; }

# attributes FOLDER NAME=VALUE...
attributes() {
    _dir=$1; shift
    for _pair in "$@"; do printf %s "${_pair#*=}" >"$_dir/${_pair%%=*}" || fail "$_dir/$_pair"; done
}

# null_disk NAME BLOCKSIZE MEBIBYTES: a disk in memory, /dev/NAME; NAME must be nullb0, nullb1, ... in this order, because
# kernels before 6.3 number the disks themselves.
null_disk() {
    mkdir "/sys/kernel/config/nullb/$1"
    attributes "/sys/kernel/config/nullb/$1" "blocksize=$2" "size=$3" memory_backed=1 power=1
    wait_for 30 test -b "/dev/$1" || fail "no /dev/$1"
}

# subsystem NQN [ATTRIBUTE=VALUE...]: open to any host unless told otherwise.
subsystem() {
    _nqn=$1; shift
    mkdir "$NVMET/subsystems/$_nqn"
    attributes "$NVMET/subsystems/$_nqn" attr_allow_any_host=1 "$@"
}

# namespace NQN NSID DEVICE_OR_FILE [ATTRIBUTE=VALUE...]
namespace() {
    _ns=$NVMET/subsystems/$1/namespaces/$2; _device=$3; shift 3
    mkdir "$_ns"
    attributes "$_ns" "device_path=$_device" "$@" enable=1
}

# port ID TRTYPE ADDRESS SERVICE NQN...: it listens from the first link on. PORT_ATTRIBUTES: NAME=VALUE..., if set.
port() {
    _port=$NVMET/ports/$1; _family=ipv4
    case $3 in *:*) _family=ipv6 ;; esac
    mkdir "$_port"
    attributes "$_port" "addr_trtype=$2" "addr_adrfam=$_family" "addr_traddr=$3" "addr_trsvcid=$4" ${PORT_ATTRIBUTES:-}
    shift 4
    for _nqn in "$@"; do ln -s "$NVMET/subsystems/$_nqn" "$_port/subsystems/$_nqn"; done
}

# port_down ID: stops listening and ends its associations.
port_down() {
    # All with one program: there may be hundreds.
    set -- "$1" "$NVMET/ports/$1/subsystems"/*
    [ ! -L "$2" ] || { _id=$1; shift; rm "$@"; set -- "$_id"; }
    for _referral in "$NVMET/ports/$1/referrals"/*; do [ ! -d "$_referral" ] || rmdir "$_referral"; done
    rmdir "$NVMET/ports/$1"
}

# referral PORT NAME TRTYPE ADDRESS SERVICE
referral() {
    mkdir "$NVMET/ports/$1/referrals/$2"
    attributes "$NVMET/ports/$1/referrals/$2" "addr_trtype=$3" addr_adrfam=ipv4 "addr_traddr=$4" "addr_trsvcid=$5" enable=1
}

# ---- instances
# share TRID...: a primary; returns when it shares what it is told. Its process is $PRIMARY, and the instance is called vm.
share() {
    export XDG_RUNTIME_DIR=/run
    : >/tmp/shared
    nvmf share --instance vm --timeout 20 "$@" >/tmp/shared 2>/tmp/share.error &
    PRIMARY=$!
    wait_for 60 grep -q '^sharing ' /tmp/shared || { cat /tmp/share.error; fail "nothing is shared"; }
}
share_list() { nvmf list --instance vm --processes -o json; }
share_alone() { [ "$(share_list | grep -o '"pid"' | wc -l)" -eq 1 ]; }
share_has_queues() { share_list | grep -q '"queues": *[1-9]'; }
share_has() { share_list | grep -q "\"pid\": *$1,"; }
# secondaries TRID OPTION...: starts four processes that each verify half a MiB of their own; they are $SECONDARIES. The last one
# verifies $LAST_LENGTH instead, if that is set.
secondaries() {
    _trid=$1; shift
    SECONDARIES=
    for _part in 1 2 3 4; do
        _length=512KiB
        [ $_part -lt 4 ] || _length=${LAST_LENGTH:-$_length}
        nvmf verify "$_trid" --instance vm --offset "${_part}MiB" --length $_length --seed $_part --yes --quiet "$@" \
            >/tmp/secondary.$_part 2>&1 &
        SECONDARIES="$SECONDARIES $!"
    done
}
# all_verified WHAT PID...
all_verified() {
    _what=$1; shift
    for _pid in "$@"; do wait "$_pid" || { cat /tmp/secondary.*; fail "$_what: exit status of process $_pid"; }; done
}
# sharing TRID NSID: a primary and four secondaries that do verified I/O at once; then one of these is killed, and the others go on; then
# the primary is, twice, and a secondary says so and ends; then there is another primary at once.
sharing() {
    share "$1"
    secondaries "$1" --nsid "$2"
    all_verified "all at once" $SECONDARIES
    wait_for 20 share_alone || fail "secondaries that have ended are still there"
    _open=$(ls /proc/$PRIMARY/fd | wc -l)
    # The one to be killed has more to do than it will come to.
    LAST_LENGTH=48MiB
    secondaries "$1" --nsid "$2"
    LAST_LENGTH=
    _victim=${SECONDARIES##* }
    wait_for 20 share_has "$_victim" || { cat /tmp/secondary.4; fail "the one to be killed is not there"; }
    kill -9 "$_victim" || { cat /tmp/secondary.4; fail "the one to be killed has ended"; }
    wait "$_victim" || true
    all_verified "one is killed" ${SECONDARIES% *}
    wait_for 20 share_alone || fail "the killed one is still there"
    _now=$(ls /proc/$PRIMARY/fd | wc -l)
    [ "$_now" -le "$_open" ] || { ls -l /proc/$PRIMARY/fd; fail "$_now descriptors, $_open before"; }

    # While a queue connects, and while it is used.
    for _pause in 0 2; do
        [ $_pause -eq 0 ] || share "$1"
        rm -f /run/secondary
        (code=0; nvmf perf "$1" --instance vm --nsid "$2" -q 1 -o 4096 -w randread -t 100 >/tmp/perf 2>/tmp/error || code=$?
            echo $code >/run/secondary) &
        wait_for 60 share_has_queues || { cat /tmp/perf /tmp/error; fail "perf has no queue"; }
        sleep $_pause
        kill -9 $PRIMARY
        wait $PRIMARY || true
        wait_for 60 test -s /run/secondary || fail "a secondary outlives its primary"
        note "the primary is killed: exit status $(cat /run/secondary): $(cat /tmp/error)"
        [ "$(cat /run/secondary)" -eq 3 ] || fail "exit status $(cat /run/secondary)"
        [ "$(wc -l </tmp/error)" -eq 1 ] || fail "not one line of error"
    done
    share "$1"
    secondaries "$1" --nsid "$2"
    all_verified "after the primary was killed" $SECONDARIES
    kill $PRIMARY
    wait $PRIMARY || fail "the primary ends with an error: $(cat /tmp/share.error)"
    [ -z "$(ls /run/nvmf)" ] || fail "files are left: $(ls /run/nvmf)"
}

# ---- RDMA in software
# soft_roce RXE NETDEV ADDRESS/BITS...: an RDMA device on a new network interface of type dummy, ready to be used. Both sides of a
# connection use the same one: the loopback interface has no RDMA, and two devices of one guest do not reach each other.
soft_roce() {
    _rxe=$1 _netdev=$2; shift 2
    modprobe dummy numdummies=0
    modules ib_core ib_uverbs rdma_cm rdma_ucm rdma_rxe
    ip link add "$_netdev" type dummy
    echo 0 >"/proc/sys/net/ipv6/conf/$_netdev/accept_dad"
    ip link set "$_netdev" mtu 9000 up
    # Before the device, whose GIDs are made of them.
    for _address in "$@"; do ip addr add "$_address" dev "$_netdev"; done
    rdma link add "$_rxe" type rxe netdev "$_netdev"
    wait_for 30 rdma_ready "$_rxe" $(($# + 1)) || fail "$_rxe did not come up: $(rdma link)"
}
rdma_active() { rdma link show "$1/1" | grep -q 'state ACTIVE'; }
# rdma_ready RXE GIDS: the link is up, and there are so many identifiers (one for the interface itself, one for each address).
rdma_ready() { rdma_active "$1" && [ "$(cat "/sys/class/infiniband/$1"/ports/1/gids/[0-7] | grep -c '[1-9a-f]')" -ge "$2" ]; }

# ---- the kernel's initiator
# kernel_disk NQN NSID: the block device of a connected subsystem's namespace (nvme0n1 need not be namespace 1).
kernel_disk() {
    for _c in /sys/class/nvme-subsystem/*; do
        [ "$(cat "$_c/subsysnqn" 2>/dev/null)" = "$1" ] || continue
        for _d in "$_c"/nvme*n*; do
            case ${_d##*/} in *c*n*) continue ;; esac
            [ "$(cat "$_d/nsid" 2>/dev/null)" != "$2" ] || { echo "/dev/${_d##*/}"; return 0; }
        done
    done
    return 1
}
