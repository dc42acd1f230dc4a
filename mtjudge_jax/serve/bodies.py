"""The bodies of requests, checked: what is wrong is said with the name of its field."""

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mtjudge_jax.errors import unknown


class BadBody(Exception):
    """A body that cannot be used: `field` names the place, "" for the whole."""

    def __init__(self, field: str, text: str, status: int = 422):
        super().__init__(text)
        self.field, self.status = field, status


def _picture(value: Any) -> bytes:
    """Encoded bytes of a file in base64, also as a data: URL; of a form, the bytes themselves. No URL is fetched."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("give the bytes of an image file in base64")
    if value[:8].lower().startswith(("http:", "https:", "file:", "gs:", "s3:")):
        raise ValueError("no URL is fetched: send the bytes of the image in base64")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"it is no base64 ({error})") from None


Image = Annotated[bytes, BeforeValidator(_picture)]
Images = Annotated[list[Image], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Samples = Annotated[int, Field(ge=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    task: str
    images: Images
    samples: Samples = 1
    seed: Seed = 0


class ScoreBody(_Body):
    """One score an image. instructions: one text, or one for each image; `prompts` is the same, as image trainers call it."""

    instructions: str | list[str] = ""
    prompts: str | list[str] | None = None


class CompareBody(_Body):
    """The images are the candidates."""

    instruction: str = ""
    by: Literal["pairs", "score"] | None = None
    anchors: Annotated[int, Field(ge=1)] | None = None


class JudgeBody(_Body):
    """The images are those of one question."""

    images: list[Image] = []  # of texts about no picture: none
    instruction: str = ""
    texts: list[str] = []
    both_orders: bool = False


def json_body(body: type[_Body], raw: bytes) -> _Body:
    """Raises BadBody: status 400 for what is no JSON, 422 for what does not fit."""
    return _checked(body, lambda: body.model_validate_json(raw))


def form_body(body: type[_Body], fields: Iterable[tuple[str, str | bytes]]) -> _Body:
    """Of a multipart form: files named `images`, and the other fields as texts; a field given twice is a list."""
    lists = {name for name, field in body.model_fields.items() if "list" in str(field.annotation)}
    found: dict[str, Any] = {}
    for name, value in fields:
        if name == "images" and not isinstance(value, bytes):
            raise BadBody("images", "give each image as a file of the form")
        if name in lists and (name in found or name in ("images", "texts")):
            before = found.get(name, [])
            found[name] = [*(before if isinstance(before, list) else [before]), value]
        elif name in found:
            raise BadBody(name, "it is given twice")
        else:
            found[name] = value
    return _checked(body, lambda: body.model_validate(found))


def _checked(body: type[_Body], make: Callable[[], _Body]) -> _Body:
    try:
        return make()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise BadBody("", f"the body is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}", 400) from None
        if first["type"] == "extra_forbidden":
            raise BadBody(_place(first["loc"]), unknown("field", str(first["loc"][0]), body.model_fields)) from None
        raise BadBody(_place(first["loc"]), first["msg"].removeprefix("Value error, ")) from None


def _place(loc: tuple[str | int, ...]) -> str:
    """("images", 3) -> "images[3]"."""
    head, *rest = loc or ("",)
    return str(head) + "".join(f"[{part}]" for part in rest if isinstance(part, int))
