"""The models the simulator has, and what the lists and ``show`` tell of them."""

import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import Any

from proxy.simulator import faults, names

BLOB_DIRECTORY = "/srv/ollama/models/blobs"
TEMPLATE = (
    "{{ if .System }}<|system|>\n{{ .System }}<|end|>\n{{ end }}"
    "<|user|>\n{{ .Prompt }}<|end|>\n<|assistant|>\n"
)
FILL_IN_TEMPLATE = "{{ if .Suffix }}<|prefix|>{{ .Prompt }}<|suffix|>{{ .Suffix }}<|middle|>{{ else }}" + (
    TEMPLATE + "{{ end }}"
)
LICENCE = (
    "Simulated licence, version 1\n\nCopyright of nobody. Licence text that a gateway should not show.\n"
)
_FIRST_MODIFIED = 1_767_225_600  # 2026-01-01, in Unix seconds
_DEFAULT_KEEP_ALIVE = 300.0


@dataclass(frozen=True, slots=True)
class Model:
    """One installed model.

    ``renders``: Ollama renders its prompt itself, which decides what a
    ``num_predict`` of 0 means. ``remote``: it stands for a model elsewhere.
    """

    name: names.Name
    family: str = "simulated"
    parameter_size: str = "1.2B"
    quantization: str = "Q4_K_M"
    capabilities: tuple[str, ...] = ("completion",)
    context_length: int = 8192
    embedding_length: int = 64
    size: int = 815_319_791
    system: str = "You are a simulated model. The operator's secret word is heron."
    template: str = TEMPLATE
    licence: str = LICENCE
    parameters: str = 'stop                           "<|end|>"\ntemperature                    0.7'
    renders: bool = True
    remote: str = ""
    modified: int = _FIRST_MODIFIED

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.name.key.encode()).hexdigest()

    @property
    def thinks(self) -> bool:
        return "thinking" in self.capabilities

    @property
    def embeds(self) -> bool:
        return "embedding" in self.capabilities

    @property
    def modelfile(self) -> str:
        return (
            f"# Modelfile of {self.name.short}\nFROM {BLOB_DIRECTORY}/sha256-{self.digest}\n"
            f'TEMPLATE """{self.template}"""\nSYSTEM """{self.system}"""\nLICENSE """{self.licence}"""\n'
        )

    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization,
            "context_length": self.context_length,
            "embedding_length": self.embedding_length,
        }

    def listed(self) -> dict[str, Any]:
        """The entry in ``/api/tags``."""
        return {
            "name": self.name.short,
            "model": self.name.short,
            **self._remote(),
            "modified_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.modified)),
            "size": self.size,
            "digest": self.digest,
            "details": self.details(),
            "capabilities": list(self.capabilities),
        }

    def shown(self, *, verbose: bool) -> dict[str, Any]:
        """The answer of ``/api/show``; ``verbose`` adds the vocabulary."""
        model_info: dict[str, Any] = {
            "general.architecture": self.family,
            "general.basename": self.name.model,
            "general.parameter_count": 1_235_814_432,
            f"{self.family}.context_length": self.context_length,
            f"{self.family}.embedding_length": self.embedding_length,
            "tokenizer.ggml.tokens": [f"token{n}" for n in range(4096)] if verbose else None,
        }
        answer = {
            "license": self.licence,
            "modelfile": self.modelfile,
            "parameters": self.parameters,
            "template": self.template,
            "system": self.system,
            "details": self.details(),
            "messages": [{"role": "user", "content": "A message baked into the model."}],
            **self._remote(),
            "model_info": model_info,
            "tensors": [
                {"name": "token_embd.weight", "type": "Q4_K", "shape": [self.embedding_length, 4096]}
            ],
            "capabilities": list(self.capabilities),
            "modified_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.modified)),
        }
        return {key: value for key, value in answer.items() if value != ""}

    def _remote(self) -> dict[str, str]:
        return remote_fields(self)


def remote_fields(model: Model) -> dict[str, str]:
    """What every entry and answer line of a model that runs elsewhere carries."""
    return {"remote_model": model.remote, "remote_host": "https://cloud.invalid:443"} if model.remote else {}


def _model(name: str, **facts: Any) -> Model:
    return Model(names.parse(name), **facts)


MODELS = (
    _model("tiny:1b"),
    _model(
        "small:latest",
        parameter_size="3.2B",
        capabilities=("completion", "insert", "vision"),
        context_length=32_768,
        template=FILL_IN_TEMPLATE,
        size=2_019_393_189,
    ),
    _model(
        "emb:latest",
        family="bert",
        parameter_size="137M",
        capabilities=("embedding",),
        context_length=2048,
        system="",
    ),
    _model("thinker:latest", capabilities=("completion", "thinking"), context_length=40_960),
    _model("tools:latest", capabilities=("completion", "tools"), context_length=131_072, renders=False),
)


def _fault_model(name: names.Name) -> Model:
    return Model(name, capabilities=("completion", "embedding", "thinking", "tools", "insert"), system="")


@dataclass(slots=True)
class Running:
    """A loaded model. ``shape`` holds the options that a reload would change."""

    model: Model
    shape: tuple[Any, ...]
    expires_at: float | None

    def expires_text(self) -> str:
        """The instant as ``/api/ps`` shows it; for ever is a date far away."""
        if self.expires_at is None:
            return "2318-03-01T00:00:00Z"
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.expires_at))


@dataclass(slots=True)
class Library:
    """What is installed and what is loaded. ``loads`` counts loads and reloads by short name."""

    installed: dict[str, Model] = field(default_factory=lambda: {m.name.key: m for m in MODELS})
    running: dict[str, Running] = field(default_factory=dict)
    loads: dict[str, int] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)

    def add(self, name: str) -> Model:
        """Install a model under ``name``: the one so called if there is one, else a new plain one."""
        parsed = names.parse(name)
        return self._install(self.find(parsed) or Model(parsed), parsed)

    def copy(self, source: names.Name, destination: names.Name) -> Model:
        """Install a known model under a second name; raise ``KeyError`` if it is not known."""
        model = self.find(source)
        if model is None:
            raise KeyError(source.short)
        return self._install(model, destination)

    def _install(self, model: Model, name: names.Name) -> Model:
        name = replace(name, cloud=False)
        self.installed[name.key] = replace(model, name=name, modified=_FIRST_MODIFIED + len(self.installed))
        return self.installed[name.key]

    def find(self, name: names.Name) -> Model | None:
        """The model a name stands for. A well-formed fault name needs no installing."""
        if name.cloud:
            return Model(
                name, remote=f"{name.model}:{name.tag}", capabilities=("completion", "tools", "embedding")
            )
        if model := self.installed.get(name.key):
            return model
        return _fault_model(name) if faults.of_model(name.model) is not None else None

    def remove(self, name: names.Name) -> bool:
        self.running.pop(name.key, None)
        return self.installed.pop(name.key, None) is not None

    def newest_first(self) -> list[Model]:
        return sorted(self.installed.values(), key=lambda model: (-model.modified, model.name.key))

    def loaded(self) -> list[Running]:
        now = time.time()
        return [
            entry for entry in self.running.values() if entry.expires_at is None or entry.expires_at > now
        ]

    def needs_load(self, model: Model, shape: tuple[Any, ...]) -> bool:
        entry = self.running.get(model.name.key)
        return entry is None or entry not in self.loaded() or entry.shape != shape

    def load(self, model: Model, shape: tuple[Any, ...]) -> None:
        self.loads[model.name.short] = self.loads.get(model.name.short, 0) + 1
        self.running[model.name.key] = Running(model, shape, time.time() + _DEFAULT_KEEP_ALIVE)

    def keep(self, model: Model, keep_alive: float | None) -> None:
        """Set the seconds a loaded model stays; negative is for ever, ``None`` the default, 0 unloads."""
        entry = self.running.get(model.name.key)
        if entry is None:
            return
        if keep_alive == 0:
            del self.running[model.name.key]
        elif keep_alive is not None and keep_alive < 0:
            entry.expires_at = None
        else:
            entry.expires_at = time.time() + (_DEFAULT_KEEP_ALIVE if keep_alive is None else keep_alive)
