"""The API never fails under valid and invalid requests that are made from its schema."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.helpers.serving import Served

# max_examples: number of valid requests, and of invalid ones, for each operation.
FIXED = settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_breaks_the_api(mode: GenerationMode, grey: Served) -> None:
    app = grey.client_of(host="0.0.0.0").app

    def call(case: Any) -> None:
        answer = case.call()
        checks: list[Any] = [not_a_server_error]
        if answer.status_code in (200, 404, 413, 422) and case.operation.method != "trace":
            checks += [response_schema_conformance, content_type_conformance]
        case.validate_response(answer, checks=checks)

    schema: Any = schemathesis.openapi.from_asgi("/openapi.json", app)
    for found in schema.get_all_operations():
        operation = found.ok()
        raw = operation.definition.raw
        if mode is GenerationMode.POSITIVE or raw.get("parameters") or raw.get("requestBody"):
            FIXED(given(operation.as_strategy(generation_mode=mode))(call))()
