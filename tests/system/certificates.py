"""Certificates for the tests, strict enough for OpenSSL's VERIFY_X509_STRICT (RFC 5280, section 4.2)."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LIFETIME = dt.timedelta(days=1)
# The clocks of signer and verifier are one clock, but "now" is cut to the second in a certificate.
MARGIN = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The files of a certificate and of its private key, both PEM."""

    certificate: Path
    key: Path


def write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a private key and write it, readable by its owner only."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return key


def signed_token(key: ec.EllipticCurvePrivateKey, claims: Mapping[str, object]) -> str:
    """Return a JSON web token with these claims (RFC 7519), signed as ES256 (RFC 7518, section 3.4)."""
    parts = [_base64(json.dumps(part).encode()) for part in ({"alg": "ES256", "typ": "JWT"}, claims)]
    signature = key.sign(".".join(parts).encode(), ec.ECDSA(hashes.SHA256()))
    numbers = b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(signature))
    return ".".join([*parts, _base64(numbers)])


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


class Authority:
    """A certificate authority that lives in a folder of its own."""

    def __init__(self, folder: Path, name: str = "devwatch tests") -> None:
        """Make the authority; `certificate` is the file that those who trust it read."""
        folder.mkdir(parents=True)
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = write_key(folder / "ca.key")
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(self._signed(_authority(self._name, self._key.public_key())))

    def server(self, name: str, *, dns: Sequence[str], addresses: Sequence[str]) -> Pair:
        """Issue a serving certificate for these host names and addresses."""
        names: list[x509.GeneralName] = [x509.DNSName(value) for value in dns]
        names += [x509.IPAddress(ipaddress.ip_address(value)) for value in addresses]
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        return self._issue(name, subject, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, user: str, *, groups: Sequence[str] = ()) -> Pair:
        """Issue a client certificate; Kubernetes reads the user from CN and the groups from O. Each call a new pair."""
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, user))
        return self._issue(user, subject, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def _issue(
        self,
        name: str,
        subject: Sequence[x509.NameAttribute[str]],
        usage: x509.ObjectIdentifier,
        names: Sequence[x509.GeneralName],
    ) -> Pair:
        serial = x509.random_serial_number()
        stem = self._folder / f"{name.replace('/', '_').replace(':', '_')}-{serial:x}"
        pair = Pair(certificate=stem.with_suffix(".crt"), key=stem.with_suffix(".key"))
        public = write_key(pair.key).public_key()
        builder = _leaf(_described(x509.Name(subject), self._name, public), usage, names)
        pair.certificate.write_bytes(self._signed(builder))
        return pair

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = builder.add_extension(identifier, critical=False).sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


def _described(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - MARGIN)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _authority(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        _described(name, name, public)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
    )


def _leaf(
    builder: x509.CertificateBuilder, usage: x509.ObjectIdentifier, names: Sequence[x509.GeneralName]
) -> x509.CertificateBuilder:
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False) if names else builder


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
