"""What tests of the commands share: a place to run them in, and what to read afterwards."""

import gzip
import json
import os
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wandb.proto import wandb_internal_pb2

from tests.commands import forked
from xmod_lab.runs.folder import RunDir
from xmod_lab.stages import finetuning
from xmod_lab.text.parts import EMBEDDED

SMALL = [
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.intermediate_size=64",
    "data.row_length=32",
    "trainer.rows_per_step=16",
    "trainer.checkpoint_every=2",
    "trainer.validate_every=4",
    "trainer.log_every=2",
    "logger=csv",
    "langset=two",
    "data.workers=0",
    "data.score_passages=12",
    "trainer.threads=1",
    "trainer.precision=32-true",
]
FINETUNE = [
    "trainer.max_steps=8",
    "trainer.checkpoint_every=2",
    "trainer.validate_every=2",
    "trainer.log_every=2",
    "logger=csv",
    "task.seeds=2",
]
EXTENSION = ["trainer.max_steps=20", "task.extend.peak_lr=2e-3"]
LANGUAGE_TO_ADD = """# @package lang.{name}
code: {code}
text: {text}
vocabulary_size: 600
"""


@dataclass(frozen=True)
class Workplace:
    """A folder with texts, a configuration folder of one's own, and a finished base run."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def arguments(self, *overrides: str, run: Path | str | None = None) -> list[str]:
        """Arguments of the command, run dir included."""
        place = [] if run is None else [f"hydra.run.dir={run}"]
        sweep = ["-m"] if "-m" in overrides else []  # Hydra wants it first or last
        overrides = tuple(o for o in overrides if o != "-m")
        return [
            *sweep,
            "--config-dir",
            str(self.folder / "conf"),
            *SMALL,
            f"runs={self.folder / 'runs'}",
            *overrides,
            *place,
        ]

    def start(self, *overrides: str, run: Path | str | None = None, **options) -> subprocess.Popen:
        """The command in a process of its own."""
        return self.run(self.arguments(*overrides, run=run), **options)

    def run(
        self, arguments: list[str], *, command: str = "pretrain", **options
    ) -> subprocess.Popen:
        """The command with just these arguments."""
        command = [sys.executable, "-m", f"xmod_lab.{command}", *arguments]
        environment = {**os.environ, "WANDB_SILENT": "true", **options.pop("env", {})}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    def call(
        self, *overrides: str, run: Path | str | None = None, **options
    ) -> tuple[int, str, str]:
        """Exit status, stdout and stderr. With ``options`` of Popen, in a process started anew."""
        if not options:
            return forked.call("pretrain", self.arguments(*overrides, run=run), self.folder)
        process = self.start(*overrides, run=run, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def plain(self, *overrides: str, run: Path | str) -> tuple[int, str, str]:
        """The same at the settings that are shipped, which takes minutes."""
        process = self.run([*overrides, f"hydra.run.dir={run}"])
        out, err = process.communicate(timeout=1500)
        return process.returncode, out, err

    def metrics(self, run: Path) -> dict:
        return json.loads((run / "metrics.json").read_text())


def lines(code: str, count: int) -> str:
    """The first lines of an embedded corpus."""
    with gzip.open(EMBEDDED / f"{code}.train.txt.gz", "rt", encoding="utf-8") as stream:
        return "".join(line for line, _ in zip(stream, range(count), strict=False))


def make_workplace(folder: Path, *, lines_each: int = 2000) -> Workplace:
    """Texts and configuration, without a run."""
    (folder / "conf" / "langset").mkdir(parents=True)
    (folder / "conf" / "lang").mkdir()
    for code in ("en", "de", "el", "sw"):
        (folder / f"{code}.txt").write_text(lines(code, lines_each), encoding="utf-8")
    languages = "\n".join(
        f"  {code}: {{text: {folder / file}}}"
        for code, file in (("en_XX", "en.txt"), ("de_DE", "de.txt"))
    )
    (folder / "conf" / "langset" / "two.yaml").write_text(
        f"vocabulary_size: 1000\nlanguages:\n{languages}\n"
    )
    for name, code in (("greek", "el_GR"), ("swahili", "sw_KE")):
        content = LANGUAGE_TO_ADD.format(name=name, code=code, text=folder / f"{code[:2]}.txt")
        (folder / "conf" / "lang" / f"{name}.yaml").write_text(content)
    return Workplace(folder)


def finetune(cfg, run: RunDir):
    """As the command does it: without Lightning's warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module="pytorch_lightning|lightning_fabric|torch|typing_extensions"
        )
        return finetuning.finetune(cfg, run)


def kill_after(
    process: subprocess.Popen, folder: Path, pattern: str, *, delay: float = 0.0
) -> None:
    """SIGKILL ``delay`` seconds after a file of this pattern is in ``folder``."""
    deadline = time.monotonic() + 300
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    process.communicate()


def folders(sweep: Path) -> list[Path]:
    """Of all jobs of a sweep."""
    return [Path(job["folder"]) for job in json.loads((sweep / "sweep.json").read_text())]


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Records of an offline W&B run: a LevelDB log of protobufs.

    Blocks have 32 KiB; a crc, a length and a kind stand before each part.
    """
    content, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""
