"""The OpenAPI document is true: requests made from it never break the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    status_code_conformance,
)
from schemathesis.core.result import Ok
from schemathesis.python.asgi import shutdown_lifespans
from starlette.testclient import TestClient

import binseg
from binseg.serve import refusals
from binseg.serve.app import create_app
from binseg.serve.limits import Limits
from binseg.serve.service import Service

ODD = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
"""schemathesis draws some numbers past hypothesis."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
ROUTES = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/examples"),
    ("GET", "/v1/examples/{name}"),
    ("POST", "/v1/predict"),
    ("POST", "/v1/preview"),
    ("POST", "/v1/batch"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/{job_id}"),
    ("GET", "/v1/jobs/{job_id}/result"),
    ("DELETE", "/v1/jobs/{job_id}"),
}


def test_the_document_has_every_route(client: TestClient) -> None:
    """All of the API and nothing of the page; each parameter and refusal is described."""
    document = client.get("/openapi.json").json()
    found = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert found == ROUTES
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["description"], (method, path)
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    assert parameter["description"], (path, parameter["name"])
    predict = document["paths"]["/v1/predict"]["post"]
    assert set(predict["responses"]) >= {"200", "401", "404", "408", "413", "422", "429"}
    assert set(predict["requestBody"]["content"]) == {
        "application/octet-stream",
        "multipart/form-data",
    }
    assert {one["name"] for one in predict["parameters"]} == {
        "model",
        "threshold",
        "min_area",
        "fill_holes",
        "largest_only",
        "quality",
        "output",
    }


@pytest.fixture(scope="module")
def schema(
    trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[schemathesis.BaseSchema]:
    """The document of a server that takes little, so that limits are met as well."""
    limits = Limits(max_bytes=20_000, max_pixels=10_000, max_job_bytes=20_000)
    state = tmp_path_factory.mktemp("state")
    app = create_app(Service([binseg.load(trained)], state=state, limits=limits))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(refusals, "_BETWEEN_S", 0.0)  # thousands of bad images in a row
        # schemathesis opens the server itself, and would close it at the end of the process only.
        yield schemathesis.openapi.from_asgi("/openapi.json", app)
        shutdown_lifespans()


def _try(schema: schemathesis.BaseSchema, *, examples: int) -> None:
    """Make requests of every route from the document, right and wrong ones, and send them."""
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), "the document can be read"
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            try:
                cases = operation.as_strategy(generation_mode=mode)
                _send(cases, examples)
            except Unsatisfiable:
                continue  # a route without parameters has no wrong ones


def _send(cases: Any, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def send(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS)

    send()


@ODD
def test_no_request_breaks_the_server(schema: schemathesis.BaseSchema) -> None:
    """No 5xx, no undocumented status, no other media type than the document says."""
    _try(schema, examples=2)


@ODD
@pytest.mark.slow
def test_thousands_of_requests_break_nothing(schema: schemathesis.BaseSchema) -> None:
    """The same with many more of them."""
    _try(schema, examples=200)
