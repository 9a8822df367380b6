"""Real one-node Kubernetes cluster in private namespaces of this machine, without Docker or a registry.

It runs a real API server, controller-manager, scheduler, kubelet, kube-proxy and etcd (one binary built from
`../components`), and Debian's containerd and runc. `python -m devcluster --help` explains the command line.
Tests use `provider`.
"""
