"""Settings as frozen dataclasses: what a model is, how it is sampled, how a stage is trained."""

import inspect
import math
import re
import types
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cogvideo.errors import CogVideoError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
Order = Literal["sequential", "interpolation"]


@dataclass(frozen=True)
class ModelConfig:
    """Geometry of one transformer: an image model (one frame, no temporal channel), stage 1 or stage 2."""

    num_layers: int
    hidden_size: int
    num_heads: int
    frame_height: int  # tokens
    frame_width: int  # tokens
    num_frames: int  # in one sequence; 1 for an image model
    text_length: int  # text slots of a training sequence
    first_frame_position: int  # position id of the first frame's first token; text has 0, 1, 2, ...
    image_tokens: int  # ids 0 .. image_tokens-1 are frame tokens, the only ones that are predicted
    vocab_size: int  # rows of the word embedding
    begin_of_image: int  # the input at the first position of every frame
    base_positions: int  # rows of the inherited position table (text and frame 0)
    extra_positions: int = 0  # rows of the new position table (later frames)
    temporal: bool = True  # has the second attention channel
    order: Order = "sequential"
    window: int | None = None  # side of the temporal channel's windows in tokens; None: full attention
    # Rounds of interpolation whose frames are told where in the clip they stand, see masks.place; the release
    # has none
    placed_rounds: int = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 0 if name in ("extra_positions", "temporal", "placed_rounds") else 1
            if isinstance(value, int) and value < least:
                raise CogVideoError(f"{name} must be positive, not {value}.")
        if not self.image_tokens <= self.begin_of_image < self.vocab_size:
            raise CogVideoError(
                f"begin_of_image {self.begin_of_image} must lie between the {self.image_tokens} image tokens "
                f"and the end of the vocabulary of {self.vocab_size}: give image_tokens and begin_of_image "
                "as the weights have them."
            )
        if self.hidden_size % self.num_heads:
            raise CogVideoError(
                f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}."
            )
        if self.order not in get_args(Order):
            raise CogVideoError(f"order {self.order!r} is unknown: choose sequential or interpolation.")
        if self.num_frames > 1 and not self.temporal:
            raise CogVideoError("Several frames need the temporal channel: set temporal to true.")
        if self.first_frame_position + self.frame_tokens > self.base_positions:
            raise CogVideoError(
                f"base_positions {self.base_positions} is too small for a first frame of {self.frame_tokens} "
                f"tokens at {self.first_frame_position}."
            )
        if self.placed_rounds and self.order != "interpolation":
            raise CogVideoError("Only interpolation has placed_rounds: leave them out, or set its order.")
        if (self.num_frames - 1) * self.frame_tokens > self.extra_positions:
            raise CogVideoError(
                f"{self.extra_positions} extra_positions do not hold {self.num_frames} frames."
            )

    @property
    def frame_tokens(self) -> int:
        return self.frame_height * self.frame_width

    def video(
        self,
        *,
        num_frames: int = 5,
        order: Order = "sequential",
        window: int | None = None,
        placed_rounds: int = 0,
    ) -> "ModelConfig":
        """The configuration of a video model that inherits this image model."""
        own = {"num_frames": num_frames, "order": order, "window": window, "placed_rounds": placed_rounds}
        return replace(self, temporal=True, extra_positions=num_frames * self.frame_tokens, **own)

    def image(self) -> "ModelConfig":
        """The configuration of the image model inside this video model: what `video` has added taken back."""
        added = {"num_frames": 1, "order": "sequential", "window": None, "placed_rounds": 0}
        return replace(self, temporal=False, extra_positions=0, **added)


COGVIDEO_9B = ModelConfig(
    num_layers=48, hidden_size=3072, num_heads=48, frame_height=20, frame_width=20, num_frames=5,
    text_length=64, first_frame_position=512, image_tokens=20000, vocab_size=150010, begin_of_image=150000,
    base_positions=1024, extra_positions=2000,
)  # fmt: skip


@dataclass(frozen=True)
class SamplingConfig:
    """How a pipeline draws its tokens: what belongs to a set of weights (kept in its pipeline.json)."""

    spans: tuple[float, ...]  # seconds that stage 1's five frames may span: the trained frame rates
    fps: float = 8.0  # of the finished clip
    first_frame_suffix: str = ""  # put after the prompt for the image model
    key_frame_suffix: str = ""  # put after the prompt for stages 1 and 2
    guidance_prompt: str = "视频"  # the unguided rows' prompt
    first_guidance: float = 1.0  # 1: none
    key_guidance: float = 3.0
    fill_guidance: float = 1.0
    first_text_bonus: float = 0.0  # added to scores towards text
    key_text_bonus: float = 0.0
    unguided_text_bonus: float | None = None  # key_text_bonus where guidance is off; None: the same
    fill_text_bonus: float = 0.0
    first_temperature: float = 1.0
    first_top_k: int = 16
    temperature: float = 1.05  # key frames and the frames between
    top_k: int = 12
    inner_temperature: float = 0.89  # inside a cluster
    large_temperature: float = 1.0  # super-resolution
    large_top_k: int = 6
    large_inner_temperature: float = 0.6
    clusters: bool = False  # top_k counts clusters of clusters.npy (CogLM's rule), else tokens
    release_quirks: bool = False  # see sampling.interpolate_frames
    examples: tuple[str, ...] = ()  # prompts that the weights understand, named beside unknown words

    def __post_init__(self):
        positive = ("fps", "first_temperature", "temperature", "inner_temperature", "large_temperature")
        for name in (*positive, "first_top_k", "top_k", "large_top_k"):
            if not getattr(self, name) > 0:
                raise CogVideoError(f"{name} must be positive, not {getattr(self, name)}.")
        if not self.spans or min(self.spans) <= 0:
            raise CogVideoError("spans must name at least one duration in seconds, all positive.")

    def check_span(self, seconds: float) -> None:
        """Raises CogVideoError for a span that was not trained."""
        if seconds not in self.spans:
            trained = ", ".join(f"{span:g}" for span in self.spans)
            raise CogVideoError(f"{seconds:g} seconds were not trained: choose one of {trained}.")


def check_seed(seed: int) -> int:
    """The seed; CogVideoError where a random generator of 64 bits cannot take it."""
    if not 0 <= seed < 2**63:
        raise CogVideoError(f"The seed {seed} is out of range: choose 0 or more, at most 2**63 - 1.")
    return seed


def check_guidance(scale: float | None) -> float | None:
    """The strength of guidance (None: the weights' own); CogVideoError where it is not a finite number."""
    if scale is not None and not math.isfinite(scale):
        raise CogVideoError(f"Guidance cannot be {scale}: give a finite number; 1 means no guidance.")
    return scale


def from_dict(cls: type[C], values: dict[str, Any], where: str) -> C:
    """Build a (nested) config dataclass; an unknown, missing or mistyped key is an error that names it."""
    if not isinstance(values, dict):
        raise CogVideoError(f"{where} should hold keys and values for {cls.__name__}, not {values!r}.")
    known, hints = [f.name for f in fields(cls)], get_type_hints(cls)
    for key in values:
        if key not in known:
            raise CogVideoError(f"{where}: unknown key {key!r}; known keys are {', '.join(known)}.")
    try:
        return cls(**{key: coerce(hints[key], value, f"{where}: {key}") for key, value in values.items()})
    except TypeError as error:
        raise CogVideoError(f"{where}: {str(error).split('__init__() ')[-1]}.") from None


def coerce(hint: Any, value: Any, where: str) -> Any:
    """A plain value (of JSON, YAML) as the type `hint`; CogVideoError names `where` if it is of another."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        *others, last = sorted((a for a in arguments if a is not type(None)), key=lambda a: a is float)
        for some in others:  # a whole number stays one where both int and float are allowed
            with suppress(CogVideoError):
                return coerce(some, value, where)
        return coerce(last, value, where)
    if hint is object:
        return value
    if origin is Literal:
        if value not in arguments:
            raise CogVideoError(f"{where} must be one of {', '.join(map(repr, arguments))}, not {value!r}.")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(coerce(arguments[0], item, where) for item in value)
    if origin is list and isinstance(value, list):
        return [coerce(arguments[0], item, where) for item in value]
    if isinstance(hint, type) and is_dataclass(hint):
        return from_dict(hint, value, where)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):  # YAML reads 2e-3 as a string
            return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    raise CogVideoError(f"{where} must be of type {getattr(hint, '__name__', hint)}, not {value!r}.")


def to_dict(config: "DataclassInstance") -> dict[str, Any]:
    """A config as plain values, for JSON."""
    return asdict(config)


def load_yaml(path: str | Path, overrides: list[str] = []) -> dict[str, Any]:
    """Read a YAML file of settings and apply `key=value` or `part.key=value` overrides."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise CogVideoError(f"Cannot read the settings {path}: {error}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates that are none; brackets without end
        raise CogVideoError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise CogVideoError(f"{path} should hold keys and values.")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise CogVideoError(f"--set {override!r} should look like key=value.")
        *parents, last = key.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise CogVideoError(f"--set {override!r}: {parent!r} is a value, not a group of settings.")
        try:
            target[last] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise CogVideoError(f"--set {override!r}: {text!r} is not a YAML value.") from None
    return values


def settings_help(cls: type["DataclassInstance"], group: str = "") -> list[tuple[str, str]]:
    """(name and default, choices and comment in the code) of each setting, those of parts included."""
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(cls), re.M))
    rows, hints = [], get_type_hints(cls)
    for setting in fields(cls):
        kind, name = hints[setting.name], f"{group}{setting.name}"
        if isinstance(kind, type) and is_dataclass(kind):
            rows += settings_help(kind, f"{name}.")
            continue
        default = "" if setting.default is MISSING else f" = {setting.default}"
        choices = " or ".join(map(str, get_args(kind))) if get_origin(kind) is Literal else ""
        rows.append((name + default, "; ".join(filter(None, [choices, comments.get(setting.name)]))))
    return rows
