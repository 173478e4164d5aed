# `nvmf identify` and `nvmf list` tell the formats as QEMU was asked for them.
. /suite/env
user_has
told() {
    nvmf identify "$P" --nsid "$1" >/tmp/identify
    grep -q "^  Format  *$2\$" /tmp/identify && grep -q "^  Metadata  *$3" /tmp/identify && grep -q "^  Protection  *$4\$" /tmp/identify ||
        { cat /tmp/identify; fail "namespace $1"; }
}
told 1 "512   B +  8 B" "8 B per block, in a buffer of its own" "type 1, 16-bit guard, in the last 8 B of the metadata"
told 2 "512   B +  8 B" "8 B per block, at the end of its data" "type 1, 16-bit guard, in the last 8 B of the metadata"
told 3 "4 KiB + 64 B" "64 B per block, in a buffer of its own" "type 2, 16-bit guard, in the first 8 B of the metadata"
told 4 "4 KiB + 16 B" "16 B per block, at the end of its data" "type 1, 64-bit guard, in the last 16 B of the metadata"
