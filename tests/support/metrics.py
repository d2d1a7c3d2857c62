"""What a scrape of the metrics shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from devwatch.observe.metrics import Metrics


def samples(metrics: Metrics, name: str) -> dict[str, float]:
    """Return the values of one series by its only label, `""` where it has none."""
    families = text_string_to_metric_families(metrics.render().decode())
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {next(iter(sample.labels.values()), ""): sample.value for sample in found}
