# Five processes use a controller behind VFIO at once, verifying what they write; whoever is killed, the others go on or say so.
# deadline: 300
. /suite/env
user_has "$A"
sharing "$(trid "$A")" 1
