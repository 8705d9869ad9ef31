#!/bin/bash
# A cluster of one machine on this computer, and a pod in it that answers over HTTP.
# It lies in demo/ and runs until: cd demo && ../bin/kimage down
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p demo
cd demo
kimage() { ../bin/kimage "$@"; }
kubectl() { kimage ssh k8s-01 sudo kubectl --kubeconfig /etc/kubernetes/admin.conf "$@"; }

kimage up
# No registry is needed: the smallest image is a frame for a program of the machine's.
pause=$(kimage ssh k8s-01 sudo crictl images -o json | sed -n 's/.*"\([^"]*\/pause:[^"]*\)".*/\1/p' | head -n 1)
sed "s|PAUSE|$pause|" ../e2e/demo.yaml | kubectl apply -f -
kubectl rollout status deployment/hello --timeout=10m
address=$(kubectl get service hello -o 'jsonpath={.spec.clusterIP}')
echo
echo "http://$address/ answers, by a pod of the Service hello:"
kimage ssh k8s-01 "python3 -c 'import urllib.request; print(urllib.request.urlopen(\"http://$address/\", timeout=60).read().decode())'"
echo
echo "Go on: cd demo; ../bin/kimage status; ../bin/kimage ssh k8s-01; export KUBECONFIG=\$PWD/cluster.local/kubeconfig; ../bin/kimage down"
