"""An independent client, kubernetes-asyncio, reads what the server sends: its models refuse what Kubernetes has not."""

import asyncio
import datetime
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client, config, watch
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.leaderelection.electionconfig import Config
from kubernetes_asyncio.leaderelection.leaderelection import LeaderElection
from kubernetes_asyncio.leaderelection.resourcelock.leaselock import LeaseLock

from tests.kubernetes.cluster import Cluster

Story = Callable[[client.ApiClient, Cluster], Awaitable[None]]


def _tell(cluster: Cluster, story: Story) -> None:
    async def run() -> None:
        configuration = client.Configuration()
        configuration.disable_strict_ssl_verification = True  # as the router does it
        await config.load_kube_config(str(cluster.admin), client_configuration=configuration)
        async with client.ApiClient(configuration) as api:
            await story(api, cluster)
        await asyncio.sleep(0.05)  # TLS of a watch that was broken off ends in turns of the loop

    asyncio.run(run())


def _deployment(name: str) -> Any:
    labels = {"app": name}
    container = client.V1Container(
        name="model",
        image="model:1",
        ports=[client.V1ContainerPort(container_port=5001)],
        resources=client.V1ResourceRequirements(requests={"cpu": "100m"}),
    )
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container])
    )
    spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels=labels), template=template)
    return client.V1Deployment(metadata=client.V1ObjectMeta(name=name, labels=labels), spec=spec)


def test_models_of_every_kind(cluster: Cluster) -> None:
    async def story(api: client.ApiClient, cluster: Cluster) -> None:
        apps, core, where = client.AppsV1Api(api), client.CoreV1Api(api), cluster.namespace
        made = await apps.create_namespaced_deployment(where, _deployment("a"))
        assert made.metadata.creation_timestamp.tzinfo is not None
        scale = await apps.read_namespaced_deployment_scale("a", where)
        assert (scale.spec.replicas, scale.status.selector) == (2, "app=a")
        scale = await apps.patch_namespaced_deployment_scale("a", where, {"spec": {"replicas": 4}})
        assert scale.spec.replicas == 4
        found = await apps.list_namespaced_deployment(where, label_selector="app=a")
        assert [item.spec.replicas for item in found.items] == [4]
        cluster.pod("p", {"app": "a"}, "10.0.0.1")
        pods = await core.list_namespaced_pod(where, field_selector="status.phase=Running")
        assert [pod.status.pod_ip for pod in pods.items] == ["10.0.0.1"]
        secret = client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"k": "v"})
        assert (await core.create_namespaced_secret(where, secret)).data == {"k": "dg=="}
        target = client.V2CrossVersionObjectReference(api_version="apps/v1", kind="Deployment", name="a")
        hpa = client.V2HorizontalPodAutoscaler(
            metadata=client.V1ObjectMeta(name="h"),
            spec=client.V2HorizontalPodAutoscalerSpec(max_replicas=2, scale_target_ref=target),
        )
        scaler = await client.AutoscalingV2Api(api).create_namespaced_horizontal_pod_autoscaler(where, hpa)
        assert scaler.spec.min_replicas == 1

    _tell(cluster, story)


def test_events_by_their_model(cluster: Cluster) -> None:
    async def story(api: client.ApiClient, cluster: Cluster) -> None:
        event = client.EventsV1Event(
            metadata=client.V1ObjectMeta(generate_name="a."),
            event_time=datetime.datetime.now(datetime.UTC),
            reporting_controller="azureml-fe",
            reporting_instance="pod",
            action="Scale",
            reason="ScaledUp",
            type="Normal",
            note="text",
            regarding=client.V1ObjectReference(kind="Deployment", name="a", namespace=cluster.namespace),
        )
        await client.EventsV1Api(api).create_namespaced_event(cluster.namespace, event)
        found = await client.CoreV1Api(api).list_namespaced_event(cluster.namespace)
        assert [(item.message, item.involved_object.name) for item in found.items] == [("text", "a")]

    _tell(cluster, story)


def test_refusals_by_their_model(cluster: Cluster) -> None:
    async def story(api: client.ApiClient, cluster: Cluster) -> None:
        apps = client.AppsV1Api(api)
        with pytest.raises(ApiException) as refused:
            await apps.read_namespaced_deployment("nope", cluster.namespace)
        assert (refused.value.status, "NotFound" in str(refused.value.body)) == (404, True)
        await apps.create_namespaced_deployment(cluster.namespace, _deployment("a"))
        with pytest.raises(ApiException) as refused:
            await apps.create_namespaced_deployment(cluster.namespace, _deployment("a"))
        assert refused.value.status == 409

    _tell(cluster, story)


def test_watch_and_pages(cluster: Cluster) -> None:
    async def story(api: client.ApiClient, cluster: Cluster) -> None:
        core, where = client.CoreV1Api(api), cluster.namespace
        for name in ("a", "b", "c"):
            cluster.pod(name, {})
        page = await core.list_namespaced_pod(where, limit=2)
        assert (len(page.items), bool(page.metadata._continue)) == (2, True)
        rest = await core.list_namespaced_pod(where, limit=2, _continue=page.metadata._continue)
        assert [pod.metadata.name for pod in page.items + rest.items] == ["a", "b", "c"]
        seen = []
        async with watch.Watch() as follow:
            version = rest.metadata.resource_version
            cluster.pod_runs("a", "10.0.0.1")
            cluster.client.delete("pods", where, "b", gracePeriodSeconds=0)
            async for event in follow.stream(core.list_namespaced_pod, where, resource_version=version):
                seen.append((event["type"], event["object"].metadata.name))
                if len(seen) == 3:
                    break
        # A pod is seen ending before it is gone, even if it goes at once.
        assert seen == [("MODIFIED", "a"), ("MODIFIED", "b"), ("DELETED", "b")]

    _tell(cluster, story)


def test_leader_is_elected_by_a_lease(cluster: Cluster) -> None:
    async def story(api: client.ApiClient, cluster: Cluster) -> None:
        leads = asyncio.Event()

        async def lead() -> None:
            leads.set()

        async def stop() -> None:
            pass

        lock = LeaseLock("leader", cluster.namespace, f"me-{uuid.uuid4()}", api)
        election = LeaderElection(
            Config(
                lock,
                lease_duration=10,
                renew_deadline=5,
                retry_period=1,
                onstarted_leading=lead,
                onstopped_leading=stop,
            )
        )
        running = asyncio.create_task(election.run())
        await leads.wait()
        running.cancel()
        await asyncio.wait((running,))
        lease = await client.CoordinationV1Api(api).read_namespaced_lease("leader", cluster.namespace)
        assert lease.spec.holder_identity.startswith("me-")
        assert lease.spec.renew_time.tzinfo is not None

    _tell(cluster, story)


def test_kubeconfig_of_an_account(cluster: Cluster) -> None:
    cluster.account("router")
    file: Path = cluster.kubeconfig("router")

    async def run() -> None:
        configuration = client.Configuration()
        configuration.disable_strict_ssl_verification = True  # as the router does it
        await config.load_kube_config(str(file), client_configuration=configuration)
        async with client.ApiClient(configuration) as api:
            with pytest.raises(ApiException) as refused:
                await client.CoreV1Api(api).list_namespaced_pod(cluster.namespace)
            assert refused.value.status == 403

    asyncio.run(run())
