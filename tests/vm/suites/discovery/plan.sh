# Referrals in a circle are followed once; the plan says what would be attached and why.
# deadline: 60
. /suite/env
nvmf connect-all --dry-run -t tcp -a 127.0.0.1 -s 4408 >/tmp/plan
cat /tmp/plan
grep -q "attach .*$(nqn 8)" /tmp/plan || fail "the eighth is not attached"
grep -q "attach .*$(nqn 9)" /tmp/plan || fail "the ninth, behind the referral, is not attached"
[ "$(grep -c '^discovery' /tmp/plan)" -eq 2 ] || fail "not two discovery controllers"
grep -q 'follow ' /tmp/plan || fail "no referral is followed"
grep -q 'asked anyway' /tmp/plan || fail "the referral back is not recognised"
nvmf discover -t tcp -a 127.0.0.1 -s 4408 --referrals >/tmp/both
[ "$(grep -c '^Discovery Log Number' /tmp/both)" -eq 2 ] || fail "not two logs"
nvmf list-subsys -t tcp -a 127.0.0.1 -s 4401 | tee /tmp/subsys
grep -q "NQN=$(nqn 1)" /tmp/subsys || fail "list-subsys does not name the subsystem"
expect_failure 8 nvmf discover -t tcp -a 127.0.0.1 -s 4401 --extended
