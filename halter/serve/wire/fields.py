"""What a request may hold, with the bounds of every field. Anything else is refused by its name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)
from pydantic_core import PydanticCustomError

MOST_CHOICES, MOST_PROMPTS, MOST_MESSAGES, MOST_PARTS = 8, 128, 2048, 64
MOST_STOPS, STOP_LETTERS, MOST_BIASES, MOST_TOGETHER, MOST_TOOLS = 16, 1024, 1024, 8, 128
MOST_TOKENS = 1 << 20
"""Of an answer, or of a prompt's ids: far beyond any context, so that numbers stay numbers."""
MOST_COUNTED = 1 << 18
"""Characters of a text that is only cut into tokens, or tokens that are only put together."""
NAME = r"^[A-Za-z0-9_-]{1,64}$"
"""Of a function or a schema: OpenAI's."""


STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)
"""Nothing that is not declared, no number for a text, no text for a number, no endless number."""


class WireObject(BaseModel):
    """An object of a request."""

    model_config = STRICT


def _stops(given: str | list[str]) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given)
    if len(stops) > MOST_STOPS or not all(0 < len(one) <= STOP_LETTERS for one in stops):
        limit = {"most": MOST_STOPS, "letters": STOP_LETTERS}
        raise PydanticCustomError("stop", "one text or up to {most}, each of 1 to {letters} characters", limit)
    return stops


def _picture(url: str) -> str:
    if not url[:11].lower() == "data:image/":
        raise PydanticCustomError("picture", "only data:image/... URIs: nothing that a request names is fetched")
    return url


def _text(content: Any) -> Any:
    """A text as the one part that it is, so that a mistake is told of what was sent."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class AdapterField(WireObject):
    name: str = Field(max_length=128)
    weight: float = Field(1.0, ge=-100, le=100)


class HalterField(WireObject):
    """What OpenAI's API has no field for."""

    adapters: list[AdapterField] = Field(default=[], max_length=MOST_TOGETHER)
    top_k: int = Field(default=0, ge=0, le=MOST_TOKENS)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)


class TextFormat(WireObject):
    type: Literal["text"]


class ObjectFormat(WireObject):
    type: Literal["json_object"]


class NamedSchema(WireObject):
    """``strict`` or not, answers are held to the schema."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(WireObject):
    type: Literal["json_schema"]
    json_schema: NamedSchema


class StreamField(WireObject):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class TextPart(WireObject):
    type: Literal["text"]
    text: str


class PictureAddress(WireObject):
    url: Annotated[str, AfterValidator(_picture)]
    detail: Literal["auto", "low", "high"] = "auto"


class PicturePart(WireObject):
    type: Literal["image_url"]
    image_url: PictureAddress


ContentPart = Annotated[TextPart | PicturePart, Field(discriminator="type")]
Texts = Annotated[list[TextPart], BeforeValidator(_text), Field(min_length=1, max_length=MOST_PARTS)]
ContentParts = Annotated[list[ContentPart], BeforeValidator(_text), Field(min_length=1, max_length=MOST_PARTS)]


class SystemMessage(WireObject):
    role: Literal["system", "developer"]
    content: Texts


class UserMessage(WireObject):
    role: Literal["user"]
    content: ContentParts


class FunctionField(WireObject):
    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolField(WireObject):
    """``given`` is the object as it was sent: templates show it with its keys in their order."""

    type: Literal["function"]
    function: FunctionField
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _kept(cls, given: Any, handler: ModelWrapValidatorHandler[ToolField]) -> ToolField:
        made = handler(given)
        made._given = given
        return made

    @property
    def given(self) -> dict[str, Any]:
        return self._given


class NamedFunction(WireObject):
    name: str = Field(max_length=64)


class NamedChoice(WireObject):
    type: Literal["function"]
    function: NamedFunction


def _named_once(tools: list[ToolField]) -> list[ToolField]:
    if len({one.function.name for one in tools}) < len(tools):
        raise PydanticCustomError("twice", "two functions have one name")
    return tools


class CalledFunction(WireObject):
    name: str = Field(max_length=256)
    arguments: str


class CallField(WireObject):
    """A call that an answer made."""

    id: str = Field(max_length=256)
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(WireObject):
    """What an answer's message is sent back as: its empty fields come along."""

    role: Literal["assistant"]
    content: Texts | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[CallField], Field(max_length=MOST_TOOLS)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("silent", "a message has content, tool_calls, or both")
        return self


class ToolMessage(WireObject):
    """What a function gave back."""

    role: Literal["tool"]
    content: Texts
    tool_call_id: str = Field(max_length=256)
    name: str | None = Field(None, max_length=256)


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class SamplingFields(BaseModel):
    """What both ways of asking have. None: not given."""

    model_config = STRICT
    model: str = Field(max_length=256)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stop: Annotated[str | list[str], AfterValidator(_stops)] = ()  # type: ignore[assignment]
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=MOST_BIASES
    )
    stream: bool = False
    stream_options: StreamField | None = None
    halter: HalterField = HalterField()
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    reasoning_effort: Any = None

    @property
    def pointless(self) -> str:
        """A field that means nothing without another one; '' where all mean something."""
        return "" if self.stream or self.stream_options is None else "stream_options"

    @property
    def silent(self) -> bool:
        """Whether nothing of the answer is to be told: its prompt is what is asked about."""
        return False


class ChatFields(SamplingFields):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] = TextFormat(
        type="text"
    )
    tools: Annotated[list[ToolField], AfterValidator(_named_once)] = Field([], max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def pointless(self) -> str:
        if self.top_logprobs is not None and not self.logprobs:
            return "top_logprobs"
        alone = [name for name in ("tool_choice", "parallel_tool_calls") if getattr(self, name) is not None]
        return alone[0] if alone and not self.tools else super().pointless

    @property
    def callable(self) -> list[tuple[int, FunctionField]]:
        """The functions that an answer may call, each with its place among the tools."""
        each = [(at, tool.function) for at, tool in enumerate(self.tools)]
        if isinstance(self.tool_choice, NamedChoice):
            return [(at, one) for at, one in each if one.name == self.tool_choice.function.name]
        return [] if self.tool_choice == "none" else each


def _prompts(given: Any) -> list[str | list[int]]:
    """The four forms of a prompt as one: a list of texts and of ids."""
    listed = given if isinstance(given, list) else [given]
    if isinstance(given, list) and given and all(type(one) is int for one in given):
        listed = [given]
    if 0 < len(listed) <= MOST_PROMPTS and all(_is_prompt(one) for one in listed):
        return listed
    told = {"most": MOST_PROMPTS}
    raise PydanticCustomError("prompt", "a text, a list of token ids, or a list of up to {most} of either", told)


def _is_prompt(one: Any) -> bool:
    ids = isinstance(one, list) and 0 < len(one) <= MOST_TOKENS
    return isinstance(one, str) or (ids and all(type(id) is int and 0 <= id < 2**31 for id in one))


class CompletionFields(SamplingFields):
    """POST /v1/completions."""

    prompt: Annotated[Any, AfterValidator(_prompts)]
    max_tokens: int = Field(16, ge=0, le=MOST_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: Literal[1] = 1

    @property
    def silent(self) -> bool:
        return self.max_tokens == 0


class TokenizeFields(WireObject):
    """POST /tokenize."""

    model: str | None = Field(None, max_length=256)
    prompt: str = Field(max_length=MOST_COUNTED)
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeFields(WireObject):
    """POST /detokenize."""

    model: str | None = Field(None, max_length=256)
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=MOST_COUNTED)
