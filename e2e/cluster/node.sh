#!/usr/bin/env bash
# Process 1 of the node's own namespaces (harness/cluster.py starts it): killing it ends every process of the node.
# Needs BIN (programs), CNI_BIN, DATA, PKI, IMAGES, CGROUP, SNAPSHOTTER, NODE_IP, HOST_IP.
set -uo pipefail
mkdir -p "$DATA/log"
mount --make-rprivate /
# A sysfs of this network namespace, with the machine's cgroup tree kept.
mkdir -p "$DATA/mnt/cgroup"; mount --rbind /sys/fs/cgroup "$DATA/mnt/cgroup"
mount -t sysfs sysfs /sys; mount --rbind "$DATA/mnt/cgroup" /sys/fs/cgroup; umount -l "$DATA/mnt/cgroup"
# kubelet sets these for the whole machine: let it see and write files of ours instead.
for kv in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
          kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  f=$DATA/mnt/sysctl/${kv%%=*}; mkdir -p "${f%/*}"; echo "${kv#*=}" > "$f"; mount --bind "$f" "/proc/sys/${kv%%=*}"
done
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/netns /run/containerd
for d in lib/kubelet lib/cni log/pods log/containers; do mkdir -p "$DATA/$d"; mount --bind "$DATA/$d" "/var/$d"; done
mount --make-rshared /
hostname node1
ip link set lo up
while ! ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip addr add "$NODE_IP/24" dev eth0; ip link set eth0 up; ip route add default via "$HOST_IP"
echo 1 > /proc/sys/net/ipv4/ip_forward
mkdir -p "$DATA/cni" "$DATA/conf"; echo "nameserver 127.0.0.1" > "$DATA/conf/resolv.conf"
cat > "$DATA/cni/10-e2e.conflist" <<Y
{"cniVersion": "0.4.0", "name": "e2e", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
Y
# restrict_oom_score_adj: containers of CI systems often lack CAP_SYS_RESOURCE.
cat > "$DATA/conf/containerd.toml" <<Y
version = 2
root = "$DATA/containerd"
state = "/run/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "portcullis.test/pause:e2e"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$SNAPSHOTTER"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI_BIN"
    conf_dir = "$DATA/cni"
Y
cat > "$DATA/conf/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet-serving.crt
tlsPrivateKeyFile: $PKI/kubelet-serving.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failCgroupV1: false
failSwapOn: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: $DATA/conf/resolv.conf
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, memory.available: 50Mi}
Y
# conntrack's zeros: leave the machine's own limits alone.
cat > "$DATA/conf/kube-proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: $PKI/kube-proxy.kubeconfig}
hostnameOverride: node1
clusterCIDR: 10.244.0.0/16
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {minSyncPeriod: 0s}
Y
keep() { # name command...
  local n=$1; shift
  ( while :; do "$@" >> "$DATA/log/$n.log" 2>&1; echo "== $n ended with $?, again in 1 s" >> "$DATA/log/$n.log"; sleep 1; done ) &
}
keep containerd containerd --config "$DATA/conf/containerd.toml"
until [ -S /run/containerd/containerd.sock ]; do sleep 0.05; done
for i in "$IMAGES"/*.tar; do ctr -n k8s.io images import "$i" >> "$DATA/log/images.log" 2>&1 || { echo "cannot import $i"; exit 1; }; done
keep kubelet "$BIN/kubelet" --config="$DATA/conf/kubelet.yaml" --kubeconfig="$PKI/node.kubeconfig" \
  --hostname-override=node1 --node-ip="$NODE_IP" --root-dir=/var/lib/kubelet
keep kube-proxy "$BIN/kube-proxy" --config="$DATA/conf/kube-proxy.yaml"
wait
