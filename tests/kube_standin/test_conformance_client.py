"""An independent client, kubernetes-asyncio, parses the responses. Its models reject what Kubernetes never sends."""

import asyncio
import contextlib
import datetime
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client, config, watch
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.leaderelection.electionconfig import Config
from kubernetes_asyncio.leaderelection.leaderelection import LeaderElection
from kubernetes_asyncio.leaderelection.resourcelock.leaselock import LeaseLock

from tests.kube_standin.cluster import Cluster


@contextlib.asynccontextmanager
async def _api_client(kubeconfig: Path) -> AsyncIterator[client.ApiClient]:
    configuration = client.Configuration()
    configuration.disable_strict_ssl_verification = True  # like the router
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        yield api


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


async def test_objects_of_every_kind_fit_the_models(cluster: Cluster) -> None:
    async with _api_client(cluster.admin) as api:
        apps, core, namespace = client.AppsV1Api(api), client.CoreV1Api(api), cluster.namespace
        created = await apps.create_namespaced_deployment(namespace, _deployment("a"))
        assert created.metadata.creation_timestamp.tzinfo is not None
        scale = await apps.read_namespaced_deployment_scale("a", namespace)
        assert (scale.spec.replicas, scale.status.selector) == (2, "app=a")
        scale = await apps.patch_namespaced_deployment_scale("a", namespace, {"spec": {"replicas": 4}})
        assert scale.spec.replicas == 4
        found = await apps.list_namespaced_deployment(namespace, label_selector="app=a")
        assert [item.spec.replicas for item in found.items] == [4]
        cluster.create_pod("p", {"app": "a"}, "10.0.0.1")
        pods = await core.list_namespaced_pod(namespace, field_selector="status.phase=Running")
        assert [pod.status.pod_ip for pod in pods.items] == ["10.0.0.1"]
        secret = client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"k": "v"})
        assert (await core.create_namespaced_secret(namespace, secret)).data == {"k": "dg=="}
        target = client.V2CrossVersionObjectReference(api_version="apps/v1", kind="Deployment", name="a")
        hpa = client.V2HorizontalPodAutoscaler(
            metadata=client.V1ObjectMeta(name="h"),
            spec=client.V2HorizontalPodAutoscalerSpec(max_replicas=2, scale_target_ref=target),
        )
        scaler = await client.AutoscalingV2Api(api).create_namespaced_horizontal_pod_autoscaler(namespace, hpa)
        assert scaler.spec.min_replicas == 1


async def test_events_fit_their_models(cluster: Cluster) -> None:
    async with _api_client(cluster.admin) as api:
        event = client.EventsV1Event(
            metadata=client.V1ObjectMeta(generate_name="a-"),
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


async def test_errors_fit_their_model(cluster: Cluster) -> None:
    async with _api_client(cluster.admin) as api:
        apps = client.AppsV1Api(api)
        with pytest.raises(ApiException) as error:
            await apps.read_namespaced_deployment("nope", cluster.namespace)
        assert (error.value.status, "NotFound" in str(error.value.body)) == (404, True)
        await apps.create_namespaced_deployment(cluster.namespace, _deployment("a"))
        with pytest.raises(ApiException) as error:
            await apps.create_namespaced_deployment(cluster.namespace, _deployment("a"))
        assert error.value.status == 409


async def test_watch_and_paged_list(cluster: Cluster) -> None:
    async with _api_client(cluster.admin) as api:
        core, namespace = client.CoreV1Api(api), cluster.namespace
        for name in ("a", "b", "c"):
            cluster.create_pod(name, {})
        page = await core.list_namespaced_pod(namespace, limit=2)
        assert (len(page.items), bool(page.metadata._continue)) == (2, True)
        rest = await core.list_namespaced_pod(namespace, limit=2, _continue=page.metadata._continue)
        assert [pod.metadata.name for pod in page.items + rest.items] == ["a", "b", "c"]
        events = []
        async with watch.Watch() as watcher:
            version = rest.metadata.resource_version
            cluster.set_pod_running("a", "10.0.0.1")
            cluster.client.delete("pods", namespace, "b", gracePeriodSeconds=0)
            async for event in watcher.stream(core.list_namespaced_pod, namespace, resource_version=version):
                events.append((event["type"], event["object"].metadata.name))
                if len(events) == 3:
                    break
        # A pod is marked as terminating before it is removed, even without a grace period.
        assert events == [("MODIFIED", "a"), ("MODIFIED", "b"), ("DELETED", "b")]


async def test_leader_election_with_a_lease(cluster: Cluster) -> None:
    async with _api_client(cluster.admin) as api:
        is_leader = asyncio.Event()

        async def start() -> None:
            is_leader.set()

        async def stop() -> None:
            pass

        lock = LeaseLock("leader", cluster.namespace, f"me-{uuid.uuid4()}", api)
        election = LeaderElection(
            Config(
                lock,
                lease_duration=10,
                renew_deadline=5,
                retry_period=1,
                onstarted_leading=start,
                onstopped_leading=stop,
            )
        )
        running = asyncio.create_task(election.run())
        await is_leader.wait()
        running.cancel()
        await asyncio.wait((running,))
        lease = await client.CoordinationV1Api(api).read_namespaced_lease("leader", cluster.namespace)
        assert lease.spec.holder_identity.startswith("me-")
        assert lease.spec.renew_time.tzinfo is not None


async def test_kubeconfig_of_a_service_account(cluster: Cluster) -> None:
    cluster.create_service_account("router")
    async with _api_client(cluster.write_kubeconfig("router")) as api:
        with pytest.raises(ApiException) as error:
            await client.CoreV1Api(api).list_namespaced_pod(cluster.namespace)
        assert error.value.status == 403
