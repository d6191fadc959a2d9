"""The control plane's view, with a client that is not written in Rust: gRPC over mutual TLS, and nothing else needed."""

import datetime
import uuid

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TIMEOUT_SECONDS = 60


def credentials(ca, certificate=None, key=None):
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=certificate)


def ca_of(cluster):
    return (cluster.broker_dir / "pki" / "ca.crt").read_bytes()


def issued(folder, name):
    """A certificate that the broker's own CA has issued."""
    return (folder / f"{name}.crt").read_bytes(), (folder / f"{name}.key").read_bytes()


@pytest.fixture
def connect(cluster, api):
    channels = []

    def connect(tls):
        channel = grpc.secure_channel(cluster.control, tls)
        channels.append(channel)
        return api.stubs.ControlServiceStub(channel)

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture
def operator(cluster, connect):
    return connect(credentials(ca_of(cluster), *issued(cluster.broker_dir / "pki", "operator")))


def ask(api, source, target, keys, request_id=None, operation=None):
    ids = api.authz.KeyIds(ids=[uuid.UUID(key).bytes for key in keys])
    return api.control.AuthorizeTransferRequest(
        request_id=request_id or str(uuid.uuid4()),
        source=source,
        target=target,
        operation=operation or api.authz.OPERATION_MOVE,
        selection=api.authz.Selection(ids=ids),
        reason="migration of instance 42",
    )


def watch_to_the_end(api, stub, authorization_id):
    request = api.control.WatchTransferRequest(authorization_id=authorization_id)
    states = [answer.transfer for answer in stub.WatchTransfer(request, timeout=TIMEOUT_SECONDS)]
    assert states, "a watch says at least how the transfer stands"
    return states[-1]


def test_a_move_is_authorized_and_watched_to_its_end(cluster, api, operator):
    key = cluster.create_key("a", "--name", "vol-1")
    material = cluster.reveal("a", key)
    assert material and len(material) == 64

    request = ask(api, "a", "b", [key])
    answer = operator.AuthorizeTransfer(request, timeout=TIMEOUT_SECONDS)
    assert answer.transfer.requester == "operator"
    assert answer.authorization, "enough to carry it out by hand"
    last = watch_to_the_end(api, operator, answer.transfer.authorization_id)
    assert last.state == api.control.TRANSFER_STATE_COMPLETE, last
    assert (last.key_count, last.keys_received, last.keys_erased) == (1, 1, 1)
    assert cluster.reveal("b", key) == material
    assert cluster.reveal("a", key) is None

    again = operator.AuthorizeTransfer(request, timeout=TIMEOUT_SECONDS)
    assert again.transfer.authorization_id == answer.transfer.authorization_id
    assert again.authorization == answer.authorization
    assert again.transfer.state == api.control.TRANSFER_STATE_COMPLETE

    detail = operator.GetTransfer(
        api.control.GetTransferRequest(authorization_id=answer.transfer.authorization_id), timeout=TIMEOUT_SECONDS
    )
    assert len(detail.receipts) == 1 and len(detail.erasure_records) == 1


def test_the_same_request_id_is_not_good_for_another_request(cluster, api, operator):
    first, second = cluster.create_key("a"), cluster.create_key("a")
    request_id = str(uuid.uuid4())
    copy = api.authz.OPERATION_COPY
    answer = operator.AuthorizeTransfer(ask(api, "a", "b", [first], request_id, copy), timeout=TIMEOUT_SECONDS)
    with pytest.raises(grpc.RpcError) as refused:
        operator.AuthorizeTransfer(ask(api, "a", "b", [second], request_id, copy), timeout=TIMEOUT_SECONDS)
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert "request id" in refused.value.details()
    last = watch_to_the_end(api, operator, answer.transfer.authorization_id)
    assert last.state == api.control.TRANSFER_STATE_COMPLETE, last
    assert cluster.reveal("b", second) is None


def test_a_refusal_of_the_source_reaches_the_requester(cluster, api, operator):
    pinned = cluster.create_key("a", "--pinned")
    answer = operator.AuthorizeTransfer(ask(api, "a", "b", [pinned]), timeout=TIMEOUT_SECONDS)
    last = watch_to_the_end(api, operator, answer.transfer.authorization_id)
    assert last.state == api.control.TRANSFER_STATE_REFUSED
    assert "pinned" in last.detail
    assert cluster.reveal("a", pinned)


def assert_gets_nowhere(cluster, api, stub):
    key = cluster.create_key("a")
    for call, request in [
        (stub.AuthorizeTransfer, ask(api, "a", "b", [key])),
        (stub.ListLockboxes, api.control.ListLockboxesRequest()),
        (stub.ListRosterEntries, api.control.ListRosterEntriesRequest()),
    ]:
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=TIMEOUT_SECONDS)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE, refused.value
    assert cluster.reveal("a", key) and cluster.reveal("b", key) is None


def test_a_client_without_a_certificate_gets_nowhere(cluster, api, connect):
    assert_gets_nowhere(cluster, api, connect(credentials(ca_of(cluster))))


def test_a_client_with_a_certificate_of_another_ca_gets_nowhere(cluster, api, connect):
    certificate, key = certificate_of_another_ca("operator")
    assert_gets_nowhere(cluster, api, connect(credentials(ca_of(cluster), certificate, key)))


def test_a_plaintext_client_gets_nowhere(cluster, api):
    with grpc.insecure_channel(cluster.control) as channel:
        assert_gets_nowhere(cluster, api, api.stubs.ControlServiceStub(channel))


def test_a_client_that_trusts_another_ca_does_not_talk_to_the_broker(cluster, api, connect):
    other_ca, _ = certificate_of_another_ca("ca")
    assert_gets_nowhere(
        cluster, api, connect(credentials(other_ca, *issued(cluster.broker_dir / "pki", "operator")))
    )


def test_a_requester_that_is_not_in_the_table_is_told_so(cluster, api, connect):
    folder = cluster.folder / "stranger"
    cluster.broker("client", "create", "stranger", "--dir", cluster.broker_dir, "--out", folder)
    stranger = connect(credentials(ca_of(cluster), *issued(folder, "client")))
    key = cluster.create_key("a")
    with pytest.raises(grpc.RpcError) as refused:
        stranger.AuthorizeTransfer(ask(api, "a", "b", [key]), timeout=TIMEOUT_SECONDS)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "stranger" in refused.value.details() and "broker.toml" in refused.value.details()
    assert cluster.reveal("a", key)


def certificate_of_another_ca(name):
    """Issued by a CA of the same name as any, for whatever common name."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), pem
