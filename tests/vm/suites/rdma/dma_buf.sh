# Memory of dma-bufs: soft-RoCE registers none, which is said, and nothing else is lost by that; opened to the processor it is copied.
# deadline: 180
. /suite/env
dma_buf "$(trid "$GAMMA")" 7 >/tmp/tried 2>&1 || { cat /tmp/tried; fail "dma_buf"; }
cat /tmp/tried
for memory in udmabuf heap; do
    grep -q "^$memory as it is: refused: .*RDMA device rxe0 (ibv_reg_dmabuf_mr): its driver takes no dma-bufs" /tmp/tried ||
        fail "$memory as it is"
    grep -q "^$memory opened: works" /tmp/tried || fail "$memory opened"
done
