"""What the deployment files of Azure ML declare, as services with the settings of this router.

Contains: which files these are (`files`), their keys (`keys`), the two formats (`deployment_config`, v1;
`online_endpoint`, v2), and the facts about services that are common to both (`services`). `conversion` is the entry
point. Does not contain: the local file and the Kubernetes objects made of these facts, which are in the cluster back
ends, and any access to Azure.
"""
