# Memory of dma-bufs: refused while it is not open to the processor, and nothing else is lost by that; opened it is written and read.
# deadline: 180
. /suite/env
dma_buf "$(trid "$ALPHA")" 1 >/tmp/tried 2>&1 || { cat /tmp/tried; fail "dma_buf"; }
cat /tmp/tried
for memory in udmabuf heap; do
    grep -q "^$memory as it is: refused: .*begin_cpu_access" /tmp/tried || fail "$memory as it is"
    grep -q "^$memory opened: works" /tmp/tried || fail "$memory opened"
done
