"""The cluster that is a Kubernetes cluster: models are Deployments and pods, settings annotations, keys Secrets.

    cluster     the `Cluster` of the supervisor: follows, reports, scales          (asyncio)
    follower    all reflectors of one router, and how far behind they are          (asyncio)
    reflector   list and watch of one resource                                     (decides: no I/O; runs: asyncio)
    writer      patches the number of replicas, marks pods                         (asyncio)
    recorder    Events                                                             (asyncio)
    electorate  holds or follows the Lease                                         (asyncio)
    keys        the Secrets that are missing; commands about keys                  (asyncio)
    looking     the router's status through the API server, for `top`              (asyncio)
    client      requests to the API server                                         (asyncio)
    credentials where it is and how to prove oneself                               (files)
    models      Deployments, pods and Secrets -> services, versions, replicas      (no I/O)
    annotations annotations of one Deployment -> settings                          (no I/O)
    counts      what number of replicas to write, and who else writes it           (no I/O)
    leader      who may write                                                      (no I/O)
    objects     the fields of Kubernetes objects that are used                     (no I/O)
    access      resources and verbs, for the chart's role                          (facts)

Must not live here: how many replicas there should be (`scaling`), who gets a request (`slots`).
"""
