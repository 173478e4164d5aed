# Controllers are reset, idle and under a verifying load, and come back with what was written.
# deadline: 300
. /suite/env
user_has "$A"; user_has "$B"
for address in $A $B; do
    nvmf reset "$(trid "$address")" --count 20 | tail -n 1
    nvmf verify "$(trid "$address")" --offset 1MiB --length 32MiB --block-size 4KiB --queue-depth 64 --seed 9 --yes --quiet \
        --reset-every 0.05 >/tmp/verified || fail "$address: verify"
    cat /tmp/verified
    resets=$(grep '^resets' /tmp/verified | tr -dc 0-9)
    [ "$resets" -gt 0 ] || fail "$address: it was not reset"
done
# QEMU's controller has no NVM subsystem reset, and says so.
expect_failure 60 nvmf subsystem-reset "$(trid "$A")" --yes
