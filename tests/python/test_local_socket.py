"""The lockbox's socket, for a client that is not written in Rust."""

import importlib

import grpc

TIMEOUT_SECONDS = 60


def test_a_client_needs_no_channel_options(cluster, api):
    """gRPC's C core names the socket's percent-encoded path as authority, unless it is told another."""
    local = importlib.import_module("lockbox.local.v1.local_pb2")
    stubs = importlib.import_module("lockbox.local.v1.local_pb2_grpc")
    with grpc.insecure_channel(f"unix:{cluster.folder / 'a.s'}") as channel:
        request = local.GetStatusRequest()
        status = stubs.LocalServiceStub(channel).GetStatus(request, timeout=TIMEOUT_SECONDS)
    assert status.name == "a" and not status.sealed
