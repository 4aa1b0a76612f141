"""JSON schemas of the models of requests and answers, as OpenAPI 3.1 takes them."""

from collections.abc import Iterable
from functools import cache

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from taskhook.core.message import Json

_REF = "#/components/schemas/{model}"


class _Plain(GenerateJsonSchema):
    """Pydantic's own but for what says nothing.

    Fields' titles, and the null of a field that is left out of an answer.
    """

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002  # pydantic's signature
        """Whether a field gets its name as a title too."""
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Give null as one more type, which reads better than one of two schemas."""
        inner = self.generate_inner(schema["schema"])
        if isinstance(inner.get("type"), str) and "enum" not in inner:
            return inner | {"type": [inner["type"], "null"]}
        return super().nullable_schema(schema)

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Say no default where a field may just be left out."""
        if schema.get("default", ...) is not None:
            return super().default_schema(schema)
        inner = schema["schema"]
        left_out = self.mode == "serialization" and inner["type"] == "nullable"
        return self.generate_inner(inner["schema"] if left_out else inner)


@cache
def inline(model: type[BaseModel], mode: JsonSchemaMode = "validation") -> Json:
    """Give the schema of a model, whose parts are among `components`; it is shared, and not to be changed."""
    schema = model.model_json_schema(ref_template=_REF, schema_generator=_Plain, mode=mode)
    schema.pop("$defs", None)
    return schema


def reference(model: type[BaseModel]) -> Json:
    """Refer to one of `components`."""
    return {"$ref": _REF.format(model=model.__name__)}


def components(answers: Iterable[type[BaseModel]], requests: Iterable[type[BaseModel]]) -> Json:
    """Give the schemas of answers and of all their parts, and of the parts of requests."""
    _, whole = models_json_schema(
        [(answer, "serialization") for answer in answers], ref_template=_REF, schema_generator=_Plain
    )
    found: Json = whole["$defs"]
    for request in requests:
        found |= request.model_json_schema(ref_template=_REF, schema_generator=_Plain).get("$defs", {})
    return found
