"""JSON Schema reports: a record against the schema of its version, a workflow's data against its own schema.

The only import of jsonschema (66 ms), so this module is reached through ``_load.load`` and never at start-up.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable

from checkpoint._load import data_path

# Draft 2020-12 unless "$schema" says otherwise. An empty registry: a "$ref" to an address is an error, never a download.
_DEFAULT = jsonschema.Draft202012Validator
_REGISTRY: "Registry[Any]" = Registry()


def data_problems(schema: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Every violation as ``"$.path: words"``, in the order of the paths; empty when ``data`` satisfies ``schema``."""
    validator = jsonschema.validators.validator_for(schema, default=_DEFAULT)(dict(schema), registry=_REGISTRY)
    return _problems(validator, data)


def schema_problem(schema: Mapping[str, Any]) -> str | None:
    """Why ``schema`` is no JSON Schema, or None."""
    try:
        jsonschema.validators.validator_for(schema, default=_DEFAULT).check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        return f"{error.json_path}: {error.message}"
    except (TypeError, RecursionError) as error:
        return str(error)  # "$schema" is no text, or it goes round in circles
    return None


def record_problems(record: Mapping[str, Any], schema_file: str) -> list[str]:
    """Violations of a stored record (with digest and schema hash) against the packaged schema."""
    schema = json.loads(Path(data_path(schema_file)).read_text(encoding="utf-8"))
    return _problems(_DEFAULT(schema, registry=_REGISTRY), record)


def _problems(validator: Any, instance: Any) -> list[str]:
    try:
        found = sorted(validator.iter_errors(instance), key=lambda error: (error.json_path, error.message))
    except (Unresolvable, RecursionError, re.error) as error:
        # A reference to nowhere, one that goes round in circles, a pattern that is none: such a schema admits nothing.
        return [f"the schema itself cannot be used: {error}"]
    # Cut short: the message repeats the offending value, however large.
    return [
        f"{error.json_path}: {error.message if len(error.message) <= 300 else error.message[:297] + '...'}" for error in found
    ]
