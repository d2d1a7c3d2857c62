"""The values on the pages for clusters, as Helm reads them: what they install is valid, and the daemon reads what the page says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.test_chart import chart, configured, refusal, templated, understood
from project.test_guides import check
from support import guides
from support.deployment import container
from support.guides import CLUSTERS

helm = pytest.importorskip("helm_python", reason="needs helm-python-sdk, which has wheels for x86_64 and aarch64 alone")

if TYPE_CHECKING:
    from helm_python import Chart

    from support.deployment import Object

__all__ = ["chart"]  # a fixture

WITH_VALUES = [page for page in CLUSTERS if any(guides.installed_values(page))]


def values_of(page: str) -> list[Object]:
    """Return the values on a page as Helm, Flux and Argo CD read them: by the YAML of Go, for which 0658 is a number."""
    return list(guides.installed_values(page, helm.values_from_yaml))


def test_only_a_page_with_a_kustomization_has_no_values() -> None:
    """Each of the others says how the chart is installed there."""
    assert [page for page in CLUSTERS if page not in WITH_VALUES] == ["openshift"]


@pytest.mark.parametrize("page", WITH_VALUES)
def test_the_chart_takes_the_values(page: str, chart: Chart) -> None:
    """And what it installs is valid."""
    for values in values_of(page):
        assert refusal(chart, values) == ""
        for item in templated(chart, values):
            check(item)


@pytest.mark.parametrize("page", WITH_VALUES)
def test_the_daemon_matches_the_stick_of_the_page(page: str, chart: Chart) -> None:
    """By text in quotes, which stays text on each way."""
    for values in values_of(page):
        (rule,) = understood(configured(chart, values)).resources
        assert {(test.key, test.patterns[0].text) for test in rule.match[0].tests} == {
            ("vendor", "0658"),
            ("product", "0200"),
        }


@pytest.mark.parametrize("page", WITH_VALUES)
def test_the_daemon_reaches_the_kubelet(page: str, chart: Chart) -> None:
    """Both folders are mounted, without a privilege."""
    for values in values_of(page):
        only = container(templated(chart, values))
        folder = values["devicePlugin"].get("kubeletDir", "/var/lib/kubelet")
        paths = {mount["mountPath"] for mount in only["volumeMounts"]}
        assert paths > {f"{folder}/pod-resources", "/var/lib/kubelet/device-plugins"}
        assert "privileged" not in only["securityContext"]
