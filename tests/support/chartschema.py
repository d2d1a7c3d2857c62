"""Write what the configuration decides in the schema of the chart's values: `make schema`. The rest of that file is written by hand."""

from __future__ import annotations

import json

from devwatch.config.jsonschema import VALUES, Forms
from support.deployment import DEPLOY

FILE = DEPLOY / "chart" / "values.schema.json"


def current(text: str) -> str:
    """Return the content of the file with the configuration's part as it has to be."""
    schema, forms = json.loads(text), Forms(dialect=VALUES)
    schema["properties"]["config"].update(forms.configuration())
    schema["definitions"].update(forms.definitions())
    return f"{json.dumps(schema, indent=2)}\n"


if __name__ == "__main__":
    FILE.write_text(current(FILE.read_text("utf-8")), encoding="utf-8")
