"""The bytes that peers exchange under protocol version 1.

During a rolling upgrade, pods of two releases are connected. If a test fails, the two releases
are incompatible: change the code, not the expected bytes, unless the protocol version changes as well.
"""

import dataclasses
import itertools
import json
from typing import Any

import pytest

from router.auth.issuers import Issuer
from router.config.service_settings import VERSION_SETTINGS
from router.model.services import Replica, ReplicaState, Service, Version
from router.peers import messages
from router.peers.close_reason import CloseReason
from router.peers.frames import FrameSigner, FrameVerifier
from router.peers.handshake import (
    SUPPORTED_VERSIONS,
    ClientHandshake,
    HandshakeError,
    PeerIdentity,
    ProtocolVersions,
    ServerHandshake,
)
from router.peers.tls import self_signed_tls
from router.peers.wire import decode, encode
from router.scaling.demand import Demand
from router.scaling.self.load import PodLoad
from router.slots import messages as slots
from router.telemetry.histogram import LAG_BOUNDS, ROUTE_BOUNDS
from router.telemetry.traffic import ServiceTraffic, TimelinePoints

KEY = ("iris", "blue")
# The settings of a version as earlier releases send them. Those that were added since have their defaults.
EARLIER_SETTINGS: dict[str, Any] = {
    "autoscale_enabled": True,
    "autoscale_min_replicas": 1,
    "autoscale_max_replicas": 10,
    "autoscale_refresh_seconds": 1.0,
    "autoscale_target_utilization": 70,
    "autoscale_scale_down_seconds": 60.0,
    "num_replicas": None,
    "replica_max_concurrent_requests": 2,
    "max_request_wait_time": 500,
    "max_queue_length": 100,
    "scoring_timeout_ms": 60000,
    "cpu_cores": 0.1,
    "cpu_cores_limit": None,
    "memory_gb": 0.5,
    "memory_gb_limit": 1.0,
    "gpu_cores": 0,
    "period_seconds": 10,
    "initial_delay_seconds": 310,
    "timeout_seconds": 2,
    "success_threshold": 1,
    "failure_threshold": 3,
    "traffic_percentile": 90,
    "is_default": True,
}
VERSION = Version(name="blue", **{setting.name: setting.default for setting in VERSION_SETTINGS} | EARLIER_SETTINGS)
SERVICE = Service(
    name="iris",
    auth_enabled=True,
    token_auth_enabled=False,
    primary_key="key-1",
    secondary_key=None,
    forward_authorization=False,
    keep_underscore_headers=True,
    cors_allowed_origins=("https://example.com",),
    allowed_methods=("GET", "POST"),
    key_headers=("authorization",),
    versions=(VERSION,),
)
ISSUER = Issuer(
    name="corp",
    issuer="https://issuer.example.com",
    audience=("api",),
    jwks_url=None,
    algorithms=("RS256",),
    required_claims=(("tid", "42"),),
    required_roles=("score",),
    services=("iris",),
    clock_skew_seconds=60.0,
    keys_refresh_seconds=3600.0,
    keys_max_age_seconds=86400.0,
    ca_file=None,
)
LOAD = PodLoad(
    seconds=1.0,
    cpus=2.0,
    cpu_seconds=0.5,
    route_time=(0, 3, *[0] * (len(ROUTE_BOUNDS) - 1)),
    loop_lag=(8, *[0] * (len(LAG_BOUNDS) - 1), 1),
    periods=10,
    throttled_periods=2,
)

PAYLOADS: list[tuple[messages.Message, str]] = [
    (messages.Heartbeat(), '["heartbeat"]'),
    (messages.Goodbye(), '["goodbye"]'),
    (messages.Leaving(), '["leaving"]'),
    (messages.ReachabilityReport(frozenset({"b", "c"})), '["reaches",["b","c"]]'),
    (
        messages.ForwardedLeaseRequests(
            "a/worker-0",
            KEY,
            (
                slots.SlotDemand(wanted_up_to=7, served_up_to=3, cancelled=(5,)),
                slots.Return("r-1", 2),
                slots.Exclude(frozenset({"r-2", "r-1"})),
                slots.Register(
                    cache_id=11,
                    session=1,
                    held={"r-1": 2},
                    excluded=frozenset({"r-2"}),
                    wanted_up_to=7,
                    served_up_to=3,
                    cancelled=(5,),
                ),
            ),
        ),
        (
            '["to-ledger","a/worker-0","iris","blue",[["wants",7,3,[5]],["return","r-1",2],["avoid",["r-1","r-2"]],'
            '["hello",11,1,{"r-1":2},["r-2"],7,3,[5]]]]'
        ),
    ),
    (
        messages.ForwardedLedgerReplies(
            "b/worker-1",
            KEY,
            (
                slots.Registered(cache_id=11, session=1),
                slots.Reregister(),
                slots.Grant("r-1", waiter=4),
                slots.Recall(count=2, after_waiter=6),
                slots.Revoke("r-2"),
            ),
        ),
        (
            '["to-holder","b/worker-1","iris","blue",[["welcome",11,1],["say-hello"],["grant","r-1",4],["recall",2,6],'
            '["revoke","r-2"]]]'
        ),
    ),
    (
        messages.ForwardedLeaseRequests(
            "a/worker-0", KEY, (slots.Return("r-1", 1, suspect_seconds=2.5), slots.Answered("r-1"), slots.RecallDone(3))
        ),
        '["to-ledger","a/worker-0","iris","blue",[["return","r-1",1,2.5],["answered","r-1"],["recalled",3]]]',
    ),
    (
        messages.ForwardedLedgerReplies(
            "b/worker-1", KEY, (slots.Recall(count=2, after_waiter=6, number=3), slots.Suspect("r-1", suspect=True))
        ),
        '["to-holder","b/worker-1","iris","blue",[["recall",2,6,3],["suspect","r-1",true]]]',
    ),
    (
        messages.HeldSnapshots(
            "a/worker-0", {KEY: slots.HeldSnapshot(cache_id=11, session=1, acked_grants=9, held={"r-1": 2})}
        ),
        '["leases","a/worker-0",[["iris","blue",11,1,9,{"r-1":2}]]]',
    ),
    (messages.WorkerEnded("a/worker-0"), '["front-end-gone","a/worker-0"]'),
    (messages.OwnerSyncComplete("iris"), '["told","iris"]'),
    (messages.OwnershipRevoked("iris"), '["forget","iris"]'),
    (
        messages.DemandReport(
            demand={
                KEY: Demand(
                    seconds=0.2,
                    busy_seconds=1.5,
                    queued_seconds=0.25,
                    arrivals=10,
                    refused=1,
                    completed=9,
                    service_seconds=1.25,
                )
            },
            in_flight={"r-1": 3},
            waiting={KEY: 4},
            acked_cordons=frozenset({"r-2"}),
            streaming={"r-1": 1},
        ),
        '["demand",[["iris","blue",0.2,1.5,0.25,10,1,9,1.25]],{"r-1":3},[["iris","blue",4]],["r-2"],{"r-1":1}]',
    ),
    (
        messages.DemandReport({}, {"r-1": 3}, {}, abandoned={"r-1": 2}),
        '["demand",[],{"r-1":3},[],[],{},{"r-1":2}]',
    ),
    (messages.LoadReport(LOAD), '["felt",1.0,2.0,0.5,[[0.00005,3]],[[0.0005,8],[null,1]],10,2]'),
    (messages.PodSize(2.0), '["pod-size",2.0]'),
    (
        messages.ServicesUpdate({"iris": SERVICE}),
        (
            '["services",[{"name":"iris","auth_enabled":true,"token_auth_enabled":false,"primary_key":"key-1",'
            '"secondary_key":null,"forward_authorization":false,"keep_underscore_headers":true,'
            '"cors_allowed_origins":["https://example.com"],"versions":[{"name":"blue","autoscale_enabled":true,'
            '"autoscale_min_replicas":1,"autoscale_max_replicas":10,"autoscale_refresh_seconds":1.0,'
            '"autoscale_target_utilization":70,"autoscale_scale_down_seconds":60.0,"num_replicas":null,'
            '"replica_max_concurrent_requests":2,"max_request_wait_time":500,"max_queue_length":100,'
            '"scoring_timeout_ms":60000,"cpu_cores":0.1,"cpu_cores_limit":null,"memory_gb":0.5,"memory_gb_limit":1.0,'
            '"gpu_cores":0,"period_seconds":10,"initial_delay_seconds":310,"timeout_seconds":2,"success_threshold":1,'
            '"failure_threshold":3,"traffic_percentile":90,"is_default":true}]}]]'
        ),
    ),
    (
        messages.TokenIssuersUpdate({"corp": ISSUER}),
        (
            '["token-issuers",[{"name":"corp","issuer":"https://issuer.example.com","audience":["api"],"jwks_url":null,'
            '"algorithms":["RS256"],"required_claims":[["tid","42"]],"required_roles":["score"],"services":["iris"],'
            '"clock_skew_seconds":60.0,"keys_refresh_seconds":3600.0,"keys_max_age_seconds":86400.0,"ca_file":null}]]'
        ),
    ),
    (
        messages.ReplicasUpdate(
            KEY,
            (
                Replica("r-1", "127.0.0.1", 5001, ReplicaState.READY),
                Replica("r-2", "127.0.0.1", 5002, ReplicaState.STARTING),
                Replica("r-3", "127.0.0.1", 5003, ReplicaState.DRAINING),
            ),
            frozenset({"r-1"}),
            frozenset({"r-3"}),
        ),
        (
            '["replicas","iris","blue",[["r-1","127.0.0.1",5001,"ready"],["r-2","127.0.0.1",5002,"starting"],'
            '["r-3","127.0.0.1",5003,"draining"]],["r-1"],["r-3"]]'
        ),
    ),
    (
        messages.CordonsUpdate(3, {KEY: frozenset({"r-1"})}, {KEY: frozenset({"r-1"})}),
        '["cordons",3,[["iris","blue",["r-1"]]],[["iris","blue",["r-1"]]]]',
    ),
    (messages.ExplainRequest(5, "req-1"), '["explain",5,"req-1"]'),
    (messages.ExplainReply(5, {"status": 200}), '["explained",5,{"status":200}]'),
    (messages.ExplainReply(6, None), '["explained",6,null]'),
    (
        messages.TrafficReport(
            {
                "iris": ServiceTraffic(
                    3,
                    (0, 2, *(0,) * 20, 1),
                    (1, 0, 0, 0, 2),
                    1,
                    10,
                    20,
                    busy_seconds=0.5,
                    queued_seconds=0.25,
                    needed=4,
                    desired=3,
                ),
                "resnet": ServiceTraffic(),
            }
        ),
        (
            '["traffic",[["iris",3,[[0.0002,2],[null,1]],{"refused":1,"client_left":2},1,10,20,0.5,0.25,4,3],'
            '["resnet",0,[],{},0,0,0,0.0,0.0,null,null]]]'
        ),
    ),
    (
        messages.TimelineSnapshot({"iris": TimelinePoints((0, 5), (7, 65535)), "": TimelinePoints((), ())}),
        '["timeline",[["iris",[0,5],[7,65535]],["",[],[]]]]',
    ),
]


def test_protocol_version_is_that_of_the_expected_bytes() -> None:
    assert ProtocolVersions(1, 1) == SUPPORTED_VERSIONS


def test_every_message_class_has_an_expected_payload() -> None:
    assert {type(message) for message, _ in PAYLOADS} == set(messages.Message.__args__)


def assert_extends(encoded: object, earlier: object) -> None:
    """Check that earlier releases read the same: they ignore fields that were added to the end, and unknown names."""
    if isinstance(earlier, dict):
        assert isinstance(encoded, dict)
        for name, value in earlier.items():
            assert_extends(encoded[name], value)
    elif isinstance(earlier, list):
        assert isinstance(encoded, list)
        assert len(encoded) >= len(earlier)
        for value, earlier_value in zip(encoded, earlier, strict=False):
            assert_extends(value, earlier_value)
    else:
        assert encoded == earlier


@pytest.mark.parametrize(("message", "payload"), PAYLOADS, ids=[type(message).__name__ for message, _ in PAYLOADS])
def test_payload_is_encoded_and_decoded_as_in_earlier_releases(message: messages.Message, payload: str) -> None:
    assert_extends(json.loads(encode(message)), json.loads(payload))
    assert decode(payload.encode()) == message


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ('["demand",[],{"r":2},[],["s"]]', messages.DemandReport({}, {"r": 2}, {}, frozenset({"s"}))),
        ('["cordons",3,[["iris","blue",["r"]]]]', messages.CordonsUpdate(3, {KEY: frozenset({"r"})})),
        (
            '["felt",1.0,2.0,0.5,[[0.00005,3]],[[0.0005,8],[null,1]]]',
            messages.LoadReport(dataclasses.replace(LOAD, periods=0, throttled_periods=0)),
        ),
        ('["replicas","iris","blue",[],["r"]]', messages.ReplicasUpdate(KEY, (), frozenset({"r"}))),
    ],
)
def test_fields_that_earlier_releases_do_not_send_are_empty(payload: str, message: messages.Message) -> None:
    assert decode(payload.encode()) == message


def test_frames_are_signed_and_verified_as_in_earlier_releases() -> None:
    key = bytes(range(32))
    frames = [
        "0000001d807b9a57af8218c404b0a5925a8769065b22686561727462656174225d",
        "0000001f7657a1d3a2be30ac06563a74ed290cc85b22746f6c64222c2269726973225d",
    ]
    payloads = [b'["heartbeat"]', b'["told","iris"]']
    signer, verifier = FrameSigner(key), FrameVerifier(key)
    assert [signer.sign(payload).hex() for payload in payloads] == frames
    assert [verifier.verify(bytes.fromhex(frame)[4:]) for frame in frames] == payloads


SECRET = b"correct horse battery"
DIALING = PeerIdentity("a", "00000000000000a1", "127.0.0.1", 9091)
ACCEPTING = PeerIdentity("b", "00000000000000b1", "", 9092)
CHALLENGE = "00000032617a7572656d6c2d6665207065657220310a" + "01" * 32
RESPONSE = (
    "0000006d" + "02" * 32 + b'["a","00000000000000a1","127.0.0.1",9091,1,1]'.hex()
    + "1c480274d5a64ee697e648f2c06aacb8f6130a1d41a9676c329dd10af7acb863"
)  # fmt: skip


@pytest.fixture
def fixed_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the nonce of the challenge 01 01 ..., and that of the response 02 02 ..."""
    numbers = itertools.count(1)
    monkeypatch.setattr("router.peers.handshake.secrets.token_bytes", lambda size: bytes([next(numbers)]) * size)


@pytest.mark.usefixtures("fixed_nonces")
def test_handshake_has_the_bytes_and_keys_of_earlier_releases() -> None:
    server, client = ServerHandshake(ACCEPTING, SECRET), ClientHandshake(DIALING, SECRET)
    assert server.challenge.hex() == CHALLENGE
    assert client.respond(server.challenge[4:]).hex() == RESPONSE
    assert server.receive_response(bytes.fromhex(RESPONSE)[4:]) == DIALING
    verdict, server_session = server.accept()
    assert verdict.hex() == (
        "00000049" + b'["b","00000000000000b1","",9092,1,1,1,""]'.hex()
        + "8ed3f9983b70c248e50bd66bc7673ea245f5d534509438fd4727cee5dbbc2a2d"
    )  # fmt: skip
    peer, session = client.receive_verdict(verdict[4:])
    assert peer == ACCEPTING
    assert session.send_key.hex() == "9eec5be540c42fc762a4dae290659710642160a340a95ddc3ea8ea877cb19c8d"
    assert session.receive_key.hex() == "10acfd0eedbf4ab0a4891d19deb35e0d33d05bc451ce3c97317f6e18e679498c"
    assert (server_session.receive_key, server_session.send_key) == (session.send_key, session.receive_key)


@pytest.mark.usefixtures("fixed_nonces")
def test_refusal_has_the_bytes_of_earlier_releases() -> None:
    server, client = ServerHandshake(ACCEPTING, SECRET), ClientHandshake(DIALING, SECRET)
    server.receive_response(client.respond(server.challenge[4:])[4:])
    refusal = server.refuse(CloseReason.DUPLICATE)
    assert refusal.hex() == (
        "00000052" + b'["b","00000000000000b1","",9092,1,1,0,"duplicate"]'.hex()
        + "7617f36a47bb76f0ac2d6db842a7a7d08315778118c6397073289137cf6cb7df"
    )  # fmt: skip
    with pytest.raises(HandshakeError) as caught:
        client.receive_verdict(refusal[4:])
    assert (caught.value.close_reason, caught.value.peer) == (CloseReason.DUPLICATE, ACCEPTING)


@pytest.mark.usefixtures("fixed_nonces")
def test_handshake_that_negotiates_tls_has_the_bytes_and_keys_of_earlier_releases() -> None:
    tls = dataclasses.replace(self_signed_tls(required=False), certificate_digest=bytes(range(32)))
    server, client = ServerHandshake(ACCEPTING, SECRET, tls=tls), ClientHandshake(DIALING, SECRET, tls=tls)
    response = client.respond(server.challenge[4:])
    assert response.hex() == (
        "00000073" + "02" * 32 + b'["a","00000000000000a1","127.0.0.1",9091,1,1,"tls"]'.hex()
        + "306de31b18320b0a134e5e2f2c5e8c7c40464ee8472bb3e4fb1c8cf122f473f8"
    )  # fmt: skip
    server.receive_response(response[4:])
    verdict, _ = server.accept()
    assert verdict.hex() == (
        "0000008c"
        + b'["b","00000000000000b1","",9092,1,1,1,"",'.hex()
        + b'"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"]'.hex()
        + "2a19c4824fbb4426c8cfcf262b1b2657f5b6a2ee114d33e4227e953a75e9690a"
    )  # fmt: skip
    _, session = client.receive_verdict(verdict[4:])
    assert session.send_key.hex() == "f4bdfcb0071dd74e39d5d2dccbcf5c957e40c8f36db2b546b92cc91a86443daa"
    assert session.receive_key.hex() == "58fc533199e453f4bbd2f06ce285ab395b362b10d5f3cdc4b359004040515178"
