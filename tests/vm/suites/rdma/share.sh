# Five processes use a kernel's target at once, verifying what they write; whoever is killed, the others go on or say so.
# deadline: 300
. /suite/env
sharing "$(trid "$ALPHA")" 1
