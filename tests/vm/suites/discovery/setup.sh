# 200 subsystems behind ports that show 1, 4, 5, 70 and 200 of them; two ports that refer to each other; two that require things.
# deadline: 120
. /suite/env
configfs
soft_roce rxe0 dummy0 $V4/24 $V6/64
modules nvmet nvmet-tcp nvme-tcp nvmet-rdma nvme-rdma
mkdir -p /etc/nvme
echo "$HOSTNQN" >/etc/nvme/hostnqn
echo "$HOSTID" >/etc/nvme/hostid
n=1
while [ "$n" -le 200 ]; do
    subsystem "$(nqn $n)"
    n=$((n + 1))
done
# The third is for another host.
echo 0 >"$NVMET/subsystems/$(nqn 3)/attr_allow_any_host"
mkdir "$NVMET/hosts/$OTHERHOST"
ln -s "$NVMET/hosts/$OTHERHOST" "$NVMET/subsystems/$(nqn 3)/allowed_hosts/$OTHERHOST"
port 1 tcp 127.0.0.1 4401; link_first 1 1
port 2 tcp 127.0.0.1 4404; link_first 2 4
port 3 tcp 127.0.0.1 4405; link_first 3 5
port 4 tcp ::1 4470; link_first 4 70
port 5 tcp 127.0.0.1 4500; link_first 5 200
port 6 rdma $V4 4420; link_first 6 5
port 7 rdma $V6 4420; link_first 7 4
port 8 tcp 127.0.0.1 4408; link 8 8
port 9 tcp 127.0.0.1 4409; link 9 9
port 10 tcp 127.0.0.1 4411; printf required >"$NVMET/ports/10/addr_treq"; link 10 10
port 11 tcp 127.0.0.1 4412; printf 'not required' >"$NVMET/ports/11/addr_treq"; link 11 11
referral 8 nine tcp 127.0.0.1 4409
referral 9 eight tcp 127.0.0.1 4408
