# Memory of dma-bufs: VFIO maps none whose pages it cannot pin, which is said, and nothing else is lost by that; opened to the processor it
# is copied.
# deadline: 180
. /suite/env
user_has "$A"
dma_buf "$(trid "$A")" 1 >/tmp/tried 2>&1 || { cat /tmp/tried; fail "dma_buf"; }
cat /tmp/tried
for memory in udmabuf heap; do
    # Kernels before 6.11 have pages behind udmabuf's mappings.
    grep -q -e "^$memory as it is: works" -e "^$memory as it is: refused: .*of a dma-buf that has no pages in this process" /tmp/tried ||
        fail "$memory as it is"
    grep -q "^$memory opened: works" /tmp/tried || fail "$memory opened"
done
