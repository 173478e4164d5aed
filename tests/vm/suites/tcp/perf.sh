# `nvmf perf` measures: its JSON parses, nothing failed, and more than no I/O was done; polling, sleeping, and writing. Reads come without
# response capsules.
# deadline: 180
. /suite/env
# number KEY: of the JSON just printed, its integer part
number() { tr -d ' \n' </tmp/perf.json | grep -o "\"$1\":[0-9]*" | cut -d: -f2; }
# measure LABEL OPTION...
measure() {
    label=$1; shift
    nvmf perf "$(trid "$ALPHA")" --hostnqn "$HOSTNQN" -t 2 --json "$@" >/tmp/perf.json
    [ "$(head -c 1 /tmp/perf.json)" = "{" ] || { cat /tmp/perf.json; fail "$label: no JSON object"; }
    [ "$(number iops)" -gt 0 ] || { cat /tmp/perf.json; fail "$label: no I/O"; }
    [ "$(number errors)" -eq 0 ] || { cat /tmp/perf.json; fail "$label: I/O errors"; }
    note "$label: $(number iops) IOPS, $(number mib_per_s) MiB/s, mean $(number mean) us (emulated: no measure of anything)"
}
measure "4 KiB random reads, depth 32" -q 32 -o 4096 -w randread
measure "1,000 reads" -d 1000 -q 8 -o 4096 -w randread --transport-stats
[ "$(number ios)" -eq 1000 ] || fail "$(number ios) reads"
# A header of 24 bytes and the data, and 152 bytes of connecting; with response capsules it would be 24 bytes more for each.
[ "$(number bytes_received)" -lt 4125000 ] || fail "$(number bytes_received) bytes for 1,000 reads: are there response capsules?"
measure "random reads, depth 32, sleeping" -q 32 -o 4096 -w randread --interrupt
measure "4 KiB random mix on two queue pairs" -q 8 -o 4096 -w randrw -P 2 --yes
measure "128 KiB reads, depth 8" -q 8 -o 128K -w read
