"""Certificates: what is wrong with one is said before anything starts; with a right one our servers speak https only."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from waiting import until, well

from truing.flows.cli.runs import run_now
from truing.infra import apache, tls
from truing.infra.broker import connection, ensure_topics
from truing.infra.calls import call
from truing.infra.client import Client
from truing.infra.logins import registry_as
from truing.infra.settings import Settings, Tls
from truing.infra.stack import Stack
from truing.infra.status import prefect_call, status
from truing.tasks.errors import Unavailable
from truing.tasks.events.stream import Publisher

In = Callable[..., Settings]
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority in a folder: `ca` is its PEM file, `issue` makes a certificate with its key."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = folder / "ca.pem"
        made = self._builder(self._name, self._key, NOW + DAY).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.ca.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, *hosts: str, until: datetime.datetime = NOW + DAY) -> Tls:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        made = self._builder(subject, key, until).add_extension(x509.SubjectAlternativeName(names), critical=False)
        number = len(list(self.folder.glob("*.crt")))
        certificate, private = self.folder / f"{number}.crt", self.folder / f"{number}.key"
        certificate.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        return Tls(certificate=certificate, key=private, ca=self.ca)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 10 * DAY)
            .not_valid_after(until)
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def given(settings: Settings, certificates: Tls) -> Settings:
    return settings.model_copy(update={"tls": certificates})


# --- beforehand ---------------------------------------------------------------------------------------------------------------


def test_a_right_certificate_is_believed_and_none_at_all_is_fine(tmp_path: Path, settings_in: In, authority: Authority) -> None:
    settings = settings_in(tmp_path)
    tls.check(settings)
    tls.check(given(settings, authority.issue("127.0.0.1")))
    assert settings.registry_url.startswith("http://") and tls.server_options(settings) == ()
    assert given(settings, authority.issue("127.0.0.1")).registry_url.startswith("https://")


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        (
            ("example.org",),
            r"prove 127\.0\.0\.1 to our clients, got: IP address mismatch.*; name its authority in TRUING_TLS__CA",
        ),
        (("127.0.0.2",), r"prove 127\.0\.0\.1 to our clients, got: IP address mismatch"),
    ],
)
def test_a_certificate_for_another_host_is_one_line(
    tmp_path: Path, settings_in: In, authority: Authority, hosts: tuple[str, ...], says: str
) -> None:
    settings = given(settings_in(tmp_path), authority.issue(*hosts))
    with pytest.raises(Unavailable, match=says) as caught:
        Stack(settings).up()
    assert "\n" not in str(caught.value) and not settings.data.exists()


def test_every_name_that_clients_use_must_be_proved(tmp_path: Path, settings_in: In, authority: Authority) -> None:
    settings = settings_in(tmp_path, hosts={"registry": "registry.internal"})
    with pytest.raises(Unavailable, match=r"prove registry\.internal to our clients, got: Hostname mismatch"):
        tls.check(given(settings, authority.issue("127.0.0.1")))
    tls.check(given(settings, authority.issue("127.0.0.1", "registry.internal")))


def test_what_is_wrong_with_the_files_is_one_line(tmp_path: Path, settings_in: In, authority: Authority) -> None:
    settings, right = settings_in(tmp_path), authority.issue("127.0.0.1")
    other, stranger = authority.issue("127.0.0.9"), Authority(tmp_path / "other", "Other CA")
    old = authority.issue("127.0.0.1", until=NOW - DAY)
    for wrong, says in (
        (right.model_copy(update={"ca": stranger.ca}), r"to our clients, got: unable to get local issuer certificate"),
        (right.model_copy(update={"ca": None}), r"to our clients, got: unable to get local issuer certificate"),
        (old, r"to our clients, got: certificate has expired"),
        (
            right.model_copy(update={"key": other.key}),
            r"expected a PEM certificate .* with its key .*, got: KEY_VALUES_MISMATCH",
        ),
        (right.model_copy(update={"key": tmp_path / "none"}), r"expected a PEM file at .*none, got: No such file"),
        (right.model_copy(update={"ca": right.key}), r"expected a PEM certificate at .*\.key, got: .*; correct TRUING_TLS__CA"),
    ):
        with pytest.raises(Unavailable, match=says):
            tls.check(given(settings, wrong))


def test_kafka_clients_are_given_the_certificates_for_ssl_only(tmp_path: Path, settings_in: In, authority: Authority) -> None:
    plain = given(settings_in(tmp_path), authority.issue("127.0.0.1"))
    assert not [name for name in connection(plain) if name.startswith("ssl")]
    kafka = plain.kafka.model_copy(
        update={"broker": "external", "security_protocol": "SASL_SSL", "ssl_certificate": Path("/c"), "ssl_key": Path("/k")}
    )
    found = connection(plain.model_copy(update={"kafka": kafka}))
    assert found["ssl_cafile"] == str(authority.ca), "the stack's authority unless another is named"
    assert (found["ssl_certfile"], found["ssl_keyfile"]) == ("/c", "/k")
    named = kafka.model_copy(update={"ssl_ca": Path("/another")})
    assert connection(plain.model_copy(update={"kafka": named}))["ssl_cafile"] == "/another"


@pytest.mark.services
def test_an_apache_kafka_is_reached_over_tls(
    tmp_path: Path, on_apache: In, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that speaks TLS and asks its clients for a certificate; one that is not ours is not believed."""
    settings, shown = on_apache(tmp_path), authority.issue("127.0.0.1")
    assert shown.certificate is not None and shown.key is not None
    pair = tmp_path / "broker.pem"
    pair.write_bytes(shown.key.read_bytes() + shown.certificate.read_bytes())
    store = {"keystore": pair, "truststore": authority.ca}
    secured = apache.properties(settings).replace("PLAINTEXT:PLAINTEXT", "PLAINTEXT:SSL") + "".join(
        f"ssl.{name}.type=PEM\nssl.{name}.location={path}\n" for name, path in store.items()
    )
    monkeypatch.setattr(apache, "properties", lambda settings: secured + "ssl.client.auth=required\n")
    command = apache.prepare(settings)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=settings.data / "broker", stdout=log, stderr=subprocess.STDOUT)
    try:
        yours = {"broker": "external", "security_protocol": "SSL"}
        files = {"ssl_ca": authority.ca, "ssl_certificate": shown.certificate, "ssl_key": shown.key}
        right = settings.model_copy(update={"kafka": settings.kafka.model_copy(update=yours | files)})
        ensure_topics(right, 60.0)
        publisher = Publisher(connection(right), "user-events")
        publisher.publish([(b"key", b"value")])
        publisher.close()
        stranger = files | {"ssl_ca": Authority(tmp_path / "other", "Other CA").ca}
        for wrong, says in (
            (yours | stranger, r"expected to trust one another, got: .*certificate.*; correct TRUING_KAFKA__SSL_\*"),
            (yours | {"ssl_ca": authority.ca}, r"trust one another, got: \w+_CERTIFICATE(_REQUIRED)?; correct"),
            ({"broker": "external"}, r"expected an answer within 3 s"),
        ):
            lost = settings.model_copy(update={"kafka": settings.kafka.model_copy(update=wrong)})
            with pytest.raises(Unavailable, match=says) as caught:
                ensure_topics(lost, 3.0)
            assert "\n" not in str(caught.value)
    finally:
        process.terminate()
        process.wait(30)


# --- the running thing --------------------------------------------------------------------------------------------------------


@pytest.mark.services
@pytest.mark.soak
def test_with_a_certificate_every_server_speaks_https_only(tmp_path: Path, settings_in: In, authority: Authority) -> None:
    """The whole stack: parts talk over https, another authority is not believed, plain http gets nothing."""
    settings = given(settings_in(tmp_path), authority.issue("127.0.0.1"))
    stranger = Authority(tmp_path / "other", "Other CA").ca
    stack = Stack(settings)
    try:
        assert stack.up() is True
        assert until(lambda: well(settings))
        end = time.monotonic() + 60.0
        while {run["run"]: run["last"] for run in status(settings)["runs"]}["ingest/all"] != "Running":
            assert time.monotonic() < end, "the keeper's own run does not begin"
            time.sleep(0.2)
        assert (
            run_now(settings, "monitor", "adult", patience_s=90)["state"] == "COMPLETED"
        )  # runner, its flow, Prefect's clients
        for part in stack.parts:
            if part.url is None:
                continue
            where = urlsplit(part.url)
            assert where.scheme == "https"
            call("GET", part.url, ca=authority.ca)
            for wrong in (stranger, None):
                with pytest.raises(Unavailable, match=r"expected to trust 127\.0\.0\.1:\d+, got: .*; correct TRUING_TLS__CA"):
                    call("GET", part.url, ca=wrong)
            plain = http.client.HTTPConnection("127.0.0.1", where.port or 0, timeout=5.0)
            with pytest.raises((http.client.HTTPException, OSError)):
                plain.request("GET", where.path)
                plain.getresponse()
            plain.close()
        lost = settings.model_copy(update={"tls": settings.tls.model_copy(update={"ca": stranger})})
        with pytest.raises(
            Unavailable, match=r"expected to trust the registry at https://.*; correct TRUING_TLS__CA"
        ) as caught:
            registry_as(lost, "trainer").model("adult")
        assert "\n" not in str(caught.value)
        with pytest.raises(Unavailable, match="expected to trust"):
            prefect_call(lost, "POST", "/flows/filter", {})
        with Client.of(lost, "adult") as client, pytest.raises(Unavailable, match="expected to trust the gateway"):
            client.predict([{"age": 30}])
        handshake = ssl.create_default_context(cafile=str(authority.ca))
        assert handshake.minimum_version >= ssl.TLSVersion.TLSv1_2
    finally:
        stack.down()
