"""The local cluster: replicas are processes of this machine, described by one YAML file."""
