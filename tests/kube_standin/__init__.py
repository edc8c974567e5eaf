"""A Kubernetes cluster for tests: API server, controllers, kubelet and a proxy for faults. See README.md."""
