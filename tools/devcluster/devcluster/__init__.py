"""A real one-node Kubernetes in private namespaces of this machine, without Docker and without a registry.

A real API server, controller-manager, scheduler, kubelet, kube-proxy and etcd (one binary built from `../components`), Debian's
containerd and runc. `python -m devcluster --help` is the command line; `provider` is what tests use.
"""
