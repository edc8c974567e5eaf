"""The command `azureml-fe adopt`: Deployments that Azure ML has made become services of this router, and back.

    facts       what the cluster has: services of Azure ML, their Secrets, other routers        (types; no I/O)
    record      what a Deployment had before its adoption, as an annotation                     (no I/O)
    wanted      which annotations and keys adoption gives a service                             (no I/O)
    plan        which writes adopt, take over or release a service, and what prevents them      (no I/O)
    commands    reads the facts, tries the writes, performs them                                (asyncio)

A service is adopted in three steps, each of which is one command and has a way back:

    not adopted --adopt--> observed --take over--> in charge
         ^                     |                       |
         +------- undo --------+-----------------------+

Does not contain: what a router does with an observed service (`service_registry`, `gateway.admission`).
"""
