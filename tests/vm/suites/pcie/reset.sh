# Controllers are reset again and again, and do I/O afterwards.
# deadline: 300
. /suite/env
user_has "$A"; user_has "$B"
for address in $A $B; do
    nvmf reset "$(trid "$address")" --count 20 | tail -n 1
    nvmf verify "$(trid "$address")" --offset 1MiB --length 8MiB --block-size 4KiB --queue-depth 64 --seed 9 --yes --quiet
done
# QEMU's controller has no NVM subsystem reset, and says so.
expect_failure 60 nvmf subsystem-reset "$(trid "$A")" --yes
