# Where something is missing for RDMA, one line says what, and how to get it; no privileges are needed but enough locked memory.
# deadline: 120
. /suite/env
read_alpha="nvmf read $IDENTITY --length 4KiB --output /tmp/never --timeout 5 $(trid "$ALPHA")"
says() { grep -qi "$1" /tmp/error || fail "the error does not say \`$1\`"; }
# without FILE TEXT: the message when the file is not there.
without() {
    mv "$1" /run/hidden
    trap 'mv /run/hidden "'"$1"'"' EXIT
    expect_failure 8 $read_alpha
    says "$2"
    mv /run/hidden "$1"
    trap - EXIT
}
without "$(echo /usr/lib/*/libibverbs.so.1)" libibverbs
without "$(echo /usr/lib/*/librdmacm.so.1)" librdmacm
# The library itself complains about a driver that is configured and not there.
mv /etc/libibverbs.d /etc/hidden.d
without "$(echo /usr/lib/*/libibverbs/librxe-rdmav*.so)" ibverbs-providers
mv /etc/hidden.d /etc/libibverbs.d

# No device files: the kernel's part is not loaded.
expect_failure 8 unshare -m /bin/sh -c "mount -t tmpfs none /dev/infiniband && exec $(echo "$read_alpha" | sed 's/trtype:.*/"&"/')"
says 'ib_uverbs\|rdma_ucm'

# No device: one's network namespace has none.
rdma system set netns exclusive
trap 'rdma system set netns shared' EXIT
expect_failure 8 unshare -n $read_alpha
says 'network namespace'
rdma system set netns shared
trap - EXIT

# An ordinary user may use RDMA, within the limit of locked memory.
user="setpriv --reuid 1000 --regid 1000 --clear-groups"
$user nvmf read $IDENTITY --length 4KiB --timeout 20 $(trid "$ALPHA") >/tmp/seen || fail "not for an ordinary user"
[ "$(wc -c </tmp/seen)" -eq 4096 ] || fail "not 4 KiB"
ulimit -l 16
expect_failure 8 $user nvmf read $IDENTITY --length 4KiB --timeout 5 $(trid "$ALPHA")
says 'memlock\|locked memory\|ulimit -l'
